//! The processes of a workspace, sent as they come: there may be more than anybody wants to hold.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use skep_api::{ErrorBody, ExecList};
use skep_core::bridge::{BridgeError, BridgeResult};
use skep_core::exec::{self, ExecStatus, ProcessPages};

use super::super::files::{bridge_of, refused};
use super::{StartQuery, info};
use crate::app::App;
use crate::http::access::{BotAccess, Operate};
use crate::http::error::ApiResult;
use crate::http::extract::Query;

/// Running and recent processes.
#[utoipa::path(get, path = "/bots/{bot_id}/container/exec", tag = "exec", params(StartQuery),
    responses((status = 200, body = ExecList),
        (status = 409, body = ErrorBody, description = "The workspace is stopped"),
        (status = 503, body = ErrorBody, description = "The workspace is not reachable")))]
pub(super) async fn list(
    State(app): State<App>,
    access: BotAccess<Operate>,
    Query(query): Query<StartQuery>,
) -> ApiResult<Response> {
    let bridge = bridge_of(&app, &access, query.start).await?;
    let mut pages = exec::list(&bridge).await.map_err(refused)?;
    // The first page decides the status; a later failure breaks the transfer.
    let first = pages.next_page().await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(document(first, pages)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What is written next.
enum Part {
    /// A page, which may be the first.
    Page(Option<Vec<ExecStatus>>, Before),
    Nothing,
}

/// What comes before the next process.
enum Before {
    Head,
    Comma,
}

fn document(first: Option<Vec<ExecStatus>>, pages: ProcessPages) -> impl futures::Stream<Item = BridgeResult<Bytes>> {
    let begin = (pages, Part::Page(first, Before::Head));
    futures::stream::try_unfold(begin, |(mut pages, part)| async move {
        let Part::Page(page, before) = part else {
            return Ok(None);
        };
        let mut text = String::new();
        if let Before::Head = before {
            text.push_str("{\"items\":[");
        }
        let Some(page) = page else {
            text.push_str("]}");
            return Ok(Some((Bytes::from(text), (pages, Part::Nothing))));
        };
        let mut needs_comma = matches!(before, Before::Comma);
        for status in page {
            if std::mem::replace(&mut needs_comma, true) {
                text.push(',');
            }
            text.push_str(&json(status)?);
        }
        let next = pages.next_page().await?;
        Ok(Some((Bytes::from(text), (pages, Part::Page(next, Before::Comma)))))
    })
}

fn json(status: ExecStatus) -> BridgeResult<String> {
    serde_json::to_string(&info(status)).map_err(|error| BridgeError::Untrustworthy(error.to_string()))
}
