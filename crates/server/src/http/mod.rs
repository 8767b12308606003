//! Routes. One file per noun; every handler gets its caller and its bot from an extractor.

pub mod access;
pub mod context;
pub mod document;
pub mod error;
pub mod extract;
mod held;
pub mod idempotency;
mod plain;
pub mod room;
pub mod routes;
mod socket;
pub mod sse;
pub mod timezone;
pub mod wire;

use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, middleware};
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi, Url};

use crate::app::App;

/// Every route, with its part of the document. A noun that comes adds its line here.
fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::base())
        .merge(routes::health::router())
        .merge(routes::auth::router())
        .merge(routes::keys::router())
        .merge(routes::users::router())
        .merge(routes::bots::router())
        .merge(routes::members::router())
        .merge(routes::backups::router())
        .merge(routes::operations::router())
        .merge(routes::container::router())
        .merge(routes::snapshots::router())
        .merge(routes::data::router())
        .merge(routes::logs::router())
        .merge(routes::metrics::router())
        .merge(routes::files::router())
        .merge(routes::exec::router())
        .merge(routes::terminal::router())
        .merge(routes::images::router())
        .merge(routes::gpus::router())
        .merge(routes::audit::router())
        .merge(routes::ports::router())
        .merge(routes::later::router())
}

/// The document alone.
pub fn openapi() -> OpenApi {
    document::complete(described().split_for_parts().1)
}

/// The whole server: every route at `/` and, identically, below `/api`.
pub fn router(app: App) -> Result<Router, serde_json::Error> {
    let (routes, document) = described().split_for_parts();
    let text = Bytes::from(serde_json::to_vec(&document::complete(document))?);
    let document = Arc::new(text);
    let serve = move || {
        let text = Bytes::clone(&document);
        async move { ([(CONTENT_TYPE, "application/json")], text).into_response() }
    };
    let routes = routes
        .route("/openapi.json", get(serve.clone()))
        .route("/swagger.json", get(serve));
    let pages = SwaggerUi::new("/api/docs").config(Config::new([Url::new("Skep", "/api/openapi.json")]));
    Ok(Router::new()
        .merge(routes.clone())
        .nest("/api", routes)
        .merge(pages)
        .layer(middleware::from_fn_with_state(app.clone(), context::with_context))
        .with_state(app))
}
