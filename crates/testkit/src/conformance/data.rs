//! Layers keep their bytes.

use skep_runtime::LayerOutcome;

use super::{Subject, Workspace};

/// Writes files of some kinds and tells what was written.
const WRITE: &str = "mkdir -p /data/deep && echo one > /data/deep/file && ln -s deep/file /data/link && \
    head -c 300000 /dev/urandom > /opt-random && chmod 750 /opt-random && rm -f /bin/arping";
/// Says the same as long as no byte, name or mode has changed.
const READ: &str = "cat /data/deep/file; readlink /data/link; sha256sum /opt-random; stat -c %a:%u:%g /opt-random; \
    ls /bin | wc -l; test -e /bin/arping || echo gone";

/// Create on a workspace that runs, and on one that is stopped.
pub async fn a_second_create_keeps_every_byte(subject: &dyn Subject) {
    let workspace = Workspace::new(subject);
    assert_eq!(workspace.create().await.layer, LayerOutcome::Made);
    workspace.start().await;
    workspace.output(WRITE).await;
    let written = workspace.output(READ).await;
    assert_eq!(workspace.create().await.layer, LayerOutcome::Kept);
    assert_eq!(workspace.output(READ).await, written);
    workspace.stop().await;
    assert_eq!(workspace.create().await.layer, LayerOutcome::Kept);
    workspace.start().await;
    assert_eq!(workspace.output(READ).await, written);
    workspace.remove().await;
}

/// What restarting must never lose.
pub async fn a_stop_and_a_start_keep_every_byte(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    workspace.output(WRITE).await;
    let written = workspace.output(READ).await;
    for _ in 0..3 {
        workspace.stop().await;
        workspace.start().await;
        assert_eq!(workspace.output(READ).await, written);
    }
    workspace.remove().await;
}

/// Removing is the only thing that removes a layer; a new one is empty above its image.
pub async fn a_layer_without_a_container_is_used_again(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    workspace.output(WRITE).await;
    assert!(runtime.bots_with_layers().await.unwrap().contains(&workspace.bot));
    assert!(runtime.has_layer(&workspace.bot).await.unwrap());
    workspace.remove().await;
    assert!(!runtime.bots_with_layers().await.unwrap().contains(&workspace.bot));
    assert!(!runtime.has_layer(&workspace.bot).await.unwrap());
    assert_eq!(workspace.create().await.layer, LayerOutcome::Made);
    workspace.start().await;
    assert_eq!(
        workspace.output("ls /data; test -e /bin/arping && echo there").await,
        "there"
    );
    workspace.remove().await;
}
