//! `skep exec` and `skep shell`: a command in a workspace, with its own exit code as ours.
//!
//! Three ways, by what has to flow: output alone comes as one event stream; with standard input the
//! command is started detached and followed from offset to offset; a terminal is a WebSocket.

mod attended;
mod followed;
mod socket;
mod streamed;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::arguments::{ExecArguments, OutputForm, ShellArguments};
use crate::client::{Client, encode, find_bot};
use crate::failure::{Failure, Result};
use crate::output::{print_changed, text};
use crate::terminal;

/// How long a server that was lost is tried again, and how often.
const TRY_AGAIN_WITHIN: Duration = Duration::from_secs(60);
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(500);

pub(crate) async fn run(client: &Client, form: OutputForm, exec: ExecArguments) -> Result<()> {
    let id = find_bot(client, &exec.named.name).await?.id;
    let route = format!("/bots/{id}/container/exec");
    if exec.tty {
        return in_terminal(client, &exec, &id, &route).await;
    }
    if exec.detach {
        let mut body = body_of(&exec)?;
        body["detach"] = json!(true);
        // Nobody will ever write to it.
        body["stdin"] = json!(false);
        return print_changed(form, &client.post(&route, &body).await?, "exec_id");
    }
    if exec.interactive {
        return followed::run(client, &route, body_of(&exec)?).await;
    }
    streamed::run(client, &route, body_of(&exec)?).await
}

/// A shell; the best one the workspace has.
pub(crate) async fn shell(client: &Client, shell: ShellArguments) -> Result<()> {
    if !terminal::stdin_is_terminal() {
        return Err(Failure::Usage(
            "a shell needs a terminal; `skep exec -i` takes a script".into(),
        ));
    }
    let id = find_bot(client, &shell.named.name).await?.id;
    let path = || {
        let (cols, rows) = terminal::size();
        format!("/bots/{id}/container/terminal/ws?cols={cols}&rows={rows}")
    };
    // The server ends a shell with its connection, or keeps its session; what is left to us is the terminal as it was.
    let mut interrupts = attended::Interrupts::new()?;
    let attached = async {
        match &shell.session {
            None => exit_with(socket::attach(client, &path(), true).await?),
            Some(name) => socket::attach_to_session(client, || format!("{}&session={}", path(), encode(name))).await,
        }
    };
    interrupts.unless_one_comes(attached).await
}

async fn in_terminal(client: &Client, exec: &ExecArguments, id: &str, route: &str) -> Result<()> {
    if exec.interactive && !terminal::stdin_is_terminal() {
        return Err(Failure::Usage(
            "-t with -i needs a terminal on standard input; use -i alone".into(),
        ));
    }
    let (cols, rows) = terminal::size();
    let mut body = body_of(exec)?;
    body["pty"] = json!(true);
    body["detach"] = json!(true);
    body["cols"] = json!(cols);
    body["rows"] = json!(rows);
    let mut interrupts = attended::Interrupts::new()?;
    let started = interrupts.until_started(client.post(route, &body)).await?;
    let exec_id = text(&started, "exec_id");
    let path = format!(
        "/bots/{id}/container/terminal/ws?cols={cols}&rows={rows}&exec_id={}&offset=0",
        encode(&exec_id)
    );
    let work = socket::attach(client, &path, exec.interactive);
    exit_with(interrupts.attend(client, &format!("{route}/{exec_id}"), work).await?)
}

fn body_of(exec: &ExecArguments) -> Result<Value> {
    let mut body = json!({
        "argv": exec.command,
        // A command line has no time limit of its own: 0 is none.
        "timeout_seconds": exec.timeout.map_or(0.0, seconds_of),
    });
    let mut env = BTreeMap::new();
    for pair in &exec.env {
        match pair.split_once('=') {
            Some(("", _)) => return Err(Failure::Usage(format!("{pair:?} is not KEY=VALUE"))),
            Some((key, value)) => {
                env.insert(key.to_owned(), value.to_owned());
            }
            // KEY alone passes ours on; one we do not have is left out.
            None => {
                if let Ok(value) = std::env::var(pair) {
                    env.insert(pair.clone(), value);
                }
            }
        }
    }
    if !env.is_empty() {
        body["env"] = json!(env);
    }
    if let Some(directory) = &exec.workdir {
        body["cwd"] = json!(directory);
    }
    if let Some(user) = &exec.user {
        body["user"] = json!(user);
    }
    Ok(body)
}

/// Never 0, which is none.
fn seconds_of(timeout: Duration) -> f64 {
    timeout.max(Duration::from_millis(1)).as_secs_f64()
}

/// Prints what a command printed. Whoever read us may have had enough: as for any program, that is our end.
async fn print(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let printed = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    match printed.await {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::CommandEnded(141)),
        printed => printed.map_err(|error| Failure::local("cannot print", error)),
    }
}

/// Asks again, for a while, when no server answers: it may be starting again.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T>) -> Result<T> {
    let until = Instant::now() + TRY_AGAIN_WITHIN;
    loop {
        match ask().await {
            Err(failure) if may_come_back(&failure) && Instant::now() < until => sleep(TRY_AGAIN_EVERY).await,
            answered => return answered,
        }
    }
}

fn may_come_back(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::NotReachable { .. } | Failure::Refused { status: 503, .. }
    )
}

/// Output that the workspace no longer keeps: the end of the command would not tell.
fn lost(stream: &str, bytes: u64) -> Failure {
    Failure::Failed(format!(
        "{bytes} bytes of its {stream} were dropped before they were read"
    ))
}

/// The end of a command, as the server tells it, becomes ours.
fn ended(exit: &Value) -> Result<()> {
    if exit.get("timed_out").and_then(Value::as_bool) == Some(true) {
        eprintln!("skep: the command was ended: its time was up");
    }
    match exit.get("exit_code").and_then(Value::as_i64).map(u8::try_from) {
        Some(Ok(code)) => exit_with(code),
        _ => Err(Failure::Unexpected {
            doing: "telling how the command ended",
            what: "there is no exit code".into(),
        }),
    }
}

fn exit_with(code: u8) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Failure::CommandEnded(code)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    #[test]
    fn a_time_limit_is_sent_as_it_was_given() {
        for (given, sent) in [("1500ms", 1.5), ("250ms", 0.25), ("2m", 120.0), ("0s", 0.001)] {
            let typed = ["skep", "exec", "--timeout", given, "box", "--", "true"];
            let Command::Exec(exec) = Arguments::parse_from(typed).command else {
                panic!("another command");
            };
            assert_eq!(body_of(&exec).unwrap()["timeout_seconds"], sent, "{given}");
        }
    }
}
