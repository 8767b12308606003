//! The bridge's own calls, without the server in between.

use std::path::PathBuf;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use skep_bridge_protocol::workspace::exec_event::Event;
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use skep_bridge_protocol::workspace::{
    ExecEvent, ExecStdinChunk, ReadRequest, StartExecRequest, WriteChunk, WriteHeader,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Result;

#[derive(Clone)]
pub(crate) struct Bridge(WorkspaceClient<Channel>);

impl Bridge {
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self> {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::from_static("http://bridge")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .connect_with_connector(connector)
            .await?;
        Ok(Self(WorkspaceClient::new(channel)))
    }

    pub(crate) async fn exec(&self, id: String, argv: &[&str]) -> Result<()> {
        let wanted = StartExecRequest {
            exec_id: id,
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            timeout_milliseconds: 30_000,
            ..Default::default()
        };
        let mut events = self.0.clone().run_exec(wanted).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Exit(status)) = event.event {
                return if status.exit_code == 0 {
                    Ok(())
                } else {
                    Err(format!("{argv:?} ended with {}", status.exit_code).into())
                };
            }
        }
        Err("an exec ended without an exit".into())
    }

    /// A process with a terminal, which ends with what this gives.
    pub(crate) async fn terminal(&self, id: String, argv: &[&str]) -> Result<BridgeTerminal> {
        let wanted = StartExecRequest {
            exec_id: id.clone(),
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            pty: true,
            stdin: true,
            end_with_stream: true,
            wait_for_reader: true,
            ..Default::default()
        };
        let events = self.0.clone().run_exec(wanted).await?.into_inner();
        let (keys, typed) = mpsc::channel(1);
        let mut client = self.0.clone();
        // It ends with the sender, or with the process: what it says then is of no use.
        tokio::spawn(async move { client.exec_stdin(ReceiverStream::new(typed)).await.map(drop) });
        Ok(BridgeTerminal { id, keys, events })
    }

    /// Reads a file to its end; how many bytes it had.
    pub(crate) async fn read(&self, path: &str) -> Result<u64> {
        let wanted = ReadRequest {
            path: path.as_bytes().to_vec(),
            ..Default::default()
        };
        let mut chunks = self.0.clone().read(wanted).await?.into_inner();
        let mut bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            bytes += chunk.data.len() as u64;
        }
        Ok(bytes)
    }

    /// Writes a file of so many pieces.
    pub(crate) async fn write(&self, path: &str, piece: Bytes, pieces: u64) -> Result<()> {
        let header = WriteChunk {
            header: Some(WriteHeader {
                path: path.as_bytes().to_vec(),
                mode: 0o644,
                ..Default::default()
            }),
            ..Default::default()
        };
        let data = (0..pieces).map(move |_| WriteChunk {
            data: piece.clone(),
            ..Default::default()
        });
        let last = WriteChunk {
            finish: true,
            ..Default::default()
        };
        let chunks = std::iter::once(header).chain(data).chain(std::iter::once(last));
        self.0.clone().write(futures::stream::iter(chunks)).await?;
        Ok(())
    }
}

/// A terminal by the bridge's own calls.
pub(crate) struct BridgeTerminal {
    id: String,
    keys: mpsc::Sender<ExecStdinChunk>,
    events: Streaming<ExecEvent>,
}

impl BridgeTerminal {
    pub(crate) async fn type_keys(&self, keys: &'static [u8]) -> Result<()> {
        let chunk = ExecStdinChunk {
            exec_id: self.id.clone(),
            data: Bytes::from_static(keys),
            eof: false,
        };
        Ok(self.keys.send(chunk).await?)
    }

    pub(crate) async fn until_shown(&mut self, text: &[u8]) -> Result<()> {
        let mut shown = Vec::new();
        while !shown.ends_with(text) {
            let event = self.events.message().await?.ok_or("a terminal ended")?;
            match event.event {
                Some(Event::Stdout(piece)) => shown.extend_from_slice(&piece.data),
                Some(Event::Started(_)) => {}
                other => return Err(format!("a terminal answered {other:?}").into()),
            }
        }
        Ok(())
    }
}
