//! The table of users.

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::time::{from_micros, from_optional_micros, now};

/// What a user may do on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserRole {
    /// Everything.
    Admin,
    /// His own and shared bots.
    Member,
}

impl UserRole {
    /// `admin` or `member`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }

    /// The role of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Admin, Self::Member]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// One user. `Debug` does not show the password's hash.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRow {
    pub id: String,
    pub username: String,
    pub email: Option<String>,
    /// As a PHC string.
    pub password_hash: String,
    pub role: UserRole,
    pub display_name: String,
    pub avatar_url: Option<String>,
    pub timezone: Option<String>,
    pub is_active: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub last_login_at: Option<DateTime<Utc>>,
    /// How often the password was changed; a token is made for one.
    pub token_generation: i64,
}

impl std::fmt::Debug for UserRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRow")
            .field("id", &self.id)
            .field("username", &self.username)
            .field("role", &self.role)
            .field("is_active", &self.is_active)
            .finish_non_exhaustive()
    }
}

/// A user to be.
#[derive(Clone)]
pub struct NewUser {
    pub id: String,
    pub username: String,
    pub email: Option<String>,
    /// As a PHC string.
    pub password_hash: String,
    pub role: UserRole,
    pub display_name: String,
    pub avatar_url: Option<String>,
    pub timezone: Option<String>,
    pub is_active: bool,
}

/// The fields of a user that may change; `None` leaves one as it is, `Some(None)` empties it.
#[derive(Debug, Clone, Default)]
pub struct UserUpdate {
    pub email: Option<Option<String>>,
    pub role: Option<UserRole>,
    pub display_name: Option<String>,
    pub avatar_url: Option<Option<String>>,
    pub timezone: Option<Option<String>>,
    pub is_active: Option<bool>,
}

/// The user of a token, and whether that token was revoked: one question for every request.
#[derive(Debug, Clone)]
pub struct TokenUser {
    pub user: UserRow,
    /// By a logout, or because the password was changed since it was made.
    pub revoked: bool,
}

const COLUMNS: &str = "id, username, email, password_hash, role, display_name, avatar_url, timezone, is_active, \
                       created_at, updated_at, last_login_at, token_generation";

pub(super) fn read(row: &SqliteRow) -> Result<UserRow> {
    const OPERATION: &str = "reading a user";
    let column = StoreError::on(OPERATION);
    let role: String = row.try_get("role").map_err(&column)?;
    Ok(UserRow {
        id: row.try_get("id").map_err(&column)?,
        username: row.try_get("username").map_err(&column)?,
        email: row.try_get("email").map_err(&column)?,
        password_hash: row.try_get("password_hash").map_err(&column)?,
        role: UserRole::parse(&role).ok_or_else(|| StoreError::damaged(OPERATION, format!("role {role:?}")))?,
        display_name: row.try_get("display_name").map_err(&column)?,
        avatar_url: row.try_get("avatar_url").map_err(&column)?,
        timezone: row.try_get("timezone").map_err(&column)?,
        is_active: row.try_get("is_active").map_err(&column)?,
        created_at: from_micros(OPERATION, row.try_get("created_at").map_err(&column)?)?,
        updated_at: from_micros(OPERATION, row.try_get("updated_at").map_err(&column)?)?,
        last_login_at: from_optional_micros(OPERATION, row.try_get("last_login_at").map_err(&column)?)?,
        token_generation: row.try_get("token_generation").map_err(&column)?,
    })
}

impl Store {
    /// Adds a user.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the name or the address is taken, in whatever case of letters.
    pub async fn insert_user(&self, user: NewUser) -> Result<UserRow> {
        let at = now().timestamp_micros();
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO users (id, username, email, password_hash, role, display_name, avatar_url, timezone, \
             is_active, created_at, updated_at) VALUES (",
        );
        let mut values = query.separated(", ");
        values.push_bind(user.id).push_bind(user.username).push_bind(user.email);
        values.push_bind(user.password_hash).push_bind(user.role.as_str());
        values
            .push_bind(user.display_name)
            .push_bind(user.avatar_url)
            .push_bind(user.timezone);
        values.push_bind(user.is_active).push_bind(at).push_bind(at);
        query.push(") RETURNING ").push(COLUMNS);
        let row = query
            .build()
            .fetch_one(self.writer())
            .await
            .map_err(StoreError::on("adding a user"))?;
        read(&row)
    }

    /// The user of that id.
    pub async fn user(&self, id: &str) -> Result<Option<UserRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(COLUMNS).push(" FROM users WHERE id = ").push_bind(id);
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on("reading a user"))?;
        row.as_ref().map(read).transpose()
    }

    /// The user who signs in under that name, else under that address.
    pub async fn user_by_login(&self, login: &str) -> Result<Option<UserRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM users WHERE username = ")
            .push_bind(login);
        query.push(" OR email = ").push_bind(login);
        query
            .push(" ORDER BY username = ")
            .push_bind(login)
            .push(" DESC LIMIT 1");
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on("reading a user by login"))?;
        row.as_ref().map(read).transpose()
    }

    /// The user of a token, and whether the token was revoked; `generation` is the user's when it was made.
    pub async fn token_user(&self, user_id: &str, jti: &str, generation: i64) -> Result<Option<TokenUser>> {
        const OPERATION: &str = "reading the user of a token";
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query
            .push(COLUMNS)
            .push(", EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = ");
        query
            .push_bind(jti)
            .push(") OR (token_generation <> ")
            .push_bind(generation)
            .push(" AND token_kept IS NOT ")
            .push_bind(jti)
            .push(") AS revoked FROM users WHERE id = ")
            .push_bind(user_id);
        let row = query
            .build()
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::on(OPERATION))?;
        row.map(|row| {
            Ok(TokenUser {
                user: read(&row)?,
                revoked: row.try_get("revoked").map_err(StoreError::on(OPERATION))?,
            })
        })
        .transpose()
    }

    /// All users, oldest first.
    pub async fn users(&self) -> Result<Vec<UserRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(COLUMNS).push(" FROM users ORDER BY seq");
        let rows = query
            .build()
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::on("listing users"))?;
        rows.iter().map(read).collect()
    }

    /// Changes fields of a user; `None` when there is no such user, or when he is the last active admin and would be
    /// one no more: that is looked at in the change itself, so that two admins cannot take away each other at once.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the address is taken.
    pub async fn update_user(&self, id: &str, update: UserUpdate) -> Result<Option<UserRow>> {
        let takes_an_admin = update.role == Some(UserRole::Member) || update.is_active == Some(false);
        let mut query = QueryBuilder::<Sqlite>::new("UPDATE users SET updated_at = ");
        query.push_bind(now().timestamp_micros());
        if let Some(email) = update.email {
            query.push(", email = ").push_bind(email);
        }
        if let Some(role) = update.role {
            query.push(", role = ").push_bind(role.as_str());
        }
        if let Some(name) = update.display_name {
            query.push(", display_name = ").push_bind(name);
        }
        if let Some(avatar) = update.avatar_url {
            query.push(", avatar_url = ").push_bind(avatar);
        }
        if let Some(timezone) = update.timezone {
            query.push(", timezone = ").push_bind(timezone);
        }
        if let Some(active) = update.is_active {
            query.push(", is_active = ").push_bind(active);
        }
        query.push(" WHERE id = ").push_bind(id);
        if takes_an_admin {
            query
                .push(
                    " AND (role <> 'admin' OR NOT is_active OR EXISTS (SELECT 1 FROM users AS other WHERE other.id <> ",
                )
                .push_bind(id)
                .push(" AND other.role = 'admin' AND other.is_active))");
        }
        query.push(" RETURNING ").push(COLUMNS);
        let row = query
            .build()
            .fetch_optional(self.writer())
            .await
            .map_err(StoreError::on("changing a user"))?;
        row.as_ref().map(read).transpose()
    }

    /// Sets a user's password hash, which revokes every token that was made before, but for `kept`; says whether there
    /// is such a user, with the hash `current` if one is given.
    pub async fn set_user_password(
        &self,
        (id, current): (&str, Option<&str>),
        password_hash: &str,
        kept: Option<&str>,
    ) -> Result<bool> {
        const SET: &str = "UPDATE users SET password_hash = ?1, updated_at = ?2, \
                           token_generation = token_generation + 1, token_kept = ?3 \
                           WHERE id = ?4 AND password_hash = COALESCE(?5, password_hash)";
        let done = sqlx::query(SET)
            .bind(password_hash)
            .bind(now().timestamp_micros())
            .bind(kept)
            .bind(id)
            .bind(current)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("setting a password"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Remembers that a user signed in now.
    pub async fn note_login(&self, id: &str) -> Result<()> {
        sqlx::query("UPDATE users SET last_login_at = ?1 WHERE id = ?2")
            .bind(now().timestamp_micros())
            .bind(id)
            .execute(self.writer())
            .await
            .map_err(StoreError::on("noting a login"))?;
        Ok(())
    }
}
