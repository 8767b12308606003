//! `Exec` of the reference's service: one stream both ways, on the same engine as our own execs but listed nowhere.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep_bridge_protocol::bridgepb::exec_output::Stream as OutputStream;
use skep_bridge_protocol::bridgepb::{ExecInput, ExecOutput};
use tonic::{Response, Status, Streaming};

use super::input;
use super::streams::ResponseStream;
use crate::exec::{FirstInput, Found, Holder, Next, Pace, Process, Program, Reader, Registry, Request, Watch, Which};
use crate::log;
use crate::paths;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const PIECE_BYTES: usize = 64 * 1024;
const DEFAULT_SIZE: (u16, u16) = (80, 24);

pub(super) async fn exec(
    registry: &Arc<Registry>,
    mut inputs: Streaming<ExecInput>,
) -> Result<Response<ResponseStream<ExecOutput>>, Status> {
    let first = inputs
        .message()
        .await?
        .ok_or_else(|| Status::invalid_argument("command is required"))?;
    // A terminal is held: it ends with its stream.
    let (Found::Live(exec), holder) = registry.open(request_of(first)?).await? else {
        return Err(Status::internal("an exec without an id was found on disk"));
    };
    let process = Arc::clone(&exec.process);
    let reader = Reader::new(Arc::clone(&process.output), [Some(0), Some(0)], true).waited_for();
    registry.tasks.spawn(feed(process, inputs));
    let state = Output {
        reader,
        holder,
        rest: None,
    };
    let stream = futures::stream::unfold(state, async |mut state: Output| {
        let item = state.next().await?;
        Some((item, state))
    });
    Ok(Response::new(Box::pin(stream)))
}

fn request_of(first: ExecInput) -> Result<Request, Status> {
    if first.command.trim().is_empty() {
        return Err(Status::invalid_argument("command is required"));
    }
    let timeout = match (first.timeout_seconds, first.pty) {
        (0, false) => Some(DEFAULT_TIMEOUT),
        (seconds @ 1.., _) => Some(Duration::from_secs(u64::from(seconds.cast_unsigned()))),
        _ => None,
    };
    let argv = if first.pty && is_bare_path(&first.command) {
        vec![first.command.clone().into_bytes()]
    } else {
        [b"/bin/sh".as_slice(), b"-c", first.command.as_bytes()]
            .map(<[u8]>::to_vec)
            .into()
    };
    let size = first.resize.map_or(DEFAULT_SIZE, |size| {
        (dimension(size.cols, 80), dimension(size.rows, 24))
    });
    let program = Program {
        argv,
        work_dir: paths::resolve_or_data(first.work_dir.as_bytes())?,
        env: first
            .env
            .iter()
            .map(|variable| split_variable(variable))
            .collect::<Result<_, _>>()?,
        terminal: first.pty.then_some(size),
        user: String::new(),
        stdin: true,
    };
    Ok(Request {
        id: None,
        command: first.command,
        program,
        watch: Watch {
            timeout,
            pace: Pace::OfReader,
            outlives_stream: first.pty.then_some(Duration::ZERO),
        },
        first: FirstInput {
            data: first.stdin_data,
            more: true,
        },
        log_bytes: 0,
        keep_milliseconds: 0,
    })
}

pub(super) fn dimension(given: u32, default: u16) -> u16 {
    if given == 0 {
        default
    } else {
        given.try_into().unwrap_or(u16::MAX)
    }
}

fn split_variable(variable: &str) -> Result<(OsString, OsString), Status> {
    match variable.split_once('=') {
        Some((name, value)) if !name.is_empty() && !variable.contains('\0') => Ok((name.into(), value.into())),
        _ => Err(Status::invalid_argument(format!("env: {variable:?} is not NAME=value"))),
    }
}

fn is_bare_path(command: &str) -> bool {
    let plain = |character: char| character.is_alphanumeric() || "/._-+@".contains(character);
    command.starts_with('/') && command.chars().all(plain)
}

/// Carries the client's input until it half-closes, goes away, or the process has exited.
async fn feed(process: Arc<Process>, mut inputs: Streaming<ExecInput>) {
    let (mut given, mut taken) = input::pipe();
    let receive = async {
        // An error is a lost stream: what outlives it gets the same end of input.
        while let Ok(Some(input)) = inputs.message().await {
            if let Some(size) = input.resize
                && process.has_terminal()
                && let Err(error) = process.resize(dimension(size.cols, 80), dimension(size.rows, 24))
            {
                log::tell!("resize a terminal: {error}");
            }
            given.put(&input.stdin_data).await?;
        }
        given.end().await
    };
    let write = async {
        while let Some(data) = taken.next().await? {
            // A process need not read; resizes may still come.
            drop(process.write_stdin(data, false).await);
        }
        if !process.has_terminal() {
            // Already closed is closed.
            drop(process.write_stdin(Bytes::new(), true).await);
        }
        Ok::<_, Status>(())
    };
    let carry = async { tokio::try_join!(receive, write) };
    tokio::select! {
        carried = carry => if let Err(error) = carried {
            log::tell!("carry input: {error}");
        },
        _ = process.output.exited() => {}
    }
}

struct Output {
    reader: Reader,
    /// Dropped with the stream.
    holder: Option<Holder>,
    /// What was read in one piece but is told in several.
    rest: Option<(OutputStream, Bytes)>,
}

impl Output {
    async fn next(&mut self) -> Option<Result<ExecOutput, Status>> {
        if let Some((stream, data)) = self.rest.take() {
            return Some(Ok(self.piece(stream, data)));
        }
        Some(match self.reader.next().await? {
            Ok(Next::Data { which, data, .. }) => {
                let stream = if which == Which::Stdout {
                    OutputStream::Stdout
                } else {
                    OutputStream::Stderr
                };
                Ok(self.piece(stream, data))
            }
            Ok(Next::Exit(outcome)) => {
                let exit_code = outcome.ended.exit_code;
                Ok(ExecOutput {
                    stream: OutputStream::Exit.into(),
                    data: Bytes::new(),
                    exit_code,
                })
            }
            Err(error) => Err(Status::unavailable(format!("read the output: {error}"))),
        })
    }

    fn piece(&mut self, stream: OutputStream, mut data: Bytes) -> ExecOutput {
        if data.len() > PIECE_BYTES {
            self.rest = Some((stream, data.split_off(PIECE_BYTES)));
        }
        ExecOutput {
            stream: stream.into(),
            data,
            exit_code: 0,
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // First the reader, so that a process that waits for it goes on and can be ended; then the holder.
        drop(self.holder.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_terminal_has_no_time_limit_unless_one_is_given() {
        for (timeout_seconds, pty, expected) in [
            (0, false, Some(30)),
            (0, true, None),
            (5, true, Some(5)),
            (5, false, Some(5)),
            (-1, true, None),
            (-1, false, None),
        ] {
            let request = request_of(ExecInput {
                command: "true".into(),
                timeout_seconds,
                pty,
                ..ExecInput::default()
            });
            let timeout = request.expect("a request").watch.timeout;
            assert_eq!(timeout, expected.map(Duration::from_secs), "{timeout_seconds} {pty}");
        }
    }

    #[test]
    fn only_a_plain_absolute_path_is_bare() {
        assert!(is_bare_path("/bin/bash") && is_bare_path("/usr/local/bin/python3.12"));
        for command in ["bash", "/bin/sh -l", "/bin/sh;ls", "/bin/$SHELL", "/bin/a|b", "/bin/*"] {
            assert!(!is_bare_path(command), "{command}");
        }
    }
}
