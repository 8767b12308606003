//! `skep.bridge.v1.Workspace`: which method goes where.

use std::sync::Arc;

use skep_bridge_protocol::workspace::workspace_server::Workspace;
use skep_bridge_protocol::workspace::*;
use tonic::{Request, Response, Status, Streaming};

use super::streams::ResponseStream;
use super::{forward, reference, watch, workspace_exec as exec, workspace_files as files};
use crate::exec::{Registry, Sessions};

/// In the order of preference of whoever opens a terminal.
const SHELLS: &[&str] = &["/bin/bash", "/usr/bin/bash", "/bin/zsh", "/usr/bin/zsh"];
const LAST_SHELL: &str = "/bin/sh";
const FEATURES: [&str; 10] = [
    "files", "search", "watch", "archive", "extract", "export", "exec", "forward", "shell", "session",
];

pub(crate) struct WorkspaceService {
    pub(crate) registry: Arc<Registry>,
    pub(crate) sessions: Sessions,
}

type Answer<T> = Result<Response<T>, Status>;

fn done(result: Result<(), Status>) -> Answer<Empty> {
    result.map(|()| Response::new(Empty {}))
}

#[tonic::async_trait]
impl Workspace for WorkspaceService {
    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        Ok(Response::new(InfoResponse {
            version: super::VERSION.into(),
            features: FEATURES.map(String::from).into(),
            generation: skep_bridge_protocol::GENERATION,
        }))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Answer<FileInfo> {
        files::stat(request.into_inner()).await.map(Response::new)
    }

    type ListStream = ResponseStream<ListPage>;

    async fn list(&self, request: Request<ListRequest>) -> Answer<Self::ListStream> {
        files::list(request.into_inner()).await.map(Response::new)
    }

    type ReadStream = ResponseStream<ReadChunk>;

    async fn read(&self, request: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        files::read(request.into_inner()).await.map(Response::new)
    }

    async fn write(&self, request: Request<Streaming<WriteChunk>>) -> Answer<WriteResult> {
        files::write(request.into_inner()).await.map(Response::new)
    }

    async fn make_directory(&self, request: Request<MakeDirectoryRequest>) -> Answer<Empty> {
        done(files::make_directory(request.into_inner()).await)
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<Empty> {
        done(files::remove(request.into_inner()).await)
    }

    async fn rename(&self, request: Request<RenameRequest>) -> Answer<Empty> {
        done(files::rename(request.into_inner()).await)
    }

    async fn copy(&self, request: Request<CopyRequest>) -> Answer<Empty> {
        done(files::copy(request.into_inner()).await)
    }

    async fn change_mode(&self, request: Request<ChangeModeRequest>) -> Answer<Empty> {
        done(files::change_mode(request.into_inner()).await)
    }

    type SearchStream = ResponseStream<SearchPage>;

    async fn search(&self, request: Request<SearchRequest>) -> Answer<Self::SearchStream> {
        files::search(request.into_inner()).await.map(Response::new)
    }

    type WatchStream = ResponseStream<WatchEvents>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        watch::watch(request.into_inner()).await.map(Response::new)
    }

    type ArchiveOutStream = ResponseStream<DataChunk>;

    async fn archive_out(&self, request: Request<ArchiveOutRequest>) -> Answer<Self::ArchiveOutStream> {
        files::archive_out(request.into_inner()).await.map(Response::new)
    }

    async fn archive_in(&self, request: Request<Streaming<ArchiveInChunk>>) -> Answer<ArchiveInResult> {
        files::archive_in(request.into_inner()).await.map(Response::new)
    }

    async fn extract(&self, request: Request<ExtractRequest>) -> Answer<ArchiveInResult> {
        files::extract(request.into_inner()).await.map(Response::new)
    }

    type ExportStream = ResponseStream<ExportChunk>;

    async fn export(&self, request: Request<ExportRequest>) -> Answer<Self::ExportStream> {
        files::export(request.into_inner()).await.map(Response::new)
    }

    async fn start_exec(&self, request: Request<StartExecRequest>) -> Answer<ExecStatus> {
        exec::start(&self.registry, request.into_inner())
            .await
            .map(Response::new)
    }

    type RunExecStream = ResponseStream<ExecEvent>;

    async fn run_exec(&self, request: Request<StartExecRequest>) -> Answer<Self::RunExecStream> {
        exec::run(&self.registry, request.into_inner()).await.map(Response::new)
    }

    async fn open_session(&self, request: Request<OpenSessionRequest>) -> Answer<ExecStatus> {
        exec::open_session((&self.registry, &self.sessions), request.into_inner())
            .await
            .map(Response::new)
    }

    type ExecOutputStream = ResponseStream<ExecEvent>;

    async fn exec_output(&self, request: Request<ExecOutputRequest>) -> Answer<Self::ExecOutputStream> {
        exec::output(&self.registry, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn exec_stdin(&self, request: Request<Streaming<ExecStdinChunk>>) -> Answer<Empty> {
        done(exec::stdin(&self.registry, request.into_inner()).await)
    }

    async fn signal_exec(&self, request: Request<SignalExecRequest>) -> Answer<Empty> {
        done(exec::signal(&self.registry, request.into_inner()).await)
    }

    async fn resize_exec(&self, request: Request<ResizeExecRequest>) -> Answer<Empty> {
        done(exec::resize(&self.registry, request.into_inner()).await)
    }

    async fn get_exec(&self, request: Request<ExecId>) -> Answer<ExecStatus> {
        let found = self.registry.find(&request.into_inner().exec_id).await?;
        self.registry.status(&found).await.map(Response::new)
    }

    type ListExecsStream = ResponseStream<ExecList>;

    async fn list_execs(&self, _: Request<Empty>) -> Answer<Self::ListExecsStream> {
        Ok(Response::new(exec::list(&self.registry).await))
    }

    async fn remove_exec(&self, request: Request<ExecId>) -> Answer<Empty> {
        done(self.registry.remove(&request.into_inner().exec_id).await)
    }

    type ForwardStream = ResponseStream<ForwardChunk>;

    async fn forward(&self, request: Request<Streaming<ForwardChunk>>) -> Answer<Self::ForwardStream> {
        forward::forward(request.into_inner()).await.map(Response::new)
    }

    async fn shell(&self, _: Request<Empty>) -> Answer<ShellResponse> {
        let found = reference::first_executable(SHELLS).await?;
        Ok(Response::new(ShellResponse {
            path: found.unwrap_or(LAST_SHELL).into(),
        }))
    }
}
