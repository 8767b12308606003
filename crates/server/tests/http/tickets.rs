//! Tickets: what stands in for a header where a browser cannot send one, once.

use serde_json::json;
use skep_testkit::server::{Answer, TestServer, text_of};

async fn ticket(server: &TestServer, credential: &str, bot: &str, purpose: &str) -> String {
    let body = json!({"bot_id": bot, "use": purpose});
    let asked = chrono::Utc::now();
    let made = server
        .call_as(credential, "POST", "/auth/tickets")
        .json(&body)
        .send()
        .await;
    let made = made.expect_status(200).json();
    let ends = chrono::DateTime::parse_from_rfc3339(&text_of(&made, "expires_at")).expect("a time");
    let (begins, answered) = (ends.to_utc() - chrono::TimeDelta::seconds(30), chrono::Utc::now());
    assert!(
        (asked..=answered).contains(&begins),
        "thirty seconds from {begins}, asked for at {asked}"
    );
    text_of(&made, "ticket")
}

async fn download(server: &TestServer, bot: &str, path: &str, with: &str) -> Answer {
    let path = format!("/bots/{bot}/container/fs/download?path={path}&{with}");
    server.call_as("", "GET", &path).send().await
}

async fn bot_with_a_file(server: &TestServer) -> String {
    let bot = server.bot_with_workspace().await;
    for path in ["/data/file", "/data/media/picture"] {
        let directory = path.rsplit_once('/').expect("a directory").0;
        let base = format!("/bots/{bot}/container/fs");
        let made = server
            .call("POST", &format!("{base}/mkdir"))
            .json(&json!({"path": directory}));
        made.send().await.expect_status(200);
        let body = json!({"path": path, "content": "content"});
        let written = server.call("POST", &format!("{base}/write")).json(&body).send().await;
        written.expect_status(200);
    }
    bot
}

#[tokio::test]
async fn a_ticket_is_good_once_for_its_bot_and_its_use() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let other = server.bare_bot(server.admin_key()).await;
    let good = ticket(&server, server.admin_key(), &bot, "download").await;
    let first = download(&server, &bot, "/data/file", &format!("ticket={good}")).await;
    assert_eq!(first.expect_status(200).text(), "content");
    let again = download(&server, &bot, "/data/file", &format!("ticket={good}")).await;
    again.expect_error(401, "unauthorized");
    for (of_bot, purpose) in [(&other, "download"), (&bot, "terminal"), (&bot, "port")] {
        let wrong = ticket(&server, server.admin_key(), of_bot, purpose).await;
        let refused = download(&server, &bot, "/data/file", &format!("ticket={wrong}")).await;
        refused.expect_error(401, "unauthorized");
    }
    // On routes that are no downloads a ticket is nothing.
    let wrong = ticket(&server, server.admin_key(), &bot, "download").await;
    let path = format!("/bots/{bot}/container/fs/read?path=/data/file&ticket={wrong}");
    server
        .call_as("", "GET", &path)
        .send()
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_ticket_for_a_download_opens_an_archive_once_and_unpacks_none() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let archive = async |ticket: &str| {
        let path = format!("/bots/{bot}/container/fs/archive?path=/data/file&ticket={ticket}");
        server.call_as("", "GET", &path).send().await
    };
    let good = ticket(&server, server.admin_key(), &bot, "download").await;
    let first = archive(&good).await;
    assert!(first.expect_status(200).text().contains("content"));
    archive(&good).await.expect_error(401, "unauthorized");
    let wrong = ticket(&server, server.admin_key(), &bot, "port").await;
    archive(&wrong).await.expect_error(401, "unauthorized");
    let unspent = ticket(&server, server.admin_key(), &bot, "download").await;
    let path = format!("/bots/{bot}/container/fs/archive?path=/data&ticket={unspent}");
    let unpacked = server.call_as("", "PUT", &path).send().await;
    unpacked.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_ticket_can_do_no_more_than_its_user_can_now() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let (id, token) = server.member("ada").await;
    let member = format!("/bots/{bot}/members/{id}");
    let role = |role: &'static str| server.call("PUT", &member).json(&json!({"role": role})).send();
    role("viewer").await.expect_status(200);
    let body = json!({"bot_id": bot, "use": "download"});
    let refused = server.call_as(&token, "POST", "/auth/tickets").json(&body).send().await;
    refused.expect_error(403, "bot_access_denied");
    role("operator").await.expect_status(200);
    let held = ticket(&server, &token, &bot, "download").await;
    server.call("DELETE", &member).send().await.expect_status(204);
    let refused = download(&server, &bot, "/data/file", &format!("ticket={held}")).await;
    refused.expect_error(403, "bot_access_denied");
}

#[tokio::test]
async fn a_ticket_of_a_user_who_was_made_inactive_is_refused() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let (id, token) = server.member("ada").await;
    let joins = server.call("PUT", &format!("/bots/{bot}/members/{id}"));
    let joins = joins.json(&json!({"role": "operator"})).send().await;
    joins.expect_status(200);
    let (used, held) = (
        ticket(&server, &token, &bot, "download").await,
        ticket(&server, &token, &bot, "download").await,
    );
    let got = download(&server, &bot, "/data/file", &format!("ticket={used}")).await;
    got.expect_status(200);
    let ends = server.call("PUT", &format!("/users/{id}"));
    let ends = ends.json(&json!({"is_active": false})).send().await;
    assert_eq!(ends.expect_status(200).json()["is_active"], false);
    let refused = download(&server, &bot, "/data/file", &format!("ticket={held}")).await;
    refused.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_guest_downloads_media_by_ticket_and_nothing_else() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let (guest, token) = server.member("guest").await;
    // A key that names the bot, from when the guest was more than that.
    let member = format!("/bots/{bot}/members/{guest}");
    let joins = server.call("PUT", &member).json(&json!({"role": "viewer"}));
    joins.send().await.expect_status(200);
    let narrowed = json!({"name": "for it", "scope": "read", "bots": [&bot]});
    let narrowed = server
        .call_as(&token, "POST", "/auth/keys")
        .json(&narrowed)
        .send()
        .await;
    let narrowed = text_of(&narrowed.expect_status(201).json(), "key");
    server.call("DELETE", &member).send().await.expect_status(204);
    let open = server
        .call("PUT", &format!("/bots/{bot}/guest"))
        .json(&json!({"enabled": true}));
    open.send().await.expect_status(200);
    for credential in [&token, &narrowed] {
        let media = ticket(&server, credential, &bot, "download").await;
        let got = download(&server, &bot, "/data/media/picture", &format!("ticket={media}")).await;
        assert_eq!(got.expect_status(200).text(), "content");
    }
    let secret = ticket(&server, &token, &bot, "download").await;
    let refused = download(&server, &bot, "/data/file", &format!("ticket={secret}")).await;
    refused.expect_error(403, "bot_access_denied");
    let body = json!({"bot_id": bot, "use": "terminal"});
    let refused = server.call_as(&token, "POST", "/auth/tickets").json(&body).send().await;
    refused.expect_error(403, "bot_access_denied");
    // To read is all he may: what its owner stopped stays stopped.
    let stop = format!("/bots/{bot}/container/stop");
    server.call("POST", &stop).send().await.expect_status(200);
    let media = ticket(&server, &token, &bot, "download").await;
    let with = format!("ticket={media}&start=true");
    let got = download(&server, &bot, "/data/media/picture", &with).await;
    got.expect_error(409, "workspace_stopped");
}

#[tokio::test]
async fn a_token_in_the_query_counts_only_where_the_configuration_says() {
    for (configured, status) in [("false", 401), ("true", 200)] {
        let server = TestServer::with(&[("auth.query_token", configured)]).await;
        let bot = bot_with_a_file(&server).await;
        let token = server.login("admin", skep_testkit::server::ADMIN_PASSWORD).await;
        let got = download(&server, &bot, "/data/media/picture", &format!("token={token}")).await;
        got.expect_status(status);
        let path = format!("/bots/{bot}/container/fs/archive?path=/data/file&token={token}");
        let archive = server.call_as("", "GET", &path).send().await;
        archive.expect_status(status);
        // On the two kinds of routes that a browser opens, and on no other.
        for path in [
            "?",
            "/container/port-forward?port=1&",
            "/container/fs/read?path=/data/file&",
        ] {
            let path = format!("/bots/{bot}{path}token={token}");
            let refused = server.call_as("", "GET", &path).send().await;
            refused.expect_error(401, "unauthorized");
        }
        let path = format!("/bots/{bot}/container/terminal/ws?token={token}");
        let terminal = server.call_as("", "GET", &path).send().await;
        assert_eq!(terminal.status == 401, configured == "false", "{}", terminal.text());
    }
}

#[tokio::test]
async fn no_link_leads_a_guest_out_of_media() {
    let server = TestServer::start().await;
    let bot = bot_with_a_file(&server).await;
    let links = json!({"command": "ln -s /data/file /data/media/out && ln -s /data /data/media/up"});
    let made = server.call("POST", &format!("/bots/{bot}/container/exec")).json(&links);
    assert_eq!(made.send().await.expect_status(200).json()["exit_code"], 0);
    let open = server.call("PUT", &format!("/bots/{bot}/guest"));
    open.json(&json!({"enabled": true})).send().await.expect_status(200);
    let (_, guest) = server.member("guest").await;
    for path in ["/data/media/out", "/data/media/up/file"] {
        for method in ["GET", "HEAD"] {
            let route = format!("/bots/{bot}/container/fs/download?path={path}");
            server.call(method, &route).send().await.expect_status(200);
            let refused = server.call_as(&guest, method, &route).send().await;
            assert!(
                (400..500).contains(&refused.status),
                "{method} {path}: {}",
                refused.text()
            );
            assert!(
                !refused.text().contains("content"),
                "{method} {path}: {}",
                refused.text()
            );
        }
    }
}
