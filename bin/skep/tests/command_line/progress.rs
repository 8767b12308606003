//! What a person sees of an operation that takes long.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use skep_testkit::fake_runtime::Verb;

use crate::setting::{LIMIT, Setting};

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_long_removal_are_shown_before_its_end() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let hold = setting.server.runtime().faults().hold(Verb::Remove);
    let mut removing = setting.command(&["rm", "box", "--force"]);
    removing
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut removing = removing.spawn().expect("skep runs");
    let told = BufReader::new(removing.stderr.take().expect("a pipe"));
    let line = tokio::task::spawn_blocking(move || {
        let mut told = told;
        let mut line = String::new();
        told.read_line(&mut line).expect("it is read");
        (line, told)
    });
    let line = tokio::time::timeout(LIMIT, line).await;
    let (line, _told) = line.expect("a line comes").expect("it is waited for");
    assert!(!line.trim().is_empty(), "it ended without a word");
    assert!(
        removing.try_wait().expect("it can be asked").is_none(),
        "it ended: {line}"
    );
    drop(hold);
    let ended = tokio::task::spawn_blocking(move || removing.wait()).await;
    assert!(ended.expect("it is waited for").expect("it ends").success());
    assert!(
        setting
            .prints(&["ops", "ls", "box", "-o", "json"])
            .await
            .contains("delete")
    );
}
