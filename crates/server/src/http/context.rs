//! The outermost layer: the request's id, the caller's address, panics, the log line.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use futures::FutureExt;
use ipnet::IpNet;
use skep_names::BotId;
use skep_store::NewAudit;

use crate::app::App;
use crate::http::error::{self, ApiError};

/// Longest id that is taken from a caller.
const LONGEST_REQUEST_ID: usize = 128;

/// What is known of a request before anybody looks at it.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// Stands in the answer, in every error and in the log.
    pub request_id: String,
    /// Who asked, trusted proxies taken away.
    pub from: IpAddr,
    seen: Arc<Seen>,
}

/// What was found out on the way, for the audit trail and for the answer.
#[derive(Debug, Default)]
struct Seen {
    user_id: OnceLock<String>,
    bot_id: OnceLock<String>,
    operation_id: OnceLock<String>,
    /// It is told in the audit trail, whoever asked and whatever its method is.
    is_told: AtomicBool,
}

impl RequestContext {
    /// Remembers who the caller is. The first word counts: nobody becomes somebody else on the way.
    pub(crate) fn note_user(&self, user_id: &str) {
        self.seen.user_id.get_or_init(|| user_id.to_owned());
    }

    /// Remembers which bot it is about.
    pub(crate) fn note_bot(&self, bot: &BotId) {
        self.seen.bot_id.get_or_init(|| bot.to_string());
    }

    /// Remembers that it belongs into the audit trail: a guess at a password, though nobody is known, or a socket, which
    /// is opened by a GET.
    pub(crate) fn note_told(&self) {
        self.seen.is_told.store(true, Ordering::Relaxed);
    }

    /// Remembers an operation that was begun to answer: the answer names it, unless it names its own.
    pub(crate) fn note_operation(&self, id: &str) {
        self.seen.operation_id.get_or_init(|| id.to_owned());
    }
}

#[cfg(test)]
impl RequestContext {
    pub(crate) fn of_nobody() -> Self {
        Self {
            request_id: "test".to_owned(),
            from: IpAddr::from([192, 0, 2, 1]),
            seen: Arc::default(),
        }
    }

    pub(crate) fn is_told(&self) -> bool {
        self.seen.is_told.load(Ordering::Relaxed)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<RequestContext>()
            .cloned()
            .ok_or_else(|| ApiError::internal("the request has no context"))
    }
}

/// Runs a request inside its context.
pub(crate) async fn with_context(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip().to_canonical());
    let from = caller_address(peer, request.headers(), &app.config().server.trusted_proxies);
    let context = RequestContext {
        request_id: request_id.clone(),
        from,
        seen: Arc::default(),
    };
    request.extensions_mut().insert(context.clone());
    let method = request.method().clone();
    let started = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let mut trace = route
        .as_ref()
        .map(|route| Trace::new(&app, context.clone(), (&method, route)));
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => ApiError::internal(panic_text(panic.as_ref())).into_response(),
    };
    let mut response = error::finish(response, &request_id);
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(skep_api::HEADER_REQUEST_ID), value);
    }
    let begun = context.seen.operation_id.get();
    if let Some(value) = begun.and_then(|id| HeaderValue::from_str(id).ok()) {
        let name = HeaderName::from_static(skep_api::HEADER_OPERATION_ID);
        response.headers_mut().entry(name).or_insert(value);
    }
    if let Some(trace) = &mut trace {
        trace.write(response.status()).await;
    }
    tracing::debug!(
        request_id,
        %method,
        route = route.as_deref().unwrap_or("-"),
        status = response.status().as_u16(),
        milliseconds = started.elapsed().as_millis() as u64,
        "answered"
    );
    response
}

/// The route's pattern, never its query string, which may hold a ticket.
fn action(method: &Method, route: &str) -> String {
    format!("{method} {}", route.strip_prefix("/api").unwrap_or(route))
}

/// The outcome of a request whose client went away before the answer: what was begun for him goes on without him.
const GONE: &str = "gone";

/// What a request changed, or tried to. It comes into the audit trail also when the client closes the connection
/// and the request is dropped: else that would be the way to leave no line.
struct Trace {
    app: App,
    context: RequestContext,
    action: String,
    /// Its method is one that changes nothing by itself.
    is_safe: bool,
    outcome: String,
    is_written: bool,
}

impl Trace {
    fn new(app: &App, context: RequestContext, (method, route): (&Method, &str)) -> Self {
        Self {
            app: app.clone(),
            context,
            action: action(method, route),
            is_safe: method.is_safe(),
            outcome: GONE.to_owned(),
            is_written: false,
        }
    }

    async fn write(&mut self, status: StatusCode) {
        self.outcome = status.as_u16().to_string();
        if let Some(line) = self.line() {
            self.app.audit().append(line).await;
        }
        self.is_written = true;
    }

    /// `None`: it changed nothing, or it is that of nobody, who could fill the disk with such lines. Then it is logged.
    fn line(&self) -> Option<NewAudit> {
        let seen = &self.context.seen;
        let (action, outcome, request_id) = (&self.action, &self.outcome, &self.context.request_id);
        let is_told = seen.is_told.load(Ordering::Relaxed);
        if self.is_safe && !is_told && seen.operation_id.get().is_none() {
            return None;
        }
        let user_id = seen.user_id.get().cloned();
        if user_id.is_none() && (self.is_safe || !is_told) {
            let from = self.context.from;
            tracing::info!(request_id, action, %from, outcome, "a request of nobody that is known");
            return None;
        }
        Some(NewAudit {
            at: Utc::now(),
            user_id: user_id.unwrap_or_default(),
            action: action.clone(),
            bot_id: seen.bot_id.get().cloned(),
            address: self.context.from.to_string(),
            outcome: outcome.clone(),
            request_id: request_id.clone(),
        })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.is_written {
            return;
        }
        if let Some(line) = self.line() {
            let app = self.app.clone();
            // The queue may be full, and nobody waits here.
            self.app.tasks().spawn(async move { app.audit().append(line).await });
        }
    }
}

/// The caller's id if it is short and plain, else a new one: it goes into logs and headers.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(skep_api::HEADER_REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|text| (1..=LONGEST_REQUEST_ID).contains(&text.len()))
        .filter(|text| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        })
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// The nearest address that is not one of our proxies. `X-Forwarded-For` counts only when the peer
/// is a trusted proxy, and is read from its end, where only trusted hands have written.
fn caller_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut nearest = peer;
    let forwarded = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|part| part.trim().parse::<IpAddr>().map(|address| address.to_canonical()))
        .collect::<Vec<_>>();
    for hop in forwarded.into_iter().rev() {
        if !is_trusted(nearest) {
            break;
        }
        match hop {
            Ok(address) => nearest = address,
            Err(_) => break,
        }
    }
    nearest
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_sane_request_id_is_taken_and_another_is_replaced() {
        assert_eq!(request_id(&headers("x-request-id", "abc-1.2_3:4")), "abc-1.2_3:4");
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert_ne!(request_id(&headers("x-request-id", bad)), bad);
        }
    }

    #[test]
    fn only_trusted_proxies_may_say_who_the_caller_is() {
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let forwarded = headers("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.9");
        assert_eq!(
            caller_address(peer, &forwarded, &trusted),
            "2.2.2.2".parse::<IpAddr>().unwrap()
        );
        assert_eq!(caller_address(peer, &forwarded, &[]), peer);
        assert_eq!(
            caller_address(peer, &headers("x-forwarded-for", "junk"), &trusted),
            peer
        );
        // As a proxy writes it that hears IPv4 on an IPv6 socket.
        let mapped = headers("x-forwarded-for", "2.2.2.2, ::ffff:10.0.0.9");
        assert_eq!(
            caller_address(peer, &mapped, &trusted),
            "2.2.2.2".parse::<IpAddr>().unwrap()
        );
    }
}
