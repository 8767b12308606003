//! `Exec` of the reference's service.

use std::time::{Duration, Instant};

use skep_bridge_protocol::bridgepb::exec_output::Stream;
use skep_bridge_protocol::bridgepb::{ExecInput, Resize};
use skep_bridge_protocol::reason;
use tonic::Code;

use crate::calls::{LIMIT, begin, command, run, until};
use crate::workspace::{Layout, Workspace};

/// Of what takes a second or three, on a machine that has other work; far less than what would be waited for in vain.
const LATE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn exit_codes_are_those_of_the_process() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    for (text, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        assert_eq!(run(&client, command(text)).await.exit_code, code, "{text}");
    }
}

#[tokio::test]
async fn the_environment_is_the_one_of_the_contract() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let first = ExecInput {
        env: vec!["OWN=a=b".into(), "LANG=C".into()],
        ..command("pwd; env")
    };
    let finished = run(&client, first).await;
    for line in [
        "/data",
        "HOME=/data",
        "XDG_CONFIG_HOME=/data/.config",
        "XDG_DATA_HOME=/data/.local/share",
        "XDG_CACHE_HOME=/data/.cache",
        "TZ=Asia/Tokyo",
        "BRIDGE_SOCKET_PATH=/run/memoh/bridge.sock",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/opt/memoh/toolkit/bin",
        "OWN=a=b",
        "LANG=C",
    ] {
        assert!(
            finished.text().lines().any(|present| present == line),
            "no {line} in {}",
            finished.text()
        );
    }
}

#[tokio::test]
async fn input_of_the_first_message_counts_and_a_half_close_ends_it() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let first = ExecInput {
        stdin_data: b"one ".as_slice().into(),
        ..command("cat; echo end")
    };
    let mut running = begin(&client, first).await.expect("started");
    running.send(b"two ").await;
    running.read_until("one two ").await;
    running.input = None;
    assert_eq!(running.finish().await.text(), "end\n");
}

#[tokio::test]
async fn much_output_is_whole_in_order_and_in_bounded_pieces() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let finished = run(&client, command("seq 1 700000; seq 1 1000 >&2")).await;
    let expected: String = (1..=700_000).map(|number| format!("{number}\n")).collect();
    assert!(
        finished.text() == expected,
        "{} of {} bytes",
        finished.stdout.len(),
        expected.len()
    );
    assert_eq!(finished.stderr.iter().filter(|&&byte| byte == b'\n').count(), 1000);
    assert!(finished.largest_piece <= 64 * 1024, "{}", finished.largest_piece);
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let mut running = begin(&client, command("seq 1 2000000")).await.expect("started");
    let mut bytes = 0;
    for _ in 0..20 {
        bytes += running.next().await.expect("output").data.len();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let finished = running.finish().await;
    assert_eq!(bytes + finished.stdout.len(), 14_888_896);
    assert!(finished.text().ends_with("\n1999999\n2000000\n"));
}

#[tokio::test]
async fn bytes_that_are_no_text_pass_unchanged() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let data: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
    let first = ExecInput {
        stdin_data: data.clone().into(),
        ..command("cat")
    };
    assert!(run(&client, first).await.stdout == data);
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_delays_the_exit_by_a_second_at_most() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let mut least = Duration::MAX;
    // One that is not delayed by more is enough: the machine may have other work.
    for tries in 1..=5 {
        let begun = Instant::now();
        let finished = run(&client, command("echo before; sleep 300 & exit 3")).await;
        least = least.min(begun.elapsed());
        assert_eq!((finished.text(), finished.exit_code), ("before\n", 3));
        let sleeps = workspace
            .processes()
            .into_iter()
            .filter(|(_, name)| name == "sleep")
            .count();
        assert_eq!(sleeps, tries, "each child lives on");
        if least < Duration::from_millis(1800) {
            break;
        }
    }
    assert!(
        least > Duration::from_millis(900) && least < Duration::from_millis(1800),
        "{least:?}"
    );
}

#[tokio::test]
async fn what_a_child_writes_within_the_second_comes_before_exit() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let finished = run(
        &client,
        command("(while kill -0 $$ 2>/dev/null; do :; done; echo late) & exit 0"),
    )
    .await;
    assert_eq!(finished.text(), "late\n");
}

#[tokio::test]
async fn a_timeout_ends_the_group_and_kills_what_ignores_it() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let mut least = Duration::MAX;
    // One that does not wait for the kill, two seconds later, is enough: the machine may have other work.
    for _ in 0..5 {
        let begun = Instant::now();
        let polite = run(
            &client,
            ExecInput {
                timeout_seconds: 1,
                ..command("sleep 300")
            },
        )
        .await;
        assert_eq!(polite.exit_code, 143);
        least = least.min(begun.elapsed());
        if least < Duration::from_millis(2800) {
            break;
        }
    }
    assert!(least < Duration::from_millis(2800), "{least:?}");
    let begun = Instant::now();
    let text = "trap '' TERM; sleep 300 & while true; do sleep 0.1; done";
    let stubborn = run(
        &client,
        ExecInput {
            timeout_seconds: 1,
            ..command(text)
        },
    )
    .await;
    assert_eq!(stubborn.exit_code, 137);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(2900) && took < LATE, "{took:?}");
    until("the group is gone", || workspace.processes().is_empty()).await;
}

#[tokio::test]
async fn a_negative_timeout_is_none_and_a_caught_signal_decides_the_code() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    assert_eq!(
        run(
            &client,
            ExecInput {
                timeout_seconds: -1,
                ..command("sleep 0.2; exit 4")
            }
        )
        .await
        .exit_code,
        4
    );
    let text = "trap 'exit 9' TERM; while true; do sleep 0.1; done";
    assert_eq!(
        run(
            &client,
            ExecInput {
                timeout_seconds: 1,
                ..command(text)
            }
        )
        .await
        .exit_code,
        9
    );
}

#[tokio::test]
async fn a_process_outlives_its_lost_stream() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let text =
        "echo begun; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; sleep 0.3; echo done > /data/done";
    let mut running = begin(&client, command(text)).await.expect("started");
    running.read_until("begun").await;
    drop(running);
    until("the process went on to its end", || {
        workspace.path("data/done").exists()
    })
    .await;
}

#[tokio::test]
async fn a_process_without_a_stream_ends_at_its_timeout() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let first = ExecInput {
        timeout_seconds: 1,
        ..command("echo begun; sleep 300")
    };
    let mut running = begin(&client, first).await.expect("started");
    running.read_until("begun").await;
    drop(running);
    until("the process is gone", || workspace.processes().is_empty()).await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_takes_another() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let text = "trap 'stty size' WINCH; stty size; echo $TERM; while true; do sleep 0.05; done";
    let mut running = begin(
        &client,
        ExecInput {
            pty: true,
            ..command(text)
        },
    )
    .await
    .expect("started");
    let seen = running.read_until("xterm-256color").await;
    assert!(seen.starts_with("24 80\r\n"), "{seen:?}");
    let size = Some(Resize { cols: 132, rows: 50 });
    running
        .input
        .as_ref()
        .expect("open")
        .send(ExecInput {
            resize: size,
            ..ExecInput::default()
        })
        .await
        .expect("sent");
    running.read_until("50 132").await;
}

#[tokio::test]
async fn a_bare_path_at_a_terminal_is_started_directly() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let first = ExecInput {
        pty: true,
        resize: Some(Resize { cols: 100, rows: 30 }),
        ..command("/bin/sh")
    };
    let mut running = begin(&client, first).await.expect("started");
    running.send(b"stty size; tty; exit 5\n").await;
    let seen = running.read_until("/dev/pts/").await;
    assert!(seen.contains("30 100"), "{seen:?}");
    assert_eq!(running.finish().await.exit_code, 5);
}

#[tokio::test]
async fn a_terminal_whose_stream_is_lost_ends_with_all_its_jobs() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let mut running = begin(
        &client,
        ExecInput {
            pty: true,
            ..command("/bin/sh")
        },
    )
    .await
    .expect("started");
    running
        .send(b"set -m; sleep 100 & (trap '' HUP TERM; sleep 101; sleep 102) & echo re''ady\n")
        .await;
    running.read_until("ready").await;
    drop(running);
    let begun = Instant::now();
    until("the whole session is gone", || workspace.processes().is_empty()).await;
    assert!(begun.elapsed() < LATE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_cannot_be_started_has_a_reason_and_no_exit_code() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    for (first, code) in [
        (command(""), Code::InvalidArgument),
        (
            ExecInput {
                env: vec!["=x".into()],
                ..command("true")
            },
            Code::InvalidArgument,
        ),
        (
            ExecInput {
                work_dir: "/missing".into(),
                ..command("true")
            },
            Code::FailedPrecondition,
        ),
        (
            ExecInput {
                work_dir: "/etc/passwd".into(),
                ..command("true")
            },
            Code::FailedPrecondition,
        ),
        (
            ExecInput {
                pty: true,
                ..command("/bin/nothing")
            },
            Code::FailedPrecondition,
        ),
    ] {
        let error = begin(&client, first.clone())
            .await
            .err()
            .unwrap_or_else(|| panic!("started: {first:?}"));
        assert_eq!(error.code(), code, "{error}");
        if code == Code::FailedPrecondition {
            assert_eq!(
                error.metadata().get(reason::METADATA_KEY).expect("a reason"),
                reason::EXEC_NOT_STARTED
            );
        }
    }
    assert_eq!(
        run(&client, command("echo fine")).await.text(),
        "fine\n",
        "and the bridge goes on"
    );
}

#[tokio::test]
async fn an_image_without_a_shell_says_so() {
    let workspace = Workspace::with(Layout {
        busybox: false,
        ..Layout::default()
    })
    .await;
    let client = workspace.reference().await;
    let error = begin(&client, command("true")).await.err().expect("refused");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.message(), "/bin/sh: no such file or directory");
}

#[tokio::test]
async fn exit_is_the_last_message_and_the_only_one_with_a_code() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let mut running = begin(&client, command("echo out; exit 6")).await.expect("started");
    let first = running.next().await.expect("output");
    assert_eq!((first.stream(), first.exit_code), (Stream::Stdout, 0));
    let exit = tokio::time::timeout(LIMIT, running.finish()).await.expect("in time");
    assert_eq!(exit.exit_code, 6);
}

#[tokio::test]
async fn a_process_without_a_timeout_of_its_own_has_thirty_seconds() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    let begun = Instant::now();
    let ended = run(&client, command("while :; do echo; sleep 2; done")).await;
    let took = begun.elapsed().as_secs_f64();
    assert!((29.5..60.0).contains(&took), "it took {took} s");
    assert_eq!(ended.exit_code, 143);
}
