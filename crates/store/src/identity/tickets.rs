//! Tickets, which count once, and tokens that do not count any more.

use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::connection::Store;
use crate::error::{Result, StoreError};
use crate::identity::Scope;
use crate::time::now;

/// What a ticket opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketPurpose {
    /// The terminal's socket.
    Terminal,
    /// A download.
    Download,
    /// A forwarded port.
    Port,
}

impl TicketPurpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Download => "download",
            Self::Port => "port",
        }
    }
}

/// A ticket to be.
#[derive(Clone)]
pub struct NewTicket {
    /// SHA-256 of the ticket, in hex.
    pub ticket_sha256: String,
    pub user_id: String,
    pub bot_id: String,
    pub purpose: TicketPurpose,
    /// That of the credential it was made with.
    pub scope: Scope,
    pub expires_at: DateTime<Utc>,
}

/// A ticket that was just used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketRow {
    pub user_id: String,
    pub bot_id: String,
    pub scope: Scope,
}

impl Store {
    /// Adds a ticket, and clears away those that are over.
    pub async fn insert_ticket(&self, ticket: NewTicket) -> Result<()> {
        const OPERATION: &str = "adding a ticket";
        sqlx::query("DELETE FROM tickets WHERE expires_at < ?1")
            .bind(now().timestamp_micros())
            .execute(self.writer())
            .await
            .map_err(StoreError::on(OPERATION))?;
        sqlx::query(
            "INSERT INTO tickets (ticket_sha256, user_id, bot_id, purpose, scope, expires_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(ticket.ticket_sha256)
        .bind(ticket.user_id)
        .bind(ticket.bot_id)
        .bind(ticket.purpose.as_str())
        .bind(ticket.scope.as_str())
        .bind(ticket.expires_at.timestamp_micros())
        .execute(self.writer())
        .await
        .map_err(StoreError::on(OPERATION))?;
        Ok(())
    }

    /// Takes a ticket: of two callers at once one gets it. `None` when there is none of that kind that still counts.
    pub async fn take_ticket(&self, ticket_sha256: &str, purpose: TicketPurpose) -> Result<Option<TicketRow>> {
        const OPERATION: &str = "taking a ticket";
        let row = sqlx::query(
            "DELETE FROM tickets WHERE ticket_sha256 = ?1 AND purpose = ?2 AND expires_at >= ?3 \
             RETURNING user_id, bot_id, scope",
        )
        .bind(ticket_sha256)
        .bind(purpose.as_str())
        .bind(now().timestamp_micros())
        .fetch_optional(self.writer())
        .await
        .map_err(StoreError::on(OPERATION))?;
        row.map(|row| {
            let column = StoreError::on(OPERATION);
            let scope: String = row.try_get("scope").map_err(&column)?;
            Ok(TicketRow {
                user_id: row.try_get("user_id").map_err(&column)?,
                bot_id: row.try_get("bot_id").map_err(&column)?,
                scope: Scope::parse(&scope)
                    .ok_or_else(|| StoreError::damaged(OPERATION, format!("scope {scope:?}")))?,
            })
        })
        .transpose()
    }

    /// Revokes a token until it would have ended by itself, and clears away what is over. May be repeated.
    pub async fn revoke_token(&self, jti: &str, expires_at: DateTime<Utc>) -> Result<()> {
        const OPERATION: &str = "revoking a token";
        sqlx::query("DELETE FROM revoked_tokens WHERE expires_at < ?1")
            .bind(now().timestamp_micros())
            .execute(self.writer())
            .await
            .map_err(StoreError::on(OPERATION))?;
        sqlx::query("INSERT INTO revoked_tokens (jti, expires_at) VALUES (?1, ?2) ON CONFLICT (jti) DO NOTHING")
            .bind(jti)
            .bind(expires_at.timestamp_micros())
            .execute(self.writer())
            .await
            .map_err(StoreError::on(OPERATION))?;
        Ok(())
    }
}
