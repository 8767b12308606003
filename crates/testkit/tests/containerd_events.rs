//! What is known of many workspaces stays true whoever changes them, and after a stream of events that was cut.

use std::path::Path;

use futures::StreamExt;
use skep_names::{BotId, container_id_for};
use skep_runtime::{Limits, Runtime, RuntimeError, RuntimeEvent, TaskState};
use skep_testkit::containerd_rig::{ContainerdRig, RigOptions, instance_spec, until};
use skep_testkit::containerd_view::ContainerdView;
use skep_testkit::{CallCounter, ContainerdRelease, UnixProxy};

const SCRIPT: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait; done";
const RUNNING: Option<TaskState> = Some(TaskState::Running);

async fn rig_with_two_workspaces() -> (ContainerdRig, [BotId; 2]) {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(SCRIPT.into()),
        ..Default::default()
    })
    .await;
    let bots = [BotId::random(), BotId::random()];
    for bot in &bots {
        rig.runtime().create(&instance_spec(bot, &rig.image())).await.unwrap();
        rig.runtime().start(bot, &Limits::default()).await.unwrap();
    }
    (rig, bots)
}

async fn tasks(runtime: &dyn Runtime, bots: &[BotId; 2]) -> [Option<TaskState>; 2] {
    let found = runtime.inspect_all(bots).await.unwrap();
    bots.each_ref().map(|bot| found.get(bot).map(|one| one.task))
}

async fn until_tasks(runtime: &dyn Runtime, bots: &[BotId; 2], wanted: [Option<TaskState>; 2]) {
    until("the state of both tasks", async || match tasks(runtime, bots).await {
        seen if seen == wanted => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_to_workspaces_is_in_the_next_answer() {
    let (rig, bots) = rig_with_two_workspaces().await;
    let [one, other] = bots.each_ref().map(container_id_for);
    let runtime = rig.runtime().as_ref();
    for _ in 0..2 {
        assert_eq!(tasks(runtime, &bots).await, [RUNNING, RUNNING]);
    }
    rig.ctr(&["tasks", "kill", "--signal", "KILL", &one]);
    until_tasks(runtime, &bots, [Some(TaskState::Dead), RUNNING]).await;
    rig.ctr(&["tasks", "rm", &one]);
    assert_eq!(tasks(runtime, &bots).await, [Some(TaskState::None), RUNNING]);
    rig.ctr(&["containers", "rm", "--keep-snapshot", &one]);
    assert_eq!(tasks(runtime, &bots).await, [None, RUNNING]);
    // Of a name that says nothing, taken in by its label alone.
    let (label, layer) = (
        format!("{}={}", skep_names::LABEL_BOT, bots[0]),
        rig.ctr(&["snapshots", "ls"]),
    );
    assert!(layer.contains(&one), "{layer}");
    rig.ctr(&[
        "containers",
        "create",
        "--label",
        &label,
        &rig.image().to_string(),
        "renamed",
    ]);
    assert_eq!(tasks(runtime, &bots).await, [Some(TaskState::None), RUNNING]);
    rig.ctr(&["containers", "rm", "renamed"]);
    assert_eq!(tasks(runtime, &bots).await, [None, RUNNING]);
    assert!(!rig.ctr(&["containers", "ls", "-q"]).contains(&one));
    assert!(rig.ctr(&["containers", "ls", "-q"]).contains(&other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stream_that_was_cut_everything_is_asked_for_anew() {
    let (rig, bots) = rig_with_two_workspaces().await;
    let mut proxy = UnixProxy::start(&rig.config().socket).unwrap();
    let behind = rig.server_behind(proxy.socket());
    let mut events = behind.events();
    until_tasks(behind.as_ref(), &bots, [RUNNING, RUNNING]).await;

    proxy.cut().await.unwrap();
    until_told(&mut events, &RuntimeEvent::Disconnected).await;
    let away = behind.inspect_all(&bots).await.unwrap_err();
    assert!(matches!(away, skep_runtime::RuntimeError::Unavailable { .. }), "{away}");
    // By somebody else, in a daemon that lives: no event of it ever comes here.
    rig.ctr(&["tasks", "rm", "--force", &container_id_for(&bots[1])]);
    proxy.mend().unwrap();
    until_told(&mut events, &RuntimeEvent::Reconnected).await;
    assert_eq!(tasks(behind.as_ref(), &bots).await, [RUNNING, Some(TaskState::None)]);
}

async fn until_told(events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>, wanted: &RuntimeEvent) {
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while events.recv().await.unwrap() != *wanted {}
    });
    told.await
        .unwrap_or_else(|_| panic!("{wanted:?} was not told within 20 s"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_containerd_answers_for_none_of_many() {
    let (mut rig, bots) = rig_with_two_workspaces().await;
    let runtime = rig.runtime().clone();
    assert_eq!(tasks(runtime.as_ref(), &bots).await, [RUNNING, RUNNING]);
    rig.server().freeze().unwrap();
    let asked = tokio::time::timeout(std::time::Duration::from_secs(5), runtime.inspect_all(&bots)).await;
    rig.server().thaw().unwrap();
    assert!(
        asked.is_err(),
        "what was known is told as what is now: {:?}",
        asked.map(|answer| answer.map(|found| found.len()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_says_whose_a_container_is_and_a_name_only_without_one() {
    let (rig, [bot, _]) = rig_with_two_workspaces().await;
    let runtime = rig.runtime().as_ref();
    let ours = rig.ctr(&["containers", "info", &container_id_for(&bot)]);
    for label in [
        format!("\"memoh.bot_id\": \"{bot}\""),
        "\"memoh.workspace\": \"v3\"".to_owned(),
    ] {
        assert!(ours.contains(&label), "{ours}");
    }
    assert!(!ours.contains("cdi_devices"), "{ours}");
    let [named, labelled] = [BotId::random(), BotId::random()];
    let (id, label) = (container_id_for(&named), format!("memoh.bot_id={labelled}"));
    rig.ctr(&["containers", "create", "--label", &label, rig.image().as_str(), &id]);
    assert_eq!(runtime.inspect(&named).await.unwrap(), None);
    let found = runtime.inspect(&labelled).await.unwrap().unwrap();
    assert_eq!(found.container_id, id);
    let both = runtime.inspect_all(&[named.clone(), labelled.clone()]).await.unwrap();
    assert_eq!(both.keys().collect::<Vec<_>>(), [&labelled]);
    rig.ctr(&["containers", "rm", &id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_a_container_is_by_its_label_is_known_however_much_others_change() {
    let (rig, _) = rig_with_two_workspaces().await;
    let runtime = rig.runtime().as_ref();
    let label_of = |bot: &BotId| format!("{}={bot}", skep_names::LABEL_BOT);
    let make = |id: &str, bot: &BotId| {
        rig.ctr(&[
            "containers",
            "create",
            "--label",
            &label_of(bot),
            rig.image().as_str(),
            id,
        ]);
    };
    let found = async |bot: &BotId| runtime.inspect(bot).await.unwrap().map(|one| one.container_id);
    let [one, other] = [BotId::random(), BotId::random()];
    assert_eq!(found(&one).await, None);
    make("taken-in", &one);
    assert_eq!(found(&one).await.as_deref(), Some("taken-in"));
    // More than are asked about one by one.
    let many: Vec<(String, BotId)> = (0..20)
        .map(|number| (format!("many-{number}"), BotId::random()))
        .collect();
    for (id, bot) in &many {
        make(id, bot);
    }
    for (id, bot) in &many {
        assert_eq!(found(bot).await.as_ref(), Some(id));
    }
    rig.ctr(&["containers", "label", "taken-in", &label_of(&other)]);
    assert_eq!(found(&one).await, None);
    assert_eq!(found(&other).await.as_deref(), Some("taken-in"));
    rig.ctr(&["containers", "rm", "taken-in"]);
    assert_eq!(found(&other).await, None);
    for (id, _) in &many {
        rig.ctr(&["containers", "rm", id]);
    }
}

/// Of all releases: what is known of layers stands on the events that each of them tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_others_make_and_take_away_are_in_the_next_answer() {
    for release in [
        ContainerdRelease::Installed,
        ContainerdRelease::V1_7,
        ContainerdRelease::V2,
    ] {
        let rig = ContainerdRig::start_with(RigOptions {
            release,
            ..Default::default()
        })
        .await;
        ContainerdView::new(&rig.config().socket)
            .make_layers_of_others(&rig.config().namespace)
            .await;
        let runtime = rig.runtime().as_ref();
        let [bot, other] = [BotId::random(), BotId::random()];
        let has = async |bot: &BotId| runtime.has_layer(bot).await.unwrap();
        let name = |rest: &str| format!("{}-{rest}", container_id_for(&bot));
        assert!(!has(&bot).await, "{release:?}");
        rig.ctr(&["snapshots", "prepare", &name("one"), ""]);
        assert!(has(&bot).await, "{release:?}: made");
        rig.ctr(&["snapshots", "commit", &name("kept"), &name("one")]);
        assert!(has(&bot).await, "{release:?}: committed");
        rig.ctr(&["snapshots", "prepare", &name("two"), &name("kept")]);
        rig.ctr(&["snapshots", "rm", &name("two")]);
        assert!(has(&bot).await, "{release:?}: the lower one stays");
        rig.ctr(&["snapshots", "rm", &name("kept")]);
        assert!(!has(&bot).await, "{release:?}: removed");
        // More than are asked about one by one.
        for number in 0..70 {
            rig.ctr(&["snapshots", "prepare", &format!("foreign-{number}"), ""]);
        }
        rig.ctr(&["snapshots", "prepare", &name("three"), ""]);
        assert!(has(&bot).await, "{release:?}: made after many");
        rig.ctr(&["snapshots", "commit", "foreign", &name("three")]);
        assert!(!has(&bot).await, "{release:?}: committed under a name that is nobody's");
        // No event tells of a label: a list of all does, which every comparison makes.
        let label = format!("{}={other}", skep_names::LABEL_BOT);
        rig.ctr(&["snapshots", "label", "foreign", &label]);
        assert_eq!(
            runtime.bots_with_layers().await.unwrap(),
            std::slice::from_ref(&other),
            "{release:?}"
        );
        assert!(has(&other).await, "{release:?}: labelled");
        assert!(!has(&bot).await, "{release:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_gone_without_an_event_has_all_listed() {
    let (rig, bot) = (ContainerdRig::start().await, BotId::random());
    let (runtime, view) = (rig.runtime().as_ref(), ContainerdView::new(&rig.config().socket));
    let [known, unseen] = [format!("{}-known", container_id_for(&bot)), "unseen".to_owned()];
    view.make_layers_of_others(&rig.config().namespace).await;
    rig.ctr(&["snapshots", "prepare", &known, ""]);
    rig.ctr(&["snapshots", "prepare", &unseen, ""]);
    assert!(runtime.has_layer(&bot).await.unwrap());
    // Neither a label nor, in some releases, the collection of garbage is told.
    rig.ctr(&[
        "snapshots",
        "label",
        &unseen,
        &format!("{}={bot}", skep_names::LABEL_BOT),
    ]);
    rig.ctr(&["snapshots", "label", &known, "containerd.io/gc.root="]);
    view.collect_garbage().await;
    let left = rig.ctr(&["snapshots", "ls"]);
    assert!(!left.contains(&known) && left.contains(&unseen), "{left}");
    assert!(runtime.has_layer(&bot).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_was_made_while_the_stream_was_cut_is_found() {
    let (mut rig, bots) = (ContainerdRig::start().await, [BotId::random(), BotId::random()]);
    let mut proxy = UnixProxy::start(&rig.config().socket).unwrap();
    let behind = rig.server_behind(proxy.socket());
    let mut events = behind.events();
    until("an answer by what is known", async || {
        match behind.has_layer(&bots[0]).await {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    proxy.cut().await.unwrap();
    until_told(&mut events, &RuntimeEvent::Disconnected).await;
    rig.ctr(&[
        "snapshots",
        "prepare",
        &format!("{}-cut", container_id_for(&bots[0])),
        "",
    ]);
    proxy.mend().unwrap();
    until_told(&mut events, &RuntimeEvent::Reconnected).await;
    assert!(behind.has_layer(&bots[0]).await.unwrap());

    rig.server().kill().unwrap();
    until_told(&mut events, &RuntimeEvent::Disconnected).await;
    rig.server().start_again().await.unwrap();
    rig.ctr(&[
        "snapshots",
        "prepare",
        &format!("{}-new", container_id_for(&bots[1])),
        "",
    ]);
    until("the layer that the new one was given", async || {
        match behind.has_layer(&bots[1]).await {
            Ok(true) => Ok(()),
            // The connection breaks once more.
            Err(skep_runtime::RuntimeError::Unavailable { .. }) => Err("away".to_owned()),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

/// A list is as long as there are workspaces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_verb_of_one_workspace_makes_containerd_list_all() {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(SCRIPT.into()),
        ..Default::default()
    })
    .await;
    let counter = CallCounter::start(&rig.config().socket).unwrap();
    let runtime = rig.server_behind(counter.socket());
    let lists = || {
        let of_containers =
            ["List", "ListStream"].map(|method| format!("containerd.services.containers.v1.Containers/{method}"));
        let of_layers = "containerd.services.snapshots.v1.Snapshots/List".to_owned();
        let paths = of_containers.into_iter().chain([of_layers]);
        paths.map(|path| counter.count(&format!("/{path}"))).sum::<usize>()
    };
    ContainerdView::new(&rig.config().socket)
        .make_layers_of_others(&rig.config().namespace)
        .await;
    let mut before = None;
    // One after the first that asks for none is enough: a stream that was cut and is back lists all too.
    for left in (0..5).rev() {
        let bot = BotId::random();
        assert_eq!(runtime.inspect(&bot).await.unwrap(), None);
        assert!(!runtime.has_layer(&bot).await.unwrap());
        runtime.create(&instance_spec(&bot, &rig.image())).await.unwrap();
        runtime.start(&bot, &Limits::default()).await.unwrap();
        assert_eq!(
            tasks(runtime.as_ref(), &[bot.clone(), bot.clone()]).await,
            [RUNNING, RUNNING]
        );
        runtime.stop(&bot, std::time::Duration::from_secs(5)).await.unwrap();
        let layers = runtime.layers().unwrap();
        layers
            .commit(&bot, &format!("{}-version", container_id_for(&bot)))
            .await
            .unwrap();
        runtime.start(&bot, &Limits::default()).await.unwrap();
        runtime.remove(&bot).await.unwrap();
        assert!(!runtime.has_layer(&bot).await.unwrap());
        // What is known from then on was listed for the first.
        let now = lists();
        match before.replace(now) {
            None => assert!(now > 0, "lists are not counted"),
            Some(before) if before == now => return,
            Some(before) => assert!(left > 0, "{before} lists became {now}"),
        }
    }
}

/// It comes once a minute, for each that runs, and each answer is a shim's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_asks_only_about_those_of_which_events_and_kernel_do_not_tell_alike() {
    let (rig, bots) = rig_with_two_workspaces().await;
    let counter = CallCounter::start(&rig.config().socket).unwrap();
    let runtime = rig.server_behind(counter.socket());
    let asked = || {
        let counts = ["Get", "List"].map(|verb| counter.count(&format!("/containerd.services.tasks.v1.Tasks/{verb}")));
        counts.iter().sum::<usize>()
    };
    runtime.sweep().await.unwrap();
    assert!(asked() > 0, "nothing was known, or questions are not counted");
    let sweep = async || {
        let before = asked();
        runtime.sweep().await.unwrap();
        let listed = runtime.list().await.unwrap();
        let found = bots
            .each_ref()
            .map(|bot| listed.iter().find(|one| one.bot == *bot).map(|one| one.task));
        assert_eq!(found, [RUNNING, RUNNING]);
        asked() - before
    };
    // An event of the starts may come late, and what was known is forgotten with it.
    until("a sweep that asks nothing", async || match sweep().await {
        0 => Ok(()),
        more => Err(format!("{more} questions")),
    })
    .await;
    // As if it had ended and the event were lost.
    let group = format!(
        "{}/workspace-{}",
        rig.config().cgroup_parent.trim_start_matches('/'),
        bots[0]
    );
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let root = roots
        .into_iter()
        .find(|root| root.join(&group).is_dir())
        .expect("its cgroup");
    while let Some(pid) = std::fs::read_to_string(root.join(&group).join("cgroup.procs"))
        .unwrap()
        .lines()
        .next()
    {
        // A short one has ended meanwhile.
        match std::fs::write(root.join("cgroup.procs"), pid) {
            Ok(()) | Err(_) => {}
        }
    }
    assert!(sweep().await >= 2, "by the sweep and by the list");
}

/// It comes once a minute, for each that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_storage_of_many_is_counted_with_one_question_about_each() {
    let (rig, some) = rig_with_two_workspaces().await;
    let counter = CallCounter::start(&rig.config().socket).unwrap();
    let runtime = rig.server_behind(counter.socket());
    let mut bots = some.to_vec();
    for _ in 0..3 {
        let bot = BotId::random();
        runtime.create(&instance_spec(&bot, &rig.image())).await.unwrap();
        bots.push(bot);
    }
    // Their layers differ.
    for (number, bot) in bots.iter().enumerate() {
        std::fs::write(rig.layer_on_disk(bot).join("held"), vec![1; (number + 1) << 20]).unwrap();
    }
    let mut alone = Vec::new();
    for bot in &bots {
        alone.push(runtime.storage_held(bot).await.unwrap());
    }
    assert!(alone.is_sorted_by(|one, next| one.bytes < next.bytes), "{alone:?}");
    let absent = BotId::random();
    bots.insert(2, absent);
    let asked = |path: &str| counter.count(&format!("/containerd.services.{path}"));
    let mut added = (0, 0, 0);
    // One of several is enough: a stream that was cut and is back asks too.
    for _ in 0..4 {
        runtime.list().await.unwrap();
        let questions = || {
            let others = asked("containers.v1.Containers/Get") + asked("snapshots.v1.Snapshots/Stat");
            (
                asked("snapshots.v1.Snapshots/Usage"),
                others,
                asked("snapshots.v1.Snapshots/List"),
            )
        };
        let before = questions();
        let mut together: Vec<_> = runtime.storage_held_by(&bots).collect().await;
        let of_absent = together.remove(2);
        assert!(matches!(of_absent, Err(RuntimeError::NotFound { .. })), "{of_absent:?}");
        let together: Vec<_> = together.into_iter().map(Result::unwrap).collect();
        assert_eq!(together, alone);
        let after = questions();
        added = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        // Of the one that is not there its container is asked for, and its layers among all.
        if added.0 == alone.len() && added.1 <= 1 && added.2 <= 3 {
            break;
        }
    }
    assert!(
        added.0 == alone.len() && added.1 <= 1 && added.2 <= 3,
        "{added:?} questions"
    );
    // A layer that was committed since all were listed has another name.
    let last = bots.last().unwrap();
    let counts: Vec<_> = {
        let mut counts = runtime.storage_held_by(&bots);
        counts.next().await.unwrap().unwrap();
        let layers = runtime.layers().unwrap();
        layers
            .commit(last, &format!("{}-version", container_id_for(last)))
            .await
            .unwrap();
        counts.collect().await
    };
    let of_last = counts.into_iter().next_back().unwrap().unwrap();
    assert!(of_last.bytes >= alone.last().unwrap().bytes, "{of_last:?}");
}
