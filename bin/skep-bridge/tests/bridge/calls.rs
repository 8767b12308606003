//! Calls that many tests make, with everything that came back in one value.

use std::time::Duration;

use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::bridgepb::exec_output::Stream;
use skep_bridge_protocol::bridgepb::{ExecInput, ExecOutput};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub(crate) type Reference = ContainerServiceClient<Channel>;

/// No answer takes longer than this in any test.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The reference's Exec, still running.
pub(crate) struct Running {
    pub(crate) input: Option<mpsc::Sender<ExecInput>>,
    pub(crate) output: Streaming<ExecOutput>,
}

#[derive(Default, Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
    /// The largest piece of output.
    pub(crate) largest_piece: usize,
}

impl Finished {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("utf-8")
    }
}

pub(crate) fn command(text: &str) -> ExecInput {
    ExecInput {
        command: text.into(),
        ..ExecInput::default()
    }
}

pub(crate) async fn begin(client: &Reference, first: ExecInput) -> Result<Running, Status> {
    let (sender, receiver) = mpsc::channel(8);
    sender.send(first).await.expect("room for the first message");
    let output = timeout(LIMIT, client.clone().exec(ReceiverStream::new(receiver)))
        .await
        .expect("an answer in time")?;
    Ok(Running {
        input: Some(sender),
        output: output.into_inner(),
    })
}

/// Runs to the end, with stdin closed.
pub(crate) async fn run(client: &Reference, first: ExecInput) -> Finished {
    let mut running = begin(client, first).await.expect("started");
    running.input = None;
    running.finish().await
}

impl Running {
    pub(crate) async fn send(&self, data: &[u8]) {
        let input = ExecInput {
            stdin_data: data.to_vec().into(),
            ..ExecInput::default()
        };
        self.input
            .as_ref()
            .expect("not closed")
            .send(input)
            .await
            .expect("a process that reads");
    }

    pub(crate) async fn next(&mut self) -> Option<ExecOutput> {
        timeout(LIMIT, self.output.message())
            .await
            .expect("a message in time")
            .expect("no error")
    }

    /// Reads until `wanted` has been seen on stdout.
    pub(crate) async fn read_until(&mut self, wanted: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(wanted) {
            let message = self
                .next()
                .await
                .unwrap_or_else(|| panic!("ended before {wanted:?}: {seen:?}"));
            assert_ne!(message.stream(), Stream::Exit, "exited before {wanted:?}: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&message.data));
        }
        seen
    }

    pub(crate) async fn finish(mut self) -> Finished {
        let mut finished = Finished::default();
        loop {
            let message = self.next().await.expect("EXIT before the end of the stream");
            finished.largest_piece = finished.largest_piece.max(message.data.len());
            match message.stream() {
                Stream::Stdout => finished.stdout.extend_from_slice(&message.data),
                Stream::Stderr => finished.stderr.extend_from_slice(&message.data),
                Stream::Exit => {
                    finished.exit_code = message.exit_code;
                    assert!(self.next().await.is_none(), "nothing comes after EXIT");
                    return finished;
                }
            }
        }
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = std::time::Instant::now() + LIMIT;
    while !is_so() {
        assert!(std::time::Instant::now() < limit, "not so within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
