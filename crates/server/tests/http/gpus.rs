//! Devices of the host over HTTP: the list, a create with one, and what is refused before the stream.

use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};

const CARD: &str = "example.com/gpu=0";

async fn offering(keys: &[(&str, &str)]) -> TestServer {
    let server = TestServer::with(keys).await;
    let specification = json!({
        "cdiVersion": "0.6.0", "kind": "example.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": {"env": ["CARD=0"]}},
            {"name": "1", "containerEdits": {"env": ["CARD=1"]}},
        ],
    });
    let file = server.runtime().cdi_directory().join("example.json");
    std::fs::write(file, specification.to_string()).expect("write a specification");
    server
}

fn with(devices: &[&str]) -> Value {
    json!({"gpu": {"devices": devices}})
}

#[tokio::test]
async fn devices_are_listed_for_whoever_is_signed_in_and_say_whether_he_may_use_them() {
    let server = offering(&[("gpu.allow", "example.com/gpu=1")]).await;
    server
        .call_as("", "GET", "/gpus")
        .send()
        .await
        .expect_error(401, "unauthorized");
    let (_, member) = server.member("member").await;
    let one = |name: &str, allowed: bool| json!({"name": format!("example.com/gpu={name}"), "vendor": "example.com", "class": "gpu", "allowed": allowed});
    let list = |answer: skep_testkit::server::Answer| answer.expect_status(200).json();
    assert_eq!(
        list(server.call_as(&member, "GET", "/gpus").send().await),
        json!({"items": [one("0", false), one("1", true)]})
    );
    assert_eq!(
        list(server.call("GET", "/api/gpus").send().await),
        json!({"items": [one("0", true), one("1", true)]})
    );
    server.runtime().go_without_devices();
    let told = server
        .call("GET", "/gpus")
        .send()
        .await
        .expect_error(501, "unsupported");
    assert!(
        told.contains("fake"),
        "an empty list does not stand for devices that nobody looked for: {told}"
    );
}

#[tokio::test]
async fn a_create_with_a_device_tells_it_and_keeps_it() {
    let server = offering(&[]).await;
    let bot = server.bare_bot(server.admin_key()).await;
    let path = format!("/bots/{bot}/container");
    let made = server.call("POST", &path).json(&with(&[CARD])).send().await;
    let last = made.expect_status(200).events().pop().expect("an end");
    assert_eq!(last["container"]["cdi_devices"], json!([CARD]));
    let info = server.call("GET", &path).send().await.expect_status(200).json();
    assert_eq!(info["cdi_devices"], json!([CARD]));
    let other = server.call("POST", &path).json(&with(&[])).send().await;
    other.expect_error(409, "workspace_exists");
    let same = server.call("POST", &path).json(&json!({})).send().await;
    assert_eq!(text_of(&same.events().pop().expect("an end"), "type"), "complete");
}

#[tokio::test]
async fn a_workspace_without_devices_has_no_such_field() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    let info = server.call("GET", &format!("/bots/{bot}/container")).send().await;
    assert_eq!(info.expect_status(200).json().get("cdi_devices"), None);
}

#[tokio::test]
async fn what_cannot_be_given_is_an_error_before_the_stream() {
    let server = offering(&[]).await;
    let (_, member) = server.member("member").await;
    let bot = server.bare_bot(&member).await;
    let path = format!("/bots/{bot}/container");
    let unknown = server
        .call_as(&member, "POST", &path)
        .json(&with(&["a/b=c"]))
        .send()
        .await;
    let sentence = unknown.expect_error(400, "invalid_argument");
    assert!(sentence.contains("example.com/gpu=0, example.com/gpu=1"), "{sentence}");
    let refused = server.call_as(&member, "POST", &path).json(&with(&[CARD])).send().await;
    refused.expect_error(403, "forbidden");
    // Nor by way of what the bot remembers.
    let metadata = json!({"metadata": {"workspace": {"gpu": {"devices": [CARD]}}}});
    let call = server.call_as(&member, "PATCH", &format!("/bots/{bot}"));
    call.json(&metadata).send().await.expect_status(200);
    let refused = server.call_as(&member, "POST", &path).json(&json!({})).send().await;
    refused.expect_error(403, "forbidden");
    let new = json!({"display_name": "with a device", "metadata": metadata["metadata"]});
    let refused = server.call_as(&member, "POST", "/bots").json(&new).send().await;
    refused.expect_error(403, "forbidden");
}
