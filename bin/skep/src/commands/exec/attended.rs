//! A command that somebody waits for: Ctrl-C goes to it, and it does not outlive us.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::warn;

/// How long the start of a command that is to be ended, and its end, may take to be told.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Ctrl-C, SIGTERM and SIGHUP, from before the command is asked for: none is lost, and none ends us alone.
pub(super) struct Interrupts {
    signals: Vec<Heard>,
    /// How often Ctrl-C was pressed; SIGTERM and SIGHUP count as the second time, however often they come.
    count: u32,
    /// The number of the last one that counted.
    last: u8,
}

struct Heard {
    number: u8,
    received: Signal,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self> {
        let failed = |error| Failure::local("cannot wait for signals", error);
        let ignored = ignored_signals().map_err(failed)?;
        let mut signals = Vec::new();
        for (kind, number) in [
            (SignalKind::interrupt(), 2),
            (SignalKind::hangup(), 1),
            (SignalKind::terminate(), 15),
        ] {
            // Whoever started us with it ignored, as `nohup` does, wants it so. Ctrl-C still goes to the command.
            let is_ignored = ignored & (1 << (number - 1)) != 0;
            if kind == SignalKind::interrupt() || !is_ignored {
                let received = signal(kind).map_err(failed)?;
                signals.push(Heard { number, received });
            }
        }
        Ok(Self {
            signals,
            count: 0,
            last: 0,
        })
    }

    /// Waits for the next one that counts.
    async fn next(&mut self) {
        loop {
            let number = poll_fn(|context| {
                for Heard { number, received } in &mut self.signals {
                    // A sender lives as long as the program: there is no end.
                    if let Poll::Ready(Some(())) = received.poll_recv(context) {
                        return Poll::Ready(*number);
                    }
                }
                Poll::Pending
            });
            let number = number.await;
            self.count = match number {
                2 => self.count + 1,
                _ if self.count < 2 => 2,
                _ => continue,
            };
            self.last = number;
            return;
        }
    }

    /// What a shell tells of a program that the signal ended.
    fn failure(&self) -> Failure {
        Failure::CommandEnded(128 + self.last)
    }

    /// Waits until a command has started. What comes before that is done once it has; the third Ctrl-C does not wait, and
    /// what is to be ended is waited for only so long.
    pub(super) async fn until_started<T>(&mut self, starting: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::pin!(starting);
        loop {
            let is_to_end = self.count > 1;
            tokio::select! {
                started = &mut starting => return started,
                () = sleep(END_WITHIN), if is_to_end => break,
                () = self.next() => match self.count {
                    1 => warn(format_args!("it has not started yet, and is interrupted as soon as it has")),
                    2 => warn(format_args!("it is ended as soon as it has started; Ctrl-C does not wait for that")),
                    _ => break,
                },
            }
        }
        warn(format_args!("whether it has started was not told; it may run"));
        Err(self.failure())
    }

    /// Does `work`, which leaves nothing running that needs an end, until any of the signals.
    ///
    /// # Errors
    /// Those of `work`; a signal becomes our exit code.
    pub(super) async fn unless_one_comes<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.next() => Err(self.failure()),
        }
    }

    /// Does `work` for the command at this route, to its end. The first Ctrl-C goes to the command; a second one, SIGTERM
    /// and SIGHUP end it and us. When we leave before the command has ended, it is ended.
    ///
    /// # Errors
    /// Those of `work`; an end of the command itself is none of them.
    pub(super) async fn attend<T>(
        &mut self,
        client: &Client,
        at: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::pin!(work);
        // Beside the work: what is printed meanwhile may have to be taken before the server answers.
        let passing_on = pass_on(client, at).fuse();
        tokio::pin!(passing_on);
        let failure = loop {
            let is_interrupted = self.count > 0;
            if self.count > 1 {
                break self.failure();
            }
            tokio::select! {
                done = &mut work => match done {
                    Ok(done) => return Ok(done),
                    Err(failure) => break failure,
                },
                () = &mut passing_on, if is_interrupted => {}
                () = self.next() => {}
            }
        };
        self.end(client, at).await;
        Err(failure)
    }

    /// From here on Ctrl-C alone is heard: the end is already asked for.
    async fn end(&mut self, client: &Client, at: &str) {
        self.count = self.count.max(2);
        let ended = tokio::select! {
            ended = timeout(END_WITHIN, client.delete(at)) => ended,
            () = self.next() => Ok(Err(Failure::Failed("its end was not waited for".into()))),
        };
        let why = match ended {
            // It is over, as its workspace may be.
            Ok(Ok(_) | Err(Failure::Refused { status: 404 | 409, .. })) => return,
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => format!("no answer within {} s", END_WITHIN.as_secs()),
        };
        let id = at.rsplit('/').next().unwrap_or(at);
        warn(format_args!(
            "the command could not be ended and may still run, as {id}: {why}"
        ));
    }
}

async fn pass_on(client: &Client, at: &str) {
    let (path, interrupt) = (format!("{at}/signal"), json!({"signal": "SIGINT"}));
    match client.post(&path, &interrupt).await {
        // One that has ended needs none.
        Ok(_) | Err(Failure::Refused { status: 404 | 409, .. }) => {}
        Err(failure) => warn(format_args!("Ctrl-C was not passed on: {failure}")),
    }
}

/// The signals that we were started with as ignored, bit 0 for number 1.
fn ignored_signals() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.ok_or_else(|| std::io::Error::other("/proc/self/status has no SigIgn"))
}
