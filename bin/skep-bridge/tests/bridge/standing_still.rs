//! Callers that do not read or write on, and that they hold up nobody else.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use skep_bridge_protocol::reason;
use skep_bridge_protocol::workspace::*;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::calls::LIMIT;
use crate::our_execs::{run, shell};
use crate::our_files::{Client, header};
use crate::workspace::Workspace;

/// More than there are threads.
const TRANSFERS: usize = 200;
/// What another caller is held up by them at most; other tests run beside this one.
const SOON: Duration = Duration::from_secs(60);

/// Large enough not to fit into any window.
fn make_large(workspace: &Workspace) {
    fs::write(workspace.path("data/large"), vec![7; 16 << 20]).expect("a file");
}

async fn begin_read(mut client: Client) -> Result<Streaming<ReadChunk>, Status> {
    let request = ReadRequest {
        path: "large".into(),
        ..ReadRequest::default()
    };
    client.read(request).await.map(tonic::Response::into_inner)
}

async fn begin_archive(mut client: Client) -> Result<Streaming<DataChunk>, Status> {
    let paths = vec![b"large".to_vec()];
    let request = ArchiveOutRequest { paths };
    client.archive_out(request).await.map(tonic::Response::into_inner)
}

async fn begin_list(mut client: Client) -> Result<Streaming<ListPage>, Status> {
    let request = ListRequest {
        path: "many".into(),
        ..ListRequest::default()
    };
    client.list(request).await.map(tonic::Response::into_inner)
}

async fn first_of<T: 'static>(begun: &mut JoinSet<Result<T, Status>>, count: usize) -> Vec<T> {
    let mut held = Vec::new();
    while held.len() < count {
        let next = timeout(LIMIT, begun.join_next()).await.expect("in time");
        held.push(next.expect("more").expect("no panic").expect("begun"));
    }
    held
}

async fn assert_others_are_served(workspace: &Workspace) {
    let mut client = workspace.ours().await;
    let begun = Instant::now();
    for number in 0..3 {
        let ran = timeout(LIMIT, run(&mut client, shell(&format!("other-{number}"), "exit 3"))).await;
        assert_eq!(ran.expect("in time").expect("ran").exit().exit_code, 3);
        let written = crate::our_files::write(&mut client, header("other"), &[b"text"], true);
        timeout(LIMIT, written).await.expect("in time").expect("written");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn downloads_that_nobody_reads_hold_up_nobody() {
    let workspace = Workspace::start().await;
    make_large(&workspace);
    let client = workspace.ours().await;
    let mut held = Vec::new();
    for _ in 0..TRANSFERS {
        let begun = timeout(LIMIT, begin_read(client.clone())).await;
        held.push(begun.expect("one more in time").expect("begun"));
    }
    assert_others_are_served(&workspace).await;
}

#[tokio::test]
async fn listings_that_nobody_reads_hold_up_nobody() {
    let workspace = Workspace::start().await;
    let directory = workspace.path("data/many");
    fs::create_dir(&directory).expect("a directory");
    for number in 0..10_000 {
        fs::write(directory.join(format!("{number}{}", "x".repeat(200))), b"").expect("a file");
    }
    let client = workspace.ours().await;
    let mut begun = JoinSet::new();
    for _ in 0..64 {
        begun.spawn(begin_list(client.clone()));
    }
    let mut held = first_of(&mut begun, 64).await;
    for _ in 64..TRANSFERS {
        begun.spawn(begin_list(client.clone()));
    }
    assert_others_are_served(&workspace).await;
    // What was left unread is whole.
    let mut pages = held.pop().expect("one");
    drop((held, begun));
    let mut count = 0;
    while let Some(page) = timeout(LIMIT, pages.message()).await.expect("in time").expect("a page") {
        count += page.entries.len();
    }
    assert_eq!(count, 10_000);
}

#[tokio::test]
async fn uploads_that_send_nothing_hold_up_nobody() {
    let workspace = Workspace::start().await;
    let uploader = workspace.ours().await;
    let mut held = Vec::new();
    for number in 0..TRANSFERS {
        let (sender, receiver) = mpsc::channel(1);
        let first = WriteChunk {
            header: Some(header(&format!("upload-{number}"))),
            ..WriteChunk::default()
        };
        sender.send(first).await.expect("room");
        let mut client = uploader.clone();
        let chunks = ReceiverStream::new(receiver);
        held.push((sender, tokio::spawn(async move { client.write(chunks).await })));
    }
    // Each has its file, and so its place, by now.
    let begun = || {
        let names = fs::read_dir(workspace.path("data")).expect("data").flatten();
        let parts = names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part"));
        parts.count() == TRANSFERS
    };
    crate::calls::until("all uploads have begun", begun).await;
    assert_others_are_served(&workspace).await;
    for (sender, call) in held {
        drop(sender);
        let status = timeout(LIMIT, call).await.expect("in time").expect("no panic");
        assert_eq!(status.expect_err("cut").code(), Code::Aborted);
    }
    crate::calls::until("nothing is left of them", || {
        fs::read_dir(workspace.path("data")).expect("data").count() == 1
    })
    .await;
}

#[tokio::test]
async fn archives_that_nobody_reads_hold_up_archives_alone() {
    let workspace = Workspace::start().await;
    make_large(&workspace);
    let client = workspace.ours().await;
    let mut begun = JoinSet::new();
    for _ in 0..48 {
        begun.spawn(begin_archive(client.clone()));
    }
    let held = first_of(&mut begun, 48).await;
    for _ in 48..TRANSFERS {
        begun.spawn(begin_archive(client.clone()));
    }
    assert_others_are_served(&workspace).await;
    let mut listed = workspace.ours().await;
    let request = ListRequest {
        path: "".into(),
        ..ListRequest::default()
    };
    timeout(SOON, crate::our_files::list(&mut listed, request))
        .await
        .expect("in time");
    let next = timeout(LIMIT, begun.join_next()).await.expect("in time");
    let refused = next.expect("more").expect("no panic").map(drop).expect_err("no place");
    let word = refused.metadata().get(reason::METADATA_KEY).expect("a reason");
    assert_eq!(word, reason::TOO_MANY, "{refused}");
    // Those that still wait are given up too: they would take the places.
    begun.shutdown().await;
    drop(held);
    let again = timeout(LIMIT, begin_archive(client)).await.expect("in time");
    again.expect("there is room again");
}

/// Each of them in a frame of its own; more than there is room for.
const SMALL_MESSAGES: usize = 60_000;

/// Messages on their way.
struct Sending<T> {
    count: Arc<AtomicUsize>,
    sent: JoinHandle<mpsc::Sender<T>>,
}

/// Sends what `message` makes again and again, and then nothing.
fn small_messages<T: Send + 'static>(
    first: T,
    message: impl Fn() -> T + Send + 'static,
) -> (ReceiverStream<T>, Sending<T>) {
    let (sender, receiver) = mpsc::channel(1);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let sent = tokio::spawn(async move {
        sender.send(first).await.expect("the call goes on");
        while counted.fetch_add(1, Ordering::Relaxed) < SMALL_MESSAGES {
            sender.send(message()).await.expect("the call goes on");
            tokio::task::yield_now().await;
        }
        sender
    });
    (ReceiverStream::new(receiver), Sending { count, sent })
}

impl<T> Sending<T> {
    /// Waits until all are sent, or no more are taken.
    async fn stands_still(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut last, mut since) = (0, Instant::now());
        while !self.sent.is_finished() && since.elapsed() < Duration::from_secs(1) {
            let now = self.count.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(Instant::now() < deadline, "{now} messages and no end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn small_input_that_a_process_leaves_unread_ends_no_other_stream() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let request = StartExecRequest {
        stdin: true,
        ..shell("deaf", "exec sleep 1000")
    };
    client.start_exec(request).await.expect("started");
    let chunk = || ExecStdinChunk {
        exec_id: "deaf".into(),
        data: b"8 bytes\n".as_slice().into(),
        eof: false,
    };
    let (chunks, sending) = small_messages(chunk(), chunk);
    let mut typing = client.clone();
    let call = tokio::spawn(async move { typing.exec_stdin(chunks).await });
    sending.stands_still().await;
    let ran = timeout(LIMIT, run(&mut client, shell("other", "exit 3"))).await;
    assert_eq!(ran.expect("in time").expect("ran").exit().exit_code, 3);
    assert!(!call.is_finished(), "the input still waits");
}

#[tokio::test]
async fn small_pieces_that_a_listener_leaves_unread_end_no_other_stream() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    // The loopback of the workspaces of these tests is the host's.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let first = ForwardChunk {
        port: u32::from(listener.local_addr().expect("an address").port()),
        ..ForwardChunk::default()
    };
    let (chunks, sending) = small_messages(first, || ForwardChunk {
        data: b"8 bytes\n".as_slice().into(),
        ..ForwardChunk::default()
    });
    let mut answers = client.forward(chunks).await.expect("connected").into_inner();
    let _deaf = listener.accept().expect("connected");
    sending.stands_still().await;
    let ran = timeout(LIMIT, run(&mut client, shell("other", "exit 3"))).await;
    assert_eq!(ran.expect("in time").expect("ran").exit().exit_code, 3);
    let answer = timeout(Duration::from_millis(50), answers.message()).await;
    assert!(answer.is_err(), "the connection is still there: {answer:?}");
}
