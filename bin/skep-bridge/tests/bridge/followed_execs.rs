//! Who follows a process: slow and dead readers, the shells of windows, and what is kept on disk when all is over.

use std::time::{Duration, Instant};

use skep_bridge_protocol::workspace::exec_event::Event;
use skep_bridge_protocol::workspace::*;
use tokio::time::timeout;

use crate::calls::{LIMIT, until};
use crate::our_execs::{Client, collect, run, shell, status};
use crate::workspace::{Layout, Workspace};

async fn until_exited(client: &mut Client, id: &str) -> ExecStatus {
    let limit = Instant::now() + LIMIT;
    loop {
        let status = status(client, id).await.expect("known");
        if status.exited {
            return status;
        }
        assert!(Instant::now() < limit, "it does not end: {status:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_process_that_waits_for_its_reader_loses_no_byte_of_a_log_that_is_smaller() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let request = StartExecRequest {
        wait_for_reader: true,
        log_bytes: 64 << 10,
        ..shell("slow", "seq 1 2000000")
    };
    let mut stream = client.run_exec(request).await.expect("started").into_inner();
    let mut read = Vec::new();
    let mut ended = false;
    while !ended {
        let event = timeout(LIMIT, stream.message()).await.expect("an event in time");
        match event.expect("no error").expect("an event").event {
            Some(Event::Stdout(data)) => {
                assert_eq!(data.offset, read.len() as u64, "no gap");
                read.extend_from_slice(&data.data);
                if read.len() < 4 << 20 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Some(Event::Exit(status)) => {
                assert_eq!((status.exit_code, status.stdout_bytes), (0, 14_888_896));
                ended = true;
            }
            _ => {}
        }
    }
    assert!(read.len() == 14_888_896 && read.ends_with(b"\n2000000\n"));
}

/// How much a process has written that waits for a reader who stands still, pieces on their way included.
async fn written_ahead(workspace: &Workspace) -> u64 {
    let mut client = workspace.ours().await;
    let request = StartExecRequest {
        wait_for_reader: true,
        ..shell("ahead", "yes")
    };
    let mut asking = workspace.ours().await;
    let unread = client.run_exec(request).await.expect("started");
    let limit = Instant::now() + LIMIT;
    let (mut written, mut since) = (0, Instant::now());
    while written == 0 || since.elapsed() < Duration::from_secs(1) {
        assert!(Instant::now() < limit, "it does not wait");
        let now = status(&mut asking, "ahead").await.expect("known").stdout_bytes;
        if now != written {
            (written, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(unread);
    client
        .remove_exec(ExecId {
            exec_id: "ahead".into(),
        })
        .await
        .expect("removed");
    written
}

#[tokio::test]
async fn a_reader_that_stands_still_at_the_end_gets_the_last_bytes_too() {
    let workspace = Workspace::start().await;
    let ahead = written_ahead(&workspace).await;
    // These end with a part of what they wrote in their pipe, which holds 64 KiB.
    let readers = (1..=12_u64).map(|number| {
        let bytes = ahead - (64 << 10) + ((number * 10) << 10);
        let request = StartExecRequest {
            wait_for_reader: true,
            ..shell(&format!("end-{number}"), &format!("yes | head -c {bytes}"))
        };
        let workspace = &workspace;
        async move {
            // Its own connection: streams of one share what may be on its way.
            let mut client = workspace.ours().await;
            let stream = client.run_exec(request).await.expect("started").into_inner();
            // Longer than children may delay the exit.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            let seen = collect(stream).await.expect("to its end");
            assert_eq!((seen.stdout.len() as u64, seen.exit().stdout_bytes), (bytes, bytes));
        }
    });
    futures::future::join_all(readers).await;
}

#[tokio::test]
async fn a_window_that_does_not_read_does_not_hold_up_another_one() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    let open = OpenSessionRequest {
        name: "two".into(),
        keep_milliseconds: 60_000,
        exec: Some(StartExecRequest {
            pty: true,
            wait_for_reader: true,
            ..shell("two", "seq 1 300000; echo over; sleep 100")
        }),
    };
    let window = || ExecOutputRequest {
        exec_id: "two".into(),
        follow: true,
        stdout: true,
        ..ExecOutputRequest::default()
    };
    let mut dead_client = workspace.ours().await;
    client.open_session(open).await.expect("opened");
    let dead = dead_client.exec_output(window()).await.expect("a window").into_inner();
    let mut stream = client.exec_output(window()).await.expect("another").into_inner();
    let mut seen = Vec::new();
    while !seen.ends_with(b"over\r\n") {
        let event = timeout(LIMIT, stream.message()).await;
        let event = event.unwrap_or_else(|_| {
            let end = String::from_utf8_lossy(&seen[seen.len().saturating_sub(40)..]);
            panic!("it is held up after {} bytes: {end:?}", seen.len())
        });
        if let Some(Event::Stdout(data)) = event.expect("no error").expect("an event").event {
            assert_eq!(data.offset, seen.len() as u64, "no gap");
            seen.extend_from_slice(&data.data);
        }
    }
    drop(dead);
}

#[tokio::test]
async fn running_processes_that_are_removed_give_back_what_they_held_on_disk() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    // Together more than all logs may hold.
    for number in 0..18 {
        let id = format!("large-{number}");
        let request = shell(&id, "yes | head -c 67108864; sleep 100");
        client.start_exec(request).await.expect("started");
        let limit = Instant::now() + LIMIT;
        while status(&mut client, &id).await.expect("known").stdout_bytes < 64 << 20 {
            assert!(Instant::now() < limit, "it does not write");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client.remove_exec(ExecId { exec_id: id }).await.expect("removed");
    }
    let request = shell("after", "yes | head -c 16777216; exit 4");
    client.start_exec(request).await.expect("started");
    let after = until_exited(&mut client, "after").await;
    assert_eq!(
        (after.exit_code, after.stdout_oldest),
        (4, 0),
        "there is room for all of it"
    );
    until("its end is on disk", || {
        workspace.path("var/lib/skep/exec/after/record").exists()
    })
    .await;
    assert_eq!(status(&mut client, "after").await.expect("still known").exit_code, 4);
}

#[tokio::test]
async fn an_end_is_known_as_long_as_was_asked_for() {
    let mut workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    for (id, keep_milliseconds) in [("short", 1), ("long", 3_600_000), ("default", 0)] {
        let request = StartExecRequest {
            keep_milliseconds,
            ..shell(id, "exit 3")
        };
        run(&mut client, request).await.expect("ran");
        assert_eq!(
            status(&mut client, id).await.expect("known").keep_milliseconds,
            keep_milliseconds
        );
    }
    drop(client);
    workspace.signal_bridge("-TERM");
    workspace.wait_for_end(LIMIT).await;
    workspace.start_again(Layout::default()).await;
    let mut client = workspace.ours().await;
    let limit = Instant::now() + LIMIT;
    while status(&mut client, "short").await.is_ok() {
        assert!(Instant::now() < limit, "it is not forgotten");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for id in ["long", "default"] {
        assert_eq!(status(&mut client, id).await.expect("known").exit_code, 3, "{id}");
    }
}

#[tokio::test]
async fn a_shell_whose_opener_is_gone_before_it_has_started_ends_too() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    for number in 0..60_u64 {
        // Given up at any moment of its start.
        let given_up = Duration::from_micros(100 * number);
        let request = StartExecRequest {
            pty: true,
            end_with_stream: true,
            ..shell(&format!("gone-{number}"), "sleep 1000")
        };
        drop(timeout(given_up, client.run_exec(request.clone())).await);
        let open = OpenSessionRequest {
            name: format!("gone-{number}"),
            keep_milliseconds: 100,
            exec: Some(StartExecRequest {
                exec_id: format!("session-{number}"),
                ..request
            }),
        };
        drop(timeout(given_up, client.open_session(open)).await);
    }
    // After a call that was begun later than all of them.
    run(&mut client, shell("after", "true")).await.expect("ran");
    until("all of them have ended", || workspace.processes().is_empty()).await;
}

#[tokio::test]
async fn what_forks_without_an_end_is_gone_with_its_terminal() {
    let workspace = Workspace::start().await;
    let mut client = workspace.ours().await;
    // Each is gone before it can be looked at twice, and its successor is another process.
    let text = "trap '' HUP TERM; run() { run & }; run; run; echo begun; sleep 1000";
    let request = StartExecRequest {
        pty: true,
        end_with_stream: true,
        ..shell("runners", text)
    };
    let mut stream = client.run_exec(request).await.expect("started").into_inner();
    let mut seen = Vec::new();
    while !seen.ends_with(b"begun\r\n") {
        let event = timeout(LIMIT, stream.message()).await.expect("in time");
        if let Some(Event::Stdout(data)) = event.expect("no error").expect("an event").event {
            seen.extend_from_slice(&data.data);
        }
    }
    drop(stream);
    until("all of them are gone", || workspace.processes().is_empty()).await;
}
