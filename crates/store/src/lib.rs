//! The only place that knows SQL. It keeps rows and answers questions about them; it decides nothing.
//!
//! One writer connection, so that writes never fail against each other, and a few readers beside it.
//! Every write is durable when its call returns (`synchronous = FULL`): the journal of operations
//! stands on that.

mod backups;
mod bots;
mod connection;
mod containers;
mod data_root;
mod error;
mod faults;
mod idempotency;
mod identity;
mod lifecycle;
mod members;
mod migrations;
mod operations;
mod settings;
mod time;
mod versions;

pub use backups::BackupRow;
pub use bots::{BotPage, BotRow, BotStatus, BotUpdate, BotVisibility, NewBot};
pub use connection::Store;
pub use containers::{ContainerRow, ContainerStatus, Desired, LimitsColumn, NewContainer};
pub use data_root::{DataRoot, DataRootError, LockHolder, default_database_of};
pub use error::{Result, StoreError};
pub use faults::{FaultRow, KnownIssues};
pub use idempotency::{IdempotencyBegin, IdempotencyKey, IdempotencyOutcome};
pub use identity::{
    ApiKeyRow, AuditFilter, AuditPage, AuditRow, NewApiKey, NewAudit, NewTicket, NewUser, Scope, TicketPurpose,
    TicketRow, TokenUser, UserRole, UserRow, UserUpdate,
};
pub use lifecycle::{EventLimits, LifecycleEventRow};
pub use members::{MemberRole, MemberRow};
pub use migrations::MigrationState;
pub use operations::{BotAfter, EventRow, NewOperation, OperationEnd, OperationRow, OperationState};
pub use versions::{NewVersion, VersionRow};
