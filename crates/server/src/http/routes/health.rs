//! Is it alive, is it ready, what is it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use skep_api::{Health, Ping, Probe, ProbeStatus, Readiness};
use skep_runtime::CheckStatus;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::error::KeepBody;

/// `/ping`, `/health`, `/ready`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(ping))
        .routes(routes!(health, health_head))
        .routes(routes!(ready))
}

/// What this server is.
#[utoipa::path(get, path = "/ping", tag = "health", security(()), responses((status = 200, body = Ping)))]
async fn ping(State(app): State<App>) -> Json<Ping> {
    let capabilities = app.core().capabilities();
    Json(Ping {
        status: "ok".to_owned(),
        container_backend: capabilities.backend.to_owned(),
        snapshot_supported: capabilities.snapshots,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit_hash: option_env!("SKEP_COMMIT").unwrap_or("unknown").to_owned(),
    })
}

/// The process is alive.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
    })
}

/// The process is alive: the same without the body.
#[utoipa::path(head, path = "/health", tag = "health", security(()), responses((status = 200, description = "It is")))]
async fn health_head() -> StatusCode {
    StatusCode::OK
}

/// Store, runtime and network work; 503 when one does not.
#[utoipa::path(get, path = "/ready", tag = "health", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness, description = "A check fails")))]
async fn ready(State(app): State<App>) -> Response {
    let readiness = app.core().readiness().await;
    let ready = readiness.is_ready();
    let checks = readiness
        .checks
        .into_iter()
        .map(|check| Probe {
            name: check.name.to_owned(),
            status: match check.status {
                CheckStatus::Ok => ProbeStatus::Ok,
                CheckStatus::Warn => ProbeStatus::Warn,
                CheckStatus::Error => ProbeStatus::Error,
            },
            detail: check.detail,
        })
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (status, Json(Readiness { ready, checks })).into_response();
    response.extensions_mut().insert(KeepBody);
    response
}
