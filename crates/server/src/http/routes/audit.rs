//! The audit trail.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use skep_api::{AuditEntry, AuditPage};
use skep_names::BotId;
use skep_store::{AuditFilter, AuditRow};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{Admin, identity_part};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;

/// Lines on a page.
const PAGE: u32 = 100;

/// `/audit`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Debug, Deserialize, IntoParams)]
struct AuditQuery {
    /// Only about this bot.
    bot_id: Option<String>,
    /// Only by this user.
    user_id: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditQuery), responses((status = 200, body = AuditPage)))]
async fn list(State(app): State<App>, _admin: Admin, Query(query): Query<AuditQuery>) -> ApiResult<Json<AuditPage>> {
    if let Some(id) = &query.bot_id {
        id.parse::<BotId>().map_err(|_| ApiError::invalid_id("bot"))?;
    }
    if let Some(id) = &query.user_id {
        identity_part(id, "user")?;
    }
    let before = query
        .cursor
        .map(|cursor| {
            cursor
                .parse::<i64>()
                .map_err(|_| ApiError::invalid_argument("the cursor is not one of ours"))
        })
        .transpose()?;
    let filter = AuditFilter {
        bot_id: query.bot_id,
        user_id: query.user_id,
    };
    let page = app.store().audit(&filter, before, PAGE).await?;
    Ok(Json(AuditPage {
        items: page.rows.into_iter().map(entry).collect(),
        next_cursor: page.next_before.map(|seq| seq.to_string()),
    }))
}

fn entry(row: AuditRow) -> AuditEntry {
    AuditEntry {
        at: row.line.at,
        user_id: row.line.user_id,
        action: row.line.action,
        bot_id: row.line.bot_id,
        from: row.line.address,
        outcome: row.line.outcome,
        request_id: row.line.request_id,
    }
}
