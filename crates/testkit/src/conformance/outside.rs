//! `/data` is read and written from outside while no workspace runs, and nothing else can be reached by it.

use std::time::Duration;

use futures::{StreamExt, stream};
use skep_runtime::RuntimeError;
use skep_runtime::layer_access::{
    Apply, ApplyMode, ArchiveFormat, ArchiveStream, DataPlace, LayerAccess, Pack, Packed, Trust,
};
use skep_runtime::{Result, Runtime};

use super::{Subject, Workspace};

/// What is written inside, and told again.
const WRITE: &str = "mkdir -p /data/deep && echo one > /data/deep/file && ln /data/deep/file /data/hard && \
    ln -s /etc/shadow /data/link && mkfifo /data/pipe && : > /data/empty && chown 1000:1000 /data/hard && \
    chmod 4751 /data/empty && rm -f /bin/arping && echo outside > /not-data";
const READ: &str = "cd /data && find . | sort && stat -c '%n %a %u:%g %h %s %Y' deep deep/file hard pipe empty && \
    cat hard && readlink link";

/// How long a workspace may stand still.
const LIMIT: Duration = Duration::from_secs(60);

const PACK: Pack = Pack {
    format: ArchiveFormat::TarGz,
    trust: Trust::Ours,
};

fn access(runtime: &dyn Runtime) -> &dyn LayerAccess {
    runtime.layer_access().expect("a backend whose layers can be reached")
}

async fn read(runtime: &dyn Runtime, place: &DataPlace) -> Result<(Vec<u8>, Packed)> {
    let mut reader = access(runtime).read_data(place, PACK).await?;
    let mut archive = Vec::new();
    while let Some(chunk) = reader.next_chunk().await? {
        archive.extend_from_slice(&chunk);
    }
    let packed = *reader.packed().expect("an archive that was read to its end");
    Ok((archive, packed))
}

fn once(archive: Vec<u8>) -> ArchiveStream {
    stream::iter([Ok(archive.into())]).boxed()
}

fn replace(trust: Trust) -> Apply {
    Apply {
        mode: ApplyMode::Replace,
        trust,
    }
}

/// An archive of one workspace's `/data` makes another's the same, with kinds, owners, modes and times.
pub async fn data_is_carried_from_one_workspace_to_another(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let (from, to) = (Workspace::running(subject).await, Workspace::running(subject).await);
    from.output(WRITE).await;
    let written = from.output(READ).await;
    to.output("mkdir -p /data && echo old > /data/old && echo mine > /not-data")
        .await;
    let place = |workspace: &Workspace<'_>| DataPlace::Workspace(workspace.bot.clone());
    let running = read(&*runtime, &place(&from)).await;
    assert!(matches!(running, Err(RuntimeError::Rejected { .. })), "{running:?}");
    from.stop().await;
    to.stop().await;
    let (archive, packed) = read(&*runtime, &place(&from)).await.expect("an archive");
    assert_eq!(packed.skipped, 0);
    let target = place(&to);
    for _ in 0..2 {
        let applied = access(&*runtime).write_data(&target, once(archive.clone()), replace(Trust::Ours));
        assert_eq!(applied.await.expect("applied").entries, packed.entries);
    }
    to.start().await;
    assert_eq!(to.output(READ).await, written);
    assert_eq!(
        to.output("cat /not-data; test -e /bin/arping && echo there").await,
        "mine\nthere"
    );
    from.start().await;
    assert_eq!(from.output(READ).await, written);
    from.remove().await;
    to.remove().await;
}

/// `/data` as a link to anything, and as a file: refused, for reading and for writing; nothing there: made.
pub async fn data_that_is_no_directory_is_refused(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let place = DataPlace::Workspace(workspace.bot.clone());
    let canary = tempfile::tempdir().expect("a directory");
    std::fs::write(canary.path().join("canary"), "untouched").expect("a canary");
    workspace.output("rm -rf /data; mkdir /data; echo x > /data/file").await;
    workspace.stop().await;
    let (archive, _) = read(&*runtime, &place).await.expect("an archive");
    for made in [
        "ln -s / /data".to_owned(),
        "ln -s /etc /data".to_owned(),
        format!("ln -s {} /data", canary.path().display()),
        format!("ln -s ../../../../../../../../{} /data", canary.path().display()),
        "echo file > /data".to_owned(),
        "mkfifo /data".to_owned(),
    ] {
        workspace.start().await;
        workspace.output(&format!("rm -rf /data; {made}")).await;
        workspace.stop().await;
        let refused = read(&*runtime, &place).await.map(drop);
        assert!(
            matches!(refused, Err(RuntimeError::Rejected { .. })),
            "{made}: {refused:?}"
        );
        let written = access(&*runtime).write_data(&place, once(archive.clone()), replace(Trust::Ours));
        let refused = written.await.map(drop);
        assert!(
            matches!(refused, Err(RuntimeError::Rejected { .. })),
            "{made}: {refused:?}"
        );
    }
    workspace.start().await;
    workspace.output("rm -rf /data").await;
    workspace.stop().await;
    assert_eq!(read(&*runtime, &place).await.expect("an archive").1, Packed::default());
    let written = access(&*runtime).write_data(&place, once(archive), replace(Trust::Strangers));
    written.await.expect("made and filled");
    workspace.start().await;
    assert_eq!(
        workspace.output("cat /data/file; stat -c %F /data").await,
        "x\ndirectory"
    );
    assert_eq!(std::fs::read_dir(canary.path()).expect("the canary's").count(), 1);
    let canary = std::fs::read_to_string(canary.path().join("canary"));
    assert_eq!(canary.expect("the canary"), "untouched");
    workspace.remove().await;
}

/// An archive that is cut short, or none at all, or whose source fails: told as what it is.
pub async fn an_archive_that_is_not_whole_is_told(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    let place = DataPlace::Workspace(workspace.bot.clone());
    workspace
        .output("mkdir -p /data; head -c 400000 /dev/urandom > /data/file")
        .await;
    workspace.stop().await;
    let (archive, _) = read(&*runtime, &place).await.expect("an archive");
    for bad in [archive[..archive.len() / 2].to_vec(), b"no archive at all".to_vec()] {
        let written = access(&*runtime).write_data(&place, once(bad), replace(Trust::Ours));
        let refused = written.await.map(drop);
        assert!(
            matches!(refused, Err(RuntimeError::ArchiveRefused { .. })),
            "{refused:?}"
        );
    }
    let broken: ArchiveStream =
        stream::iter([Ok(archive[..1000].to_vec().into()), Err(std::io::Error::other("cut"))]).boxed();
    let failed = access(&*runtime)
        .write_data(&place, broken, replace(Trust::Ours))
        .await
        .map(drop);
    assert!(matches!(failed, Err(RuntimeError::Other { .. })), "{failed:?}");
    // A caller that goes away leaves nothing that would keep the workspace.
    drop(access(&*runtime).read_data(&place, PACK).await.expect("a reader"));
    let written = access(&*runtime).write_data(&place, once(archive), replace(Trust::Ours));
    written.await.expect("whole");
    workspace.start().await;
    assert_eq!(workspace.output("stat -c %s /data/file").await, "400000");
    workspace.remove().await;
}

/// Nothing of it goes on until the reader is dropped; then all of it does.
pub async fn a_workspace_that_is_read_at_one_moment_stands_still(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    workspace
        .output("mkdir -p /data; cd /data; : > count; (while :; do echo line >> count; done) > /dev/null 2>&1 &")
        .await;
    let mut reader = access(&*runtime)
        .read_frozen(&workspace.bot, PACK, LIMIT)
        .await
        .expect("a reader");
    while reader.next_chunk().await.expect("an archive").is_some() {}
    assert_eq!(reader.packed().expect("whole").entries, 1);
    // Not even its bridge answers.
    let count = workspace.output("wc -c < /data/count");
    tokio::pin!(count);
    let answered = tokio::time::timeout(std::time::Duration::from_millis(300), &mut count).await;
    assert!(answered.is_err(), "it runs: {answered:?}");
    drop(reader);
    let count = count.await;
    let mut looks = 0;
    while workspace.output("wc -c < /data/count").await == count {
        looks += 1;
        assert!(looks < 100, "what ran in it does not run on");
    }
    workspace.stop().await;
    let refused = access(&*runtime)
        .read_frozen(&workspace.bot, PACK, LIMIT)
        .await
        .map(drop);
    assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    workspace.remove().await;
}
