//! Is it alive, is it ready, what is it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skep_api::{ErrorCode, Health, NotReady, Ping, Probe, ProbeStatus, Readiness};
use skep_core::without_host_paths;
use skep_runtime::{Check, CheckStatus};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::error::{ApiError, ApiResult};

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
    responses((status = 200, body = Readiness), (status = 503, body = NotReady, description = "A check fails")))]
async fn ready(State(app): State<App>) -> ApiResult<Json<Readiness>> {
    let found = app.core().readiness().await;
    let readiness = Readiness {
        ready: found.is_ready(),
        checks: found.checks.iter().map(probe).collect(),
    };
    if readiness.ready {
        return Ok(Json(readiness));
    }
    let failed = || found.checks.iter().filter(|check| check.status == CheckStatus::Error);
    let names: Vec<_> = failed().map(|check| check.name).collect();
    let details: Vec<_> = failed().map(|check| check.detail.as_str()).collect();
    let code = match names.contains(&"store") {
        true => ErrorCode::StoreUnavailable,
        false => ErrorCode::RuntimeUnavailable,
    };
    Err(ApiError::new(code, format!("not ready: {}", names.join(", ")))
        .caused_by(details.join("; "))
        .with_readiness(readiness))
}

fn probe(check: &Check) -> Probe {
    Probe {
        name: check.name.to_owned(),
        status: match check.status {
            CheckStatus::Ok => ProbeStatus::Ok,
            CheckStatus::Warn => ProbeStatus::Warn,
            CheckStatus::Error => ProbeStatus::Error,
        },
        detail: without_host_paths(&check.detail).into_owned(),
    }
}
