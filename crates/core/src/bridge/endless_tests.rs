//! Answers of a replaced bridge that are too much, too slow or without an end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use skep_bridge_protocol::workspace::{
    DataChunk, ExecData, ExecEvent, ExecList, ExecStatus, ForwardChunk, ReadChunk, SearchMatch, SearchPage,
    exec_event::Event,
};
use tonic::{Code, Status};
use tonic_prost::prost::Message;

use super::BridgeError;
use super::hostile_tests::{Lies, entry, framed, impostor};
use crate::exec::{self, ExecEvent as Told, ExecId, ExecRequest, OutputRange, Program};
use crate::files::{self, Links, SearchOptions, WorkspacePath};
use crate::ports::{self, PortError};

/// More than this test and those beside it hold, far less than what the lies are about.
const LITTLE_MEMORY: u64 = 256 << 20;

/// Held by those that measure, one after another.
static MEASURED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Resident memory of this process, in bytes. Other tests run beside this one: they hold little.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A message of a gibibyte: its length, then as much of it as anybody takes.
fn gibibyte() -> Lies {
    let length = Bytes::from_static(&[0, 0x40, 0, 0, 0]);
    let zeroes = Bytes::from(vec![0; 64 * 1024]);
    let body = stream::once(std::future::ready(length)).chain(stream::repeat(zeroes));
    Lies::Raw(body.boxed())
}

#[tokio::test]
async fn a_message_of_a_gibibyte_is_refused_and_not_held() {
    let impostor = impostor(|_| gibibyte()).await;
    let path = WorkspacePath::parse("/data/f").expect("a path");
    let _measured = MEASURED.lock().await;
    let before = resident_bytes();
    for _ in 0..4 {
        let stat = files::stat(&impostor.bridge, &path, Links::Followed).await;
        assert!(matches!(stat, Err(BridgeError::Untrustworthy(_))), "{stat:?}");
        let read = files::read(&impostor.bridge, &path, 0, 0).await.map(drop);
        assert!(matches!(read, Err(BridgeError::Untrustworthy(_))), "{read:?}");
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < LITTLE_MEMORY, "memory grew by {grown} bytes");
}

#[tokio::test]
async fn an_answer_in_drops_is_given_up_in_time() {
    // A message of ten bytes, one each second and never the last one.
    let drops = || {
        let begin = stream::once(std::future::ready(Bytes::from_static(&[0, 0, 0, 0, 10])));
        let slow = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Bytes::from_static(&[]), ()))
        });
        Lies::Raw(begin.chain(slow).boxed())
    };
    let impostor = impostor(move |_| drops()).await;
    let path = WorkspacePath::parse("/data/f").expect("a path");
    let begun = Instant::now();
    let stat = files::stat(&impostor.bridge, &path, Links::Followed).await;
    assert!(stat.as_ref().is_err_and(BridgeError::is_lost), "{stat:?}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

fn endless_output() -> Lies {
    let (data, mut offset) = (Bytes::from(vec![b'x'; 64 * 1024]), 0);
    Lies::EndlessEvents(Box::new(move || {
        let event = Event::Stdout(ExecData {
            offset,
            data: data.clone(),
        });
        offset += data.len() as u64;
        ExecEvent { event: Some(event) }
    }))
}

#[tokio::test]
async fn a_process_that_is_said_to_write_for_ever_is_given_up_and_not_held() {
    let impostor = impostor(|_| endless_output()).await;
    let id = ExecId::parse("id").expect("an id");
    let request = ExecRequest::of(Program::Command("true".to_owned()));
    let _measured = MEASURED.lock().await;
    let before = resident_bytes();
    let events = exec::run(&impostor.bridge, &id, request).await.expect("it says so");
    let begun = Instant::now();
    let outcome = exec::collect(events.within(Some(Duration::from_secs(2))), 1000, &mut ()).await;
    assert!(outcome.as_ref().is_err_and(BridgeError::is_lost), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < LITTLE_MEMORY, "memory grew by {grown} bytes");
}

#[tokio::test]
async fn the_time_in_which_nobody_reads_a_process_is_not_the_bridges() {
    let impostor = impostor(|_| endless_output()).await;
    let id = ExecId::parse("id").expect("an id");
    let request = ExecRequest::of(Program::Command("true".to_owned()));
    let events = exec::run(&impostor.bridge, &id, request).await.expect("it says so");
    let mut events = events.within(Some(Duration::from_secs(1)));
    // Few reads, since on a busy machine each takes of the bridge's time; the pauses are twice as long as that.
    for _ in 0..4 {
        assert!(matches!(events.next().await, Ok(Some(_))));
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_no_more_than_their_windows() {
    let impostor = impostor(|_| endless_output()).await;
    let _measured = MEASURED.lock().await;
    let before = resident_bytes();
    let mut unread = Vec::new();
    for number in 0..16 {
        let id = ExecId::parse(&format!("id-{number}")).expect("an id");
        let request = ExecRequest::of(Program::Command("true".to_owned()));
        unread.push(exec::run(&impostor.bridge, &id, request).await.expect("it says so"));
    }
    // Another stream of the same connection goes on all the while.
    let id = ExecId::parse("read").expect("an id");
    let request = ExecRequest::of(Program::Command("true".to_owned()));
    let mut read = exec::run(&impostor.bridge, &id, request).await.expect("it says so");
    for _ in 0..200 {
        assert!(matches!(read.next().await, Ok(Some(_))));
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < LITTLE_MEMORY, "memory grew by {grown} bytes");
}

/// A list of processes to its end.
async fn listed(bridge: &super::Bridge) -> Result<(), BridgeError> {
    let mut pages = exec::list(bridge).await?;
    while pages.next_page().await?.is_some() {}
    Ok(())
}

/// The same message again and again.
fn endless_messages(message: &impl Message) -> Lies {
    Lies::Raw(stream::repeat(framed(message)).boxed())
}

#[tokio::test]
async fn a_list_of_processes_with_commands_without_end_is_not_held() {
    let one = |argv| ExecStatus {
        exec_id: "id".to_owned(),
        argv,
        ..ExecStatus::default()
    };
    let nothings = one(vec![Vec::new(); 500_000]);
    let long = one(vec![vec![b'x'; 1 << 20]]);
    for status in [nothings, long] {
        let page = ExecList { execs: vec![status] };
        let impostor = impostor(move |_| endless_messages(&page)).await;
        let _measured = MEASURED.lock().await;
        let before = resident_bytes();
        let listed = tokio::time::timeout(Duration::from_secs(10), listed(&impostor.bridge)).await;
        assert!(!matches!(listed, Ok(Ok(()))), "it has no end");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < LITTLE_MEMORY, "memory grew by {grown} bytes");
    }
}

#[tokio::test]
async fn a_connection_of_very_small_frames_that_nobody_reads_is_ended() {
    let drops = || {
        let length = stream::once(std::future::ready(Bytes::from_static(&[0, 0, 0x3f, 0xff, 0xff])));
        // Written as they are made: else they would be held on this side.
        let drops = stream::unfold(0_u64, |number| async move {
            if number % 64 == 0 {
                tokio::task::yield_now().await;
            }
            Some((Bytes::from_static(b"x"), number + 1))
        });
        Lies::Raw(length.chain(drops).boxed())
    };
    let impostor = impostor(move |_| drops()).await;
    let _measured = MEASURED.lock().await;
    let before = resident_bytes();
    let mut unread = Vec::new();
    for number in 0..8 {
        let id = ExecId::parse(&format!("id-{number}")).expect("an id");
        let request = ExecRequest::of(Program::Command("true".to_owned()));
        unread.push(exec::run(&impostor.bridge, &id, request).await);
    }
    let begun = Instant::now();
    while !impostor.bridge.is_dead() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it goes on and on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 2 * LITTLE_MEMORY, "memory grew by {grown} bytes");
}

/// One message, and then the same one again and again.
fn first_and_endless(first: &impl Message, then: &impl Message) -> Lies {
    let begin = stream::once(std::future::ready(framed(first)));
    Lies::Raw(begin.chain(stream::repeat(framed(then))).boxed())
}

fn untrustworthy<T>(outcome: Result<Result<T, BridgeError>, tokio::time::error::Elapsed>) {
    let error = outcome.expect("in time").map(drop).expect_err("it says nothing");
    assert!(matches!(error, BridgeError::Untrustworthy(_)), "{error:?}");
}

#[tokio::test]
async fn streams_that_say_nothing_are_ended() {
    let first = ReadChunk {
        info: Some(entry("/data/f")),
        ..ReadChunk::default()
    };
    let impostor = impostor(move |method| match method {
        "Read" => first_and_endless(&first, &ReadChunk::default()),
        "ListExecs" => endless_messages(&ExecList::default()),
        "ArchiveOut" => endless_messages(&DataChunk::default()),
        _ => endless_messages(&ForwardChunk::default()),
    })
    .await;
    let limit = Duration::from_secs(10);
    let path = WorkspacePath::parse("/data/f").expect("a path");
    let read = files::read(&impostor.bridge, &path, 7, 0).await.expect("it says so");
    untrustworthy(tokio::time::timeout(limit, read.collect(1000)).await);
    untrustworthy(tokio::time::timeout(limit, listed(&impostor.bridge)).await);
    let archive = files::read_archive(&impostor.bridge, std::slice::from_ref(&path));
    let mut archive = Box::pin(archive.await.expect("it says so"));
    untrustworthy(tokio::time::timeout(limit, async { archive.next().await.expect("a piece") }).await);
    let (_sender, mut receiver) = ports::connect(&impostor.bridge, 80).await.expect("it says so");
    let next = tokio::time::timeout(limit, receiver.next()).await.expect("in time");
    assert!(
        matches!(next, Err(PortError::Bridge(BridgeError::Untrustworthy(_)))),
        "{next:?}"
    );
}

fn event(event: Event) -> ExecEvent {
    ExecEvent { event: Some(event) }
}

fn written(offset: u64, data: &'static [u8]) -> ExecData {
    ExecData {
        offset,
        data: Bytes::from_static(data),
    }
}

#[tokio::test]
async fn a_process_that_starts_again_and_again_or_writes_nothing_is_not_believed() {
    let id = ExecId::parse("id").expect("an id");
    let started = ExecStatus {
        exec_id: "id".to_owned(),
        ..ExecStatus::default()
    };
    for lie in [
        Event::Started(started),
        Event::Stdout(written(0, b"")),
        Event::Stderr(written(7, b"")),
    ] {
        let shown = format!("{lie:?}");
        let lie = event(lie);
        let impostor = impostor(move |_| endless_messages(&lie)).await;
        for follow in [false, true] {
            let range = OutputRange {
                stdout: Some(0),
                stderr: Some(0),
                follow,
            };
            let mut events = exec::output(&impostor.bridge, &id, range).await.expect("it says so");
            let first = events.next().await;
            let error = match first {
                Ok(Some(Told::Started(_))) => events.next().await.expect_err(&shown),
                first => first.expect_err(&shown),
            };
            assert!(matches!(error, BridgeError::Untrustworthy(_)), "{error:?}");
            assert_eq!(events.next().await, Ok(None), "nothing more is taken of it");
        }
    }
}

#[tokio::test]
async fn an_output_that_stands_still_is_given_up_unless_it_is_followed() {
    let first = framed(&event(Event::Stdout(written(0, b"x"))));
    let impostor = impostor(move |_| {
        let begin = stream::once(std::future::ready(first.clone()));
        Lies::Raw(begin.chain(stream::pending()).boxed())
    })
    .await;
    let id = ExecId::parse("id").expect("an id");
    let limit = Duration::from_secs(8);
    for follow in [false, true] {
        let range = OutputRange {
            stdout: Some(0),
            stderr: None,
            follow,
        };
        let events = exec::output_within(limit, &impostor.bridge, &id, range).await;
        let mut events = events.expect("it says so");
        assert!(matches!(events.next().await, Ok(Some(Told::Output { .. }))));
        let next = tokio::time::timeout(2 * limit, events.next()).await;
        match follow {
            false => assert!(matches!(next, Ok(Err(BridgeError::Unreachable(_)))), "{next:?}"),
            true => assert!(next.is_err(), "a process may be silent: {next:?}"),
        }
    }
}

#[tokio::test]
async fn a_search_in_drops_is_given_up_in_time() {
    let page = framed(&SearchPage {
        matches: vec![SearchMatch {
            path: "/data/f".into(),
            line: 1,
            column: 1,
            ..SearchMatch::default()
        }],
        ..SearchPage::default()
    });
    let impostor = impostor(move |_| {
        let drops = stream::unfold(page.clone(), |page| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((page.clone(), page))
        });
        Lies::Raw(drops.boxed())
    })
    .await;
    let path = WorkspacePath::parse("/data").expect("a path");
    let options = SearchOptions {
        pattern: "x".to_owned(),
        max_results: files::MOST_RESULTS,
        ..SearchOptions::default()
    };
    let search = async {
        let mut search = files::search_within(Duration::from_secs(1), &impostor.bridge, &path, &options).await?;
        while search.next_page().await?.is_some() {}
        Ok(())
    };
    let found = tokio::time::timeout(Duration::from_secs(30), search).await;
    assert!(matches!(found, Ok(Err(BridgeError::Unreachable(_)))), "{found:?}");
}

#[tokio::test]
async fn whatever_status_it_answers_is_one_a_caller_can_act_on() {
    for code in [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
        Code::DeadlineExceeded,
    ] {
        let words = "\u{1b}[2J\n".repeat(200);
        let impostor = impostor(move |_| Lies::Status(Status::new(code, words.clone()))).await;
        let path = WorkspacePath::parse("/data/f").expect("a path");
        let error = files::stat(&impostor.bridge, &path, Links::Followed).await;
        let error = error.map(drop).expect_err("no answer is no success");
        assert!(error.is_lost(), "{code:?}: {error:?}");
        assert!(
            !error.to_string().contains('\u{1b}') && error.to_string().len() < 2048,
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_file_that_comes_for_ever_is_given_up_in_time() {
    let first = ReadChunk {
        info: Some(entry("/data/f")),
        ..ReadChunk::default()
    };
    let more = ReadChunk {
        data: Bytes::from_static(b"no line ends"),
        ..ReadChunk::default()
    };
    let impostor = impostor(move |_| first_and_endless(&first, &more)).await;
    let path = WorkspacePath::parse("/data/f").expect("a path");
    let read = files::read(&impostor.bridge, &path, 0, 0).await.expect("it says so");
    let mut read = read.within(Duration::from_millis(300));
    let to_its_end = async {
        loop {
            match read.next_piece().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), to_its_end).await;
    let ended = ended.expect("it is given up");
    assert!(matches!(ended, Err(BridgeError::Unreachable { .. })), "{ended:?}");
}
