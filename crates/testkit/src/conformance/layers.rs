//! States of a workspace are kept, gone back to and let go of.

use skep_names::container_id_for;
use skep_runtime::{LayerKind, LayerMount, LayerRecord, Layers, RuntimeError};

use super::{Subject, Workspace};

/// The layers of a subject.
fn layers(runtime: &dyn skep_runtime::Runtime) -> &dyn Layers {
    runtime.layers().expect("a backend with layers")
}

fn named(workspace: &Workspace<'_>, suffix: &str) -> String {
    format!("{}-{suffix}", container_id_for(&workspace.bot))
}

fn names(layers: &[LayerRecord]) -> Vec<&str> {
    layers.iter().map(|layer| layer.name.as_str()).collect()
}

/// Commit, change, go back, and forth again: every state is whole, and the present one is where it should be.
pub async fn a_committed_state_can_be_gone_back_to(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let (one, two, back) = (
        named(&workspace, "one"),
        named(&workspace, "two"),
        named(&workspace, "back"),
    );
    workspace.output("echo one > /data-file; chmod 711 /").await;
    workspace.stop().await;
    // Repeats change nothing.
    for _ in 0..2 {
        layers.commit(bot, &one).await.unwrap();
    }
    assert!(layers.is_unchanged(bot).await.unwrap());
    workspace.start().await;
    assert_eq!(workspace.output("cat /data-file; stat -c %a /").await, "one\n711");
    workspace.stop().await;
    assert!(layers.is_unchanged(bot).await.unwrap(), "a start alone writes nothing");
    workspace.start().await;
    workspace.output("echo two > /data-file; rm -f /bin/arping").await;
    workspace.stop().await;
    assert!(!layers.is_unchanged(bot).await.unwrap());
    layers.commit(bot, &two).await.unwrap();
    for _ in 0..2 {
        layers.stage(bot, &back, &one).await.unwrap();
    }
    for _ in 0..2 {
        layers.swap(bot, &back).await.unwrap();
    }
    layers.commit(bot, &two).await.unwrap();
    workspace.start().await;
    let looked = workspace
        .output("cat /data-file; stat -c %a /; test -e /bin/arping && echo there")
        .await;
    assert_eq!(looked, "one\n711\nthere");
    let tree = layers.list(bot).await.unwrap();
    assert_eq!(names(&tree.line)[..2], [back.as_str(), one.as_str()]);
    assert_eq!(tree.line[0].kind, LayerKind::Active);
    assert_eq!(names(&tree.side), [two.as_str()], "the layer that was left is gone");
    assert_eq!(layers.present(bot).await.unwrap(), Some(back));
    assert!(layers.bytes(bot, &two).await.unwrap() > 0);
    workspace.remove().await;
}

/// What was written and not committed stops a swap, which then has changed nothing.
pub async fn a_layer_that_holds_something_is_never_left(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let (one, back) = (named(&workspace, "one"), named(&workspace, "back"));
    workspace.stop().await;
    layers.commit(bot, &one).await.unwrap();
    layers.stage(bot, &back, &one).await.unwrap();
    workspace.start().await;
    workspace.output("echo precious > /data-file").await;
    workspace.stop().await;
    let refused = layers.swap(bot, &back).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Rejected { .. }), "{refused:?}");
    let refused = layers.discard(bot, &layers.present(bot).await.unwrap().unwrap()).await;
    assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    for _ in 0..2 {
        layers.discard(bot, &back).await.unwrap();
    }
    let gone = layers.swap(bot, &back).await.unwrap_err();
    assert!(matches!(gone, RuntimeError::NotFound { .. }), "{gone:?}");
    workspace.start().await;
    assert_eq!(workspace.output("cat /data-file").await, "precious");
    workspace.remove().await;
}

/// A change that is adopted is there; one that is discarded, or not decided, never was.
pub async fn a_change_from_outside_is_all_or_nothing(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    workspace.output("mkdir -p /data; echo before > /data/file").await;
    workspace.stop().await;
    let mount = layers.stage_change(bot, "first").await.unwrap();
    write_into(&mount, "data/file", "first");
    workspace.start().await;
    assert_eq!(workspace.output("cat /data/file").await, "before", "not adopted yet");
    workspace.stop().await;
    for _ in 0..2 {
        layers.discard_change(bot, "first").await.unwrap();
    }
    for _ in 0..2 {
        let mount = layers.stage_change(bot, "second").await.unwrap();
        write_into(&mount, "data/file", "second");
    }
    for _ in 0..2 {
        layers.adopt_change(bot, "second").await.unwrap();
    }
    workspace.start().await;
    assert_eq!(workspace.output("cat /data/file").await, "second");
    workspace.remove().await;
}

/// Writes a file as somebody does who has mounted the layer: into the directory that takes what is written.
fn write_into(mount: &LayerMount, path: &str, text: &str) {
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let file = std::path::Path::new(upper.unwrap_or(&mount.source)).join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, format!("{text}\n")).unwrap();
}

/// In the middle of a line and at its end.
pub async fn a_released_state_goes_when_nothing_stands_on_it(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let states: Vec<String> = ["one", "two", "three"].map(|name| named(&workspace, name)).into();
    let back = named(&workspace, "back");
    workspace.stop().await;
    for state in &states {
        workspace.start().await;
        workspace.output(&format!("echo {state} > /data-file")).await;
        workspace.stop().await;
        layers.commit(bot, state).await.unwrap();
    }
    let present = layers.present(bot).await.unwrap().unwrap();
    let refused = layers.release(bot, &present).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Rejected { .. }), "{refused:?}");
    layers.release(bot, &states[1]).await.unwrap();
    let tree = layers.list(bot).await.unwrap();
    assert!(
        names(&tree.line).contains(&states[1].as_str()),
        "the third stands on it"
    );
    layers.stage(bot, &back, &states[0]).await.unwrap();
    layers.swap(bot, &back).await.unwrap();
    for _ in 0..2 {
        layers.release(bot, &states[2]).await.unwrap();
    }
    let tree = layers.list(bot).await.unwrap();
    assert_eq!(names(&tree.line)[..2], [back.as_str(), states[0].as_str()]);
    assert!(tree.side.is_empty(), "{:?}", names(&tree.side));
    workspace.start().await;
    assert_eq!(workspace.output("cat /data-file").await, states[0]);
    workspace.remove().await;
}

/// Without a container the counts decide, not the names and not the clock.
pub async fn a_lost_container_comes_back_on_its_newest_state(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let (one, back, later) = (
        named(&workspace, "one"),
        named(&workspace, "back"),
        named(&workspace, "later"),
    );
    workspace.stop().await;
    layers.commit(bot, &one).await.unwrap();
    layers.stage(bot, &back, &one).await.unwrap();
    layers.swap(bot, &back).await.unwrap();
    workspace.start().await;
    workspace.output("echo newest > /data-file").await;
    workspace.stop().await;
    // Newer than the present one, and nobody's state.
    layers.stage(bot, &later, &one).await.unwrap();
    subject.lose_container(bot);
    assert!(runtime.inspect(bot).await.unwrap().is_none());
    assert!(runtime.bots_with_layers().await.unwrap().contains(bot));
    assert!(runtime.has_layer(bot).await.unwrap());
    assert_eq!(layers.present(bot).await.unwrap(), Some(back));
    assert_eq!(workspace.create().await.layer, skep_runtime::LayerOutcome::Kept);
    workspace.start().await;
    assert_eq!(workspace.output("cat /data-file").await, "newest");
    workspace.remove().await;
}

/// States that nobody needs are merged into the one above, and nothing that is kept looks otherwise for it.
pub async fn a_long_line_is_made_shorter(subject: &dyn Subject) {
    const LOOK: &str = "cat /kept; ls /data; test -e /data/two || echo gone; cat /data/linked; test /data/linked -ef /data/other && echo same; \
        ls /opt-made; stat -c %a:%Y /opt-made; test -e /bin/arping || echo hidden";
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let states: Vec<String> = (0..6)
        .map(|number| named(&workspace, &format!("state-{number}")))
        .collect();
    for (number, state) in states.iter().enumerate() {
        let script = match number {
            0 => "mkdir -p /data /opt-made; echo a > /data/one; echo b > /data/two; echo old > /opt-made/x",
            1 => "rm /data/two; rm -f /bin/arping; echo l > /data/linked; ln /data/linked /data/other",
            2 => "rm -r /opt-made; mkdir /opt-made; echo new > /opt-made/y; chmod 2750 /opt-made",
            3 => "mkdir /data/two; echo in > /data/two/in; touch -t 200001020304 /opt-made",
            _ => "rm -rf /data/two; echo more >> /data/one",
        };
        workspace.output(&format!("{script}; echo {number} > /kept")).await;
        workspace.stop().await;
        layers.commit(bot, state).await.unwrap();
        workspace.start().await;
    }
    let expected = workspace.output(LOOK).await;
    workspace.stop().await;
    for released in [1, 2, 4] {
        layers.release(bot, &states[released]).await.unwrap();
    }
    let before = layers.list(bot).await.unwrap();
    let mut merged = layers.shorten(bot, "op", &states[5]).await.unwrap();
    assert_eq!(
        layers.shorten(bot, "op", &states[5]).await.unwrap(),
        merged,
        "a repeat finds what was made"
    );
    let highest = merged.last().map_or(states[5].clone(), |(_, new)| new.clone());
    let (copy, top) = (named(&workspace, "copy"), named(&workspace, "top"));
    // The present was committed meanwhile, as a snapshot does.
    let last = named(&workspace, "last");
    layers.commit(bot, &last).await.unwrap();
    for _ in 0..2 {
        layers.rebase(bot, &last, (&highest, &copy)).await.unwrap();
    }
    layers.stage(bot, &top, &copy).await.unwrap();
    layers.swap(bot, &top).await.unwrap();
    merged.push((last, copy));
    for (old, _) in merged.iter().rev() {
        layers.release(bot, old).await.unwrap();
    }
    workspace.start().await;
    assert_eq!(workspace.output(LOOK).await, expected);
    let after = layers.list(bot).await.unwrap();
    // Two of the three are gone, and one was added.
    assert!(after.line.len() < before.line.len(), "{:?}", names(&after.line));
    let left = names(&after.side);
    assert!(left.is_empty(), "{left:?}");
    let third = merged
        .iter()
        .find(|(old, _)| *old == states[3])
        .map_or(&states[3], |(_, new)| new);
    let back = named(&workspace, "back");
    workspace.stop().await;
    if !layers.is_unchanged(bot).await.unwrap() {
        layers.commit(bot, &named(&workspace, "saved")).await.unwrap();
    }
    layers.stage(bot, &back, third).await.unwrap();
    layers.swap(bot, &back).await.unwrap();
    workspace.start().await;
    assert_eq!(workspace.output("cat /kept /data/two/in").await, "3\nin");
    workspace.remove().await;
}

/// The copy that a failed operation leaves is no newer state than what is written after it.
pub async fn what_is_written_after_a_rebase_is_the_newest_state(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let [one, last, copy] = ["one", "last", "copy"].map(|name| named(&workspace, name));
    workspace.stop().await;
    layers.commit(bot, &one).await.unwrap();
    layers.commit(bot, &last).await.unwrap();
    layers.rebase(bot, &last, (&one, &copy)).await.unwrap();
    workspace.start().await;
    workspace.output("echo after > /after").await;
    workspace.stop().await;
    subject.lose_container(bot);
    workspace.create().await;
    workspace.start().await;
    assert_eq!(workspace.output("cat /after").await, "after");
    layers.release(bot, &copy).await.unwrap();
    let tree = layers.list(bot).await.unwrap();
    assert!(!names(&tree.side).contains(&copy.as_str()), "{tree:?}");
    workspace.remove().await;
}

/// A fresh layer beside the one that there is takes its place when no container says otherwise, and nothing is lost.
pub async fn a_fresh_layer_is_made_the_newest_beside_the_others(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let (bot, layers) = (&workspace.bot, layers(&*runtime));
    let (one, fresh) = (named(&workspace, "one"), named(&workspace, "fresh"));
    workspace.output("echo one > /data-file").await;
    workspace.stop().await;
    layers.commit(bot, &one).await.unwrap();
    let image = subject.image();
    for _ in 0..2 {
        layers.stage_fresh(bot, &fresh, &image).await.unwrap();
    }
    let refused = layers.make_newest(bot, &fresh).await;
    assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    subject.lose_container(bot);
    for _ in 0..2 {
        layers.make_newest(bot, &fresh).await.unwrap();
    }
    workspace.create().await;
    assert_eq!(layers.present(bot).await.unwrap().as_deref(), Some(fresh.as_str()));
    workspace.start().await;
    assert_eq!(workspace.output("cat /data-file || echo none").await, "none");
    workspace.stop().await;
    let tree = layers.list(bot).await.unwrap();
    assert!(names(&tree.side).contains(&one.as_str()), "{tree:?}");
    workspace.remove().await;
}
