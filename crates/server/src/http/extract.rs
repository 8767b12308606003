//! Bodies, query strings and path parts, with the refusals of the contract in place of axum's.

use std::time::Duration;

use axum::RequestExt;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body::Body as _;
use serde::de::DeserializeOwned;
use skep_api::ErrorCode;

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::plain;

/// How long a JSON body may take, and more for a long one: that of a login costs a descriptor meanwhile, and nobody
/// knows its sender.
const WHOLE_WITHIN: Duration = Duration::from_secs(600);
/// At this pace, in bytes a second, and no longer than for the longest that is taken, whatever its head says.
const LEAST_PACE: u64 = 4096;
const LONGEST: u64 = 24 * 1024 * 1024;

/// A JSON body: an empty one counts as `{}`, unknown fields are ignored; a wrong type, broken JSON
/// or another `Content-Type` is 400, a body over the limit 413.
#[derive(Debug, Clone)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        Ok(RawJsonBody::<T>::read(request).await?.into())
    }
}

/// A JSON body together with its bytes, for routes that take an idempotency key.
#[derive(Debug, Clone)]
pub struct RawJsonBody<T> {
    /// What it says.
    pub value: T,
    /// As it came.
    pub bytes: Bytes,
}

impl<T> From<RawJsonBody<T>> for JsonBody<T> {
    fn from(body: RawJsonBody<T>) -> Self {
        JsonBody(body.value)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for RawJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        Self::read(request).await
    }
}

impl<T: DeserializeOwned> RawJsonBody<T> {
    async fn read(request: Request) -> Result<Self, ApiError> {
        let content_type = request.headers().get(CONTENT_TYPE).cloned();
        let bytes = whole(request).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(|value| Self { value, bytes });
        }
        if !content_type.is_some_and(|value| value.to_str().is_ok_and(is_json)) {
            return Err(ApiError::invalid_body("the Content-Type must be application/json"));
        }
        // A list would be taken for a structure's fields in their order, which nobody means.
        if bytes.trim_ascii_start().first().is_none_or(|first| *first != b'{') {
            return Err(ApiError::invalid_body("the request body must be a JSON object"));
        }
        let value = parse(&bytes)?;
        Ok(Self { value, bytes })
    }
}

/// The body of a route that takes none of a meaning: read whole for an idempotency key; JSON or empty, as everywhere.
#[derive(Debug, Clone)]
pub struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let body = RawJsonBody::<serde_json::Value>::read(request).await?;
        match body.value {
            serde_json::Value::Object(_) => Ok(Self(body.bytes)),
            _ => Err(ApiError::invalid_body(
                "the request body must be a JSON object, or empty",
            )),
        }
    }
}

/// Who may, and a body that may take long to come: whether one still may is looked at again when it has. A right that was
/// taken away meanwhile gives nothing that lasts.
pub struct Still<Right, Body>(pub Right, pub Body);

impl<Right, Body> FromRequest<App> for Still<Right, Body>
where
    Right: FromRequestParts<App, Rejection = ApiError> + Send,
    Body: FromRequest<App, Rejection = ApiError> + Send,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let mut again = parts.clone();
        Right::from_request_parts(&mut parts, app).await?;
        let body = Body::from_request(Request::from_parts(parts, body), app).await?;
        Ok(Self(Right::from_request_parts(&mut again, app).await?, body))
    }
}

async fn whole(request: Request) -> Result<Bytes, ApiError> {
    let length = request.body().size_hint().exact().unwrap_or(0).min(LONGEST);
    whole_within(WHOLE_WITHIN + Duration::from_secs(length / LEAST_PACE), request).await
}

async fn whole_within(limit: Duration, request: Request) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(limit, request.extract::<Bytes, _>()).await {
        Ok(read) => read.map_err(|rejection| refuse_bytes(&rejection)),
        Err(_) => Err(ApiError::invalid_body(format!(
            "the request body was not whole after {} s",
            limit.as_secs()
        ))),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ApiError::invalid_body(plain::of_body(&error.path().to_string(), error.inner())))?;
    json.end()
        .map_err(|error| ApiError::invalid_body(plain::of_body(".", &error)))?;
    Ok(value)
}

fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

fn refuse_bytes(rejection: &BytesRejection) -> ApiError {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            ApiError::new(ErrorCode::BodyTooLarge, "the request body is too large")
        }
        _ => ApiError::invalid_body("the request body broke off"),
    }
}

/// The query string; a part of the wrong type is 400 `invalid_argument`.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|rejection| ApiError::invalid_argument(plain::of_text(&rejection.body_text())))
    }
}

/// One part of the path by its name, decoded; what is not UTF-8 is 400.
pub async fn path_part(parts: &mut Parts, name: &str) -> Result<String, ApiError> {
    let found = axum::extract::RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|_| ApiError::new(ErrorCode::InvalidPath, "the path is not valid UTF-8"))?;
    found
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .ok_or_else(|| ApiError::internal(format!("the route has no part {name}")))
}

/// Path parts by type; a part of the wrong type is 400 `invalid_argument`.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|path| Self(path.0))
            .map_err(|rejection| match rejection {
                PathRejection::FailedToDeserializePathParams(inner) => {
                    ApiError::invalid_argument(plain::of_text(&inner.body_text()))
                }
                other => ApiError::internal(other.to_string()),
            })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
        let never = Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
        let refused = whole_within(Duration::from_millis(50), Request::new(never))
            .await
            .unwrap_err();
        assert!(format!("{refused:?}").contains("not whole"), "{refused:?}");
    }

    #[test]
    fn only_json_media_types_are_json() {
        for good in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/x+json",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/json",
            "text/plain",
            "application/jsonx",
            "multipart/form-data",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
