//! Every failed answer: its status, its code and its one JSON form. Nothing else makes one.
//!
//! A handler returns an [`ApiError`]; the outermost layer turns it, and whatever a library answered
//! by itself with a status of 400 or more, into the body of the contract. So a wrong method, an
//! oversized body or a panic look like every other error.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use skep_api::{ErrorBody, ErrorCode, NotReady, Readiness, StreamEvent};
use skep_store::StoreError;

/// What a handler returns.
pub type ApiResult<T> = Result<T, ApiError>;

/// `Retry-After` of what is away for the moment.
const AWAY_RETRY_SECONDS: u64 = 2;

/// A failed answer. Display is the message a person reads; the source is for the log alone.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: ErrorCode,
    message: Cow<'static, str>,
    retry_after_seconds: Option<u64>,
    operation_id: Option<String>,
    readiness: Option<Box<Readiness>>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// An error with the status that belongs to its code. `message` goes to the caller as it is:
    /// no host path, SQL or secret.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status: status_of(code),
            code,
            message: message.into(),
            retry_after_seconds: retry_of(code),
            operation_id: None,
            readiness: None,
            source: None,
        }
    }

    /// 400 `invalid_argument`.
    pub fn invalid_argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// 400 `invalid_body`.
    pub fn invalid_body(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidBody, message)
    }

    /// 400 `invalid_id`.
    pub fn invalid_id(what: &str) -> Self {
        Self::new(ErrorCode::InvalidId, format!("malformed {what} id"))
    }

    /// 404 `not_found`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// 401 `unauthorized`.
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Unauthorized, message)
    }

    /// 403 `forbidden`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Forbidden, message)
    }

    /// 501 `unsupported`.
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// 500 with a message that tells nothing; the cause goes to the log.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorCode::Internal, "internal error").caused_by(source)
    }

    /// Keeps what went wrong, for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Another status than the code's own, where the contract has two for one code.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// When to come again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds.max(1));
        self
    }

    /// The operation that it is about.
    #[must_use]
    pub fn about_operation(mut self, id: impl Into<String>) -> Self {
        self.operation_id = Some(id.into());
        self
    }

    /// The checks that it comes from, told beside it.
    #[must_use]
    pub fn with_readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = Some(Box::new(readiness));
        self
    }

    /// Its code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The last event of a stream that fails; the cause is logged here, where the stream ends.
    pub fn into_event(self, request_id: &str) -> StreamEvent {
        self.log(request_id);
        StreamEvent::Error {
            message: self.message.into_owned(),
            code: self.code,
            request_id: request_id.to_owned(),
        }
    }

    fn log(&self, request_id: &str) {
        let cause = self.source.as_deref().map(|source| chain(source)).unwrap_or_default();
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::error!(request_id, code = %self.code, message = %self.message, cause, "request failed");
        } else {
            tracing::debug!(request_id, code = %self.code, message = %self.message, cause, "request refused");
        }
    }

    fn body(&self, request_id: &str) -> serde_json::Result<Vec<u8>> {
        let error = ErrorBody {
            message: self.message.clone().into_owned(),
            code: self.code,
            request_id: request_id.to_owned(),
            operation_id: self.operation_id.clone(),
        };
        match self.readiness.as_deref().cloned() {
            Some(readiness) => serde_json::to_vec(&NotReady { error, readiness }),
            None => serde_json::to_vec(&error),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ApiError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Exists { .. } | StoreError::Damaged { .. } | StoreError::Newer { .. } => Self::internal(error),
            StoreError::Orphan { .. } => Self::not_found("the bot or user is gone").caused_by(error),
            StoreError::Full { .. } => {
                Self::new(ErrorCode::DiskFull, "no space left: the store cannot grow").caused_by(error)
            }
            StoreError::Failed { .. } | StoreError::Migrate(_) => {
                Self::new(ErrorCode::StoreUnavailable, "the store is not reachable").caused_by(error)
            }
        }
    }
}

/// The body is written by [`finish`], which knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(id) = self
            .operation_id
            .as_deref()
            .and_then(|id| HeaderValue::from_str(id).ok())
        {
            response
                .headers_mut()
                .insert(HeaderName::from_static(skep_api::HEADER_OPERATION_ID), id);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives an answer of 400 or more its body. Called once, by the outermost layer.
pub(crate) fn finish(mut response: Response, request_id: &str) -> Response {
    if response.status().as_u16() < 400 || is_websocket_refusal(&response) {
        return response;
    }
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None => from_library(response.status()),
    };
    error.log(request_id);
    let body = error.body(request_id).unwrap_or_default();
    let mut finished = Response::new(Body::from(body));
    *finished.status_mut() = error.status;
    for name in [
        RETRY_AFTER,
        ALLOW,
        CONTENT_RANGE,
        HeaderName::from_static(skep_api::HEADER_OPERATION_ID),
    ] {
        if let Some(value) = response.headers_mut().remove(&name) {
            finished.headers_mut().insert(name, value);
        }
    }
    for (name, value) in response.headers() {
        if name.as_str().starts_with("x-") || *name == axum::http::header::WWW_AUTHENTICATE {
            finished.headers_mut().insert(name.clone(), value.clone());
        }
    }
    finished
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    finished
}

/// A refused upgrade has its own headers that must stay (`Sec-WebSocket-Version`).
fn is_websocket_refusal(response: &Response) -> bool {
    response.status() == StatusCode::UPGRADE_REQUIRED && response.extensions().get::<ApiError>().is_none()
}

/// What axum or tower answered by itself, without any handler of ours.
fn from_library(status: StatusCode) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => ApiError::not_found("no such route"),
        StatusCode::METHOD_NOT_ALLOWED => {
            ApiError::new(ErrorCode::MethodNotAllowed, "this route does not have that method")
        }
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(ErrorCode::BodyTooLarge, "the request body is too large"),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            ApiError::new(ErrorCode::RangeNotSatisfiable, "the range lies outside of it")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::UNPROCESSABLE_ENTITY => {
            ApiError::invalid_body("the request body is not what this route takes")
        }
        status if status.is_client_error() => {
            ApiError::invalid_argument("the request is malformed").with_status(status)
        }
        status => ApiError::new(ErrorCode::Internal, "internal error").with_status(status),
    }
}

/// The status of every code.
fn status_of(code: ErrorCode) -> StatusCode {
    use ErrorCode as Code;
    match code {
        Code::InvalidId
        | Code::InvalidBody
        | Code::InvalidPath
        | Code::InvalidArgument
        | Code::ArchiveRefused
        | Code::ExecNotStarted => StatusCode::BAD_REQUEST,
        Code::Unauthorized | Code::InvalidCredentials => StatusCode::UNAUTHORIZED,
        Code::BotAccessDenied | Code::Forbidden | Code::ImageNotAllowed => StatusCode::FORBIDDEN,
        Code::BotNotFound
        | Code::ContainerNotFound
        | Code::VersionNotFound
        | Code::BackupNotFound
        | Code::ImageNotFound
        | Code::NotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::OperationInProgress
        | Code::OperationCancelled
        | Code::AlreadyExists
        | Code::Conflict
        | Code::WorkspaceExists
        | Code::WorkspaceStopped
        | Code::WorkspaceRestarted
        | Code::SnapshotLimit => StatusCode::CONFLICT,
        Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited | Code::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        Code::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        Code::ImagePullFailed => StatusCode::BAD_GATEWAY,
        Code::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Code::RuntimeUnavailable | Code::StoreUnavailable | Code::BridgeUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        Code::NetworkSetupFailed | Code::ContainerStartFailed | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn retry_of(code: ErrorCode) -> Option<u64> {
    match code {
        ErrorCode::RuntimeUnavailable | ErrorCode::StoreUnavailable | ErrorCode::BridgeUnavailable => {
            Some(AWAY_RETRY_SECONDS)
        }
        ErrorCode::QueueFull | ErrorCode::RateLimited => Some(1),
        _ => None,
    }
}

/// An error with all its causes, for the log.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_of_400_or_more() {
        for code in ErrorCode::ALL {
            assert!(status_of(*code).as_u16() >= 400, "{code}");
        }
    }

    #[test]
    fn what_is_away_says_when_to_come_again() {
        for code in ErrorCode::ALL {
            let status = status_of(*code);
            if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
                assert!(retry_of(*code).is_some(), "{code}");
            }
        }
    }
}
