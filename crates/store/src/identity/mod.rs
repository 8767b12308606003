//! Users and their credentials, and the trail of what they did.

mod audit;
mod keys;
mod tickets;
mod users;

pub use audit::{AuditFilter, AuditPage, AuditRow, NewAudit};
pub use keys::{ApiKeyRow, NewApiKey};
pub use tickets::{NewTicket, TicketPurpose, TicketRow};
pub use users::{NewUser, TokenUser, UserRole, UserRow, UserUpdate};

/// What a credential may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// See.
    Read,
    /// Files, exec, terminal, tools.
    Operate,
    /// Everything else.
    Manage,
}

impl Scope {
    /// `read`, `operate` or `manage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Manage => "manage",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Operate, Self::Manage]
            .into_iter()
            .find(|scope| scope.as_str() == text)
    }
}
