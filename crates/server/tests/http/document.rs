//! The OpenAPI document, and what it makes possible: wrong input for every route.

use serde_json::{Map, Value, json};
use skep_testkit::server::{Answer, TestServer};

/// One operation of the document.
pub(crate) struct Route {
    pub(crate) method: String,
    pub(crate) path: String,
    description: Value,
}

impl Route {
    /// The path with this bot in it, and something well formed in every other place.
    pub(crate) fn path_for(&self, bot: &str) -> String {
        let mut path = self.path.replace("{bot_id}", bot);
        while let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
            path.replace_range(from..=to, "0191f3c2-8f0e-7d3a-9c56-0123456789ac");
        }
        path
    }

    fn query_names(&self) -> Vec<String> {
        let parameters = self.description["parameters"].as_array().cloned().unwrap_or_default();
        let in_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
        in_query
            .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned))
            .collect()
    }

    fn answers_json(&self) -> bool {
        let content = &self.description["responses"]["200"]["content"];
        content
            .as_object()
            .is_some_and(|content| content.keys().eq(["application/json"]))
    }

    fn takes_json(&self) -> bool {
        self.description["requestBody"]["content"]
            .get("application/json")
            .is_some()
    }
}

/// Every route of the document.
pub(crate) async fn routes(server: &TestServer) -> Vec<Route> {
    let document = server.call_as("", "GET", "/openapi.json").send().await.json();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().cloned().unwrap_or_default() {
        for (method, description) in item.as_object().cloned().unwrap_or_default() {
            if ["get", "put", "post", "delete", "patch"].contains(&method.as_str()) {
                let method = method.to_uppercase();
                routes.push(Route {
                    method,
                    path: path.clone(),
                    description,
                });
            }
        }
    }
    assert!(routes.len() > 60, "only {} routes", routes.len());
    routes
}

/// What ends the session that the others need.
fn ends_its_session(route: &Route) -> bool {
    route.path == "/auth/logout" || route.path.starts_with("/users/me")
}

fn expect_refusal(route: &Route, sent: &str, answer: &Answer) {
    let status = answer.status;
    assert!(
        status < 500 || status == 501,
        "{} {} with {sent}: {status} {}",
        route.method,
        route.path,
        answer.text()
    );
    if status >= 400 {
        let body = answer.json();
        assert!(
            body["code"].is_string() && body["message"].is_string(),
            "{} {}: {body}",
            route.method,
            route.path
        );
    }
}

#[tokio::test]
async fn every_operation_names_its_errors_and_every_reference_leads_somewhere() {
    let server = TestServer::start().await;
    let document = server.call_as("", "GET", "/api/openapi.json").send().await.json();
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1"))
    );
    for route in routes(&server).await {
        let responses = route.description["responses"].as_object().cloned().unwrap_or_default();
        let open = route
            .description
            .get("security")
            .is_some_and(|security| *security == json!([{}]));
        assert!(
            responses.contains_key("400") && responses.contains_key("500"),
            "{} {}",
            route.method,
            route.path
        );
        assert!(open || responses.contains_key("401"), "{} {}", route.method, route.path);
        let operates = route.path == "/bots" || route.path.contains("{bot_id}");
        if operates && route.method != "GET" {
            for status in ["409", "429", "501", "507"] {
                assert!(
                    responses.contains_key(status),
                    "{} {} {status}",
                    route.method,
                    route.path
                );
            }
        }
        assert!(
            responses
                .keys()
                .any(|status| status.starts_with('2') || status == "101" || status == "501"),
            "{}",
            route.path
        );
    }
    let text = document.to_string();
    for reference in text
        .split("\"$ref\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
    {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

#[tokio::test]
async fn wrong_bodies_are_the_callers_fault_on_every_route() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for route in routes(&server)
        .await
        .iter()
        .filter(|route| route.takes_json() && !ends_its_session(route))
    {
        for body in ["{", "null", "[]", "\"x\"", "1e999", "\u{0}", &deep] {
            let call = server.call(&route.method, &route.path_for(&bot));
            let answer = call.body("application/json", body.to_owned()).send().await;
            expect_refusal(route, body, &answer);
            assert!(answer.status >= 400, "{} {} accepted {body}", route.method, route.path);
        }
    }
}

#[tokio::test]
async fn fields_of_the_wrong_type_are_the_callers_fault_on_every_route() {
    let server = TestServer::start().await;
    let document = server.call_as("", "GET", "/openapi.json").send().await.json();
    let bot = server.bare_bot(server.admin_key()).await;
    for route in routes(&server)
        .await
        .iter()
        .filter(|route| route.takes_json() && !ends_its_session(route))
    {
        let reference = route.description["requestBody"]["content"]["application/json"]["schema"]["$ref"].clone();
        let pointer = format!(
            "{}/properties",
            reference.as_str().unwrap_or("").trim_start_matches('#')
        );
        let fields = document
            .pointer(&pointer)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        for name in fields.keys() {
            for wrong in [
                json!(-1),
                json!([[]]),
                json!({"x": []}),
                json!("\u{0}"),
                json!("x".repeat(70_000)),
            ] {
                let body = Value::Object(Map::from_iter([(name.clone(), wrong)]));
                let call = server.call(&route.method, &route.path_for(&bot));
                let answer = call.header("accept", "application/json").json(&body).send().await;
                expect_refusal(route, &body.to_string().chars().take(80).collect::<String>(), &answer);
            }
        }
    }
}

#[tokio::test]
async fn wrong_paths_and_query_strings_are_the_callers_fault_on_every_route() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let wrong = [
        "",
        "-1",
        "%00",
        "%ff",
        "..%2f..%2fetc",
        "999999999999999999999999",
        "%F0%9F%92%A9",
    ];
    for route in routes(&server)
        .await
        .iter()
        .filter(|route| !ends_its_session(route) && !is_endless(route))
    {
        for name in route.query_names() {
            for value in wrong {
                let path = format!("{}?{name}={value}", route.path_for(&bot));
                let answer = server.call(&route.method, &path).send().await;
                expect_refusal(route, &path, &answer);
            }
        }
        for value in ["x", "%00", "%ff", "..%2f", "0191F3C2-8F0E-7D3A-9C56-0123456789AB", "-"] {
            if route.path.contains('{') {
                let path = route
                    .path
                    .split('/')
                    .map(|part| if part.starts_with('{') { value } else { part });
                let path = path.collect::<Vec<_>>().join("/");
                let answer = server.call(&route.method, &path).send().await;
                expect_refusal(route, &path, &answer);
                assert!(answer.status >= 400, "{} {path}: {}", route.method, answer.status);
            }
        }
    }
}

/// Streams that end only when their client goes.
fn is_endless(route: &Route) -> bool {
    let endless = ["/events", "/watch", "/ws", "/stream"];
    route.method == "GET" && endless.iter().any(|end| route.path.ends_with(end))
}

#[tokio::test]
async fn no_failure_is_an_empty_success_while_runtime_and_bridge_are_away() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    server.runtime().go_away();
    server.runtime().kill_process_one(&bot.parse().unwrap()).unwrap();
    let all = routes(&server).await;
    for route in all.iter().filter(|route| route.method == "GET" && route.answers_json()) {
        let answer = server.call("GET", &route.path_for(&bot)).send().await;
        let body = answer.json();
        match answer.status {
            200 => assert!(
                body.as_object().is_some_and(|body| !body.is_empty()),
                "{}: {body}",
                route.path
            ),
            status if status >= 400 => assert!(body["code"].is_string(), "{}: {body}", route.path),
            status => panic!("{}: {status} {body}", route.path),
        }
    }
}
