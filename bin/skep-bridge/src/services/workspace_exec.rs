//! The exec methods of our own service.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use prost::Message;
use skep_bridge_protocol::reason;
use skep_bridge_protocol::workspace::exec_event::Event;
use skep_bridge_protocol::workspace::*;
use tonic::{Status, Streaming};

use super::input::{self, End};
use super::reference_exec::dimension;
use super::streams::ResponseStream;
use crate::exec::{
    Exec, FirstInput, Found, Holder, Next, Pace, Program, Reader, Registry, Request, Sessions, Watch, Which, end_of,
};
use crate::failure;
use crate::paths;

/// A page of a listing holds no more statuses, and no more bytes of them, than this.
const PAGE_EXECS: usize = 500;
const PAGE_BYTES: usize = 1024 * 1024;
const MOST_ARGUMENT_BYTES: usize = 2 * 1024 * 1024;

pub(super) async fn start(registry: &Arc<Registry>, request: StartExecRequest) -> Result<ExecStatus, Status> {
    let found = registry.start(request_of(request)?).await?;
    registry.status(&found).await
}

pub(super) async fn open_session(
    (registry, sessions): (&Arc<Registry>, &Sessions),
    request: OpenSessionRequest,
) -> Result<ExecStatus, Status> {
    let exec = request
        .exec
        .ok_or_else(|| Status::invalid_argument("exec is required"))?;
    let mut exec = request_of(exec)?;
    exec.watch.outlives_stream = Some(Duration::from_millis(request.keep_milliseconds));
    let (found, holder) = sessions.open(registry, &request.name, exec).await?;
    // Its time without a stream begins now: the caller may never come for its output.
    drop(holder);
    registry.status(&found).await
}

pub(super) async fn run(
    registry: &Arc<Registry>,
    request: StartExecRequest,
) -> Result<ResponseStream<ExecEvent>, Status> {
    let (found, holder) = registry.open(request_of(request)?).await?;
    events(
        registry,
        &found,
        [Some(0), Some(0)],
        Show {
            follow: true,
            started: true,
            holder,
        },
    )
    .await
}

pub(super) async fn output(
    registry: &Arc<Registry>,
    request: ExecOutputRequest,
) -> Result<ResponseStream<ExecEvent>, Status> {
    let found = registry.find(&request.exec_id).await?;
    let positions = [
        request.stdout.then_some(request.stdout_offset),
        request.stderr.then_some(request.stderr_offset),
    ];
    events(
        registry,
        &found,
        positions,
        Show {
            follow: request.follow,
            started: false,
            holder: registry.hold(&found),
        },
    )
    .await
}

struct Show {
    follow: bool,
    started: bool,
    holder: Option<Holder>,
}

struct Events {
    reader: Reader,
    started: Option<ExecStatus>,
    found: Source,
    /// Dropped with the stream.
    _holder: Option<Holder>,
}

enum Source {
    Live(Arc<Exec>),
    Stored(ExecStatus),
}

async fn events(
    registry: &Arc<Registry>,
    found: &Found,
    positions: [Option<u64>; 2],
    show: Show,
) -> Result<ResponseStream<ExecEvent>, Status> {
    let (output, status) = registry.output(found).await?;
    let started = show.started.then(|| status.clone());
    let source = match found {
        Found::Live(exec) => Source::Live(Arc::clone(exec)),
        Found::Stored(_) => Source::Stored(status),
    };
    let mut reader = Reader::new(output, positions, show.follow);
    // Who looks at the log of a process that others follow takes what there is: nobody is held up by him.
    if let Found::Live(exec) = found
        && exec.process.waits_for_reader()
        && (show.started || show.holder.is_some())
    {
        reader = reader.waited_for();
    }
    let state = Events {
        reader,
        started,
        found: source,
        _holder: show.holder,
    };
    Ok(Box::pin(stream::unfold(state, async |mut state| {
        let event = state.next().await?;
        Some((event, state))
    })))
}

impl Events {
    async fn next(&mut self) -> Option<Result<ExecEvent, Status>> {
        if let Some(status) = self.started.take() {
            return Some(Ok(ExecEvent {
                event: Some(Event::Started(status)),
            }));
        }
        let event = match self.reader.next().await? {
            Ok(Next::Data {
                which: Which::Stdout,
                offset,
                data,
            }) => Event::Stdout(ExecData { offset, data }),
            Ok(Next::Data {
                which: Which::Stderr,
                offset,
                data,
            }) => Event::Stderr(ExecData { offset, data }),
            Ok(Next::Exit(outcome)) => {
                let status = match &self.found {
                    Source::Live(exec) => exec.status(),
                    Source::Stored(status) => status.clone(),
                };
                Event::Exit(end_of(status, &outcome))
            }
            Err(error) => return Some(Err(Status::unavailable(format!("read the output: {error}")))),
        };
        Some(Ok(ExecEvent { event: Some(event) }))
    }
}

fn request_of(request: StartExecRequest) -> Result<Request, Status> {
    let length: usize = request.argv.iter().map(|argument| argument.len() + 1).sum();
    if length > MOST_ARGUMENT_BYTES {
        return Err(failure::not_started(b"argv", "argument list too long"));
    }
    if request.exec_id.is_empty() {
        return Err(Status::invalid_argument("exec_id is required"));
    }
    let env = request
        .env
        .iter()
        .map(|variable| split_variable(variable))
        .collect::<Result<_, _>>()?;
    let size = (dimension(request.cols, 80), dimension(request.rows, 24));
    let program = Program {
        argv: request.argv,
        work_dir: paths::resolve_or_data(&request.work_dir)?,
        env,
        terminal: request.pty.then_some(size),
        user: request.user,
        stdin: request.stdin || !request.stdin_data.is_empty(),
    };
    let timeout = (request.timeout_milliseconds > 0).then(|| Duration::from_millis(request.timeout_milliseconds));
    Ok(Request {
        id: Some(request.exec_id),
        command: request.command,
        program,
        watch: Watch {
            timeout,
            pace: match request.wait_for_reader {
                true => Pace::OfReader,
                false => Pace::Own,
            },
            outlives_stream: request.end_with_stream.then_some(Duration::ZERO),
        },
        // A terminal's keyboard stays there: its end is a keystroke like any other.
        first: FirstInput {
            data: request.stdin_data,
            more: request.stdin || request.pty,
        },
        log_bytes: request.log_bytes,
        keep_milliseconds: request.keep_milliseconds,
    })
}

fn split_variable(variable: &[u8]) -> Result<(OsString, OsString), Status> {
    let equals = variable
        .iter()
        .position(|&byte| byte == b'=')
        .filter(|&at| at > 0 && !variable.contains(&0));
    let at = equals.ok_or_else(|| {
        Status::invalid_argument(format!(
            "env: {:?} is not NAME=value",
            String::from_utf8_lossy(variable)
        ))
    })?;
    let text = |bytes| OsStr::from_bytes(bytes).to_owned();
    Ok((text(&variable[..at]), text(&variable[at + 1..])))
}

async fn running(registry: &Arc<Registry>, id: &str) -> Result<Arc<Exec>, Status> {
    match registry.find(id).await? {
        Found::Live(exec) if exec.process.output.outcome().is_none() => Ok(exec),
        _ => Err(exited(id)),
    }
}

fn exited(id: &str) -> Status {
    failure::refused(reason::EXEC_EXITED, format!("exec {id} has exited"))
}

pub(super) async fn stdin(registry: &Arc<Registry>, mut chunks: Streaming<ExecStdinChunk>) -> Result<(), Status> {
    let first = chunks.message().await?;
    let first = first.ok_or_else(|| Status::invalid_argument("exec_id is required"))?;
    let exec = running(registry, &first.exec_id).await?;
    let written = async |data, end| {
        let written = exec.process.write_stdin(data, end).await;
        written.map_err(|error| stdin_failed(&exec, &error))
    };
    if first.eof {
        return written(first.data, true).await;
    }
    let (given, mut taken) = input::pipe();
    let receive = given.put_all(chunks, |chunk: ExecStdinChunk| (chunk.data, chunk.eof));
    let write = async {
        // Also when it is empty: what takes no input is told at once.
        written(first.data, false).await?;
        while let Some(data) = taken.next().await? {
            written(data, false).await?;
        }
        Ok::<_, Status>(())
    };
    match tokio::try_join!(receive, write)? {
        (End::Told, ()) => written(Bytes::new(), true).await,
        (End::Silent, ()) => Ok(()),
    }
}

fn stdin_failed(exec: &Exec, error: &io::Error) -> Status {
    if exec.process.output.outcome().is_some() {
        return exited(&exec.id);
    }
    Status::failed_precondition(match error.kind() {
        io::ErrorKind::BrokenPipe => format!("exec {}: its stdin is closed", exec.id),
        _ => format!("exec {}: write to stdin: {error}", exec.id),
    })
}

pub(super) async fn signal(registry: &Arc<Registry>, request: SignalExecRequest) -> Result<(), Status> {
    if !(1..=64).contains(&request.signal) {
        return Err(Status::invalid_argument(format!(
            "signal: {} is not 1 to 64",
            request.signal
        )));
    }
    let exec = running(registry, &request.exec_id).await?;
    if exec.process.target.signal(request.signal) {
        Ok(())
    } else {
        Err(exited(&request.exec_id))
    }
}

pub(super) async fn resize(registry: &Arc<Registry>, request: ResizeExecRequest) -> Result<(), Status> {
    let exec = running(registry, &request.exec_id).await?;
    let resized = exec
        .process
        .resize(dimension(request.cols, 80), dimension(request.rows, 24));
    resized.map_err(|error| {
        Status::failed_precondition(match error.kind() {
            io::ErrorKind::NotConnected => format!("exec {} has no terminal", request.exec_id),
            _ => format!("exec {}: resize its terminal: {error}", request.exec_id),
        })
    })
}

pub(super) async fn list(registry: &Arc<Registry>) -> ResponseStream<ExecList> {
    let ids = registry.ids().await;
    let state = (Arc::clone(registry), ids.into_iter());
    Box::pin(stream::unfold(state, async |(registry, mut ids)| {
        let (mut page, mut bytes) = (ExecList::default(), 0);
        while page.execs.len() < PAGE_EXECS && bytes < PAGE_BYTES {
            let Some(id) = ids.next() else { break };
            let status = match registry.find(&id).await {
                Ok(found) => registry.status(&found).await,
                Err(status) => Err(status),
            };
            match status {
                Ok(status) => {
                    bytes += status.encoded_len();
                    page.execs.push(status);
                }
                // Dropped since its id was read.
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Some((Err(status), (registry, Vec::new().into_iter()))),
            }
        }
        if page.execs.is_empty() {
            None
        } else {
            Some((Ok(page), (registry, ids)))
        }
    }))
}
