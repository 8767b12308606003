//! `skep cp`: files and directories in and out, and tar streams.
//!
//! A file goes over upload and download with its true length; a directory goes as a tar stream whose
//! entries are relative to it. What is there already decides where things land, as with `cp -r`.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;
use reqwest::{Body, Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::files::route;
use super::place::{Place, base_name};
use super::unpack;
use crate::arguments::{CopyArguments, OutputForm};
use crate::client::{Client, find_bot};
use crate::failure::{Failure, Result};
use crate::progress::transfer_bar;

/// Between the maker of a tar stream and the connection.
const PIPE_BYTES: usize = 256 << 10;

pub(crate) async fn run(client: &Client, form: OutputForm, copy: CopyArguments) -> Result<()> {
    match (Place::parse(&copy.source)?, Place::parse(&copy.destination)?) {
        (Place::Here(from), Place::Inside { bot, path }) => {
            let id = find_bot(client, &bot).await?.id;
            upload(client, form, Path::new(&from), (&id, &path)).await
        }
        (Place::Inside { bot, path }, Place::Here(to)) => {
            let id = find_bot(client, &bot).await?.id;
            download(client, form, (&id, &path), &to).await
        }
        (Place::Stream, Place::Inside { bot, path }) => {
            let id = find_bot(client, &bot).await?.id;
            let bar = transfer_bar(form, None, "sending");
            put_archive(client, (&id, &path), counted(tokio::io::stdin(), &bar)).await
        }
        (Place::Inside { bot, path }, Place::Stream) => {
            let id = find_bot(client, &bot).await?.id;
            archive_to_stdout(client, (&id, &path)).await
        }
        _ => Err(Failure::Usage(
            "one side must be NAME:/path, the other a path here or -".into(),
        )),
    }
}

async fn stat(client: &Client, id: &str, path: &str) -> Result<Option<Value>> {
    let request = client
        .request(Method::GET, &format!("/bots/{id}/container/fs"))
        .query(&[("path", path)]);
    match client.read(request).await {
        Ok(info) => Ok(Some(info)),
        // The bot was found a moment ago: what is missing is the file.
        Err(Failure::Refused { status: 404, code, .. }) if code == "not_found" => Ok(None),
        Err(other) => Err(other),
    }
}

fn is_directory(info: &Value) -> bool {
    info.get("isDir").and_then(Value::as_bool) == Some(true)
}

async fn upload(client: &Client, form: OutputForm, from: &Path, to: (&str, &str)) -> Result<()> {
    let failed = |error| Failure::local(format!("cannot read {}", from.display()), error);
    let metadata = std::fs::metadata(from).map_err(failed)?;
    let into_directory = match stat(client, to.0, to.1).await? {
        Some(info) => is_directory(&info),
        None => to.1.ends_with('/'),
    };
    let target = if into_directory {
        let whole = std::fs::canonicalize(from).map_err(failed)?;
        let name = from
            .file_name()
            .or_else(|| whole.file_name())
            .map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| Failure::Usage(format!("{} has no name", from.display())))?;
        format!("{}/{name}", to.1.trim_end_matches('/'))
    } else {
        to.1.to_owned()
    };
    if metadata.is_dir() {
        return upload_directory(client, form, from, (to.0, &target)).await;
    }
    if !metadata.is_file() {
        return Err(Failure::Usage(format!(
            "{} is neither a file nor a directory",
            from.display()
        )));
    }
    let file = tokio::fs::File::open(from).await.map_err(failed)?;
    let bar = transfer_bar(form, Some(metadata.len()), base_name(&target).unwrap_or("file"));
    let request = client
        .request(Method::PUT, &route(to.0, "upload"))
        .query(&[
            ("path", target.as_str()),
            ("mode", &format!("{:04o}", metadata.permissions().mode() & 0o777)),
        ])
        .header("content-type", "application/octet-stream")
        .header("content-length", metadata.len())
        .body(counted(file, &bar));
    client.send(request).await?;
    bar.finish_and_clear();
    Ok(())
}

/// A body that moves the bar as it is read; at its end the bar goes, as the server may have much to do from there on.
pub(super) fn counted(reader: impl AsyncRead + Send + 'static, bar: &ProgressBar) -> Body {
    let bar = bar.clone();
    let stream = ReaderStream::with_capacity(reader, 64 << 10);
    Body::wrap_stream(stream.inspect_ok(move |bytes| {
        bar.inc(bytes.len() as u64);
        if bar.length() == Some(bar.position()) {
            bar.finish_and_clear();
        }
    }))
}

async fn upload_directory(client: &Client, form: OutputForm, from: &Path, to: (&str, &str)) -> Result<()> {
    client.post(&route(to.0, "mkdir"), &json!({"path": to.1})).await?;
    let (reading, writing) = tokio::io::duplex(PIPE_BYTES);
    let directory = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack(&directory, SyncIoBridge::new(writing)));
    let bar = transfer_bar(form, None, base_name(to.1).unwrap_or("directory"));
    let sent = put_archive(client, to, counted(reading, &bar)).await;
    let packed = packing
        .await
        .map_err(|error| Failure::Failed(format!("packing was cut short: {error}")))?;
    bar.finish_and_clear();
    match (packed, sent) {
        // A pack that lost its reader failed because of the server, whose reason says more.
        (Err(error), Err(_)) if !is_broken_pipe(&error) => Err(unreadable(from, error)),
        (_, Err(failure)) => Err(failure),
        (Err(error), Ok(())) => Err(unreadable(from, error)),
        (Ok(()), Ok(())) => Ok(()),
    }
}

fn unreadable(from: &Path, error: std::io::Error) -> Failure {
    Failure::local(format!("cannot read all of {}", from.display()), error)
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// A tar stream of a directory's content; links stay links, sockets are left out with a word.
fn pack(directory: &Path, to: impl Write) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(to);
    tar.follow_symlinks(false);
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in std::fs::read_dir(directory.join(&relative))? {
            let entry = entry?;
            let inside = relative.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_file() || kind.is_symlink() {
                tar.append_path_with_name(entry.path(), &inside)?;
            } else if kind.is_dir() {
                tar.append_dir(&inside, entry.path())?;
                pending.push(inside);
            } else {
                eprintln!(
                    "skep: left out {}: neither file, directory nor link",
                    entry.path().display()
                );
            }
        }
    }
    tar.into_inner()?.flush()
}

async fn put_archive(client: &Client, to: (&str, &str), body: Body) -> Result<()> {
    let request = client
        .request(Method::PUT, &route(to.0, "archive"))
        .query(&[("path", to.1)])
        .header("content-type", "application/x-tar")
        .body(body);
    client.send(request).await.map(|_| ())
}

async fn archive_to_stdout(client: &Client, from: (&str, &str)) -> Result<()> {
    let request = client
        .request(Method::GET, &route(from.0, "archive"))
        .query(&[("path", from.1)]);
    let answer = client.send(request).await?;
    to_stdout(answer, &ProgressBar::hidden(), "sending an archive").await
}

/// Writes an answer's body to standard output, as it comes.
pub(super) async fn to_stdout(answer: Response, bar: &ProgressBar, doing: &'static str) -> Result<()> {
    let mut body = answer.bytes_stream();
    let mut stdout = tokio::io::stdout();
    let failed = |error| Failure::local("cannot write to standard output", error);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| Failure::CutOff(doing))?;
        stdout.write_all(&piece).await.map_err(failed)?;
        bar.inc(piece.len() as u64);
    }
    stdout.flush().await.map_err(failed)
}

async fn download(client: &Client, form: OutputForm, from: (&str, &str), to: &str) -> Result<()> {
    let Some(info) = stat(client, from.0, from.1).await? else {
        return Err(Failure::Refused {
            status: 404,
            code: "not_found".into(),
            message: format!("{}: no such file or directory", from.1),
            request_id: None,
        });
    };
    let to_path = Path::new(to);
    let target = if to_path.is_dir() {
        // The root has no name: its content goes into the directory itself.
        let target = base_name(from.1).map_or_else(|| to_path.to_owned(), |name| to_path.join(name));
        no_link_of_an_earlier_copy(to_path, &target)?;
        target
    } else if to.ends_with('/') && !is_directory(&info) {
        return Err(Failure::Usage(format!("there is no directory {to}")));
    } else {
        to_path.to_owned()
    };
    if is_directory(&info) {
        return download_directory(client, form, from, target).await;
    }
    download_file(client, form, from, &target).await
}

/// A workspace chose that name: what it led to with a link that it had copied out before is not written to.
fn no_link_of_an_earlier_copy(named: &Path, target: &Path) -> Result<()> {
    if target != named && target.is_symlink() {
        return Err(Failure::Failed(format!(
            "{} is a link: remove it, or name the place to copy to",
            target.display()
        )));
    }
    Ok(())
}

async fn download_file(client: &Client, form: OutputForm, from: (&str, &str), target: &Path) -> Result<()> {
    let request = client
        .request(Method::GET, &route(from.0, "download"))
        .query(&[("path", from.1)]);
    let answer = client.send(request).await?;
    let total = answer.content_length();
    let bar = transfer_bar(form, total, base_name(from.1).unwrap_or("file"));
    save(answer, target, &bar, "sending a file").await?;
    bar.finish_and_clear();
    Ok(())
}

/// Writes an answer's body to `target`, which is as it was until all of it has come. Returns how long it is.
pub(super) async fn save(answer: Response, target: &Path, bar: &ProgressBar, doing: &'static str) -> Result<u64> {
    let failed = |error| Failure::local(format!("cannot write {}", target.display()), error);
    let total = answer.content_length();
    // Beside its target, so that a cut connection leaves what was there.
    let directory = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".skep-")
        .tempfile_in(directory)
        .map_err(failed)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(failed)?);
    let mut body = answer.bytes_stream();
    let mut received = 0_u64;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| Failure::CutOff(doing))?;
        file.write_all(&piece).await.map_err(failed)?;
        received += piece.len() as u64;
        bar.set_position(received);
    }
    if total.is_some_and(|total| total != received) {
        return Err(Failure::CutOff(doing));
    }
    file.sync_all().await.map_err(failed)?;
    let mode = std::fs::metadata(target).map_or(0o644, |there| there.permissions().mode() & 0o777);
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .await
        .map_err(failed)?;
    temporary.persist(target).map_err(|error| failed(error.error))?;
    Ok(received)
}

async fn download_directory(client: &Client, form: OutputForm, from: (&str, &str), target: PathBuf) -> Result<()> {
    let request = client
        .request(Method::GET, &route(from.0, "archive"))
        .query(&[("path", from.1)]);
    let answer = client.send(request).await?;
    let bar = transfer_bar(form, answer.content_length(), base_name(from.1).unwrap_or("/"));
    let counting = bar.clone();
    let stream = answer
        .bytes_stream()
        .inspect_ok(move |bytes| counting.inc(bytes.len() as u64))
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, error));
    let reader = SyncIoBridge::new(StreamReader::new(stream));
    let unpacked = tokio::task::spawn_blocking(move || unpack::unpack(reader, &target)).await;
    bar.finish_and_clear();
    unpacked.map_err(|error| Failure::Failed(format!("unpacking was cut short: {error}")))?
}
