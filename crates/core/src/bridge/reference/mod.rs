//! Our service over the reference's: how an old bridge in an old workspace is spoken to.
//!
//! It answers in the place of such a bridge, so files, execs and terminals know one wire, and what it answers is
//! checked where the answers of a bridge of ours are. What the reference's service has no words for is refused by
//! name: nothing is done by half.

mod entry;
mod exec;
mod files;
mod live;
mod route;
#[cfg(test)]
mod tests;

use std::pin::Pin;

use futures::Stream;
use skep_bridge_protocol::MAX_MESSAGE_BYTES;
use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::workspace::workspace_server::{Workspace, WorkspaceServer};
use skep_bridge_protocol::workspace::{self as wire, *};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use live::LiveExecs;
pub(super) use route::Route;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// The bridge at the other end of one connection, with its execs that are followed.
pub(crate) struct OverReference {
    client: ContainerServiceClient<Channel>,
    live: LiveExecs,
}

/// The service of the bridge at the other end of `channel`.
pub(super) fn service(channel: Channel) -> WorkspaceServer<OverReference> {
    let over = OverReference {
        client: ContainerServiceClient::new(channel).max_decoding_message_size(super::pool::LARGEST_ANSWER_BYTES),
        live: LiveExecs::default(),
    };
    WorkspaceServer::new(over)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// What cannot be said over that wire.
fn lacks<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(what))
}

/// What no bridge would answer.
fn impossible(what: &str) -> Status {
    Status::data_loss(what)
}

#[tonic::async_trait]
impl Workspace for OverReference {
    type ListStream = Answers<ListPage>;
    type ReadStream = Answers<ReadChunk>;
    type SearchStream = Answers<SearchPage>;
    type WatchStream = Answers<WatchEvents>;
    type ArchiveOutStream = Answers<DataChunk>;
    type ExportStream = Answers<ExportChunk>;
    type RunExecStream = Answers<ExecEvent>;
    type ExecOutputStream = Answers<ExecEvent>;
    type ListExecsStream = Answers<ExecList>;
    type ForwardStream = Answers<ForwardChunk>;

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        lacks("telling about itself")
    }

    async fn stat(&self, request: Request<StatRequest>) -> Answer<FileInfo> {
        let info = files::stat(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(info))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<Self::ListStream> {
        let pages = files::list(&self.client, request.into_inner())?;
        Ok(Response::new(pages))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        let chunks = files::read(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(chunks))
    }

    async fn write(&self, request: Request<Streaming<WriteChunk>>) -> Answer<WriteResult> {
        let result = files::write(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(result))
    }

    async fn make_directory(&self, request: Request<MakeDirectoryRequest>) -> Answer<wire::Empty> {
        files::make_directory(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<wire::Empty> {
        files::remove(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn rename(&self, request: Request<RenameRequest>) -> Answer<wire::Empty> {
        files::rename(self.client.clone(), request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn copy(&self, _: Request<CopyRequest>) -> Answer<wire::Empty> {
        lacks("copying inside of the workspace")
    }

    async fn change_mode(&self, _: Request<ChangeModeRequest>) -> Answer<wire::Empty> {
        lacks("setting the mode of a file")
    }

    async fn search(&self, _: Request<SearchRequest>) -> Answer<Self::SearchStream> {
        lacks("searching in files")
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        lacks("watching files")
    }

    async fn archive_out(&self, _: Request<ArchiveOutRequest>) -> Answer<Self::ArchiveOutStream> {
        lacks("archives and downloads of directories")
    }

    async fn archive_in(&self, _: Request<Streaming<ArchiveInChunk>>) -> Answer<ArchiveInResult> {
        lacks("archives")
    }

    async fn extract(&self, _: Request<ExtractRequest>) -> Answer<ArchiveInResult> {
        lacks("unpacking archives")
    }

    async fn export(&self, _: Request<ExportRequest>) -> Answer<Self::ExportStream> {
        lacks("exports")
    }

    async fn start_exec(&self, _: Request<StartExecRequest>) -> Answer<ExecStatus> {
        lacks("processes that nobody follows (detach)")
    }

    async fn run_exec(&self, request: Request<StartExecRequest>) -> Answer<Self::RunExecStream> {
        let events = exec::run(self.client.clone(), &self.live, request.into_inner()).await?;
        Ok(Response::new(events))
    }

    async fn exec_output(&self, _: Request<ExecOutputRequest>) -> Answer<Self::ExecOutputStream> {
        lacks("the output of a process by its id")
    }

    async fn exec_stdin(&self, request: Request<Streaming<ExecStdinChunk>>) -> Answer<wire::Empty> {
        exec::write_stdin(&self.live, request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn signal_exec(&self, _: Request<SignalExecRequest>) -> Answer<wire::Empty> {
        lacks("signals")
    }

    async fn resize_exec(&self, request: Request<ResizeExecRequest>) -> Answer<wire::Empty> {
        exec::resize(&self.live, request.into_inner()).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn get_exec(&self, _: Request<ExecId>) -> Answer<ExecStatus> {
        lacks("the state of a process by its id")
    }

    async fn list_execs(&self, _: Request<wire::Empty>) -> Answer<Self::ListExecsStream> {
        lacks("listing processes")
    }

    async fn remove_exec(&self, _: Request<ExecId>) -> Answer<wire::Empty> {
        lacks("ending a process by its id")
    }

    async fn forward(&self, _: Request<Streaming<ForwardChunk>>) -> Answer<Self::ForwardStream> {
        lacks("forwarding ports")
    }

    async fn open_session(&self, _: Request<OpenSessionRequest>) -> Answer<ExecStatus> {
        lacks("sessions that outlive their window")
    }

    async fn shell(&self, _: Request<wire::Empty>) -> Answer<ShellResponse> {
        let path = exec::shell(self.client.clone()).await?;
        Ok(Response::new(ShellResponse { path }))
    }
}
