//! A command that somebody waits for: Ctrl-C goes to it, and it does not outlive us.

use std::time::Duration;

use futures::FutureExt;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::warn;

/// How long the end of a command may take to be told.
const END_WITHIN: Duration = Duration::from_secs(30);
/// What a shell tells of a command that Ctrl-C ended.
const INTERRUPTED: Failure = Failure::CommandEnded(130);

/// What is pressed, from before the command is asked for: none is lost, and none ends us alone.
pub(super) struct Interrupts {
    pressed: Signal,
    count: u32,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self> {
        let pressed = signal(SignalKind::interrupt());
        Ok(Self {
            pressed: pressed.map_err(|error| Failure::local("cannot wait for Ctrl-C", error))?,
            count: 0,
        })
    }

    async fn next(&mut self) {
        // Its sender lives as long as the program.
        if self.pressed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.count += 1;
    }

    /// Waits until a command has started. What is pressed before that is done once it has; the third does not wait.
    pub(super) async fn until_started<T>(&mut self, starting: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::pin!(starting);
        loop {
            tokio::select! {
                started = &mut starting => return started,
                () = self.next() => match self.count {
                    1 => warn(format_args!("it has not started yet, and is interrupted as soon as it has")),
                    2 => warn(format_args!("it is ended as soon as it has started; once more does not wait for that")),
                    _ => {
                        warn(format_args!("whether it has started was not told; it may run"));
                        return Err(INTERRUPTED);
                    }
                },
            }
        }
    }

    /// Does `work` for the command at this route, to its end. The first Ctrl-C goes to the command, a second one ends
    /// it and us. When we leave before the command has ended, it is ended.
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
                break INTERRUPTED;
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

    async fn end(&mut self, client: &Client, at: &str) {
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
