//! The file methods of our own service.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use prost::Message;
use skep_bridge_protocol::workspace::*;
use skep_bridge_protocol::{etag, reason};
use tonic::{Code, Status, Streaming};

use super::reference::{missing_is_fine, refuse_root};
use super::streams::{
    Outlet, PieceReader, ResponseStream, consumed, cut, pieces, produced, pulled, read_chunk, write_pieces,
};
use crate::failure;
use crate::files::{self, Commit, ReadPlan, Walk, Walking};
use crate::paths;
use crate::workers::{Lane, blocking, from_path_to_path, on_path};

/// A page of a listing holds no more entries than this, and is sent when it has so many bytes: a path may be of any length.
const PAGE_ENTRIES: usize = 500;
const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of matches after which they are sent.
const MATCH_BYTES: usize = 64 * 1024;

pub(super) async fn stat(request: StatRequest) -> Result<FileInfo, Status> {
    on_path(paths::resolve(&request.path)?, move |path| {
        files::stat(path, request.follow)
    })
    .await
}

pub(super) async fn list(request: ListRequest) -> Result<ResponseStream<ListPage>, Status> {
    let path = paths::resolve_or_data(&request.path)?;
    let begin = move |path: &Path| {
        let mut listing = Listing::begin(path, &request)?;
        // Told first, so that what cannot be listed is the answer itself and not the end of a stream.
        Ok((listing.next_page()?, listing))
    };
    let place = Lane::Listings.place().await?;
    let (first, mut listing) = on_path(path, begin).await?;
    Ok(pulled(place, first.unwrap_or_default(), move || {
        listing
            .next_page()
            .map_err(|error| failure::of_path(&error, &listing.path))
    }))
}

struct Listing {
    path: PathBuf,
    walking: Walking,
    /// Entries that may still be shown; none: as many as there are.
    left: Option<u32>,
    is_over: bool,
}

impl Listing {
    fn begin(path: &Path, request: &ListRequest) -> std::io::Result<Self> {
        let walk = Walk {
            recursive: request.recursive,
            after: &request.after,
            collapse_threshold: request.collapse_threshold,
            ..Walk::default()
        };
        Ok(Self {
            path: path.to_path_buf(),
            walking: Walking::begin(path, &walk)?,
            left: (request.limit > 0).then_some(request.limit),
            is_over: false,
        })
    }

    fn next_page(&mut self) -> std::io::Result<Option<ListPage>> {
        if self.is_over {
            return Ok(None);
        }
        let (mut page, mut page_bytes) = (ListPage::default(), 0);
        let (path, left) = (&self.path, &mut self.left);
        let walked = self.walking.go_on(&mut |item| {
            if *left == Some(0) {
                page.truncated = true;
                return Ok(ControlFlow::Break(()));
            }
            let Some(mut info) = item.info(path)? else {
                return Ok(ControlFlow::Continue(()));
            };
            if item.collapsed.is_some() {
                info.name.push(b'/');
            }
            page_bytes += info.encoded_len();
            page.entries.push(info);
            *left = left.map(|left| left - 1);
            match page.entries.len() < PAGE_ENTRIES && page_bytes < PAGE_BYTES {
                true => Ok(ControlFlow::Continue(())),
                false => Ok(ControlFlow::Break(())),
            }
        })?;
        self.is_over = page.truncated || walked.is_continue();
        Ok(Some(page))
    }
}

pub(super) async fn read(request: ReadRequest) -> Result<ResponseStream<ReadChunk>, Status> {
    let path = paths::resolve(&request.path)?;
    let confine = match request.confine_below.as_slice() {
        b"" => None,
        below => Some(paths::resolve(below)?),
    };
    let plan = ReadPlan {
        offset: request.offset,
        length: request.length,
    };
    let opened = on_path(path, move |path| {
        let (mut file, info) = files::open_regular(path, confine.as_deref())?;
        let left = plan.begin(&mut file)?;
        let data = read_chunk(&mut file, left)?;
        Ok((file, info, data, left, path.to_path_buf()))
    });
    let (mut file, info, data, left, path) = opened.await?;
    let first = ReadChunk { info: Some(info), data };
    let left = left - first.data.len() as u64;
    if left == 0 || first.data.len() < skep_bridge_protocol::STREAM_CHUNK_BYTES {
        // All of it.
        return Ok(Box::pin(tokio_stream::once(Ok(first))));
    }
    let place = Lane::Downloads.place().await?;
    let mut left = left;
    Ok(pulled(place, first, move || {
        let data = match left {
            0 => return Ok(None),
            left => read_chunk(&mut file, left).map_err(|error| failure::of_path(&error, &path))?,
        };
        left -= data.len() as u64;
        Ok((!data.is_empty()).then_some(ReadChunk { info: None, data }))
    }))
}

pub(super) async fn write(mut chunks: Streaming<WriteChunk>) -> Result<WriteResult, Status> {
    let mut first = chunks.message().await?.ok_or_else(failure::path_is_required)?;
    let header = first
        .header
        .take()
        .ok_or_else(|| Status::invalid_argument("the first message has a header"))?;
    let path = paths::resolve(&header.path)?;
    let modes = Commit {
        new_mode: header.mode,
        set_mode: header.set_mode,
    };
    let (checked, condition) = (path.clone(), header.if_match);
    let check = move |target: &files::Target| check_match(&checked, target, &condition);
    let sent = pieces(first, chunks, |chunk| (chunk.data, chunk.finish));
    let (bytes_written, info) = write_pieces(path, modes, sent, check).await?;
    Ok(WriteResult {
        bytes_written,
        info: Some(info),
    })
}

/// An empty condition always holds, `*` for any file.
fn check_match(path: &Path, target: &files::Target, condition: &str) -> Result<(), Status> {
    if condition.is_empty() {
        return Ok(());
    }
    let current = target.current().map_err(|error| failure::of_path(&error, path))?;
    if current.is_some_and(|info| condition == "*" || etag(&info) == condition) {
        return Ok(());
    }
    let message = format!("{}: changed since it was read", path.display());
    Err(failure::with_reason(Code::Aborted, Some(reason::CHANGED), message))
}

pub(super) async fn make_directory(request: MakeDirectoryRequest) -> Result<(), Status> {
    let mode = if request.mode == 0 {
        0o750
    } else {
        request.mode & 0o7777
    };
    on_path(paths::resolve(&request.path)?, move |path| {
        files::make_directory(path, mode)
    })
    .await
}

pub(super) async fn remove(request: RemoveRequest) -> Result<(), Status> {
    let path = paths::resolve(&request.path)?;
    refuse_root(&path)?;
    on_path(path, move |path| {
        missing_is_fine(files::remove(path, request.recursive))
    })
    .await
}

pub(super) async fn rename(request: RenameRequest) -> Result<(), Status> {
    let to = paths::resolve(&request.to)?;
    let rename = match request.only_in_place {
        true => files::rename_in_place,
        false => files::rename,
    };
    from_path_to_path(paths::resolve(&request.from)?, to, rename).await
}

pub(super) async fn copy(request: CopyRequest) -> Result<(), Status> {
    let to = paths::resolve(&request.to)?;
    from_path_to_path(paths::resolve(&request.from)?, to, files::copy).await
}

pub(super) async fn change_mode(request: ChangeModeRequest) -> Result<(), Status> {
    let change = move |path: &Path| files::change_mode(path, request.mode, request.uid, request.gid);
    on_path(paths::resolve(&request.path)?, change).await
}

pub(super) async fn search(request: SearchRequest) -> Result<ResponseStream<SearchPage>, Status> {
    let search = files::Search::new(&request).map_err(Status::invalid_argument)?;
    // Asked first, so that what cannot be searched is the answer itself and not the end of a stream.
    let path = on_path(paths::resolve_or_data(&request.path)?, |path| {
        files::stat(path, true).map(|_| path.to_path_buf())
    })
    .await?;
    produced(Lane::Searches, move |outlet| {
        let mut page = SearchPage::default();
        let mut page_bytes = 0;
        let truncated = search.run(&path, &mut |found| {
            page_bytes += found.text.len() + found.path.len();
            page.matches.push(found);
            if page_bytes < MATCH_BYTES {
                return Ok(());
            }
            page_bytes = 0;
            outlet.send(std::mem::take(&mut page))
        });
        page.last = true;
        page.truncated = truncated.map_err(|(at, error)| failure::of_path(&error, &at))?;
        // Nobody reads it when the caller has gone.
        drop(outlet.send(page));
        Ok(())
    })
    .await
}

pub(super) async fn archive_out(request: ArchiveOutRequest) -> Result<ResponseStream<DataChunk>, Status> {
    let paths: Vec<PathBuf> = request
        .paths
        .iter()
        .map(|path| paths::resolve(path))
        .collect::<Result<_, _>>()?;
    if paths.is_empty() {
        return Err(failure::path_is_required());
    }
    let paths = blocking(move || {
        for path in &paths {
            path.metadata().map_err(|error| failure::of_path(&error, path))?;
        }
        Ok(paths)
    })
    .await?;
    produced(Lane::Archives, move |outlet| {
        struct ToStream<'a>(&'a Outlet<DataChunk>);
        impl files::Sink for ToStream<'_> {
            fn send(&mut self, data: bytes::Bytes) -> std::io::Result<()> {
                self.0.send(DataChunk { data })
            }
        }
        files::pack(&paths, &mut ToStream(outlet)).map_err(|(path, error)| failure::of_path(&error, &path))
    })
    .await
}

pub(super) async fn extract(request: ExtractRequest) -> Result<ArchiveInResult, Status> {
    let archive = paths::resolve(&request.path)?;
    let directory = match request.to.is_empty() {
        true => archive.parent().unwrap_or(&archive).to_path_buf(),
        false => paths::resolve(&request.to)?,
    };
    let _place = Lane::Archives.place().await?;
    blocking(move || {
        let extracted = files::extract(&archive, &directory);
        extracted.map_err(|(path, error)| failure::of_path(&error, &path))
    })
    .await
}

pub(super) async fn export(request: ExportRequest) -> Result<ResponseStream<ExportChunk>, Status> {
    let begin = |_: &Path| files::Export::begin();
    let export = on_path(PathBuf::from(paths::DATA_DIRECTORY), begin).await?;
    let changing = match request.strict {
        true => skep_archive::Changing::Refused,
        false => skep_archive::Changing::Counted,
    };
    produced(Lane::Archives, move |outlet| export_chunks(&export, changing, outlet)).await
}

fn export_chunks(
    export: &files::Export,
    changing: skep_archive::Changing,
    outlet: &Outlet<ExportChunk>,
) -> Result<(), Status> {
    struct ToStream<'a>(&'a Outlet<ExportChunk>);
    impl files::Sink for ToStream<'_> {
        fn send(&mut self, data: bytes::Bytes) -> std::io::Result<()> {
            self.0.send(ExportChunk {
                data,
                ..ExportChunk::default()
            })
        }
    }
    let first = ExportChunk {
        estimate_bytes: export.estimate_bytes,
        ..ExportChunk::default()
    };
    let sent = outlet
        .send(first)
        .map_err(|error| (PathBuf::from(paths::DATA_DIRECTORY), error));
    let packed = sent.and_then(|()| export.pack(changing, &mut ToStream(outlet)));
    let report = packed.map_err(|(path, error)| failure::of_packing(&error, &path))?;
    let last = ExportChunk {
        report: Some(ExportReport {
            entries: report.entries,
            bytes: report.bytes,
            skipped: report.skipped,
            changed: report.changed,
        }),
        ..ExportChunk::default()
    };
    // Nobody reads it when the caller has gone.
    drop(outlet.send(last));
    Ok(())
}

pub(super) async fn archive_in(mut chunks: Streaming<ArchiveInChunk>) -> Result<ArchiveInResult, Status> {
    let first = chunks.message().await?.ok_or_else(failure::path_is_required)?;
    let path = paths::resolve(&first.path)?;
    let work = move |pieces| {
        let mut reader = PieceReader::new(pieces);
        let unpacked = files::unpack(&path, &mut reader);
        let result = unpacked.map_err(|(at, error)| match (reader.is_cut(), error.raw_os_error()) {
            (true, _) => cut(&path),
            // Not the file system's: the archive itself is no archive, or ends too early.
            (false, None) => Status::invalid_argument(format!("{}: {error}", at.display())),
            (false, Some(_)) => failure::of_path(&error, &at),
        })?;
        // What follows the archive's own end (padding) is read too: the client waits for it to be taken.
        std::io::copy(&mut reader, &mut std::io::sink()).map_err(|_| cut(&path))?;
        Ok(result)
    };
    let sent = pieces(first, chunks, |chunk| (chunk.data, chunk.finish));
    consumed(Lane::Archives, work, sent).await
}
