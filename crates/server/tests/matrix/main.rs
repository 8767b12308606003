//! Every route of the served document, as everybody who may come: allowed exactly where the contract says.

mod callers;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use callers::{Caller, Cast, JWT_SECRET, Verdict, everybody};
use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};
use table::{Needs, TABLE};

const METHODS: [&str; 6] = ["get", "head", "put", "post", "delete", "patch"];

/// Every route as `GET /path`, read from the document that the server serves.
async fn routes(server: &TestServer) -> BTreeSet<String> {
    let document = server.call_as("", "GET", "/api/openapi.json").send().await;
    let document = document.expect_status(200).json();
    let mut routes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("an item").keys() {
            if METHODS.contains(&method.as_str()) {
                routes.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    routes
}

fn expected() -> BTreeMap<&'static str, Needs> {
    let mut all = BTreeMap::new();
    for (needs, routes) in TABLE {
        for route in *routes {
            assert_eq!(all.insert(*route, *needs), None, "{route} is twice in the table");
        }
    }
    all
}

/// The id of nothing.
const NOTHING: &str = "0191f3c2-8f0e-7d3a-9c56-0123456789ac";

/// The path as this caller asks for it: his bot, an operation of it, and well-formed names of nothing.
fn path_for(route: &str, bot: &str, operation: &str) -> (String, String) {
    let (method, path) = route.split_once(' ').expect("a method and a path");
    let path = path
        .replace("{bot_id}", bot)
        .replace("{operation_id}", operation)
        .replace("{reference}", "docker.io/library/none:1")
        .replace("{version}", "1")
        .replace("{name}", "none");
    let parts = path
        .split('/')
        .map(|part| if part.starts_with('{') { NOTHING } else { part });
    let path = parts.collect::<Vec<_>>().join("/");
    (method.to_owned(), path)
}

/// What keeps a caller who is let in from doing harm to those who come after.
fn made_harmless(route: &str, path: String) -> String {
    match route {
        "DELETE /bots/{bot_id}" | "DELETE /bots/{bot_id}/container" => path + "?preserve_data=neither",
        _ => path,
    }
}

struct Target<'a> {
    bot: &'a str,
    operation: &'a str,
    /// Some user: what is not there is told before it is told that it may not be had.
    user: &'a str,
}

/// Status, and the error's code, of one request. The body is broken: who is refused is refused before it is read.
async fn ask(
    server: &TestServer,
    caller: &Caller,
    (method, path): (&str, &str),
    body: Option<&Value>,
) -> (u16, String) {
    let call = server.call_as(&caller.credential, method, path);
    let call = match body {
        Some(body) => call.json(body),
        None if matches!(method, "GET" | "HEAD") => call,
        None => call.body("application/json", "{broken"),
    };
    let answer = call.open().await;
    let status = answer.status().as_u16();
    if status < 400 || method == "HEAD" {
        return (status, String::new());
    }
    let body: Value = answer.json().await.expect("an error is JSON");
    (status, text_of(&body, "code"))
}

fn fits(verdict: Verdict, (status, code): &(u16, String)) -> bool {
    match verdict {
        Verdict::Allowed => {
            // Let in, and then answered in any way but as somebody who is not.
            !matches!(status, 401 | 403) && (*status < 500 || *status == 501) && code != "bot_not_found"
        }
        Verdict::Unauthorized => *status == 401 && matches!(code.as_str(), "" | "unauthorized"),
        Verdict::Denied => *status == 403 && matches!(code.as_str(), "" | "bot_access_denied" | "forbidden"),
    }
}

async fn new_key(server: &TestServer, caller: &Caller) -> String {
    let body = json!({"name": "own", "scope": "read"});
    let made = server
        .call_as(&caller.own_token, "POST", "/auth/keys")
        .json(&body)
        .send()
        .await;
    match made.status {
        201 => text_of(&made.json(), "id"),
        _ => "none".to_owned(),
    }
}

async fn look(server: &TestServer, caller: &Caller, target: &Target<'_>, (route, needs): (&str, Needs)) -> Vec<String> {
    let (method, path) = path_for(route, target.bot, target.operation);
    let path = made_harmless(route, path);
    let path = match route.contains(" /users/{id}") {
        true => path.replace(NOTHING, target.user),
        false => path,
    };
    let mut asked = vec![(path.clone(), None, caller.verdict(needs, false))];
    match needs {
        Needs::DownloadOfGuests => {
            let secret = format!("{path}?path=/data/media/../secret");
            let media = format!("{path}?path=/data/media/picture.png");
            asked = vec![
                (secret, None, caller.verdict(needs, false)),
                (media, None, caller.verdict(needs, true)),
            ];
        }
        Needs::OperateOnBotOfBody => {
            asked[0].1 = Some(json!({"bot_id": target.bot, "use": "terminal"}));
        }
        Needs::AccountAndOwnKey => {
            asked[0].0 = format!("/auth/keys/{}", new_key(server, caller).await);
        }
        _ => {}
    }
    let mut wrong = Vec::new();
    for (path, body, verdict) in asked {
        // The end of a session cannot be tried twice.
        let below_api = (!route.ends_with("/logout")).then(|| format!("/api{path}"));
        for path in [path].into_iter().chain(below_api) {
            let got = ask(server, caller, (&method, &path), body.as_ref()).await;
            if !fits(verdict, &got) {
                wrong.push(format!("{method} {path} as {}: {verdict:?}, got {got:?}", caller.name));
            }
        }
    }
    wrong
}

async fn operation_of(server: &TestServer, bot: &str) -> String {
    let path = format!("/bots/{bot}/container");
    let deleted = server.call("DELETE", &path).send().await;
    deleted.expect_status(204).header("x-operation-id").to_owned()
}

#[tokio::test]
async fn the_table_has_every_route_of_the_document_and_no_other() {
    let server = TestServer::start().await;
    let (served, expected) = (routes(&server).await, expected());
    let missing: Vec<_> = served
        .iter()
        .filter(|route| !expected.contains_key(route.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in the table: {missing:#?}");
    let gone: Vec<_> = expected.keys().filter(|route| !served.contains(**route)).collect();
    assert!(gone.is_empty(), "in the table alone: {gone:#?}");
}

#[tokio::test]
async fn every_route_is_allowed_to_everybody_exactly_where_the_contract_says() {
    let server = TestServer::with(&[("auth.jwt_secret", JWT_SECRET)]).await;
    let Cast { bots, callers } = everybody(&server).await;
    let operations = (
        operation_of(&server, &bots.closed).await,
        operation_of(&server, &bots.open).await,
    );
    let (user, _) = server.member("bystander").await;
    // The end of a session is the last that is tried with it.
    let (last, others): (Vec<_>, Vec<_>) = expected()
        .into_iter()
        .partition(|(route, _)| route.ends_with("/logout"));
    let mut wrong = Vec::new();
    for (route, needs) in others.into_iter().chain(last) {
        for caller in &callers {
            let target = match caller.guest {
                true => Target {
                    bot: &bots.open,
                    operation: &operations.1,
                    user: &user,
                },
                false => Target {
                    bot: &bots.closed,
                    operation: &operations.0,
                    user: &user,
                },
            };
            wrong.extend(look(&server, caller, &target, (route, needs)).await);
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}
