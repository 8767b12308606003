//! Processes over the reference's service: one stream both ways for each, from its start to its end.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures::stream::{self, StreamExt};
use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::bridgepb::exec_output::Stream as Which;
use skep_bridge_protocol::bridgepb::{ExecInput, ExecOutput, Resize};
use skep_bridge_protocol::reason;
use skep_bridge_protocol::workspace::exec_event::Event;
use skep_bridge_protocol::workspace::{
    ExecData, ExecEvent, ExecStatus, ExecStdinChunk, ResizeExecRequest, StartExecRequest,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::live::{Inputs, LiveExecs, Registration, is_over};
use super::{Answers, impossible, lacks};

type Client = ContainerServiceClient<Channel>;
type Call = Pin<Box<dyn Future<Output = Result<Response<Streaming<ExecOutput>>, Status>> + Send>>;

/// Pieces of input under way.
const INPUTS_UNDER_WAY: usize = 4;
/// A bridge may be silent until the process first writes. What cannot be started is mostly told by then.
const START_TOLD_WITHIN: Duration = Duration::from_millis(250);
const END_OF_TRANSMISSION: &[u8] = &[4];
/// What a terminal starts: the first of these that there is, else the last.
const SHELLS: [&str; 5] = ["/bin/bash", "/usr/bin/bash", "/bin/zsh", "/usr/bin/zsh", "/bin/sh"];
const SHELL_WITHIN_SECONDS: i32 = 10;
/// So many outputs with nothing in them may come after one another.
const MOST_EMPTY_OUTPUTS: u32 = 1000;

pub(super) async fn run(
    mut client: Client,
    live: &LiveExecs,
    request: StartExecRequest,
) -> Result<Answers<ExecEvent>, Status> {
    if !request.user.is_empty() {
        return lacks("running as another user");
    }
    if request.end_with_stream && !request.pty {
        return lacks("ending a process without a terminal with its stream");
    }
    let (sender, receiver) = mpsc::channel(INPUTS_UNDER_WAY);
    let first = sender.send(input_of(&request)?).await;
    first.map_err(|_| Status::internal("the way to a process was closed before it was used"))?;
    // Where nobody may write, the input is closed by dropping its sender.
    let registration = match request.stdin || request.pty {
        true => {
            let inputs = Inputs {
                sender,
                has_terminal: request.pty,
            };
            Some(live.register(request.exec_id.clone(), inputs)?)
        }
        false => {
            drop(sender);
            None
        }
    };
    let mut call: Call = Box::pin(async move { client.exec(ReceiverStream::new(receiver)).await });
    let begun = Instant::now();
    let outputs = match timeout(START_TOLD_WITHIN, &mut call).await {
        Ok(answer) => Outputs::Answering(Box::new(answer.map_err(not_started)?.into_inner())),
        Err(_) => Outputs::Called(call),
    };
    let running = Running {
        status: status_of(&request),
        limit: u64::try_from(seconds(request.timeout_milliseconds))
            .ok()
            .map(Duration::from_secs),
        begun,
        outputs,
        registration,
        told: Told::Nothing,
    };
    Ok(stream::try_unfold(running, Running::next_event).boxed())
}

fn input_of(request: &StartExecRequest) -> Result<ExecInput, Status> {
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|_| Status::unimplemented("what is not UTF-8"))?;
        Ok::<_, Status>(text.to_owned())
    };
    let argv: Vec<String> = request.argv.iter().map(|part| text(part)).collect::<Result<_, _>>()?;
    let env = request
        .env
        .iter()
        .map(|variable| text(variable))
        .collect::<Result<_, _>>()?;
    Ok(ExecInput {
        command: match request.command.is_empty() {
            false => request.command.clone(),
            true => command_of(&argv, request.pty),
        },
        work_dir: text(&request.work_dir)?,
        env,
        timeout_seconds: seconds(request.timeout_milliseconds),
        stdin_data: request.stdin_data.clone(),
        pty: request.pty,
        resize: request.pty.then_some(Resize {
            cols: request.cols,
            rows: request.rows,
        }),
    })
}

/// That wire has a line for the shell and no list of arguments. With a terminal a bare path is started directly.
fn command_of(argv: &[String], pty: bool) -> String {
    match argv {
        [path] if pty && path.starts_with('/') && !path.contains(|letter: char| !is_plain(letter)) => path.clone(),
        argv => {
            let quoted: Vec<String> = argv
                .iter()
                .map(|part| format!("'{}'", part.replace('\'', r"'\''")))
                .collect();
            format!("exec {}", quoted.join(" "))
        }
    }
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "/._-+".contains(letter)
}

/// Whole seconds and never less than was asked for; negative: none.
fn seconds(milliseconds: u64) -> i32 {
    match milliseconds {
        0 => -1,
        some => i32::try_from(some.div_ceil(1000)).unwrap_or(i32::MAX),
    }
}

fn status_of(request: &StartExecRequest) -> ExecStatus {
    ExecStatus {
        exec_id: request.exec_id.clone(),
        started_unix_nanos: Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX),
        pty: request.pty,
        command: request.command.clone(),
        argv: request.argv.clone(),
        ..ExecStatus::default()
    }
}

enum Outputs {
    Called(Call),
    Answering(Box<Streaming<ExecOutput>>),
}

#[derive(PartialEq)]
enum Told {
    Nothing,
    Start,
    End,
}

struct Running {
    status: ExecStatus,
    limit: Option<Duration>,
    begun: Instant,
    outputs: Outputs,
    /// Held as long as the output is read.
    registration: Option<Registration>,
    told: Told,
}

impl Running {
    async fn next_event(mut self) -> Result<Option<(ExecEvent, Self)>, Status> {
        let event = match self.told {
            Told::Nothing => {
                self.told = Told::Start;
                Event::Started(self.status.clone())
            }
            Told::Start => match self.next_with_something().await? {
                Some(output) => self.event_of(output)?,
                None => return Ok(None),
            },
            Told::End => return Ok(None),
        };
        Ok(Some((ExecEvent { event: Some(event) }, self)))
    }

    /// Its service may tell of an output with nothing in it, but has no reason to do it without an end.
    async fn next_with_something(&mut self) -> Result<Option<ExecOutput>, Status> {
        for _ in 0..MOST_EMPTY_OUTPUTS {
            match self.next_output().await? {
                Some(output) if output.data.is_empty() && output.stream != Which::Exit as i32 => {}
                output => return Ok(output),
            }
        }
        Err(impossible("outputs with nothing in them"))
    }

    async fn next_output(&mut self) -> Result<Option<ExecOutput>, Status> {
        if let Outputs::Called(call) = &mut self.outputs {
            let answer = call.await.map_err(not_started)?;
            self.outputs = Outputs::Answering(Box::new(answer.into_inner()));
        }
        match &mut self.outputs {
            Outputs::Answering(outputs) => outputs.message().await,
            Outputs::Called(_) => Ok(None),
        }
    }

    fn event_of(&mut self, output: ExecOutput) -> Result<Event, Status> {
        let which = Which::try_from(output.stream).map_err(|_| impossible("an output that is none"))?;
        let length = output.data.len() as u64;
        let data = |offset: u64| ExecData {
            offset,
            data: output.data.clone(),
        };
        Ok(match which {
            Which::Stdout => {
                let event = Event::Stdout(data(self.status.stdout_bytes));
                self.status.stdout_bytes += length;
                event
            }
            Which::Stderr => {
                let event = Event::Stderr(data(self.status.stderr_bytes));
                self.status.stderr_bytes += length;
                event
            }
            Which::Exit => {
                self.told = Told::End;
                drop(self.registration.take());
                Event::Exit(self.end(output.exit_code))
            }
        })
    }

    /// Which signal it was is not told there, nor that its time was over: that is known by its time and by a code
    /// that such an end has.
    fn end(&self, exit_code: i32) -> ExecStatus {
        const TERMINATED: i32 = 128 + 15;
        const KILLED: i32 = 128 + 9;
        let is_over = self.limit.is_some_and(|limit| self.begun.elapsed() >= limit);
        ExecStatus {
            exited: true,
            finished_unix_nanos: Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX),
            exit_code,
            timed_out: is_over && matches!(exit_code, TERMINATED | KILLED),
            ..self.status.clone()
        }
    }
}

/// Before there was any output: the process was not started, whatever the words for that are.
fn not_started(status: Status) -> Status {
    let about_the_request = matches!(
        status.code(),
        Code::NotFound | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition
    );
    if !about_the_request {
        return status;
    }
    let mut told = Status::failed_precondition(status.message());
    let word = MetadataValue::from_static(reason::EXEC_NOT_STARTED);
    told.metadata_mut().insert(reason::METADATA_KEY, word);
    told
}

pub(super) async fn write_stdin(live: &LiveExecs, mut chunks: Streaming<ExecStdinChunk>) -> Result<(), Status> {
    while let Some(chunk) = chunks.message().await? {
        let inputs = live.find(&chunk.exec_id)?;
        if !chunk.data.is_empty() {
            send(&inputs, of_bytes(chunk.data)).await?;
        }
        if chunk.eof {
            return match inputs.has_terminal {
                true => send(&inputs, of_bytes(Bytes::from_static(END_OF_TRANSMISSION))).await,
                false => {
                    live.close(&chunk.exec_id);
                    Ok(())
                }
            };
        }
    }
    Ok(())
}

fn of_bytes(stdin_data: Bytes) -> ExecInput {
    ExecInput {
        stdin_data,
        ..ExecInput::default()
    }
}

pub(super) async fn resize(live: &LiveExecs, request: ResizeExecRequest) -> Result<(), Status> {
    let inputs = live.find(&request.exec_id)?;
    if !inputs.has_terminal {
        return Err(Status::failed_precondition("this process has no terminal"));
    }
    let resize = Some(Resize {
        cols: request.cols,
        rows: request.rows,
    });
    send(
        &inputs,
        ExecInput {
            resize,
            ..ExecInput::default()
        },
    )
    .await
}

async fn send(inputs: &Inputs, input: ExecInput) -> Result<(), Status> {
    inputs.sender.send(input).await.map_err(|_| is_over())
}

/// One of [`SHELLS`]: the answer is looked up there, and not taken as it is.
pub(super) async fn shell(mut client: Client) -> Result<String, Status> {
    let (last, others) = SHELLS
        .split_last()
        .ok_or_else(|| Status::internal("there are shells"))?;
    let command = format!(
        r#"for shell in {}; do [ -f "$shell" ] && [ -x "$shell" ] && echo "$shell" && exit; done; echo {last}"#,
        others.join(" ")
    );
    let asked = ExecInput {
        command,
        timeout_seconds: SHELL_WITHIN_SECONDS,
        ..ExecInput::default()
    };
    let mut outputs = client.exec(stream::iter([asked])).await?.into_inner();
    let mut told = Vec::new();
    while let Some(output) = outputs.message().await? {
        match Which::try_from(output.stream) {
            Ok(Which::Stdout) if told.len() + output.data.len() <= 4096 => told.extend_from_slice(&output.data),
            Ok(Which::Exit) => {
                let told = String::from_utf8_lossy(&told);
                let shell = SHELLS.iter().find(|shell| **shell == told.trim_end());
                return shell
                    .map(|&shell| shell.to_owned())
                    .ok_or_else(|| impossible("a shell that is none"));
            }
            Ok(Which::Stderr) => {}
            _ => return Err(impossible("a shell that is none")),
        }
    }
    Err(impossible("no shell"))
}
