//! What the bridge does before it listens and at its end, and whom it serves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use skep_bridge_protocol::bridgepb::ExecInput;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::calls::{LIMIT, begin, command, run, until};
use crate::workspace::{Init, Layout, SOCKET, Workspace};

/// A frame's type in HTTP/2.
const PING: u8 = 6;

#[tokio::test]
async fn data_and_templates_are_there_before_the_first_answer() {
    let prepare = |root: &std::path::Path| {
        fs::write(root.join("opt/memoh/templates/NEW.md"), b"template").expect("a template");
        fs::write(root.join("opt/memoh/templates/OWN.md"), b"template").expect("a template");
        fs::create_dir(root.join("data")).expect("data");
        fs::set_permissions(root.join("data"), fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::write(root.join("data/OWN.md"), b"own").expect("own");
    };
    let workspace = Workspace::with(Layout {
        prepare,
        ..Layout::default()
    })
    .await;
    assert_eq!(fs::read(workspace.path("data/NEW.md")).expect("copied"), b"template");
    assert_eq!(
        fs::metadata(workspace.path("data/NEW.md")).expect("copied").mode() & 0o7777,
        0o644
    );
    assert_eq!(fs::read(workspace.path("data/OWN.md")).expect("kept"), b"own");
    assert_eq!(
        fs::metadata(workspace.path("data")).expect("data").mode() & 0o7777,
        0o755,
        "its mode is the tenant's"
    );
    let fresh = Workspace::start().await;
    assert_eq!(fs::metadata(fresh.path("data")).expect("data").mode() & 0o7777, 0o750);
}

#[tokio::test]
async fn a_socket_that_was_left_over_is_replaced() {
    let prepare = |root: &std::path::Path| {
        drop(std::os::unix::net::UnixListener::bind(root.join(SOCKET)).expect("a socket nobody listens on"));
    };
    Workspace::with(Layout {
        prepare,
        ..Layout::default()
    })
    .await;
}

/// A host that is gone without a word: its connection and what it holds are let go.
#[tokio::test]
async fn a_caller_that_answers_no_ping_is_given_up_after_thirty_and_ten_seconds() {
    let workspace = Workspace::start().await;
    let mut stream = UnixStream::connect(workspace.path(SOCKET)).await.expect("a connection");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat();
    stream.write_all(&hello).await.expect("written");
    let begun = Instant::now();
    let mut pinged = None;
    let until_closed = async {
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut body = vec![0; length as usize];
            stream.read_exact(&mut body).await.expect("a whole frame");
            if head[3] == PING {
                pinged.get_or_insert(begun.elapsed());
            }
        }
    };
    let closed = tokio::time::timeout(Duration::from_secs(70), until_closed).await;
    closed.expect("the connection ends");
    let (pinged, closed) = (pinged.expect("a ping").as_secs_f64(), begun.elapsed().as_secs_f64());
    assert!((29.0..45.0).contains(&pinged), "pinged after {pinged} s");
    assert!((9.0..25.0).contains(&(closed - pinged)), "closed after {closed} s");
}

#[tokio::test]
async fn with_nothing_running_the_end_takes_no_time() {
    // One that is quick is enough: the signal is sent by a process of its own, and the tests run side by side.
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let mut workspace = Workspace::start().await;
        let begun = Instant::now();
        workspace.signal_bridge("-TERM");
        workspace.wait_for_end(LIMIT).await;
        least = least.min(begun.elapsed());
        if least < Duration::from_secs(1) {
            return;
        }
    }
    panic!("the end took {least:?} at least");
}

#[tokio::test]
async fn the_end_lets_processes_finish_and_shells_hang_up() {
    let mut workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let text =
        "trap 'sleep 0.5; echo cleaned > /data/cleaned; exit 0' TERM; echo ready; while true; do sleep 0.05; done";
    let mut worker = begin(&client, command(text)).await.expect("started");
    worker.read_until("ready").await;
    let mut shell = begin(
        &client,
        ExecInput {
            pty: true,
            ..command("/bin/sh")
        },
    )
    .await
    .expect("started");
    shell.send(b"echo re''ady\n").await;
    shell.read_until("ready").await;
    let begun = Instant::now();
    workspace.signal_bridge("-TERM");
    assert_eq!(worker.finish().await.exit_code, 0, "its exit is still told");
    workspace.wait_for_end(LIMIT).await;
    assert!(
        begun.elapsed() > Duration::from_millis(450),
        "it waited: {:?}",
        begun.elapsed()
    );
    assert_eq!(
        fs::read(workspace.path("data/cleaned")).expect("finished"),
        b"cleaned\n"
    );
}

#[tokio::test]
async fn a_workspace_that_ends_starts_nothing_more() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let text = "trap '' TERM; echo ready; sleep 30";
    let mut running = begin(&client, command(text)).await.expect("started");
    running.read_until("ready").await;
    workspace.signal_bridge("-TERM");
    let limit = Instant::now() + LIMIT;
    loop {
        match begin(&client, command("true")).await {
            Err(error) => {
                assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
                // One that has ended is not there either.
                assert_eq!(error.message(), "the workspace is stopping");
                return;
            }
            Ok(_) => assert!(Instant::now() < limit, "execs are still started"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many bytes the bridge says to a process that has a number in its own namespace.
fn said_inside(workspace: &Workspace) -> usize {
    // An HTTP/2 preface and empty settings: the host gets settings for them.
    let script = r#"
        $SIG{PIPE} = 'IGNORE';
        $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!;
        syswrite $s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . "\0\0\0\4\0\0\0\0\0";
        alarm 10;
        print sysread($s, $said, 99) || 0;
    "#;
    let said = Command::new("nsenter")
        .args(["--pid", "--target", &workspace.bridge_pid().to_string()])
        .args(["perl", "-MIO::Socket::UNIX", "-e", script])
        .arg(workspace.path(SOCKET))
        .output()
        .expect("nsenter (util-linux) and perl are part of every Debian");
    let text = String::from_utf8_lossy(&said.stdout);
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?}, {}", String::from_utf8_lossy(&said.stderr)))
}

#[tokio::test]
async fn a_caller_from_inside_the_workspace_is_refused() {
    let workspace = Workspace::start().await;
    assert_eq!(said_inside(&workspace), 0);
    // The same where it may: it is the bridge that refuses.
    let told_to = Workspace::with(Layout {
        environment: vec![("BRIDGE_ALLOW_SAME_PID_NAMESPACE", "1")],
        ..Layout::default()
    })
    .await;
    assert!(said_inside(&told_to) > 0);
}

#[tokio::test]
async fn as_the_child_of_an_init_it_serves_when_told_to() {
    let environment = vec![("BRIDGE_ALLOW_SAME_PID_NAMESPACE", "1")];
    let layout = Layout {
        init: Init::Shell,
        environment,
        ..Layout::default()
    };
    let workspace = Workspace::with(layout).await;
    let client = workspace.reference().await;
    assert_eq!(run(&client, command("sleep 0.1; exit 3")).await.exit_code, 3);
    let shown = run(&client, command("env")).await;
    assert!(
        !shown.text().contains("BRIDGE_ALLOW"),
        "that is meant for the bridge alone"
    );
}

#[tokio::test]
async fn an_idle_bridge_is_small() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    run(&client, command("seq 1 1000")).await;
    drop(client);
    let mut last = 0;
    let small = until("less than 2 MiB of private memory", || {
        last = own_memory_kib(&workspace);
        last < 2048
    });
    small.await;
    println!("{last} KiB of its own");
}

/// Not what is mapped from the file, which all workspaces of a host share.
pub(crate) fn own_memory_kib(workspace: &Workspace) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", workspace.bridge_pid())).expect("its memory");
    let own = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .expect("its own pages");
    own.trim().trim_end_matches(" kB").parse().expect("KiB")
}

#[tokio::test]
async fn signals_from_inside_the_workspace_do_not_end_it() {
    let mut workspace = Workspace::start().await;
    let client = workspace.reference().await;
    for signal in ["TERM", "INT", "HUP", "KILL", "QUIT", "USR1", "STOP", "SEGV"] {
        let sent = run(&client, command(&format!("kill -{signal} 1"))).await;
        assert_eq!(sent.exit_code, 0, "{signal}");
        assert_eq!(
            run(&client, command("echo works")).await.text(),
            "works\n",
            "after {signal}"
        );
    }
    let log = || fs::read_to_string(workspace.path("run/memoh/bridge.log")).expect("the log");
    until("the sender is told", || log().contains(" signal 15 of process ")).await;
    workspace.signal_bridge("-TERM");
    workspace.wait_for_end(LIMIT).await;
}

#[tokio::test]
async fn as_the_child_of_an_init_it_obeys_that_init() {
    let layout = Layout {
        init: Init::Shell,
        environment: vec![("BRIDGE_ALLOW_SAME_PID_NAMESPACE", "1")],
        ..Layout::default()
    };
    let workspace = Workspace::with(layout).await;
    let client = workspace.reference().await;
    run(&client, command("kill -TERM $PPID")).await;
    let log = || fs::read_to_string(workspace.path("run/memoh/bridge.log")).expect("the log");
    until("it is told to end", || log().contains(" told to end\n")).await;
}

#[tokio::test]
async fn what_it_starts_can_be_read_by_its_own_kind() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let own = run(
        &client,
        command("sleep 100 & readlink /proc/$!/exe && ls /proc/$!/fd >/dev/null && kill $!"),
    )
    .await;
    assert_eq!(own.text(), "/bin/busybox\n", "{own:?}");
}
