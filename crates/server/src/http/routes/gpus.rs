//! The GPU devices of this host.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use skep_api::GpuList;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::access::{self, Read, SignedIn};
use crate::http::context::RequestContext;
use crate::http::error::ApiResult;
use crate::http::wire;

/// `/gpus`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The devices that the host's CDI specifications name, and whether the caller may use them.
#[utoipa::path(get, path = "/gpus", tag = "workspace", responses((status = 200, body = GpuList),
    (status = 501, description = "The backend gives no devices")))]
async fn list(
    State(app): State<App>,
    signed_in: SignedIn<Read>,
    context: RequestContext,
    headers: HeaderMap,
) -> ApiResult<Json<GpuList>> {
    let requester = access::requester(&signed_in.caller, None, &context, &headers);
    let devices = app.core().devices(&requester).await?;
    Ok(Json(GpuList {
        items: devices.into_iter().map(wire::gpu_device).collect(),
    }))
}
