//! Bots, their members and their checks.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::operation::OperationError;
use crate::workspace::ContainerInfo;

/// Where a bot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BotStatus {
    /// Its workspace is being set up.
    Creating,
    /// It can be used.
    Ready,
    /// It is being removed.
    Deleting,
}

/// What the bot's checks say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// All that is known is well.
    Ok,
    /// Something warns or fails.
    Issue,
    /// Nothing is known.
    Unknown,
}

/// A bot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab",
    "owner_user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "display_name": "demo", "is_active": true,
    "status": "ready", "check_state": "ok", "check_issue_count": 0, "metadata": {"team": "blue"},
    "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"}))]
pub struct Bot {
    /// A UUID in its canonical lower-case form.
    pub id: String,
    /// Who owns it.
    pub owner_user_id: String,
    /// Shown name.
    pub display_name: String,
    /// Picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    /// IANA time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Told to the platform; an inactive bot keeps its workspace.
    pub is_active: bool,
    /// Where it is in its life.
    pub status: BotStatus,
    /// What the checks say.
    pub check_state: CheckState,
    /// How many checks warn or fail.
    pub check_issue_count: u32,
    /// Free, an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// With `?include=container`: its workspace, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerInfo>,
    /// With `?include=container`: why its workspace cannot be told now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_error: Option<OperationError>,
}

/// A page of bots.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab",
    "owner_user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "display_name": "demo", "is_active": true,
    "status": "ready", "check_state": "ok", "check_issue_count": 0, "metadata": {"team": "blue"},
    "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"}], "next_cursor": "41"}))]
pub struct BotPage {
    /// Newest first.
    pub items: Vec<Bot>,
    /// For the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Body of `POST /bots`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"display_name": "demo"}))]
pub struct CreateBotRequest {
    /// Shown name; default: made from the id.
    pub display_name: Option<String>,
    /// Picture.
    pub avatar_url: Option<String>,
    /// IANA time zone.
    pub timezone: Option<String>,
    /// Default true.
    pub is_active: Option<bool>,
    /// Free, an object; `workspace.image` and `workspace.gpu.devices` are read at create.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Name of a backup to put into the new workspace.
    pub restore_backup: Option<String>,
}

/// Body of `PUT` and `PATCH /bots/{id}`; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"display_name": "demo", "metadata": {"team": "blue"}}))]
pub struct UpdateBotRequest {
    /// Shown name.
    pub display_name: Option<String>,
    /// Picture; empty clears it.
    pub avatar_url: Option<String>,
    /// IANA time zone; empty clears it.
    pub timezone: Option<String>,
    /// Told to the platform.
    pub is_active: Option<bool>,
    /// `PUT` replaces it as a whole, `PATCH` merges it (RFC 7396).
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// Body of `PUT /bots/{id}/owner`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"owner_user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab"}))]
pub struct PutOwnerRequest {
    /// The user who owns the bot from now on.
    pub owner_user_id: String,
}

/// Answer to `DELETE /bots/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab", "status": "deleting"}))]
pub struct BotDeleting {
    /// The bot.
    pub id: String,
    /// Always `deleting`.
    pub status: BotStatus,
}

/// What a member may do: the key scopes under other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// `read`.
    Viewer,
    /// `operate`.
    Operator,
    /// `manage`.
    Manager,
}

/// A user who may use another's bot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "role": "operator",
    "created_at": "2026-01-02T03:04:05Z"}))]
pub struct Member {
    /// Who.
    pub user_id: String,
    /// What they may do.
    pub role: MemberRole,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// A bot's members.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"user_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "role": "operator",
    "created_at": "2026-01-02T03:04:05Z"}]}))]
pub struct MemberList {
    /// Oldest first.
    pub items: Vec<Member>,
}

/// Body of `PUT /bots/{id}/members/{user_id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"role": "operator"}))]
pub struct PutMemberRequest {
    /// What they may do.
    pub role: MemberRole,
}

/// Body of and answer to `PUT /bots/{id}/guest`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"enabled": false}))]
pub struct GuestAccess {
    /// Any signed-in user may download below `/data/media` and call the tools gateway.
    pub enabled: bool,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// All is well.
    Ok,
    /// It works, with less than it could.
    Warn,
    /// It does not work.
    Error,
    /// It could not be asked.
    Unknown,
}

/// One probe of a bot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BotCheck {
    /// Stable.
    pub id: String,
    /// `container.init`, `container.record`, `container.task`, `container.data_path`, `bot.delete`, `mcp.connection`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For a client's translations.
    pub title_key: String,
    /// What of several it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtitle: Option<String>,
    /// How it went.
    pub status: CheckStatus,
    /// One sentence.
    pub summary: String,
    /// The cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// More for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// All probes of a bot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"id": "container.record", "type": "container.record",
    "title_key": "bots.checks.container_record", "status": "ok", "summary": "the container is recorded",
    "detail": "workspace-0191f3c2-8f0e-7d3a-9c56-0123456789ab"}]}))]
pub struct BotCheckList {
    /// In a fixed order.
    pub items: Vec<BotCheck>,
}
