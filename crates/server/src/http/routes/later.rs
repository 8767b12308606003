//! What the contract has and this version has not: each route answers 501 `unsupported`, after
//! credential, id, existence and permission were checked as they will be.

use axum::routing::{MethodRouter, on};
use utoipa::openapi::path::{HttpMethod, OperationBuilder};
use utoipa::openapi::{OpenApi, ResponseBuilder};
use utoipa_axum::PathItemExt;
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::http::access::{BotAccess, Manage, Need, Operate, Read, Tools};
use crate::http::error::ApiError;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Read,
    Operate,
    /// The tools gateway, which guests may call.
    Tools,
    Manage,
}

struct Later {
    method: HttpMethod,
    path: &'static str,
    who: Who,
    tag: &'static str,
    what: &'static str,
}

const fn later(method: HttpMethod, path: &'static str, who: Who, tag: &'static str, what: &'static str) -> Later {
    Later {
        method,
        path,
        who,
        tag,
        what,
    }
}

use HttpMethod::{Delete, Get, Post, Put};

/// Every route that a later version brings. One that arrives leaves this table.
const LATER: &[Later] = &[
    later(Get, "/bots/{bot_id}/container/skills", Who::Read, "skills", "skills"),
    later(
        Post,
        "/bots/{bot_id}/container/skills",
        Who::Operate,
        "skills",
        "skills",
    ),
    later(
        Delete,
        "/bots/{bot_id}/container/skills",
        Who::Operate,
        "skills",
        "skills",
    ),
    later(
        Post,
        "/bots/{bot_id}/container/skills/actions",
        Who::Operate,
        "skills",
        "skills",
    ),
    later(
        Post,
        "/bots/{bot_id}/container/skills/install",
        Who::Operate,
        "skills",
        "skills",
    ),
    later(Get, "/bots/{bot_id}/mcp", Who::Read, "mcp", "MCP connections"),
    later(Post, "/bots/{bot_id}/mcp", Who::Manage, "mcp", "MCP connections"),
    later(Get, "/bots/{bot_id}/mcp/{id}", Who::Read, "mcp", "MCP connections"),
    later(Put, "/bots/{bot_id}/mcp/{id}", Who::Manage, "mcp", "MCP connections"),
    later(Delete, "/bots/{bot_id}/mcp/{id}", Who::Manage, "mcp", "MCP connections"),
    later(
        Post,
        "/bots/{bot_id}/mcp/{id}/probe",
        Who::Operate,
        "mcp",
        "MCP connections",
    ),
    later(Put, "/bots/{bot_id}/mcp/import", Who::Manage, "mcp", "MCP connections"),
    later(Get, "/bots/{bot_id}/mcp/export", Who::Manage, "mcp", "MCP connections"),
    later(
        Post,
        "/bots/{bot_id}/mcp/batch-delete",
        Who::Manage,
        "mcp",
        "MCP connections",
    ),
    later(
        Put,
        "/bots/{bot_id}/mcp-ops/import",
        Who::Manage,
        "mcp",
        "MCP connections",
    ),
    later(
        Get,
        "/bots/{bot_id}/mcp-ops/export",
        Who::Manage,
        "mcp",
        "MCP connections",
    ),
    later(
        Post,
        "/bots/{bot_id}/mcp-ops/batch-delete",
        Who::Manage,
        "mcp",
        "MCP connections",
    ),
    later(Get, "/bots/{bot_id}/mcp-stdio", Who::Operate, "mcp", "MCP over stdio"),
    later(Post, "/bots/{bot_id}/mcp-stdio", Who::Operate, "mcp", "MCP over stdio"),
    later(
        Post,
        "/bots/{bot_id}/mcp-stdio/{connection_id}",
        Who::Operate,
        "mcp",
        "MCP over stdio",
    ),
    later(
        Delete,
        "/bots/{bot_id}/mcp-stdio/{connection_id}",
        Who::Operate,
        "mcp",
        "MCP over stdio",
    ),
    later(Post, "/bots/{bot_id}/tools", Who::Tools, "mcp", "the tools gateway"),
];

/// All of them, as routes and in the document.
pub fn router() -> OpenApiRouter<App> {
    let mut document = OpenApi::default();
    let mut router = OpenApiRouter::new();
    for one in LATER {
        router = router.route(one.path, route(one));
        let operation = OperationBuilder::new()
            .tag(one.tag)
            .summary(Some(format!("Not in this version: {}", one.what)))
            .response("501", ResponseBuilder::new().description("Not in this version"))
            .build();
        document
            .paths
            .add_path_operation(one.path, vec![one.method.clone()], operation);
    }
    router.merge(OpenApiRouter::with_openapi(document))
}

fn route(one: &Later) -> MethodRouter<App> {
    let filter = one.method.to_method_filter();
    match one.who {
        Who::Read => on(filter, refuse_on_bot::<Read>),
        Who::Operate => on(filter, refuse_on_bot::<Operate>),
        Who::Tools => on(filter, refuse_on_bot::<Tools>),
        Who::Manage => on(filter, refuse_on_bot::<Manage>),
    }
}

async fn refuse_on_bot<N: Need>(_access: BotAccess<N>) -> ApiError {
    unsupported()
}

fn unsupported() -> ApiError {
    ApiError::unsupported("this is not supported by this version")
}
