//! Stored images.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use skep_api::{ImageList, ImportedImages, PruneResponse, PullRequest, StreamEvent};
use skep_store::Scope;
use tokio_util::io::StreamReader;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{self, Admin};
use crate::http::context::RequestContext;
use crate::http::error::ApiResult;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{sse, wire};

/// `/images`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(pull))
        .routes(routes!(import))
        .routes(routes!(prune))
        .routes(routes!(remove))
}

/// All stored images.
#[utoipa::path(get, path = "/images", tag = "images", responses((status = 200, body = ImageList)))]
async fn list(State(app): State<App>, _admin: Admin) -> ApiResult<Json<ImageList>> {
    let images = app.core().images().await?;
    Ok(Json(ImageList {
        items: images.into_iter().map(wire::image).collect(),
    }))
}

/// Fetch an image; a stream of events as that of a create.
#[utoipa::path(post, path = "/images/pull", tag = "images", request_body = PullRequest,
    responses((status = 200, body = StreamEvent, content_type = "text/event-stream")))]
async fn pull(
    State(app): State<App>,
    Admin(caller): Admin,
    context: RequestContext,
    headers: HeaderMap,
    JsonBody(body): JsonBody<PullRequest>,
) -> ApiResult<Response> {
    let requester = access::requester(&caller, Some(Scope::Manage), &context, &headers);
    let events = app.core().pull_image(&body.image, &requester)?;
    let request_id = context.request_id;
    let events = events.map(move |event| (event.id, wire::stream_event(event.body, &request_id)));
    Ok(sse::stream(events, sse::Ids::Without))
}

#[derive(Debug, Deserialize, IntoParams)]
struct ImportQuery {
    /// A reference in place of the archive's own name.
    name: Option<String>,
}

/// Store the images of an OCI archive, a docker-archive or a tar of an OCI layout, streamed.
#[utoipa::path(post, path = "/images/import", tag = "images", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = ImportedImages)))]
async fn import(
    State(app): State<App>,
    _admin: Admin,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> ApiResult<Json<ImportedImages>> {
    let pieces = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let archive = Box::new(StreamReader::new(Box::pin(pieces)));
    let images = app.core().import_image(archive, query.name.as_deref()).await?;
    Ok(Json(ImportedImages {
        items: images.into_iter().map(wire::image).collect(),
    }))
}

/// Remove every image that nothing uses.
#[utoipa::path(post, path = "/images/prune", tag = "images", responses((status = 200, body = PruneResponse)))]
async fn prune(State(app): State<App>, _admin: Admin) -> ApiResult<Json<PruneResponse>> {
    let items: Vec<_> = app.core().prune_images().await?.into_iter().map(wire::image).collect();
    let freed_bytes = items.iter().map(|image| image.size_bytes).sum();
    Ok(Json(PruneResponse { items, freed_bytes }))
}

/// Remove an image; its reference is the rest of the path.
#[utoipa::path(delete, path = "/images/{*reference}", tag = "images",
    responses((status = 204), (status = 404, description = "No such image"), (status = 409, description = "It is in use")))]
async fn remove(State(app): State<App>, _admin: Admin, Path(reference): Path<String>) -> ApiResult<StatusCode> {
    app.core().remove_image(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}
