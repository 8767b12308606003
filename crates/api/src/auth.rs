//! Login, tokens, API keys, tickets and the audit trail.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::user::Role;

/// What a key, a ticket or a member may do; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See.
    Read,
    /// Files, exec, terminal, tools.
    Operate,
    /// Everything else.
    Manage,
}

/// Body of `POST /auth/login`.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"username": "admin", "password": "correct horse battery staple"}))]
pub struct LoginRequest {
    /// The user's name, or email.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginRequest")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Answer to a login.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"access_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2lnbmF0dXJl",
    "token_type": "Bearer", "expires_at": "2026-01-02T03:04:05Z", "user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac",
    "role": "admin", "display_name": "Admin", "username": "admin"}))]
pub struct LoginResponse {
    /// A JWT.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// When the token ends.
    pub expires_at: DateTime<Utc>,
    /// Who it is.
    pub user_id: String,
    /// What they may do.
    pub role: Role,
    /// Shown name.
    pub display_name: String,
    /// Login name.
    pub username: String,
    /// IANA time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// Answer to a refresh.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"access_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2lnbmF0dXJl",
    "token_type": "Bearer", "expires_at": "2026-01-02T03:04:05Z"}))]
pub struct TokenResponse {
    /// A JWT.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// When the token ends.
    pub expires_at: DateTime<Utc>,
}

/// Body of `POST /auth/keys`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "ci", "scope": "operate"}))]
pub struct CreateKeyRequest {
    /// For people; 1 to 128 characters.
    pub name: String,
    /// What it may do at most.
    pub scope: Scope,
    /// The only bots it is for; absent: all of its user's.
    #[serde(default)]
    pub bots: Option<Vec<String>>,
    /// When it ends; absent: never.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// A key as it is listed: never the key itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it may do at most.
    pub scope: Scope,
    /// The only bots it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bots: Option<Vec<String>>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<DateTime<Utc>>,
}

/// The caller's keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "name": "ci", "scope": "operate",
    "created_at": "2026-01-02T03:04:05Z", "last_used_at": "2026-01-03T04:05:00Z"}]}))]
pub struct ApiKeyList {
    /// Newest first.
    pub items: Vec<ApiKey>,
}

/// A key that was just made: the only time it is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"key": "skep_YW4gZXhhbXBsZSBvZiBhIGtleSwgbm90IGEgcmVhbDE",
    "id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "name": "ci", "scope": "operate",
    "created_at": "2026-01-02T03:04:05Z"}))]
pub struct CreatedKey {
    /// The key itself, for `Authorization: Bearer`.
    pub key: String,
    /// What is listed from now on.
    #[serde(flatten)]
    pub info: ApiKey,
}

/// What a ticket opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TicketUse {
    /// The terminal's socket.
    Terminal,
    /// A download.
    Download,
    /// A forwarded port.
    Port,
}

/// Body of `POST /auth/tickets`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "use": "terminal"}))]
pub struct TicketRequest {
    /// The bot it is for.
    pub bot_id: String,
    /// What it is for.
    #[serde(rename = "use")]
    pub purpose: TicketUse,
}

/// A ticket: good once, for 30 seconds, as `?ticket=`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"ticket": "YW4gZXhhbXBsZSBvZiBhIHRpY2tldCwgbm8gcmVhbDE",
    "expires_at": "2026-01-02T03:04:05Z"}))]
pub struct TicketResponse {
    /// The ticket.
    pub ticket: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// One line of the audit trail.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When.
    pub at: DateTime<Utc>,
    /// Who; empty when nobody was signed in.
    pub user_id: String,
    /// What: method and route, for example `DELETE /bots/{bot_id}`.
    pub action: String,
    /// On which bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot_id: Option<String>,
    /// The caller's address.
    pub from: String,
    /// The status that was answered; `gone` when the caller went away before the answer.
    pub outcome: String,
    /// The request.
    pub request_id: String,
}

/// A page of the audit trail.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"at": "2026-01-02T03:04:05Z", "user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac",
    "action": "DELETE /bots/{bot_id}", "bot_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "from": "192.0.2.7",
    "outcome": "202", "request_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab"}], "next_cursor": "41"}))]
pub struct AuditPage {
    /// Newest first.
    pub items: Vec<AuditEntry>,
    /// For the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
