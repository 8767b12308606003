//! What a tenant can put in the place of its bridge, and that none of it leads the host anywhere.

use std::convert::Infallible;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use skep_bridge_protocol::workspace::{
    ExecData, ExecEvent, ExecStatus, FileInfo, InfoRequest, InfoResponse, ListPage, ListRequest, ReadChunk,
    ReadRequest, StartExecRequest, WriteResult, exec_event::Event,
};
use skep_runtime::BridgeEndpoint;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Bridge, BridgeError};
use crate::exec::{self, ExecId, ExecRequest, Program};
use crate::files::{self, FileWriter, ListOptions, NewFile, RoomyBridge, WorkspacePath};
use crate::terminal;

pub(super) fn endpoint(directory: &Path) -> BridgeEndpoint {
    BridgeEndpoint::Unix {
        directory: directory.to_owned(),
        file_name: "bridge.sock".to_owned(),
        owner_uid: rustix::process::geteuid().as_raw(),
        cgroup: None,
    }
}

async fn refusal(directory: &Path) -> String {
    match Bridge::at(&endpoint(directory)).await {
        Ok(_) => panic!("it was taken for a bridge"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn what_is_no_socket_of_its_own_is_refused() {
    let (place, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let socket = place.path().join("bridge.sock");
    assert_eq!(
        refusal(place.path()).await,
        "container not reachable: its socket is not there"
    );
    let target = elsewhere.path().join("other.sock");
    let _listener = UnixListener::bind(&target).unwrap();
    std::os::unix::fs::symlink(&target, &socket).unwrap();
    assert_eq!(
        refusal(place.path()).await,
        "container not reachable: what is there is no socket"
    );
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "text").unwrap();
    assert_eq!(
        refusal(place.path()).await,
        "container not reachable: what is there is no socket"
    );
    std::fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(
        refusal(place.path()).await,
        "container not reachable: nobody listens on its socket"
    );
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    assert_eq!(
        refusal(&link).await,
        "container not reachable: its socket directory is not there"
    );
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().expect("the helper can be killed");
        self.0.wait().expect("the helper can be waited for");
    }
}

#[tokio::test]
async fn a_listener_of_another_user_is_refused() {
    let place = TempDir::new().unwrap();
    std::os::unix::fs::chown(place.path(), Some(12345), Some(12345)).expect("this test needs root");
    let socket = place.path().join("bridge.sock");
    let script = "$s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 9) or die $!; print qq(ready\\n); sleep 600";
    let mut command = Command::new("perl");
    command
        .args(["-MIO::Socket::UNIX", "-e", &format!("$| = 1; {script}")])
        .arg(&socket);
    command.uid(12345).gid(12345).stdout(Stdio::piped());
    let mut child = Ended(command.spawn().expect("perl is part of every Debian"));
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(
        refusal(place.path()).await,
        "container not reachable: its socket belongs to another user"
    );
    let right = BridgeEndpoint::Unix {
        directory: place.path().to_owned(),
        file_name: "bridge.sock".to_owned(),
        owner_uid: 12345,
        cgroup: None,
    };
    // With the right owner it is connected to, and then found to say nothing.
    let error = Bridge::at(&right).await.err().expect("it says nothing").to_string();
    assert!(error.contains("took too long"), "{error}");
}

#[tokio::test]
async fn a_listener_outside_of_the_workspaces_group_is_refused_whatever_its_user() {
    let place = TempDir::new().unwrap();
    let _listener = UnixListener::bind(place.path().join("bridge.sock")).unwrap();
    let other = BridgeEndpoint::Unix {
        directory: place.path().to_owned(),
        file_name: "bridge.sock".to_owned(),
        owner_uid: rustix::process::geteuid().as_raw(),
        cgroup: Some("/skep-test/workspace-of-nobody".to_owned()),
    };
    let error = Bridge::at(&other).await.err().expect("it is no bridge").to_string();
    assert_eq!(
        error,
        "container not reachable: its socket belongs to a process outside of the workspace"
    );
}

#[tokio::test]
async fn a_peer_of_garbage_silence_or_a_full_queue_is_given_up_in_time() {
    let garbage = TempDir::new().unwrap();
    let listener = UnixListener::bind(garbage.path().join("bridge.sock")).unwrap();
    let talking = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0xfe; 65536]).await.unwrap();
        let mut sink = Vec::new();
        stream.read_to_end(&mut sink).await
    });
    let begun = Instant::now();
    refusal(garbage.path()).await;
    talking.abort();
    let full = TempDir::new().unwrap();
    let socket = tokio::net::UnixSocket::new_stream().unwrap();
    socket.bind(full.path().join("bridge.sock")).unwrap();
    let _listener = socket.listen(0).unwrap();
    let _waiting: Vec<_> = (0..4).map_while(|_| connect_without_waiting(full.path())).collect();
    assert_eq!(
        refusal(full.path()).await,
        "container not reachable: whoever listens on its socket takes no more callers"
    );
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

fn connect_without_waiting(directory: &Path) -> Option<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    let address = SocketAddrUnix::new(directory.join("bridge.sock")).unwrap();
    connect(&socket, &address).ok().map(|()| socket)
}

/// A bridge that says what a test wants: a service by hand, as the real one never would.
#[derive(Clone)]
pub(super) struct Hostile {
    lies: Arc<dyn Fn(&str) -> Lies + Send + Sync>,
    /// How often it was asked what it is.
    infos: Arc<AtomicUsize>,
}

impl Hostile {
    pub(super) fn new(lies: impl Fn(&str) -> Lies + Send + Sync + 'static) -> Self {
        Self {
            lies: Arc::new(lies),
            infos: Arc::default(),
        }
    }
}

pub(super) enum Lies {
    Info,
    Pages(Vec<ListPage>),
    Endless(ListPage),
    Chunks(Vec<ReadChunk>),
    Events(Vec<ExecEvent>),
    EndlessEvents(Box<dyn FnMut() -> ExecEvent + Send>),
    /// The bytes of an answer as they are.
    Raw(BoxStream<'static, Bytes>),
    /// The same, once all that was sent has been read.
    AfterAll(Bytes),
    Status(Status),
    Silence,
}

impl Service<http::Request<Body>> for Hostile {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let lies = if method == "Info" {
            self.infos.fetch_add(1, Ordering::Relaxed);
            Lies::Info
        } else {
            (self.lies)(&method)
        };
        Box::pin(async move {
            Ok(match lies {
                Lies::Info => Grpc::new(ProstCodec::default()).unary(Info, request).await,
                Lies::Silence => std::future::pending().await,
                Lies::Pages(pages) => streamed::<ListRequest, _>(pages, request).await,
                Lies::Chunks(chunks) => streamed::<ReadRequest, _>(chunks, request).await,
                Lies::Events(events) => streamed::<StartExecRequest, _>(events, request).await,
                Lies::EndlessEvents(mut next) => {
                    let events = Stream(Box::pin(futures::stream::repeat_with(move || Ok(next()))));
                    let mut grpc = Grpc::new(ProstCodec::<ExecEvent, StartExecRequest>::default());
                    grpc.server_streaming(events, request).await
                }
                Lies::Raw(bytes) => raw(bytes),
                Lies::AfterAll(bytes) => {
                    read_all(request.into_body()).await;
                    let done = (
                        http::HeaderName::from_static("grpc-status"),
                        http::HeaderValue::from_static("0"),
                    );
                    answered(Pieces {
                        bytes: futures::stream::iter([bytes]).boxed(),
                        trailers: Some([done].into_iter().collect()),
                    })
                }
                Lies::Status(status) => status.into_http(),
                Lies::Endless(page) => {
                    let pages = Stream(Box::pin(futures::stream::repeat_with(move || Ok(page.clone()))));
                    let mut grpc = Grpc::new(ProstCodec::<ListPage, ListRequest>::default());
                    grpc.server_streaming(pages, request).await
                }
            })
        })
    }
}

/// A body of bytes as they are.
struct Pieces {
    bytes: BoxStream<'static, Bytes>,
    trailers: Option<http::HeaderMap>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        let next = std::task::ready!(self.bytes.poll_next_unpin(context));
        let frame = match next {
            Some(piece) => Some(http_body::Frame::data(piece)),
            None => self.trailers.take().map(http_body::Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }
}

async fn read_all(mut body: Body) {
    let next = |body: &mut Body, context: &mut Context<'_>| http_body::Body::poll_frame(Pin::new(body), context);
    while let Some(Ok(_)) = std::future::poll_fn(|context| next(&mut body, context)).await {}
}

/// A message as it is on the wire.
pub(super) fn framed(message: &impl tonic_prost::prost::Message) -> Bytes {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).expect("it is below 4 MiB").to_be_bytes();
    Bytes::from([&[0], length.as_slice(), &body].concat())
}

fn raw(bytes: BoxStream<'static, Bytes>) -> http::Response<Body> {
    answered(Pieces { bytes, trailers: None })
}

fn answered(pieces: Pieces) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(pieces));
    let kind = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

async fn streamed<Asked, Said>(said: Vec<Said>, request: http::Request<Body>) -> http::Response<Body>
where
    Asked: prost_message::Message,
    Said: prost_message::Message,
{
    let stream = Stream(Box::pin(futures::stream::iter(said.into_iter().map(Ok))));
    let mut grpc = Grpc::new(ProstCodec::<Said, Asked>::default());
    grpc.server_streaming(stream, request).await
}

/// The bound that the codec asks for, without another dependency.
mod prost_message {
    pub(super) trait Message: tonic_prost::prost::Message + Default + Send + 'static {}
    impl<T: tonic_prost::prost::Message + Default + Send + 'static> Message for T {}
}

struct Info;

impl UnaryService<InfoRequest> for Info {
    type Response = InfoResponse;
    type Future = std::future::Ready<Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, _: Request<InfoRequest>) -> Self::Future {
        let info = InfoResponse {
            generation: 1,
            ..InfoResponse::default()
        };
        std::future::ready(Ok(Response::new(info)))
    }
}

struct Stream<T>(BoxStream<'static, Result<T, Status>>);

impl<Asked, T: Send + 'static> ServerStreamingService<Asked> for Stream<T> {
    type Response = T;
    type ResponseStream = BoxStream<'static, Result<T, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Asked>) -> Self::Future {
        let stream = std::mem::replace(&mut self.0, Box::pin(futures::stream::empty()));
        std::future::ready(Ok(Response::new(stream)))
    }
}

pub(super) struct Impostor {
    pub(super) bridge: Bridge,
    infos: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
    _place: TempDir,
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(super) async fn impostor(lies: impl Fn(&str) -> Lies + Send + Sync + 'static) -> Impostor {
    let place = TempDir::new().unwrap();
    let listener = UnixListener::bind(place.path().join("bridge.sock")).unwrap();
    let service = Hostile::new(lies);
    let infos = Arc::clone(&service.infos);
    let serving = tokio::spawn(async move {
        let server = tonic::transport::Server::builder();
        server
            .serve_with_incoming(service, UnixListenerStream::new(listener))
            .await
            .unwrap();
    });
    let bridge = Bridge::at(&endpoint(place.path())).await.unwrap();
    Impostor {
        bridge,
        infos,
        serving,
        _place: place,
    }
}

pub(super) fn entry(path: &str) -> FileInfo {
    FileInfo {
        path: path.into(),
        mode: 0o100_644,
        ..FileInfo::default()
    }
}

fn page(paths: &[&str]) -> ListPage {
    ListPage {
        entries: paths.iter().map(|path| entry(path)).collect(),
        truncated: false,
    }
}

async fn listed(bridge: &Bridge, limit: u32) -> Result<usize, BridgeError> {
    let data = WorkspacePath::parse("/data").unwrap();
    let options = ListOptions {
        limit,
        ..ListOptions::default()
    };
    let mut entries = files::list(bridge, &data, &options).await?;
    let mut count = 0;
    while let Some(page) = entries.next_page().await? {
        count += page.len();
    }
    Ok(count)
}

#[tokio::test]
async fn a_listing_that_lies_is_refused() {
    for lie in [
        page(&["/etc/passwd"]),
        page(&["/data/../etc/passwd"]),
        page(&["/data/a/b"]),
        page(&["/data/b", "/data/a"]),
        page(&["/data/a", "/data/a"]),
        page(&["/data/a\0b"]),
    ] {
        let shown = format!("{lie:?}");
        let impostor = impostor(move |_| Lies::Pages(vec![lie.clone()])).await;
        let outcome = listed(&impostor.bridge, 0).await;
        assert!(
            matches!(outcome, Err(BridgeError::Untrustworthy(_))),
            "{outcome:?} for {shown}"
        );
    }
    let more = impostor(|_| Lies::Pages(vec![page(&["/data/a", "/data/b", "/data/c"])])).await;
    assert!(matches!(
        listed(&more.bridge, 2).await,
        Err(BridgeError::Untrustworthy(_))
    ));
    assert_eq!(listed(&more.bridge, 3).await, Ok(3));
}

#[tokio::test]
async fn a_listing_without_an_end_is_ended() {
    for endless in [page(&[]), page(&["/data/a"])] {
        let impostor = impostor(move |_| Lies::Endless(endless.clone())).await;
        assert!(matches!(
            listed(&impostor.bridge, 0).await,
            Err(BridgeError::Untrustworthy(_))
        ));
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_taken() {
    let chunk = ReadChunk {
        info: Some(entry("/data/f")),
        data: Bytes::from(vec![0; 5 << 20]),
    };
    let impostor = impostor(move |_| Lies::Chunks(vec![chunk.clone()])).await;
    let path = WorkspacePath::parse("/data/f").unwrap();
    let read = files::read(&impostor.bridge, &path, 0, 0)
        .await
        .map(drop)
        .expect_err("too long");
    assert!(matches!(read, BridgeError::Untrustworthy(_)), "{read:?}");
}

#[tokio::test]
async fn an_exit_that_cannot_be_is_refused() {
    let id = ExecId::parse("id").unwrap();
    let ended = |exit_code| ExecStatus {
        exec_id: "id".to_owned(),
        exited: true,
        exit_code,
        ..ExecStatus::default()
    };
    let exit = |status| ExecEvent {
        event: Some(Event::Exit(status)),
    };
    let output = |offset| ExecEvent {
        event: Some(Event::Stdout(ExecData {
            offset,
            data: Bytes::from_static(b"xy"),
        })),
    };
    let other = ExecStatus {
        exec_id: "other".to_owned(),
        ..ended(0)
    };
    let runs = ExecStatus {
        exited: false,
        ..ended(0)
    };
    for lie in [
        vec![],
        vec![exit(ended(256))],
        vec![exit(ended(-1))],
        vec![exit(other)],
        vec![exit(runs)],
        vec![output(0), output(1), exit(ended(0))],
        vec![output(u64::MAX), exit(ended(0))],
        vec![ExecEvent { event: None }],
    ] {
        let shown = format!("{lie:?}");
        let impostor = impostor(move |_| Lies::Events(lie.clone())).await;
        let request = ExecRequest::of(Program::Command("true".to_owned()));
        let events = exec::run(&impostor.bridge, &id, request).await.unwrap();
        let outcome = exec::collect(events, 1000, &mut ()).await;
        assert!(
            outcome.as_ref().is_err_and(BridgeError::is_lost),
            "{outcome:?} for {shown}"
        );
    }
}

#[tokio::test]
async fn a_bridge_is_asked_once_for_each_connection_what_it_is() {
    let impostor = impostor(|_| Lies::Pages(vec![page(&["/data/a"])])).await;
    for _ in 0..5 {
        assert_eq!(listed(&impostor.bridge, 0).await, Ok(1));
    }
    assert_eq!(impostor.infos.load(Ordering::Relaxed), 1);
}

/// As the impostor says that it is: its server does not know the methods that came later.
#[tokio::test]
async fn what_a_bridge_of_an_earlier_generation_of_ours_has_not_is_unsupported() {
    let impostor = impostor(|_| Lies::Status(Status::unimplemented(""))).await;
    let bridge = &impostor.bridge;
    assert_eq!(bridge.generation(), 1);
    let data = WorkspacePath::parse("/data").unwrap();
    let options = files::SearchOptions::default();
    for error in [
        terminal::check_sessions(bridge).expect_err("no sessions"),
        files::search(bridge, &data, &options)
            .await
            .map(drop)
            .expect_err("no search"),
        files::extract(&RoomyBridge::endless(bridge.clone()), &data, None)
            .await
            .map(drop)
            .expect_err("no extract"),
    ] {
        assert!(matches!(error, BridgeError::Unsupported(_)), "{error:?}");
        assert!(!error.is_lost(), "what it has goes on");
    }
}

#[tokio::test]
async fn a_file_that_is_said_to_be_longer_or_shorter_than_it_was_sent_is_not_believed() {
    let path = WorkspacePath::parse("/data/f").unwrap();
    for (told, is_right) in [(0, false), (3, false), (4, true), (5, false), (u64::MAX, false)] {
        let result = WriteResult {
            bytes_written: told,
            ..WriteResult::default()
        };
        let impostor = impostor(move |_| Lies::AfterAll(framed(&result))).await;
        let bridge = RoomyBridge::endless(impostor.bridge.clone());
        let mut writer = FileWriter::begin(&bridge, &path, NewFile::default()).await.unwrap();
        writer.write(Bytes::from_static(b"four")).await.unwrap();
        let outcome = writer.finish().await;
        assert_eq!(outcome.is_ok(), is_right, "{told}: {outcome:?}");
        assert!(
            is_right || matches!(outcome, Err(BridgeError::Untrustworthy(_))),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_socket_is_reached_below_a_directory_of_any_length() {
    let place = TempDir::new().unwrap();
    let deep = place.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let short = place.path().join("bridge.sock");
    let listener = UnixListener::bind(&short).unwrap();
    std::fs::rename(&short, deep.join("bridge.sock")).unwrap();
    let service = Hostile::new(|_| Lies::Silence);
    let serving = tokio::spawn(async move {
        let server = tonic::transport::Server::builder();
        server
            .serve_with_incoming(service, UnixListenerStream::new(listener))
            .await
            .unwrap();
    });
    let bridge = Bridge::at(&endpoint(&deep)).await.unwrap();
    assert_eq!(bridge.generation(), 1);
    serving.abort();
}
