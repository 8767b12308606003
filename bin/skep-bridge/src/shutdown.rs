//! The end of a workspace: SIGTERM to everybody, SIGHUP to shells, and out only when all have gone. Nobody is killed
//! here: how long to wait is the runtime's to say, and its SIGKILL ends the namespace.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::exec::{self, Registry};
use crate::log;
use crate::system;

/// For what the last processes wrote to reach its readers and the disk.
const LAST_WRITES: Duration = Duration::from_secs(2);
const EVERYBODY: i32 = -1;

/// Returns when SIGTERM or SIGINT has come.
pub(crate) async fn terminated(mut signals: watch::Receiver<bool>) {
    // The reaper's thread holds the sender as long as the bridge lives.
    if signals.wait_for(|&terminated| terminated).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ends all processes and waits for them.
pub(crate) async fn end_processes(registry: &Arc<Registry>) {
    registry.close();
    if std::process::id() == 1 {
        end_namespace().await
    } else {
        end_own(registry).await
    }
    if timeout(LAST_WRITES, registry.tasks.wait()).await.is_err() {
        log::tell!("gave up on output that is still open");
    }
}

async fn end_namespace() {
    exec::each_process(|process| {
        // A shell at a terminal ignores SIGTERM. It leads a session that has a terminal.
        if process.pid > 1 && process.terminal != 0 && process.session == process.pid {
            told(system::kill(process.pid, Signal::HUP.as_raw()));
        }
    });
    told(system::kill(EVERYBODY, Signal::TERM.as_raw()));
    told(system::kill(EVERYBODY, Signal::CONT.as_raw()));
    let mut pause = Duration::from_millis(1);
    // Everybody but process 1, orphans and those that came by another way included.
    while system::kill(EVERYBODY, 0) != Err(Errno::SRCH) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// As a child of an init the rest of the namespace is not ours to end.
async fn end_own(registry: &Arc<Registry>) {
    for target in registry.running() {
        for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
            target.signal(signal.as_raw());
        }
    }
    let mut pause = Duration::from_millis(1);
    while !registry.running().is_empty() {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn told(result: Result<(), Errno>) {
    match result {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log::tell!("end the processes: {error}"),
    }
}
