//! A workspace's `/data` as one archive.

mod export;
mod import;

use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// `/bots/{bot_id}/container/data/…`
pub fn router() -> OpenApiRouter<App> {
    export::router().merge(import::router())
}
