//! The sentences of the contract's conventions, one test each.

use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};

#[tokio::test]
async fn every_route_is_served_below_api_too() {
    let server = TestServer::start().await;
    for path in [
        "/ping",
        "/health",
        "/users/me",
        "/bots",
        "/openapi.json",
        "/swagger.json",
    ] {
        let plain = server.call("GET", path).send().await;
        let below = server.call("GET", &format!("/api{path}")).send().await;
        plain.expect_status(200);
        assert_eq!((plain.status, plain.json()), (below.status, below.json()), "{path}");
    }
    server.call("GET", "/api/docs/").send().await.expect_status(200);
}

#[tokio::test]
async fn an_unknown_route_is_404_before_any_credential() {
    let server = TestServer::start().await;
    for path in ["/nothing", "/api/nothing", "/bots/x/nothing"] {
        server
            .call_as("", "GET", path)
            .send()
            .await
            .expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_and_names_the_right_ones() {
    let server = TestServer::start().await;
    let answer = server.call_as("", "DELETE", "/bots").send().await;
    answer.expect_error(405, "method_not_allowed");
    assert!(answer.header("allow").contains("POST"), "{}", answer.header("allow"));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let server = TestServer::start().await;
    let body = format!("{{\"display_name\":\"{}\"}}", "x".repeat(3 << 20));
    let answer = server.call("POST", "/bots").body("application/json", body).send().await;
    answer.expect_error(413, "body_too_large");
}

#[tokio::test]
async fn broken_json_wrong_types_and_wrong_content_types_are_400() {
    let server = TestServer::start().await;
    for (content_type, body) in [
        ("application/json", "{"),
        ("application/json", "[]"),
        ("application/json", "{\"display_name\":1}"),
        ("text/plain", "{}"),
        ("application/x-www-form-urlencoded", "display_name=x"),
    ] {
        let answer = server
            .call("POST", "/bots?workspace=false")
            .body(content_type, body)
            .send()
            .await;
        answer.expect_error(400, "invalid_body");
    }
}

#[tokio::test]
async fn an_empty_body_counts_as_an_empty_object_and_unknown_fields_are_ignored() {
    let server = TestServer::start().await;
    server
        .call("POST", "/bots?workspace=false")
        .send()
        .await
        .expect_status(201);
    let body = json!({"display_name": "x", "no_such_field": {"deep": true}});
    server
        .call("POST", "/bots?workspace=false")
        .json(&body)
        .send()
        .await
        .expect_status(201);
}

#[tokio::test]
async fn a_wrong_query_string_is_400() {
    let server = TestServer::start().await;
    for path in [
        "/bots?limit=x",
        "/bots?limit=0",
        "/bots?limit=-1",
        "/bots?all=maybe",
        "/bots?cursor=x",
        "/bots?include=all",
    ] {
        server
            .call("GET", path)
            .send()
            .await
            .expect_error(400, "invalid_argument");
    }
}

#[tokio::test]
async fn a_refusal_names_the_field_in_plain_words() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    for (method, path, body, expected) in [
        (
            "PUT",
            "/container/limits",
            json!({"pids": "many"}),
            "pids must be a whole number of 0 or more, in its range",
        ),
        (
            "POST",
            "/container",
            json!({"gpu": {"devices": "x"}}),
            "gpu.devices must be a list",
        ),
        ("PUT", "", json!({"display_name": 7}), "display_name must be a text"),
        (
            "PUT",
            "/guest",
            json!({"enabled": "yes"}),
            "enabled must be true or false",
        ),
        (
            "GET",
            "/container/fs?path=/data&start=x",
            json!({}),
            "start must be true or false",
        ),
    ] {
        let call = server.call(method, &format!("/bots/{bot}{path}"));
        let answer = if method == "GET" { call } else { call.json(&body) }.send().await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(text_of(&answer.json(), "message"), expected);
    }
}

#[tokio::test]
async fn a_path_that_is_not_text_is_400() {
    let server = TestServer::start().await;
    let answer = server.call("GET", "/bots/%ff%fe").send().await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[tokio::test]
async fn the_request_id_is_taken_from_a_sane_caller_and_returned() {
    let server = TestServer::start().await;
    let answer = server
        .call("GET", "/ping")
        .header("x-request-id", "mine-1")
        .send()
        .await;
    assert_eq!(answer.header("x-request-id"), "mine-1");
    let answer = server
        .call("GET", "/nothing")
        .header("x-request-id", "not sane")
        .send()
        .await;
    assert_ne!(answer.header("x-request-id"), "not sane");
    answer.expect_error(404, "not_found");
}

#[tokio::test]
async fn checks_come_in_their_order() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (_, stranger) = server.member("stranger").await;
    let unknown = "0191f3c2-8f0e-7d3a-9c56-0123456789ab";
    let put = |credential: &str, id: &str| {
        let call = server.call_as(credential, "PUT", &format!("/bots/{id}"));
        call.body("application/json", "{broken").send()
    };
    put("", "malformed").await.expect_error(401, "unauthorized");
    put(&stranger, "malformed").await.expect_error(400, "invalid_id");
    put(&stranger, &unknown.to_uppercase())
        .await
        .expect_error(400, "invalid_id");
    let message = put(&stranger, unknown).await.expect_error(404, "bot_not_found");
    assert_eq!(message, "bot not found");
    let message = put(&stranger, &bot).await.expect_error(403, "bot_access_denied");
    assert_eq!(message, "bot access denied");
    put(server.admin_key(), &bot).await.expect_error(400, "invalid_body");
}

#[tokio::test]
async fn the_users_a_request_names_are_looked_at_before_its_body() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (id, member) = server.member("ada").await;
    let unknown = "0191f3c2-8f0e-7d3a-9c56-0123456789ab";
    let broken = |credential: &str, method: &str, path: &str| {
        let call = server.call_as(credential, method, path);
        call.body("application/json", "{broken").send()
    };
    let admin = server.admin_key();
    let put = |user: &str| format!("/bots/{bot}/members/{user}");
    broken(admin, "PUT", &put("a b")).await.expect_error(400, "invalid_id");
    broken(admin, "PUT", &put(unknown)).await.expect_error(404, "not_found");
    broken(admin, "PUT", &put(&id)).await.expect_error(400, "invalid_body");
    let post = |owner: &str| format!("/bots?owner_id={owner}");
    broken(&member, "POST", &post("a b"))
        .await
        .expect_error(400, "invalid_id");
    broken(&member, "POST", &post(unknown))
        .await
        .expect_error(404, "not_found");
    broken(&member, "POST", &post(&id)).await.expect_error(403, "forbidden");
    broken(admin, "POST", &post(&id))
        .await
        .expect_error(400, "invalid_body");
}

#[tokio::test]
async fn health_is_answered_to_get_and_head_and_readiness_names_its_checks() {
    let server = TestServer::start().await;
    server.call_as("", "GET", "/health").send().await.expect_status(200);
    server.call_as("", "HEAD", "/health").send().await.expect_status(200);
    let ping = server.call_as("", "GET", "/ping").send().await.json();
    assert_eq!(
        (&ping["status"], ping["snapshot_supported"].is_boolean()),
        (&Value::from("ok"), true)
    );
    assert!(ping["container_backend"].is_string() && ping["commit_hash"].is_string());
    let ready = server.call_as("", "GET", "/ready").send().await;
    assert!(
        ready.expect_status(200).json()["checks"]
            .as_array()
            .is_some_and(|checks| !checks.is_empty())
    );
    server.runtime().go_away();
    let ready = server.call_as("", "GET", "/ready").send().await;
    ready.expect_error(503, "runtime_unavailable");
    assert!(
        ready.header("retry-after").parse::<u64>().is_ok(),
        "{:?}",
        ready.headers
    );
    let told = ready.json();
    assert_eq!(
        (&told["ready"], &told["checks"][1]["status"]),
        (&json!(false), &json!("error"))
    );
}

#[tokio::test]
async fn what_is_away_is_503_with_a_time_to_come_again() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    server.runtime().go_away();
    let answer = server.call("GET", &format!("/bots/{bot}/container")).send().await;
    answer.expect_error(503, "runtime_unavailable");
    assert!(answer.header("retry-after").parse::<u64>().is_ok());
    server
        .call("GET", &format!("/bots/{bot}"))
        .send()
        .await
        .expect_status(200);
    server
        .call("GET", &format!("/bots/{bot}/checks"))
        .send()
        .await
        .expect_status(200);
}

#[tokio::test]
async fn what_a_later_version_brings_is_501_after_all_checks() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (_, stranger) = server.member("stranger").await;
    for route in ["container/skills", "mcp-stdio"] {
        let path = format!("/bots/{bot}/{route}");
        server
            .call_as("", "GET", &path)
            .send()
            .await
            .expect_error(401, "unauthorized");
        server
            .call_as(&stranger, "GET", &path)
            .send()
            .await
            .expect_error(403, "bot_access_denied");
        server.call("GET", &path).send().await.expect_error(501, "unsupported");
        let malformed = format!("/bots/x/{route}");
        let malformed = server.call("GET", &malformed).send().await;
        malformed.expect_error(400, "invalid_id");
    }
}
