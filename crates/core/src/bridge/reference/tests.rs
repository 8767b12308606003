//! What an old bridge, or whatever took its place, can answer, and that none of it is believed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use skep_bridge_protocol::bridgepb::container_service_server::{ContainerService, ContainerServiceServer};
use skep_bridge_protocol::bridgepb::*;
use skep_runtime::BridgeEndpoint;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::{Bridge, BridgeError};
use crate::exec::{self, ExecId, ExecRequest, Program};
use crate::files::{self, Depth, FileWriter, Links, ListOptions, NewFile, RoomyBridge, WorkspacePath};

#[derive(Default)]
struct Lies {
    stat: FileEntry,
    list: ListDirResponse,
    exec: Vec<ExecOutput>,
    bytes_written: i64,
    failure: Option<Status>,
    /// What came in by `WriteRaw`, and whether it came to a good end.
    written: Arc<Mutex<Vec<Result<usize, Code>>>>,
}

impl Lies {
    fn fail(&self) -> Result<(), Status> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl ContainerService for Lies {
    type ReadRawStream = BoxStream<'static, Result<DataChunk, Status>>;
    type ExecStream = BoxStream<'static, Result<ExecOutput, Status>>;

    async fn read_file(&self, _: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn write_file(&self, _: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
        self.fail()?;
        Ok(Response::new(Default::default()))
    }

    async fn list_dir(&self, _: Request<ListDirRequest>) -> Result<Response<ListDirResponse>, Status> {
        self.fail()?;
        Ok(Response::new(self.list.clone()))
    }

    async fn stat(&self, _: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        self.fail()?;
        let entry = Some(self.stat.clone());
        Ok(Response::new(StatResponse { entry }))
    }

    async fn mkdir(&self, _: Request<MkdirRequest>) -> Result<Response<MkdirResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn rename(&self, _: Request<RenameRequest>) -> Result<Response<RenameResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn delete_file(&self, _: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        self.fail()?;
        Ok(Response::new(Default::default()))
    }

    async fn read_raw(&self, _: Request<ReadRawRequest>) -> Result<Response<Self::ReadRawStream>, Status> {
        let data = Bytes::from_static(b"0123456789");
        Ok(Response::new(stream::iter([Ok(DataChunk { data })]).boxed()))
    }

    async fn write_raw(
        &self,
        request: Request<Streaming<WriteRawChunk>>,
    ) -> Result<Response<WriteRawResponse>, Status> {
        let (mut chunks, mut bytes) = (request.into_inner(), 0);
        let end = loop {
            match chunks.message().await {
                Ok(Some(chunk)) => bytes += chunk.data.len(),
                Ok(None) => break Ok(bytes),
                Err(status) => break Err(status.code()),
            }
        };
        self.written.lock().expect("a list").push(end);
        let bytes_written = self.bytes_written;
        Ok(Response::new(WriteRawResponse { bytes_written }))
    }

    async fn exec(&self, _: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        self.fail()?;
        Ok(Response::new(
            stream::iter(self.exec.clone().into_iter().map(Ok)).boxed(),
        ))
    }
}

struct Liar {
    bridge: Bridge,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn liar(lies: Lies) -> Liar {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("an address");
    let endpoint = BridgeEndpoint::Tcp(listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move {
        let service = ContainerServiceServer::new(lies).max_encoding_message_size(usize::MAX);
        let incoming = TcpListenerStream::new(listener);
        drop(Server::builder().serve_with_incoming(service, incoming).await);
    });
    let bridge = Bridge::at(&endpoint).await.expect("an old bridge");
    assert_eq!((bridge.version(), bridge.generation()), (None, 0));
    Liar { bridge, serving }
}

fn entry(path: &str) -> FileEntry {
    FileEntry {
        path: path.to_owned(),
        size: 10,
        mode: "-rw-r--r--".to_owned(),
        mod_time: "2026-01-02T03:04:05Z".to_owned(),
        ..FileEntry::default()
    }
}

fn data() -> WorkspacePath {
    WorkspacePath::parse("/data").expect("a path")
}

#[tokio::test]
async fn a_state_that_cannot_be_is_not_believed() {
    let good = entry("/data");
    let lies = [
        FileEntry {
            size: -1,
            ..good.clone()
        },
        FileEntry {
            is_dir: true,
            ..good.clone()
        },
        FileEntry {
            mode: "rwx".to_owned(),
            ..good.clone()
        },
        FileEntry {
            mode: "?rw-r--r--".to_owned(),
            ..good.clone()
        },
        FileEntry {
            mod_time: "yesterday".to_owned(),
            ..good.clone()
        },
        FileEntry {
            mod_time: String::new(),
            ..good.clone()
        },
    ];
    for stat in lies {
        let said = format!("{stat:?}");
        let liar = liar(Lies {
            stat,
            ..Lies::default()
        })
        .await;
        let answer = files::stat(&liar.bridge, &data(), Links::Followed).await;
        assert!(
            matches!(answer, Err(BridgeError::Untrustworthy(_))),
            "{said}: {answer:?}"
        );
    }
    let stat = FileEntry {
        mode: "ugtrwxrwxrwx".to_owned(),
        ..good
    };
    let liar = liar(Lies {
        stat,
        ..Lies::default()
    })
    .await;
    let shown = files::stat(&liar.bridge, &data(), Links::Followed)
        .await
        .expect("a state");
    assert_eq!((shown.mode, shown.size_bytes), (0o107_777, 10));
    assert_eq!(
        (shown.uid, shown.gid, shown.etag),
        (None, None, None),
        "that is not told there"
    );
}

#[tokio::test]
async fn a_listing_that_leads_elsewhere_goes_back_or_has_no_end_is_not_believed() {
    let listing = |names: &[&str], total_count| ListDirResponse {
        entries: names.iter().map(|name| entry(name)).collect(),
        total_count,
        truncated: false,
    };
    let many: Vec<String> = (0..200).map(|number| format!("{number:04}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for list in [
        listing(&["../etc"], 1),
        listing(&["a/b"], 1),
        listing(&["/etc/passwd"], 1),
        listing(&["a\0b"], 1),
        listing(&[""], 1),
        listing(&["b", "a"], 2),
        listing(&many, 200),
    ] {
        let said = format!("{:?}", list.entries.iter().map(|entry| &entry.path).collect::<Vec<_>>());
        let liar = liar(Lies {
            list,
            ..Lies::default()
        })
        .await;
        let mut pages = files::list(&liar.bridge, &data(), &ListOptions::default())
            .await
            .expect("begun");
        let error = pages.next_page().await.expect_err(&said);
        assert!(matches!(error, BridgeError::Untrustworthy(_)), "{said}: {error:?}");
    }
    // The same page for ever, and a number of entries that never comes.
    let list = listing(&["a", "b"], i32::MAX);
    let liar = liar(Lies {
        list,
        ..Lies::default()
    })
    .await;
    let mut pages = files::list(&liar.bridge, &data(), &ListOptions::default())
        .await
        .expect("begun");
    assert_eq!(pages.next_page().await.expect("a page").expect("entries").len(), 2);
    let stuck = tokio::time::timeout(std::time::Duration::from_secs(5), pages.next_page()).await;
    assert!(matches!(stuck, Ok(Err(BridgeError::Untrustworthy(_)))), "{stuck:?}");
}

#[tokio::test]
async fn a_page_of_a_million_nothings_is_not_held() {
    let list = ListDirResponse {
        entries: vec![FileEntry::default(); 1_000_000],
        total_count: 1_000_000,
        truncated: false,
    };
    let liar = liar(Lies {
        list,
        ..Lies::default()
    })
    .await;
    let mut pages = files::list(&liar.bridge, &data(), &ListOptions::default())
        .await
        .expect("begun");
    let error = pages.next_page().await.expect_err("too large");
    assert!(matches!(error, BridgeError::Untrustworthy(_)), "{error:?}");
}

fn output(stream: exec_output::Stream, data: &'static [u8], exit_code: i32) -> ExecOutput {
    ExecOutput {
        stream: stream.into(),
        data: Bytes::from_static(data),
        exit_code,
    }
}

#[tokio::test]
async fn an_end_that_cannot_be_is_no_end() {
    use exec_output::Stream::{Exit, Stdout};
    let unknown = ExecOutput {
        stream: 9,
        ..ExecOutput::default()
    };
    for exec in [
        vec![],
        vec![output(Stdout, b"a", 0)],
        vec![output(Exit, b"", -1)],
        vec![output(Exit, b"", 256)],
        vec![unknown],
    ] {
        let said = format!("{exec:?}");
        let liar = liar(Lies {
            exec,
            ..Lies::default()
        })
        .await;
        let id = ExecId::random();
        let request = ExecRequest::of(Program::Command("true".to_owned()));
        let events = exec::run(&liar.bridge, &id, request).await.expect("begun");
        let outcome = exec::collect(events, 100, &mut ()).await;
        assert!(outcome.as_ref().is_err_and(BridgeError::is_lost), "{said}: {outcome:?}");
    }
    // What follows an end is not read, and a shell is one of those we know.
    let exec = vec![
        output(Stdout, b"/tmp/evil\n", 0),
        output(Exit, b"", 3),
        output(Exit, b"", 4),
    ];
    let liar = liar(Lies {
        exec,
        ..Lies::default()
    })
    .await;
    let request = ExecRequest::of(Program::Command("true".to_owned()));
    let events = exec::run(&liar.bridge, &ExecId::random(), request)
        .await
        .expect("begun");
    let outcome = exec::collect(events, 100, &mut ()).await.expect("an end");
    assert_eq!(outcome.status.end.expect("an end").exit_code, 3);
    assert!(exec::shell(&liar.bridge).await.is_err_and(|error| error.is_lost()));
}

#[tokio::test]
async fn a_write_is_done_when_all_of_it_is_told_to_be_there() {
    let (path, written) = (data(), Arc::default());
    let lies = Lies {
        bytes_written: 4,
        written: Arc::clone(&written),
        ..Lies::default()
    };
    let liar = liar(lies).await;
    let roomy = RoomyBridge::endless(liar.bridge.clone());
    let upload = || NewFile {
        mode: 0o644,
        ..NewFile::default()
    };
    let mut good = FileWriter::begin(&roomy, &path, upload()).await.expect("begun");
    good.write(Bytes::from_static(b"four")).await.expect("taken");
    assert_eq!(good.finish().await, Ok(4));
    let mut short = FileWriter::begin(&roomy, &path, upload()).await.expect("begun");
    short.write(Bytes::from_static(b"more than four")).await.expect("taken");
    let outcome = short.finish().await;
    assert!(matches!(outcome, Err(BridgeError::Untrustworthy(_))), "{outcome:?}");
    // On that wire the end of a stream is the end of a file: one that is given up must not end.
    let mut dropped = FileWriter::begin(&roomy, &path, upload()).await.expect("begun");
    dropped.write(Bytes::from_static(b"half")).await.expect("taken");
    drop(dropped);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let seen = loop {
        let seen = written.lock().expect("a list").clone();
        if seen.len() > 2 || std::time::Instant::now() > until {
            break seen;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(seen[..2], [Ok(4), Ok(14)]);
    assert!(
        seen.get(2).is_none_or(Result::is_err),
        "it was taken for whole: {seen:?}"
    );
}

#[tokio::test]
async fn failures_are_told_alike_whatever_code_the_bridge_has_for_them() {
    for (message, wanted) in [
        ("stat /data: no such file or directory", "NotFound"),
        ("open /data: permission denied", "PermissionDenied"),
        ("remove /data/is a directory: directory not empty", "Conflict"),
        ("read /data: is a directory", "InvalidPath"),
        ("open /data/x: not a directory", "InvalidPath"),
        ("write /data: no space left on device", "NoSpace"),
        ("something else", "Unreachable"),
    ] {
        let failure = Some(Status::internal(message));
        let liar = liar(Lies {
            failure,
            ..Lies::default()
        })
        .await;
        let error = files::stat(&liar.bridge, &data(), Links::Followed)
            .await
            .expect_err(message);
        assert!(format!("{error:?}").starts_with(wanted), "{message}: {error:?}");
    }
    let failure = Some(Status::unknown("no such file or directory"));
    let liar = liar(Lies {
        failure,
        ..Lies::default()
    })
    .await;
    files::remove(&liar.bridge, &data(), Depth::EmptyOnly)
        .await
        .expect("gone is gone");
}
