//! Shells that have a name and outlive their windows.

use futures::StreamExt;
use serde_json::json;
use skep_testkit::server::TestServer;
use tokio_tungstenite::tungstenite::Message;

use crate::Workspace;
use crate::terminals::{connect, read_close, read_until, seconds_of_its_own, type_line, until_sleepers};

async fn workspace_that_keeps(keep: &str) -> Workspace {
    let server = TestServer::with(&[("terminal.session_keep", keep)]).await;
    let bot = server.bot_with_workspace().await;
    Workspace { server, bot }
}

#[tokio::test]
async fn a_session_is_found_again_by_its_name_with_what_it_showed() {
    let workspace = Workspace::start().await;
    let mut first = connect(&workspace, "?session=work", None).await.unwrap();
    type_line(&mut first, "kept=value; echo first-$kept").await;
    read_until(&mut first, "first-value\r\n").await;
    first.close(None).await.unwrap();
    let mut second = connect(&workspace, "?session=work&cols=91&rows=33", None)
        .await
        .unwrap();
    read_until(&mut second, "first-value\r\n").await;
    type_line(&mut second, "echo second-$kept; stty size").await;
    let shown = read_until(&mut second, "33 91\r\n").await;
    assert!(shown.contains("second-value\r\n"), "{shown}");
    let mut other = connect(&workspace, "?session=other", None).await.unwrap();
    type_line(&mut other, "echo other-$kept-").await;
    read_until(&mut other, "other--\r\n").await;
}

#[tokio::test]
async fn all_windows_on_a_session_show_one_shell_and_its_end() {
    let workspace = Workspace::start().await;
    let opened = futures::future::join_all((0..8).map(|_| connect(&workspace, "?session=one", None))).await;
    let mut windows: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
    type_line(&mut windows[0], "echo pid-$$-").await;
    let mut seen = std::collections::BTreeSet::new();
    for window in &mut windows {
        let shown = read_until(window, "-\r\n").await;
        seen.insert(shown[shown.rfind("pid-").unwrap()..].trim().to_owned());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    type_line(&mut windows[1], "exit 6").await;
    for window in &mut windows {
        assert_eq!(read_close(window).await, (1000, "exit 6".to_owned()));
    }
    let mut next = connect(&workspace, "?session=one", None).await.unwrap();
    type_line(&mut next, "echo anew-$(( $$ > 0 ))").await;
    let shown = read_until(&mut next, "anew-1\r\n").await;
    assert!(
        !shown.contains("pid-"),
        "a new shell shows nothing of the old one: {shown}"
    );
}

#[tokio::test]
async fn a_session_that_has_ended_is_not_replaced_for_whoever_resumes_it() {
    let workspace = Workspace::start().await;
    let resume = "?session=work&resume=true";
    let mut none = connect(&workspace, resume, None).await.unwrap();
    assert_eq!(read_close(&mut none).await, (1011, "session ended".to_owned()));
    let mut first = connect(&workspace, "?session=work", None).await.unwrap();
    type_line(&mut first, "kept=value; echo first-$kept").await;
    read_until(&mut first, "first-value\r\n").await;
    let mut second = connect(&workspace, resume, None).await.unwrap();
    read_until(&mut second, "first-value\r\n").await;
    type_line(&mut second, "exit 6").await;
    assert_eq!(read_close(&mut first).await, (1000, "exit 6".to_owned()));
    let mut third = connect(&workspace, resume, None).await.unwrap();
    assert_eq!(read_close(&mut third).await, (1011, "session ended".to_owned()));
    let mut anew = connect(&workspace, "?session=work", None).await.unwrap();
    type_line(&mut anew, "echo anew-$kept-").await;
    read_until(&mut anew, "anew--\r\n").await;
}

#[tokio::test]
async fn a_session_that_no_window_shows_ends_with_all_its_processes() {
    let workspace = workspace_that_keeps("8s").await;
    let seconds = seconds_of_its_own(5);
    let mut window = connect(&workspace, "?session=s", None).await.unwrap();
    type_line(
        &mut window,
        &format!("(trap '' HUP TERM; exec sleep {seconds}) & echo started"),
    )
    .await;
    read_until(&mut window, "started\r\n").await;
    until_sleepers(&seconds, 1).await;
    window.close(None).await.unwrap();
    // Shown again within its time it lives on, for longer than that.
    let mut again = connect(&workspace, "?session=s", None).await.unwrap();
    type_line(&mut again, "sleep 9; echo still-$(( 1 + 1 ))").await;
    read_until(&mut again, "still-2\r\n").await;
    until_sleepers(&seconds, 1).await;
    drop(again);
    until_sleepers(&seconds, 0).await;
}

#[tokio::test]
async fn the_last_256_kib_are_shown_again_and_no_more() {
    let workspace = Workspace::start().await;
    let mut window = connect(&workspace, "?session=long", None).await.unwrap();
    type_line(
        &mut window,
        "i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done; echo end-$((i+1))",
    )
    .await;
    read_until(&mut window, "end-100001\r\n").await;
    window.close(None).await.unwrap();
    let mut again = connect(&workspace, "?session=long", None).await.unwrap();
    type_line(&mut again, "echo over-$(( 2 + 2 ))").await;
    let shown = read_until(&mut again, "over-4\r\n").await;
    let old = shown.find("end-100001\r\n").expect("the last lines are there") + "end-100001\r\n".len();
    assert!(old <= 256 * 1024 && old > 255 * 1024, "{old} bytes");
    assert!(shown.contains("99999\r\n") && !shown.contains("\n10000\r\n"));
}

#[tokio::test]
async fn a_window_that_does_not_read_holds_up_its_own_session_only() {
    let workspace = Workspace::start().await;
    let mut stalled = connect(&workspace, "?session=stalled", None).await.unwrap();
    type_line(&mut stalled, "yes").await;
    let mut other = connect(&workspace, "?session=other", None).await.unwrap();
    type_line(&mut other, "echo other-$(( 3 + 3 ))").await;
    read_until(&mut other, "other-6\r\n").await;
    // It goes on as soon as it is read.
    for _ in 0..200 {
        let frame = stalled.next().await.unwrap().unwrap();
        assert!(matches!(frame, Message::Binary(_) | Message::Ping(_)), "{frame:?}");
    }
}

#[tokio::test]
async fn a_session_is_among_the_execs_and_can_be_ended_there() {
    let workspace = Workspace::start().await;
    let mut window = connect(&workspace, "?session=listed", None).await.unwrap();
    type_line(&mut window, "echo up-$(( 4 + 4 ))").await;
    read_until(&mut window, "up-8\r\n").await;
    let listed = workspace.get("/exec").await.expect_status(200).json();
    let running: Vec<&str> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|exec| exec["state"] == "running")
        .map(|exec| exec["exec_id"].as_str().unwrap())
        .collect();
    let [id] = running[..] else { panic!("{listed}") };
    let end = workspace.server.call("DELETE", &workspace.path(&format!("/exec/{id}")));
    end.send().await.expect_status(204);
    let (code, reason) = read_close(&mut window).await;
    assert!(code == 1000 && reason.starts_with("exit "), "{code} {reason}");
}

#[tokio::test]
async fn names_that_cannot_be_are_refused() {
    let workspace = Workspace::start().await;
    for query in ["?session=", "?session=a%20b", "?session=x&exec_id=y"] {
        let refused = connect(&workspace, query, None).await;
        match refused {
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                assert_eq!(response.status().as_u16(), 400, "{query}");
            }
            other => panic!("{query} is not refused: {:?}", other.map(|_| ())),
        }
    }
    let too_long = format!("?session={}", "x".repeat(65));
    assert!(connect(&workspace, &too_long, None).await.is_err());
    workspace
        .post("/exec", json!({"command": "true"}))
        .await
        .expect_status(200);
}
