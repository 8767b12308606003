//! Many execs: every code and byte true, and no zombie.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};

use crate::installation::{Installation, OciRuntime};

const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_execs_none_is_wrong_and_no_zombie_stays() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("busy", None).await;
    // Orphans for process 1 to reap all the while.
    let orphans =
        "(setsid sh -c 'while :; do (sleep 0.05 &); sleep 0.05; done' >/dev/null 2>&1 & echo $! > /data/orphans)";
    skep.client.output(&bot, orphans).await;
    run_all(&skep, &bot, 10_000, |n| {
        (format!("echo {n}; echo e{n} >&2; exit {}", n % 256), n)
    })
    .await;
    run_all(&skep, &bot, 1_000, |n| {
        (format!("sleep 0.3; echo {n}; echo e{n} >&2; exit {}", n % 256), n)
    })
    .await;
    let end = "kill $(cat /data/orphans) && while kill -0 $(cat /data/orphans) 2>/dev/null; do sleep 0.05; done";
    skep.client.output(&bot, end).await;
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        // One that has just ended is a zombie until it is reaped, in a moment.
        let zombies = skep.client.output(&bot, "ps -o stat= | grep -c '^Z' || true").await;
        if zombies.trim() == "0" {
            break;
        }
        assert!(Instant::now() < until, "{zombies} zombies stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn run_all(skep: &Installation, bot: &str, count: usize, command: impl Fn(usize) -> (String, usize)) {
    stream::iter((0..count).map(command))
        .for_each_concurrent(AT_ONCE, |(command, n)| async move {
            let ended = skep.client.exec(bot, &command).await;
            let expected = ((n % 256) as i64, format!("{n}\n"), format!("e{n}\n"));
            assert_eq!((ended.exit_code, ended.stdout, ended.stderr), expected, "{command:?}");
        })
        .await;
}
