//! `bridgepb.ContainerService`: the reference's service, word for word what its clients expect.

use std::future::ready;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, stream};
use skep_bridge_protocol::bridgepb::container_service_server::ContainerService;
use skep_bridge_protocol::bridgepb::*;
use tonic::{Request, Response, Status, Streaming};

use super::streams::{Piece, ResponseStream, pieces, pulled, read_chunk, write_pieces};
use crate::exec::Registry;
use crate::failure;
use crate::files::{self, Commit, Walk};
use crate::paths;
use crate::workers::{Lane, blocking, from_path_to_path, on_path};

const DIRECTORY_MODE: u32 = 0o750;
const WRITTEN_MODE: u32 = 0o600;
const UPLOADED_MODE: u32 = 0o644;
const MOST_ENTRIES: usize = 100_000;
/// Below the largest message with room for what surrounds the entries.
const MOST_ENTRY_BYTES: usize = 15 * 1024 * 1024;

pub(crate) struct Reference {
    pub(crate) registry: Arc<Registry>,
}

#[tonic::async_trait]
impl ContainerService for Reference {
    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        let request = request.into_inner();
        let path = paths::resolve(request.path.as_bytes())?;
        let read = on_path(path, move |path| {
            let (mut file, _) = files::open_regular(path, None)?;
            files::read_lines(&mut file, request.line_offset, request.n_lines)
        });
        Ok(Response::new(read.await?))
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
        let request = request.into_inner();
        let path = paths::resolve(request.path.as_bytes())?;
        let write = on_path(path, move |path| {
            let mut new = files::Target::find(path)?.begin()?;
            new.write(&request.content)?;
            new.commit(&Commit {
                new_mode: WRITTEN_MODE,
                set_mode: None,
            })
        });
        write.await?;
        Ok(Response::new(WriteFileResponse {}))
    }

    async fn list_dir(&self, request: Request<ListDirRequest>) -> Result<Response<ListDirResponse>, Status> {
        let request = request.into_inner();
        let path = paths::resolve_or_data(request.path.as_bytes())?;
        Ok(Response::new(on_path(path, move |path| list(path, &request)).await?))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        let path = paths::resolve(request.into_inner().path.as_bytes())?;
        let info = on_path(path, |path| files::stat(path, true)).await?;
        Ok(Response::new(StatResponse {
            entry: Some(files::entry_of(&info, &info.path)),
        }))
    }

    async fn mkdir(&self, request: Request<MkdirRequest>) -> Result<Response<MkdirResponse>, Status> {
        let path = paths::resolve(request.into_inner().path.as_bytes())?;
        on_path(path, |path| files::make_directory(path, DIRECTORY_MODE)).await?;
        Ok(Response::new(MkdirResponse {}))
    }

    async fn rename(&self, request: Request<RenameRequest>) -> Result<Response<RenameResponse>, Status> {
        let request = request.into_inner();
        let to = paths::resolve(request.new_path.as_bytes())?;
        from_path_to_path(paths::resolve(request.old_path.as_bytes())?, to, files::rename).await?;
        Ok(Response::new(RenameResponse {}))
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        let request = request.into_inner();
        let path = paths::resolve(request.path.as_bytes())?;
        refuse_root(&path)?;
        on_path(path, move |path| files::remove(path, request.recursive)).await?;
        Ok(Response::new(DeleteFileResponse {}))
    }

    type ReadRawStream = ResponseStream<DataChunk>;

    async fn read_raw(&self, request: Request<ReadRawRequest>) -> Result<Response<Self::ReadRawStream>, Status> {
        let path = paths::resolve(request.into_inner().path.as_bytes())?;
        let opened = on_path(path, |path| {
            let mut file = files::open_regular(path, None)?.0;
            let first = read_chunk(&mut file, u64::MAX)?;
            Ok((file, first, path.to_path_buf()))
        });
        let (mut file, first, path) = opened.await?;
        if first.is_empty() {
            return Ok(Response::new(Box::pin(tokio_stream::empty())));
        }
        let place = Lane::Downloads.place().await?;
        Ok(Response::new(pulled(place, DataChunk { data: first }, move || {
            let data = read_chunk(&mut file, u64::MAX).map_err(|error| failure::of_path(&error, &path))?;
            Ok((!data.is_empty()).then_some(DataChunk { data }))
        })))
    }

    async fn write_raw(
        &self,
        request: Request<Streaming<WriteRawChunk>>,
    ) -> Result<Response<WriteRawResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(failure::path_is_required)?;
        let path = paths::resolve(first.path.as_bytes())?;
        let modes = Commit {
            new_mode: UPLOADED_MODE,
            set_mode: None,
        };
        // The reference's clients end the stream when all is sent; one that is cut is an error in it.
        let sent = pieces(first, chunks, |chunk: WriteRawChunk| (chunk.data, false));
        let sent = sent.chain(stream::once(ready(Ok(Piece::Finish))));
        let (written, _) = write_pieces(path, modes, sent, |_: &files::Target| Ok(())).await?;
        Ok(Response::new(WriteRawResponse {
            bytes_written: written.cast_signed(),
        }))
    }

    type ExecStream = ResponseStream<ExecOutput>;

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        super::reference_exec::exec(&self.registry, request.into_inner()).await
    }
}

pub(super) fn refuse_root(path: &Path) -> Result<(), Status> {
    if path == Path::new("/") {
        return Err(Status::permission_denied("/: cannot delete root directory"));
    }
    Ok(())
}

fn list(path: &Path, request: &ListDirRequest) -> std::io::Result<ListDirResponse> {
    let offset = u64::from(request.offset.max(0).cast_unsigned());
    let limit = match request.limit {
        1.. => (request.limit as usize).min(MOST_ENTRIES),
        _ => MOST_ENTRIES,
    };
    let walk = Walk {
        recursive: request.recursive,
        collapse_threshold: request.collapse_threshold.max(0).cast_unsigned(),
        ..Walk::default()
    };
    let (mut total, mut bytes, mut full) = (0, 0, false);
    let mut entries = Vec::new();
    files::walk(path, &walk, &mut |item| {
        total += 1;
        if total <= offset {
            return Ok(ControlFlow::Continue(()));
        }
        full |= entries.len() >= limit || bytes >= MOST_ENTRY_BYTES;
        if !full && let Some(info) = item.info(path)? {
            let entry = files::entry_of(&info, item.relative);
            // Numbers, mode and time take about this much beside the texts.
            bytes += 96 + entry.path.len() + entry.summary.len();
            entries.push(entry);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ListDirResponse {
        entries,
        total_count: i32::try_from(total).unwrap_or(i32::MAX),
        truncated: full,
    })
}

/// Errors that mean only "it is not there".
pub(super) fn missing_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(super) async fn first_executable(candidates: &'static [&'static str]) -> Result<Option<&'static str>, Status> {
    blocking(move || Ok(candidates.iter().copied().find(|path| is_executable(Path::new(path))))).await
}

fn is_executable(path: &Path) -> bool {
    let may_run = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    may_run && path.metadata().is_ok_and(|metadata| metadata.is_file())
}
