//! The fake runtime keeps what a real one keeps and ends what a real one ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_names::{BotId, ImageReference};
use skep_runtime::{
    InstanceSpec, LayerOutcome, LayerPhase, LayerProgress, Limits, PullProgress, Runtime, RuntimeError, RuntimeEvent,
    TaskState,
};
use skep_testkit::fake_runtime::{FAKE_IMAGE, FakeLayer, FakeRuntime, Verb};

/// How long anything may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn spec(bot: &BotId) -> InstanceSpec {
    InstanceSpec {
        bot: bot.clone(),
        image: FAKE_IMAGE.parse().unwrap(),
        snapshotter: None,
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        cdi_devices: Vec::new(),
        labels: BTreeMap::new(),
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn process_one_runs_below_its_own_root_and_its_end_is_an_event() {
    let runtime = FakeRuntime::new().unwrap();
    let bot = BotId::random();
    assert_eq!(runtime.create(&spec(&bot)).await.unwrap().layer, LayerOutcome::Made);
    let script =
        "echo $GREETING $$ > /told; test -c /dev/null && test -d /proc/1 && echo good >> /told; exec sleep 600";
    runtime.replace_process_one(&bot, &["/bin/sh", "-c", script]);
    let mut events = runtime.events();
    assert!(!runtime.start(&bot, &Limits::default()).await.unwrap().already_running);
    let told = runtime.layer_path(&bot).join("told");
    until("process 1 wrote its file", || {
        std::fs::read_to_string(&told).is_ok_and(|text| text == "hello 1\ngood\n")
    })
    .await;
    assert!(runtime.start(&bot, &Limits::default()).await.unwrap().already_running);
    assert_eq!(runtime.inspect(&bot).await.unwrap().unwrap().task, TaskState::Running);

    assert!(runtime.kill_process_one(&bot).unwrap());
    let event = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    assert_eq!(
        event,
        RuntimeEvent::TaskExited {
            bot: bot.clone(),
            exit_status: 137
        }
    );
    assert_eq!(runtime.inspect(&bot).await.unwrap().unwrap().task, TaskState::Dead);
    assert_eq!(runtime.create(&spec(&bot)).await.unwrap().layer, LayerOutcome::Kept);
    assert!(told.exists(), "a second create changed the layer");
}

#[tokio::test]
async fn dropping_the_runtime_ends_every_process_and_removes_every_directory() {
    let runtime = FakeRuntime::new().unwrap();
    let bot = BotId::random();
    runtime.create(&spec(&bot)).await.unwrap();
    runtime.replace_process_one(&bot, &["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    runtime.start(&bot, &Limits::default()).await.unwrap();
    let (pid, layer) = (runtime.host_pid(&bot).unwrap(), runtime.layer_path(&bot));
    drop(runtime);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!layer.exists());
}

#[tokio::test]
async fn faults_fail_hold_and_count() {
    let runtime = FakeRuntime::new().unwrap();
    let bot = BotId::random();
    let faults = runtime.faults().clone();
    faults.fail_next(
        Verb::Create,
        RuntimeError::NoSpace {
            operation: "copy".into(),
        },
    );
    assert!(matches!(
        runtime.create(&spec(&bot)).await,
        Err(RuntimeError::NoSpace { .. })
    ));
    let hold = faults.hold(Verb::Create);
    let (held, held_bot) = (runtime.clone(), bot.clone());
    let creating = tokio::spawn(async move { held.create(&spec(&held_bot)).await.map(|_| ()) });
    until("the second create has begun", || faults.calls(Verb::Create) == 2).await;
    assert!(!creating.is_finished());
    drop(hold);
    creating.await.unwrap().unwrap();
    runtime.go_away();
    assert!(matches!(runtime.list().await, Err(RuntimeError::Unavailable { .. })));
    runtime.come_back();
    assert_eq!(runtime.list().await.unwrap().len(), 1);
}

#[derive(Default)]
struct Seen(Mutex<Vec<LayerProgress>>);

impl PullProgress for Seen {
    fn layers(&self, layers: &[LayerProgress]) {
        self.0.lock().unwrap().extend_from_slice(layers);
    }
    fn layer(&self, layer: &LayerProgress) {
        self.0.lock().unwrap().push(layer.clone());
    }
}

#[tokio::test]
async fn a_pull_tells_its_layers_and_an_unknown_image_is_not_found() {
    let runtime = FakeRuntime::new().unwrap();
    let reference: ImageReference = "registry.test/tools:1".parse().unwrap();
    let seen = Arc::new(Seen::default());
    let missing = runtime.pull(&reference, seen.clone()).await;
    assert!(matches!(missing, Err(RuntimeError::ImageNotFound { .. })));
    let layer = |size_bytes| FakeLayer {
        size_bytes,
        takes: Duration::from_millis(8),
    };
    runtime.offer_image(&reference, vec![layer(1000), layer(77)]);
    assert_eq!(runtime.pull(&reference, seen.clone()).await.unwrap().size_bytes, 1077);
    let last = seen.0.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.offset, last.total, last.phase), (77, 77, LayerPhase::Done));
    assert!(runtime.image(&reference).await.unwrap().is_some());
}
