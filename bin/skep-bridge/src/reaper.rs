//! The one place that waits for processes. As process 1 the bridge inherits orphans, so a wait for "my child" beside a
//! wait for "anybody" would race and lose exit statuses: here a single thread takes every status and hands each on to
//! whoever started that process. Nobody else ever waits.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, WaitStatus};
use tokio::sync::{oneshot, watch};

use crate::log;
use crate::system::{self, Taken};

const TAKEN: [Signal; 3] = [Signal::CHILD, Signal::TERM, Signal::INT];

/// How a process ended, as `wait` told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// 0–255, or 128 + signal.
    pub(crate) exit_code: i32,
    /// 0 when it exited by itself.
    pub(crate) signal: u32,
}

#[derive(Default)]
pub(crate) struct Reaper {
    awaited: Mutex<HashMap<i32, oneshot::Sender<Ended>>>,
}

/// Must be called before any thread is started: what is blocked here is inherited.
pub(crate) fn block_signals() -> io::Result<()> {
    system::block_signals(&TAKEN)
}

impl Reaper {
    /// Starts the thread. The receiver turns true at SIGTERM or SIGINT; as process 1 only at those of the host.
    pub(crate) fn start() -> io::Result<(Arc<Self>, watch::Receiver<bool>)> {
        let reaper = Arc::new(Self::default());
        let (terminate, terminated) = watch::channel(false);
        let worker = Arc::clone(&reaper);
        thread::Builder::new()
            .name("reaper".into())
            .stack_size(64 * 1024)
            .spawn(move || worker.run(&terminate))?;
        Ok((reaper, terminated))
    }

    fn run(&self, terminate: &watch::Sender<bool>) {
        // The end of a workspace is its host's to order, as with any process 1 that handles no signal. A child of an
        // init is told by that.
        let is_process_one = std::process::id() == 1;
        loop {
            match system::wait_for_signal(&TAKEN) {
                Ok(taken) if taken.signal == Signal::CHILD.as_raw() => self.take_all(),
                Ok(Taken {
                    signal,
                    sender: Some(sender),
                }) if is_process_one => log::tell!("signal {signal} of process {sender} is not obeyed"),
                Ok(_) => {
                    terminate.send_replace(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Only a wrong set is possible: it is constant and was valid at the first call.
                Err(error) => log::tell!("wait for a signal: {error}"),
            }
        }
    }

    /// Starts `command`. From the fork until its process is registered nobody is reaped, so a process that ends at
    /// once is not taken for an orphan; and std's own wait after a failed exec finds its child.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(u32, oneshot::Receiver<Ended>)> {
        let (sender, receiver) = oneshot::channel();
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = command.spawn()?.id();
        awaited.insert(pid.cast_signed(), sender);
        Ok((pid, receiver))
    }

    fn take_all(&self) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let Some(ended) = ended(status) else { continue };
                    if let Some(waiter) = awaited.remove(&pid.as_raw_nonzero().get())
                        && waiter.send(ended).is_err()
                    {
                        log::tell!("process {pid:?} ended, and nobody watches it");
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::tell!("wait for processes: {error}");
                    return;
                }
            }
        }
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    if let Some(code) = status.exit_status() {
        return Some(Ended {
            exit_code: code,
            signal: 0,
        });
    }
    let signal = status.terminating_signal()?;
    Some(Ended {
        exit_code: 128 + signal,
        signal: signal.cast_unsigned(),
    })
}
