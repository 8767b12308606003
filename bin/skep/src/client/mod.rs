//! Talks to the server: one HTTP client, its credential, and answers turned into failures.
//!
//! Knows the conventions of every route (errors, credentials, event streams) and no single route.

mod endpoint;
mod events;
mod naming;
mod socket;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use endpoint::{Endpoint, StoredLogin, server_here};
pub(crate) use events::{EventReader, follow_to_the_end};
pub(crate) use naming::{Bot, all_bots, find_bot};
pub(crate) use socket::{Socket, open_socket};

use crate::failure::{Failure, Result};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer that is no stream may take: an operation may wait behind others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// One server and how we are known to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
}

/// The body of every error answer.
#[derive(Debug, Deserialize)]
struct ErrorBody {
    message: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    request_id: Option<String>,
}

impl Client {
    /// A client for this endpoint; does not connect yet.
    pub(crate) fn new(endpoint: Endpoint) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| Failure::Failed(format!("cannot set up an HTTP client: {source}")))?;
        Ok(Self { http, endpoint })
    }

    /// What the server says of itself: the one answer whose 503 has the same form as its 200.
    pub(crate) async fn readiness(&self) -> Result<Value> {
        let answer = self
            .request(Method::GET, "/ready")
            .send()
            .await
            .map_err(|source| self.not_reachable(source))?;
        answer.json().await.map_err(|source| self.not_reachable(source))
    }

    /// A request with our credential. `path` begins with `/` and is already encoded.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.endpoint.server));
        match &self.endpoint.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A `GET` that asks for another protocol; over HTTP/1.1, the only version that can.
    pub(crate) fn upgrade_request(&self, path: &str) -> Result<RequestBuilder> {
        let http = reqwest::Client::builder()
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            .build()
            .map_err(|source| Failure::Failed(format!("cannot set up an HTTP client: {source}")))?;
        Ok(Self {
            http,
            endpoint: self.endpoint.clone(),
        }
        .request(Method::GET, path))
    }

    /// Sends, and returns the answer when it is a success; its body has not been read.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let answer = request.send().await.map_err(|source| self.not_reachable(source))?;
        if answer.status().is_success() || answer.status().as_u16() == 101 {
            return Ok(answer);
        }
        Err(refusal(answer).await)
    }

    /// Sends, and returns the JSON of the answer; an empty body is `null`.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value> {
        let whole = async {
            let answer = self.send(request).await?;
            answer.bytes().await.map_err(|source| self.not_reachable(source))
        };
        let body = tokio::time::timeout(ANSWER_TIMEOUT, whole)
            .await
            .map_err(|_| Failure::NotReachable {
                url: self.endpoint.server.clone(),
                hint: "",
                source: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()).into(),
            })??;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|source| Failure::Unexpected {
            doing: "reading its answer",
            what: format!("{source}; is {} a Skep server?", self.endpoint.server),
        })
    }

    /// `GET` as JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    /// `POST` of a JSON body, answered in JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// `PUT` of a JSON body, answered in JSON.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(self.request(Method::PUT, path).json(body)).await
    }

    /// `DELETE`, answered in JSON or with nothing.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        self.json(self.request(Method::DELETE, path)).await
    }

    /// All items of a paged list, following `next_cursor` to its end.
    pub(crate) async fn all_items(&self, path: &str) -> Result<Vec<Value>> {
        let join = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = match &cursor {
                Some(cursor) => self.get(&format!("{path}{join}cursor={}", encode(cursor))).await?,
                None => self.get(path).await?,
            };
            let Some(more) = page.get("items").and_then(Value::as_array) else {
                return Err(Failure::Unexpected {
                    doing: "listing",
                    what: "there are no `items`".into(),
                });
            };
            items.extend(more.iter().cloned());
            let next = page
                .get("next_cursor")
                .and_then(Value::as_str)
                .filter(|next| !next.is_empty());
            match next {
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                _ => return Ok(items),
            }
        }
    }

    pub(crate) fn not_reachable(&self, source: reqwest::Error) -> Failure {
        let hint = if source.is_connect() {
            "; does the server run? `skep up` starts one here"
        } else {
            ""
        };
        Failure::NotReachable {
            url: self.endpoint.server.clone(),
            hint,
            source: innermost(&source).into(),
        }
    }
}

/// The cause that says most: reqwest's own sentence repeats the address and hides the reason.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// The failure an answer stands for.
pub(crate) async fn refusal(answer: Response) -> Failure {
    let status = answer.status();
    let text = match answer.bytes().await {
        Ok(body) => body,
        Err(source) => {
            return Failure::Unexpected {
                doing: "reading an error",
                what: format!("status {status}, then {source}"),
            };
        }
    };
    match serde_json::from_slice::<ErrorBody>(&text) {
        Ok(body) => Failure::Refused {
            status: status.as_u16(),
            code: body.code,
            message: body.message,
            request_id: body.request_id,
        },
        Err(_) => Failure::Refused {
            status: status.as_u16(),
            code: String::new(),
            message: format!("the server answered {status} without a reason; is it a Skep server?"),
            request_id: None,
        },
    }
}

/// JSON as a type of ours.
pub(crate) fn typed<T: DeserializeOwned>(value: Value, doing: &'static str) -> Result<T> {
    serde_json::from_value(value).map_err(|source| Failure::Unexpected {
        doing,
        what: source.to_string(),
    })
}

/// Percent-encodes one part of a path or one value of a query.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_an_address_is_encoded() {
        assert_eq!(encode("a b/ü?&=#"), "a%20b%2F%C3%BC%3F%26%3D%23");
        assert_eq!(encode("plain-1.txt"), "plain-1.txt");
    }
}
