//! Users.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a user may do on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Their own and shared bots.
    Member,
}

/// A user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "username": "ada", "email": "ada@example.org",
    "role": "member", "display_name": "Ada", "is_active": true, "created_at": "2026-01-02T03:04:05Z",
    "updated_at": "2026-01-02T03:04:05Z", "last_login_at": "0001-01-01T00:00:00Z"}))]
pub struct User {
    /// Its id.
    pub id: String,
    /// Login name.
    pub username: String,
    /// Address, also good for login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// What they may do.
    pub role: Role,
    /// Shown name.
    pub display_name: String,
    /// Picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    /// IANA time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// An inactive one can do nothing.
    pub is_active: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// `0001-01-01T00:00:00Z` before the first login.
    pub last_login_at: DateTime<Utc>,
}

/// All users.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"items": [{"id": "0191f3c2-8f0e-7d3a-9c56-0123456789ac", "username": "ada",
    "email": "ada@example.org", "role": "member", "display_name": "Ada", "is_active": true,
    "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
    "last_login_at": "0001-01-01T00:00:00Z"}]}))]
pub struct UserList {
    /// Oldest first.
    pub items: Vec<User>,
}

/// Body of `POST /users`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"username": "ada", "password": "correct horse battery staple", "role": "member"}))]
pub struct CreateUserRequest {
    /// Login name: 1 to 64 characters of `A–Z a–z 0–9 - _ . @`.
    #[serde(default)]
    pub username: String,
    /// At least 8 characters.
    #[serde(default)]
    pub password: String,
    /// Address, also good for login.
    #[serde(default)]
    pub email: Option<String>,
    /// `admin` or `member` (default).
    #[serde(default)]
    pub role: Option<String>,
    /// Shown name; default the login name.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Picture.
    #[serde(default)]
    pub avatar_url: Option<String>,
    /// IANA time zone.
    #[serde(default)]
    pub timezone: Option<String>,
    /// Default true.
    #[serde(default)]
    pub is_active: Option<bool>,
}

/// Body of `PUT /users/{id}`; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"role": "member", "is_active": true}))]
pub struct UpdateUserRequest {
    /// Address; empty clears it.
    pub email: Option<String>,
    /// `admin` or `member`.
    pub role: Option<String>,
    /// Shown name.
    pub display_name: Option<String>,
    /// Picture; empty clears it.
    pub avatar_url: Option<String>,
    /// IANA time zone; empty clears it.
    pub timezone: Option<String>,
    /// An inactive one can do nothing.
    pub is_active: Option<bool>,
}

/// Body of `PUT /users/me`; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"display_name": "Ada", "timezone": "Europe/London"}))]
pub struct UpdateMeRequest {
    /// Address; empty clears it.
    pub email: Option<String>,
    /// Shown name.
    pub display_name: Option<String>,
    /// Picture; empty clears it.
    pub avatar_url: Option<String>,
    /// IANA time zone; empty clears it.
    pub timezone: Option<String>,
}

/// Body of `PUT /users/me/password`.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"current_password": "old password", "new_password": "correct horse battery staple"}))]
pub struct PasswordChange {
    /// The one that counts now.
    pub current_password: String,
    /// At least 8 characters.
    pub new_password: String,
}

/// Body of `PUT /users/{id}/password`.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"new_password": "correct horse battery staple"}))]
pub struct PasswordReset {
    /// At least 8 characters.
    pub new_password: String,
}
