//! What reaches into a workspace on real containerd: ports of its own loopback, and searches and watches on the layers
//! of its image.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use skep_testkit::images::http_client;
use tokio::time::timeout;

use crate::installation::{Installation, OciRuntime, field};

const LIMIT: Duration = Duration::from_secs(30);

/// A program that is ended with the test, also when that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a program was not ended: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_the_loopback_of_a_workspace_is_reached_by_port_forward_alone() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("listener", None).await;
    let serve = "echo served > /data/page && httpd -p 127.0.0.1:8080 -h /data";
    skep.client.output(&bot, serve).await;
    let mut command = skep.skep_command(&["port-forward", "listener", ":8080"]);
    let mut forwarding = Running(command.stdout(Stdio::piped()).spawn().expect("the program runs"));
    let mut told = BufReader::new(forwarding.0.stdout.take().expect("its output"));
    let mut line = String::new();
    told.read_line(&mut line).expect("where it listens");
    let (here, there) = line.trim().split_once(" -> ").expect("two ends");
    assert_eq!(there, "listener:8080");
    for _ in 0..3 {
        let answer = http_client()
            .get(format!("http://{here}/page"))
            .timeout(LIMIT)
            .send()
            .await;
        let answer = answer.expect("it is reached").text().await;
        assert_eq!(answer.expect("whole"), "served\n");
    }
    let address = skep.client.info(&bot).await;
    let elsewhere = format!("http://{}:8080/page", field(&address, "ip"));
    let answer = http_client().get(elsewhere).timeout(LIMIT).send().await;
    assert!(answer.expect_err("it listens on its loopback alone").is_connect());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_image_are_searched_and_watched_like_others() {
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("searched", None).await;
    let path = |rest: &str| format!("/bots/{bot}/container/fs/{rest}");
    skep.client.output(&bot, "echo needle > /data/found").await;
    let whole = path("search?path=/&pattern=%5Eneedle%24");
    let found = skep.client.good(Method::GET, &whole, None).await;
    assert_eq!(
        found["truncated"], false,
        "all of it is searched, /proc and /sys not entered: {found}"
    );
    assert_eq!(field(&found["matches"][0], "path"), "/data/found");
    let watch = skep.client.request(Method::GET, &path("watch?path=/bin")).send().await;
    let mut pieces = watch.expect("it watches").bytes_stream();
    skep.client
        .output(
            &bot,
            "chmod 711 /bin/busybox; mv /bin/vi /bin/moved; mv /bin/moved /bin/vi",
        )
        .await;
    let mut seen = String::new();
    for wanted in [
        r#"{"type":"modified","path":"/bin/busybox""#,
        r#"{"type":"renamed","path":"/bin/moved","isDir":false,"from":"/bin/vi"}"#,
        r#"{"type":"renamed","path":"/bin/vi","isDir":false,"from":"/bin/moved"}"#,
    ] {
        while !seen.contains(wanted) {
            let piece = timeout(LIMIT, pieces.next()).await;
            let piece = piece.unwrap_or_else(|_| panic!("{wanted} is not told: {seen}"));
            let piece = piece.expect("it goes on").expect("bytes");
            seen.push_str(std::str::from_utf8(&piece).expect("text"));
        }
    }
}
