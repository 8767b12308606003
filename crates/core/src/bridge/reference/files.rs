//! Files over the reference's service.

use std::future::pending;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient;
use skep_bridge_protocol::bridgepb::{
    self, DeleteFileRequest, ListDirRequest, MkdirRequest, ReadRawRequest, WriteFileRequest, WriteRawChunk,
};
use skep_bridge_protocol::reason;
use skep_bridge_protocol::workspace::{
    FileInfo, ListPage, ListRequest, MakeDirectoryRequest, ReadChunk, ReadRequest, RemoveRequest, RenameRequest,
    StatRequest, WriteChunk, WriteResult,
};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::entry::{info_of, path_below};
use super::{Answers, impossible, lacks};

type Client = ContainerServiceClient<Channel>;

/// Entries of one page, and its longest answer: a small message can be very many empty entries.
const PAGE_ENTRIES: usize = 128;
const LARGEST_PAGE_BYTES: usize = 1024 * 1024;
/// What is written in one message: as the message may be, less what surrounds the content.
const LARGEST_WRITE_BYTES: usize = skep_bridge_protocol::MAX_MESSAGE_BYTES - 64 * 1024;
/// The modes that such a bridge gives to new files and directories.
const WRITTEN_MODE: u32 = 0o600;
const UPLOADED_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o750;
const PIECES_UNDER_WAY: usize = 2;
/// Pages in a row that tell nothing new once something was told: a directory may move under its listing, but not for
/// ever.
const MOST_REPEATS: u32 = 8;

pub(super) async fn stat(mut client: Client, request: StatRequest) -> Result<FileInfo, Status> {
    if !request.follow {
        return lacks("the state of a link itself");
    }
    let path = text(&request.path)?;
    let asked = bridgepb::StatRequest { path };
    let answer = client.stat(asked).await.map_err(of_file)?.into_inner();
    let entry = answer.entry.ok_or_else(|| impossible("a file without a state"))?;
    info_of(&entry, request.path)
}

struct Listing {
    client: Client,
    request: ListRequest,
    directory: String,
    offset: i32,
    left: usize,
    last: String,
    told_any: bool,
    repeats: u32,
    ended: bool,
}

pub(super) fn list(client: &Client, request: ListRequest) -> Result<Answers<ListPage>, Status> {
    let listing = Listing {
        client: client.clone().max_decoding_message_size(LARGEST_PAGE_BYTES),
        directory: text(&request.path)?,
        offset: 0,
        left: usize::try_from(request.limit).unwrap_or(usize::MAX),
        last: text(&request.after)?,
        told_any: false,
        repeats: 0,
        ended: false,
        request,
    };
    Ok(stream::try_unfold(listing, Listing::next_page).boxed())
}

impl Listing {
    async fn next_page(mut self) -> Result<Option<(ListPage, Self)>, Status> {
        while !self.ended {
            let page = self.page().await?;
            // Before the cursor there may be many: an answer without entries would tell nothing.
            if !page.entries.is_empty() || page.truncated {
                (self.told_any, self.repeats) = (true, 0);
                return Ok(Some((page, self)));
            }
            self.repeats += u32::from(self.told_any);
            if self.repeats > MOST_REPEATS {
                return Err(impossible("a listing that tells the same again and again"));
            }
        }
        Ok(None)
    }

    async fn page(&mut self) -> Result<ListPage, Status> {
        let asked = ListDirRequest {
            path: self.directory.clone(),
            recursive: self.request.recursive,
            offset: self.offset,
            limit: PAGE_ENTRIES as i32,
            collapse_threshold: i32::try_from(self.request.collapse_threshold).unwrap_or(i32::MAX),
        };
        let answer = self.client.list_dir(asked).await.map_err(of_file)?.into_inner();
        if answer.entries.len() > PAGE_ENTRIES {
            return Err(impossible("more entries than were asked for"));
        }
        let end = self.offset.checked_add(answer.entries.len() as i32);
        self.offset = end.ok_or_else(|| impossible("a listing without an end"))?;
        self.ended = answer.entries.is_empty() || self.offset >= answer.total_count;
        let mut page = ListPage::default();
        for entry in &answer.entries {
            let place = relative(&self.directory, &entry.path);
            // A directory that changes between two pages moves: what was told is not told again.
            if page.entries.is_empty() && !is_after(&place, &self.last) {
                continue;
            }
            if !is_after(&place, &self.last) {
                return Err(impossible("a listing out of order"));
            }
            if self.left == 0 {
                page.truncated = true;
                self.ended = true;
                return Ok(page);
            }
            self.left -= 1;
            page.entries
                .push(info_of(entry, path_below(&self.directory, &entry.path).into_bytes())?);
            self.last = place;
        }
        Ok(page)
    }
}

fn relative(directory: &str, told: &str) -> String {
    let below = told.strip_prefix(directory.trim_end_matches('/'));
    match below.and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) if told.starts_with('/') => rest.to_owned(),
        _ => told.to_owned(),
    }
}

/// Depth first, by name: a directory comes before what is in it, and all of that before its next neighbour.
fn is_after(place: &str, last: &str) -> bool {
    last.is_empty() || place.split('/').gt(last.split('/'))
}

struct Reading {
    chunks: Streaming<bridgepb::DataChunk>,
    skip: u64,
    left: u64,
}

pub(super) async fn read(mut client: Client, request: ReadRequest) -> Result<Answers<ReadChunk>, Status> {
    if !request.confine_below.is_empty() {
        return lacks("downloads by guests");
    }
    let path = text(&request.path)?;
    let stat_request = StatRequest {
        path: request.path,
        follow: true,
    };
    let info = stat(client.clone(), stat_request).await?;
    match info.mode & 0o170_000 {
        0o100_000 => {}
        0o040_000 => return Err(because(reason::IS_A_DIRECTORY, format!("{path}: is a directory"))),
        _ => {
            return Err(because(
                reason::NOT_A_REGULAR_FILE,
                format!("{path}: not a regular file"),
            ));
        }
    }
    let answer = client.read_raw(ReadRawRequest { path }).await.map_err(of_file)?;
    let reading = Reading {
        chunks: answer.into_inner(),
        skip: request.offset,
        left: if request.length == 0 { u64::MAX } else { request.length },
    };
    let first = ReadChunk {
        info: Some(info),
        data: Bytes::new(),
    };
    let rest = stream::try_unfold(reading, Reading::next_chunk);
    Ok(stream::once(std::future::ready(Ok(first))).chain(rest).boxed())
}

impl Reading {
    /// That wire begins at the beginning: what lies before the offset is read and left, each piece told as an empty
    /// one, so that the reader sees that it goes on.
    async fn next_chunk(mut self) -> Result<Option<(ReadChunk, Self)>, Status> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(mut data) = self.chunks.message().await.map_err(of_file)?.map(|chunk| chunk.data) else {
            return Ok(None);
        };
        if data.is_empty() {
            return Err(impossible("a piece without a byte"));
        }
        let skipped = data.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.skip -= skipped as u64;
        drop(data.split_to(skipped));
        data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= data.len() as u64;
        Ok(Some((ReadChunk { info: None, data }, self)))
    }
}

pub(super) async fn write(client: Client, mut chunks: Streaming<WriteChunk>) -> Result<WriteResult, Status> {
    let first = chunks.message().await?.unwrap_or_default();
    let header = first
        .header
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("path is required"))?;
    if header.set_mode.is_some() {
        return lacks("setting the mode of a file");
    }
    if !header.if_match.is_empty() {
        return lacks("if_match");
    }
    let path = text(&header.path)?;
    match header.mode {
        WRITTEN_MODE => write_whole(client, path, (first, chunks)).await,
        UPLOADED_MODE => write_streamed(client, path, (first, chunks)).await,
        _ => lacks("setting the mode of a file"),
    }
}

type Given = (WriteChunk, Streaming<WriteChunk>);

/// The next bytes; `None` when all were given.
async fn given((first, rest): &mut Given) -> Result<Option<Bytes>, Status> {
    let mut chunk = std::mem::take(first);
    if chunk.header.is_none() && !chunk.finish && chunk.data.is_empty() {
        chunk = rest
            .message()
            .await?
            .ok_or_else(|| Status::aborted("the file was given up"))?;
    }
    if chunk.finish {
        first.finish = true;
        return Ok((!chunk.data.is_empty()).then_some(chunk.data));
    }
    Ok(Some(chunk.data))
}

/// The one way to a new file that only its owner reads.
async fn write_whole(mut client: Client, path: String, mut chunks: Given) -> Result<WriteResult, Status> {
    let mut content = Vec::new();
    while let Some(data) = given(&mut chunks).await? {
        if content.len() + data.len() > LARGEST_WRITE_BYTES {
            return lacks("writing more than 15 MiB at once; upload it");
        }
        content.extend_from_slice(&data);
    }
    let bytes_written = content.len() as u64;
    let content = content.into();
    client
        .write_file(WriteFileRequest { path, content })
        .await
        .map_err(of_file)?;
    Ok(WriteResult {
        bytes_written,
        info: None,
    })
}

async fn write_streamed(mut client: Client, path: String, mut chunks: Given) -> Result<WriteResult, Status> {
    let (sender, receiver) = mpsc::channel(PIECES_UNDER_WAY);
    let call = client.write_raw(ended_when_told(receiver));
    let feed = async {
        let mut sent = 0;
        let first = WriteRawChunk {
            path,
            data: Bytes::new(),
        };
        // Refused: the call is over, and tells why.
        if sender.send(Some(first)).await.is_err() {
            return Ok(sent);
        }
        while let Some(data) = given(&mut chunks).await? {
            sent += data.len() as u64;
            let chunk = WriteRawChunk {
                path: String::new(),
                data,
            };
            if sender.send(Some(chunk)).await.is_err() {
                return Ok(sent);
            }
        }
        drop(sender.send(None).await);
        Ok::<_, Status>(sent)
    };
    tokio::pin!(call, feed);
    let mut sent = None;
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer.map_err(of_file)?.into_inner(),
            fed = &mut feed, if sent.is_none() => sent = Some(fed?),
        }
    };
    match sent.and_then(|sent| i64::try_from(sent).ok()) {
        Some(sent) if sent == answer.bytes_written => Ok(WriteResult {
            bytes_written: sent.cast_unsigned(),
            info: None,
        }),
        _ => Err(impossible("another number of bytes than was sent")),
    }
}

/// On that wire the end of the stream is the end of the file. So a file that is given up must not end its stream:
/// it stays open until the call itself is dropped, which the bridge sees as a call that was cut.
fn ended_when_told<T: Send + 'static>(receiver: mpsc::Receiver<Option<T>>) -> impl Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Some(item)) => Some((item, receiver)),
            Some(None) => None,
            None => pending().await,
        }
    })
}

pub(super) async fn make_directory(mut client: Client, request: MakeDirectoryRequest) -> Result<(), Status> {
    if request.mode != DIRECTORY_MODE {
        return lacks("setting the mode of a directory");
    }
    let path = text(&request.path)?;
    client.mkdir(MkdirRequest { path }).await.map_err(of_file)?;
    Ok(())
}

pub(super) async fn remove(mut client: Client, request: RemoveRequest) -> Result<(), Status> {
    let asked = DeleteFileRequest {
        path: text(&request.path)?,
        recursive: request.recursive,
    };
    match client.delete_file(asked).await.map_err(of_file) {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

pub(super) async fn rename(mut client: Client, request: RenameRequest) -> Result<(), Status> {
    let asked = bridgepb::RenameRequest {
        old_path: text(&request.from)?,
        new_path: text(&request.to)?,
    };
    client.rename(asked).await.map_err(of_file)?;
    Ok(())
}

fn text(path: &[u8]) -> Result<String, Status> {
    let text = std::str::from_utf8(path).map_err(|_| Status::unimplemented("paths that are not UTF-8"))?;
    Ok(text.to_owned())
}

fn because(word: &'static str, message: String) -> Status {
    let mut status = Status::failed_precondition(message);
    status
        .metadata_mut()
        .insert(reason::METADATA_KEY, MetadataValue::from_static(word));
    status
}

/// How the message of a failure ends, and what that is. The reference's bridge tells most of them as internal ones.
const ENDINGS: [(&str, Code, &str); 9] = [
    ("no such file or directory", Code::NotFound, ""),
    ("permission denied", Code::PermissionDenied, ""),
    ("read-only file system", Code::PermissionDenied, ""),
    ("directory not empty", Code::FailedPrecondition, reason::NOT_EMPTY),
    ("not a directory", Code::FailedPrecondition, reason::NOT_A_DIRECTORY),
    ("is a directory", Code::FailedPrecondition, reason::IS_A_DIRECTORY),
    ("file name too long", Code::InvalidArgument, reason::NAME_TOO_LONG),
    ("no space left on device", Code::ResourceExhausted, reason::NO_SPACE),
    ("file exists", Code::AlreadyExists, ""),
];

/// A failure with a file, told as a bridge of ours would. One that says more by itself stays as it is.
fn of_file(status: Status) -> Status {
    let vague = matches!(
        status.code(),
        Code::Internal | Code::Unknown | Code::FailedPrecondition | Code::InvalidArgument
    );
    if !vague || status.metadata().contains_key(reason::METADATA_KEY) {
        return status;
    }
    let message = status.message().trim_end().to_ascii_lowercase();
    let Some((_, code, word)) = ENDINGS.iter().find(|(ending, ..)| message.ends_with(ending)) else {
        return status;
    };
    let mut told = Status::new(*code, status.message());
    if !word.is_empty() {
        told.metadata_mut()
            .insert(reason::METADATA_KEY, MetadataValue::from_static(word));
    }
    told
}
