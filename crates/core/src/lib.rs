//! The rules: what may happen to a bot and its workspace, in which order, and what is remembered of it.
//!
//! [`Skep`] is the handle of everything. No HTTP and no SQL here: requests come as plain values, whether the
//! caller may use the bot at all was checked before, and rows come from `skep-store`.
//!
//! The heart is `workspace/`: one driver task per workspace that has work, fed by `workspace/lanes.rs` alone,
//! whose rules are pure (`admission.rs`, `state.rs`).

mod backups;
mod bots;
pub mod bridge;
mod checks;
mod devices;
mod error;
pub mod exec;
pub mod files;
mod images;
mod operations;
pub mod ports;
mod requester;
mod settings;
mod skep;
pub mod terminal;
pub mod transfer;
mod versions;
mod workspace;

pub use backups::{Backup, OpenedBackup};
pub use bots::{Bot, BotChange, BotList, CreateBot, DeletedBot};
pub use checks::{CheckItem, CheckState, CheckStatus, CheckType};
pub use devices::OfferedDevice;
pub use error::{Cause, Code, Error, Result, without_host_paths};
pub use operations::{
    CompletedWorkspace, EventBody, Imported, Layer, LimitsReport, Operation, OperationEvent, OperationHandle,
    OperationKind, OperationPage, Outcome, TakenSnapshot,
};
pub use requester::{Patience, Requester};
pub use settings::{ImagePullPolicy, ImportLimits, LONGEST_FREEZE, Settings};
pub use skep::{Parts, Readiness, Skep};
pub use skep_store::{BotStatus, BotVisibility, Desired, LimitsColumn, OperationState};
pub use versions::{
    SOURCE_MANUAL, SOURCE_PRE_EXEC, SOURCE_ROLLBACK, SnapshotItem, SnapshotList, VersionLimits, shown_name,
};
pub use workspace::{
    AskedLimits, CreateRequest, DeleteData, LONGEST_GRACE, LiveMetrics, MeasuredStorage, RestoreMode, RestoreRequest,
    Starter, Uninterrupted, WorkspaceInfo, WorkspaceMetrics, WorkspaceState, WorkspaceStatus,
};
