//! What each route needs of its caller, as the contract says it. A route that the served document has and this table
//! has not fails the test.

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: it is answered without a credential too.
    Nothing,
    /// Any credential that counts.
    Credential,
    /// A token; a key must not become one.
    Token,
    /// The caller's own account: scope `manage`, and no key that is narrowed to some bots.
    Account,
    /// As [`Needs::Account`], of a key that is the caller's.
    AccountAndOwnKey,
    /// Role `admin`, with scope `manage` and no key that is narrowed to some bots.
    Admin,
    /// Scope `read` on the bot.
    Read,
    /// Scope `operate` on the bot: "files, exec, terminal, tools".
    Operate,
    /// Scope `manage` on the bot: everything else that changes it.
    Manage,
    /// As [`Needs::Operate`]; a guest too when the path lies below `/data/media`.
    DownloadOfGuests,
    /// As [`Needs::Operate`]; a guest too.
    OperateOrGuest,
    /// Seeing the bot, and role `admin` as in [`Needs::Admin`].
    AdminOnBot,
    /// As [`Needs::Operate`], on the bot of the body.
    OperateOnBotOfBody,
}

/// The table.
pub(crate) const TABLE: &[(Needs, &[&str])] = &[
    // Health; and signing in, which makes the credential.
    (
        Needs::Nothing,
        &[
            "GET /ping",
            "GET /health",
            "HEAD /health",
            "GET /ready",
            "POST /auth/login",
        ],
    ),
    // What tells the caller about himself, or lists what he may see.
    (
        Needs::Credential,
        &["GET /users/me", "GET /auth/keys", "GET /bots", "GET /gpus"],
    ),
    (Needs::Token, &["POST /auth/refresh", "POST /auth/logout"]),
    (
        Needs::Account,
        &[
            "PUT /users/me",
            "PUT /users/me/password",
            "POST /auth/keys",
            "POST /bots",
        ],
    ),
    (Needs::AccountAndOwnKey, &["DELETE /auth/keys/{id}"]),
    // Users, images, the audit trail and all backups are the administrator's.
    (
        Needs::Admin,
        &[
            "GET /users",
            "POST /users",
            "GET /users/{id}",
            "PUT /users/{id}",
            "PUT /users/{id}/password",
            "GET /images",
            "POST /images/pull",
            "POST /images/import",
            "POST /images/prune",
            "DELETE /images/{reference}",
            "GET /audit",
            "GET /backups",
        ],
    ),
    (
        Needs::Read,
        &[
            "GET /bots/{bot_id}",
            "GET /bots/{bot_id}/checks",
            "GET /bots/{bot_id}/members",
            "GET /bots/{bot_id}/operations",
            "GET /bots/{bot_id}/backups",
            "GET /bots/{bot_id}/mcp",
            "GET /bots/{bot_id}/mcp/{id}",
            "GET /bots/{bot_id}/container",
            "GET /bots/{bot_id}/container/events",
            "GET /bots/{bot_id}/container/logs",
            "GET /bots/{bot_id}/container/metrics",
            "GET /bots/{bot_id}/container/metrics/stream",
            "GET /bots/{bot_id}/container/snapshots",
            "GET /bots/{bot_id}/container/skills",
            "GET /operations/{operation_id}",
            "GET /operations/{operation_id}/events",
        ],
    ),
    // Files, exec, terminal, tools; and bringing up what they need, which `?start=true` on any of them does too.
    (
        Needs::Operate,
        &[
            "POST /bots/{bot_id}/container",
            "POST /bots/{bot_id}/container/start",
            "POST /bots/{bot_id}/container/stop",
            "POST /bots/{bot_id}/container/restart",
            "GET /bots/{bot_id}/container/fs",
            "GET /bots/{bot_id}/container/fs/list",
            "GET /bots/{bot_id}/container/fs/read",
            "POST /bots/{bot_id}/container/fs/write",
            "POST /bots/{bot_id}/container/fs/upload",
            "PUT /bots/{bot_id}/container/fs/upload",
            "POST /bots/{bot_id}/container/fs/mkdir",
            "POST /bots/{bot_id}/container/fs/delete",
            "POST /bots/{bot_id}/container/fs/rename",
            "POST /bots/{bot_id}/container/fs/copy",
            "POST /bots/{bot_id}/container/fs/chmod",
            "GET /bots/{bot_id}/container/fs/search",
            "GET /bots/{bot_id}/container/fs/watch",
            "GET /bots/{bot_id}/container/fs/archive",
            "PUT /bots/{bot_id}/container/fs/archive",
            "POST /bots/{bot_id}/container/fs/archive",
            "POST /bots/{bot_id}/container/fs/extract",
            "GET /bots/{bot_id}/container/exec",
            "POST /bots/{bot_id}/container/exec",
            "GET /bots/{bot_id}/container/exec/{exec_id}",
            "DELETE /bots/{bot_id}/container/exec/{exec_id}",
            "GET /bots/{bot_id}/container/exec/{exec_id}/output",
            "POST /bots/{bot_id}/container/exec/{exec_id}/signal",
            "POST /bots/{bot_id}/container/exec/{exec_id}/resize",
            "POST /bots/{bot_id}/container/exec/{exec_id}/stdin",
            "GET /bots/{bot_id}/container/terminal",
            "GET /bots/{bot_id}/container/terminal/ws",
            "GET /bots/{bot_id}/container/port-forward",
            "POST /bots/{bot_id}/container/skills",
            "DELETE /bots/{bot_id}/container/skills",
            "POST /bots/{bot_id}/container/skills/actions",
            "POST /bots/{bot_id}/container/skills/install",
            "POST /bots/{bot_id}/mcp/{id}/probe",
            "GET /bots/{bot_id}/mcp-stdio",
            "POST /bots/{bot_id}/mcp-stdio",
            "POST /bots/{bot_id}/mcp-stdio/{connection_id}",
            "DELETE /bots/{bot_id}/mcp-stdio/{connection_id}",
        ],
    ),
    // "Guest access lets any signed-in user download below /data/media and call the tools gateway, nothing else."
    (
        Needs::DownloadOfGuests,
        &[
            "GET /bots/{bot_id}/container/fs/download",
            "HEAD /bots/{bot_id}/container/fs/download",
        ],
    ),
    (Needs::OperateOrGuest, &["POST /bots/{bot_id}/tools"]),
    (
        Needs::Manage,
        &[
            "PUT /bots/{bot_id}",
            "PATCH /bots/{bot_id}",
            "DELETE /bots/{bot_id}",
            "PUT /bots/{bot_id}/members/{user_id}",
            "DELETE /bots/{bot_id}/members/{user_id}",
            "PUT /bots/{bot_id}/guest",
            "GET /bots/{bot_id}/backups/{name}",
            "DELETE /bots/{bot_id}/backups/{name}",
            "DELETE /bots/{bot_id}/container",
            "PUT /bots/{bot_id}/container/limits",
            "POST /bots/{bot_id}/container/snapshots",
            "POST /bots/{bot_id}/container/snapshots/rollback",
            "PATCH /bots/{bot_id}/container/snapshots/{version}",
            "DELETE /bots/{bot_id}/container/snapshots/{version}",
            "GET /bots/{bot_id}/container/data/export",
            "POST /bots/{bot_id}/container/data/export",
            "POST /bots/{bot_id}/container/data/import",
            "POST /bots/{bot_id}/container/data/restore",
            "POST /bots/{bot_id}/mcp",
            "PUT /bots/{bot_id}/mcp/{id}",
            "DELETE /bots/{bot_id}/mcp/{id}",
            "PUT /bots/{bot_id}/mcp/import",
            "GET /bots/{bot_id}/mcp/export",
            "POST /bots/{bot_id}/mcp/batch-delete",
            "PUT /bots/{bot_id}/mcp-ops/import",
            "GET /bots/{bot_id}/mcp-ops/export",
            "POST /bots/{bot_id}/mcp-ops/batch-delete",
            "POST /operations/{operation_id}/cancel",
        ],
    ),
    (Needs::AdminOnBot, &["PUT /bots/{bot_id}/owner"]),
    (Needs::OperateOnBotOfBody, &["POST /auth/tickets"]),
];
