//! Roles against routes: for every route below a bot that the document has, a stranger is refused,
//! and a role that is not enough is refused, before anything is read.

use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};

use crate::document::{Route, routes};
use crate::until_in_trail;

/// Routes that anybody who may see a bot may call, whatever their method.
fn is_reading(route: &Route) -> bool {
    route.method == "GET"
        && !route.path.contains("/fs")
        && !route.path.contains("/exec")
        && !route.path.contains("/terminal")
        && !route.path.contains("/port-forward")
}

async fn call(server: &TestServer, credential: &str, route: &Route, bot: &str) -> skep_testkit::server::Answer {
    let path = route.path_for(bot);
    server
        .call_as(credential, &route.method, &path)
        .body("application/json", "{broken")
        .send()
        .await
}

#[tokio::test]
async fn nobody_reaches_a_bot_without_a_credential_or_a_right() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (_, stranger) = server.member("stranger").await;
    for route in routes(&server)
        .await
        .iter()
        .filter(|route| route.path.contains("{bot_id}"))
    {
        call(&server, "", route, &bot).await.expect_error(401, "unauthorized");
        call(&server, &stranger, route, &bot)
            .await
            .expect_error(403, "bot_access_denied");
        call(&server, &stranger, route, "malformed")
            .await
            .expect_error(400, "invalid_id");
    }
}

#[tokio::test]
async fn a_viewer_changes_nothing() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (id, viewer) = server.member("viewer").await;
    let path = format!("/bots/{bot}/members/{id}");
    server
        .call("PUT", &path)
        .json(&json!({"role": "viewer"}))
        .send()
        .await
        .expect_status(200);
    for route in routes(&server)
        .await
        .iter()
        .filter(|route| route.path.contains("{bot_id}"))
    {
        if !is_reading(route) {
            call(&server, &viewer, route, &bot).await.expect_status(403);
        }
    }
    server
        .call_as(&viewer, "GET", &format!("/bots/{bot}"))
        .send()
        .await
        .expect_status(200);
}

#[tokio::test]
async fn members_come_change_and_go() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (id, token) = server.member("ada").await;
    let path = format!("/bots/{bot}/members/{id}");
    let put = |role: &'static str| server.call("PUT", &path).json(&json!({"role": role})).send();
    assert_eq!(put("viewer").await.expect_status(200).json()["role"], "viewer");
    let rename = || {
        server
            .call_as(&token, "PUT", &format!("/bots/{bot}"))
            .json(&json!({"display_name": "mine"}))
            .send()
    };
    rename().await.expect_error(403, "bot_access_denied");
    put("manager").await.expect_status(200);
    rename().await.expect_status(200);
    put("king").await.expect_error(400, "invalid_body");
    let items = server.call("GET", &format!("/bots/{bot}/members")).send().await.json();
    assert_eq!(items["items"].as_array().map(Vec::len), Some(1));
    let listed = server.call_as(&token, "GET", "/bots").send().await.json();
    assert_eq!(listed["items"][0]["id"], Value::from(bot.clone()));
    server.call("DELETE", &path).send().await.expect_status(204);
    server.call("DELETE", &path).send().await.expect_status(204);
    rename().await.expect_error(403, "bot_access_denied");
    let unknown = format!("/bots/{bot}/members/no-such-user");
    server
        .call("PUT", &unknown)
        .json(&json!({"role": "viewer"}))
        .send()
        .await
        .expect_error(404, "not_found");
}

#[tokio::test]
async fn admin_routes_are_for_admins() {
    let server = TestServer::start().await;
    let (_, member) = server.member("ada").await;
    for (method, path) in [
        ("GET", "/users"),
        ("POST", "/users"),
        ("GET", "/images"),
        ("POST", "/images/pull"),
        ("POST", "/images/prune"),
        ("GET", "/audit"),
        ("GET", "/backups"),
        ("GET", "/bots?all=true"),
    ] {
        let message = server
            .call_as(&member, method, path)
            .send()
            .await
            .expect_error(403, "forbidden");
        assert_eq!(message, "admin role required", "{method} {path}");
    }
}

#[tokio::test]
async fn what_changes_something_is_in_the_audit_trail() {
    let mut server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    server
        .call("PATCH", &format!("/bots/{bot}"))
        .json(&json!({"is_active": false}))
        .send()
        .await
        .expect_status(200);
    until_in_trail(&server, &format!("?bot_id={bot}"), 1, |line| {
        line["action"] == "PATCH /bots/{bot_id}"
    })
    .await;
    server.restart().await;
    let trail = server
        .call("GET", &format!("/audit?bot_id={bot}"))
        .send()
        .await
        .expect_status(200)
        .json();
    let line = &trail["items"][0];
    assert_eq!(
        (&line["action"], &line["outcome"]),
        (&json!("PATCH /bots/{bot_id}"), &json!("200"))
    );
    assert_eq!(line["from"], "127.0.0.1");
}

#[tokio::test]
async fn an_operator_makes_a_workspace_but_chooses_nothing_of_it() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (id, operator) = server.member("operator").await;
    server
        .call("PUT", &format!("/bots/{bot}/members/{id}"))
        .json(&json!({"role": "operator"}))
        .send()
        .await
        .expect_status(200);
    let path = format!("/bots/{bot}/container");
    for chosen in [
        json!({"image": "debian"}),
        json!({"gpu": {"devices": []}}),
        json!({"snapshotter": "native"}),
        json!({"limits": {"pids": 5}}),
        json!({"env": {"A": "b"}}),
        json!({"restore_data": true}),
    ] {
        let refused = server.call_as(&operator, "POST", &path).json(&chosen).send().await;
        refused.expect_error(403, "bot_access_denied");
    }
    let create = async |credential: &str, body: &Value| {
        let made = server.call_as(credential, "POST", &path).json(body).send().await;
        let last = made.expect_status(200).events().pop().expect("an end");
        assert_eq!(text_of(&last, "type"), "complete", "{last}");
        text_of(&last["container"], "image").to_owned()
    };
    create(&operator, &json!({})).await;
    // Nor does he choose what the bot remembers from a create of somebody who may.
    let image = "docker.io/library/debian:12";
    server
        .runtime()
        .offer_image(&image.parse().expect("a reference"), Vec::new());
    let delete = || server.call("DELETE", &path).send();
    delete().await.expect_status(204);
    create(server.admin_key(), &json!({"image": image})).await;
    delete().await.expect_status(204);
    assert_eq!(create(&operator, &json!({})).await, image);
}
