//! Talks to the server: one HTTP client, its credential, and answers turned into failures.
//!
//! Knows the conventions of every route (errors, credentials, event streams) and no single route.

mod endpoint;
mod events;
mod naming;
mod socket;
mod watched;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use endpoint::{Endpoint, StoredLogin, server_here};
pub(crate) use events::{EventReader, follow_to_the_end};
pub(crate) use naming::{Bot, all_bots, find_bot};
pub(crate) use socket::{Socket, open_socket};
pub(crate) use watched::watched;

use crate::failure::{Failure, Result};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer to a mere question may take. What changes something has no limit: it may wait behind others, or
/// bring as many bytes as there are; TCP notices a dead server.
const ANSWER_LIMIT: Duration = Duration::from_secs(15 * 60);
/// What is told when a connection broke with a change under way.
const MAY_GO_ON: &str = "; what was asked for may have been done, or go on there";

/// One server and how we are known to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
    answer_limit: Duration,
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
        Ok(Self {
            http,
            endpoint,
            answer_limit: ANSWER_LIMIT,
        })
    }

    /// What the server says of itself: the one answer whose 503 has the fields of its 200.
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
        Ok(Self { http, ..self.clone() }.request(Method::GET, path))
    }

    /// Sends, and returns the answer when it is a success; its body has not been read.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let answer = request.send().await.map_err(|source| self.not_reachable(source))?;
        if answer.status().is_success() || answer.status().as_u16() == 101 {
            return Ok(answer);
        }
        Err(refusal(answer).await)
    }

    /// Asks for a change, and returns the JSON of the answer, however long that takes; an empty body is `null`.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value> {
        self.answered(request).await.map_err(|failure| match failure {
            Failure::NotReachable { url, hint: "", source } => Failure::NotReachable {
                url,
                hint: MAY_GO_ON,
                source,
            },
            other => other,
        })
    }

    /// Asks a question, and returns the JSON of the answer.
    pub(crate) async fn read(&self, request: RequestBuilder) -> Result<Value> {
        match tokio::time::timeout(self.answer_limit, self.answered(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Failure::Late {
                url: self.endpoint.server.clone(),
                limit: self.answer_limit,
            }),
        }
    }

    async fn answered(&self, request: RequestBuilder) -> Result<Value> {
        let answer = self.send(request).await?;
        let body = answer.bytes().await.map_err(|source| self.not_reachable(source))?;
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
        self.read(self.request(Method::GET, path)).await
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn what_could_change_an_address_is_encoded() {
        assert_eq!(encode("a b/ü?&=#"), "a%20b%2F%C3%BC%3F%26%3D%23");
        assert_eq!(encode("plain-1.txt"), "plain-1.txt");
    }

    fn install_tls() {
        // A second install says that there is one, which is what is wanted.
        match rustls::crypto::ring::default_provider().install_default() {
            Ok(()) | Err(_) => {}
        }
    }

    /// A server of one connection that reads the whole request, and answers when it is told to.
    async fn slow_server() -> (Client, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<usize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = Client::new(Endpoint {
            server: format!("http://{}", listener.local_addr().unwrap()),
            token: None,
        })
        .unwrap();
        client.answer_limit = Duration::from_millis(50);
        let (answer, told) = tokio::sync::oneshot::channel();
        let serving = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            // Bodies come in chunks, an empty one at their end.
            let is_whole = |request: &[u8]| match request.starts_with(b"POST") {
                true => request.ends_with(b"\r\n0\r\n\r\n"),
                false => request.ends_with(b"\r\n\r\n"),
            };
            while !is_whole(&request) {
                if connection.read_buf(&mut request).await.unwrap() == 0 {
                    return request.len();
                }
            }
            if told.await.is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                connection.write_all(answer).await.unwrap();
            }
            request.len()
        });
        (client, answer, serving)
    }

    #[tokio::test]
    async fn what_changes_something_may_take_longer_than_an_answer_to_a_question() {
        install_tls();
        let (client, answer, serving) = slow_server().await;
        let (pieces, body) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
        let body = futures::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
        let request = client.request(Method::POST, "/").body(reqwest::Body::wrap_stream(body));
        let asking = client.json(request);
        tokio::pin!(asking);
        // Neither a slow body nor a slow answer is cut off.
        for _ in 0..3 {
            pieces.send(Ok(b"piece".to_vec())).await.unwrap();
            let early = tokio::time::timeout(client.answer_limit, &mut asking).await;
            assert!(early.is_err(), "{early:?}");
        }
        drop(pieces);
        let early = tokio::time::timeout(2 * client.answer_limit, &mut asking).await;
        assert!(early.is_err(), "{early:?}");
        answer.send(()).unwrap();
        assert_eq!(asking.await.unwrap(), serde_json::json!({}));
        assert!(serving.await.unwrap() > 15);
    }

    #[tokio::test]
    async fn a_question_that_is_not_answered_is_late_and_a_change_may_go_on() {
        install_tls();
        let (client, _answer, serving) = slow_server().await;
        let late = client.get("/").await.unwrap_err();
        assert!(matches!(late, Failure::Late { .. }), "{late}");
        assert_eq!(late.exit_number(), 1, "it was reached");
        serving.abort();

        let (client, answer, serving) = slow_server().await;
        drop(answer);
        let body = futures::stream::iter([std::io::Result::Ok("piece")]);
        let request = client.request(Method::POST, "/").body(reqwest::Body::wrap_stream(body));
        let broken = client.json(request).await.unwrap_err();
        assert!(broken.to_string().contains("may have been done"), "{broken}");
        serving.abort();
    }
}
