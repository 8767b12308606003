//! What goes over the wire: JSON bodies, stream events, ids and error codes.
//!
//! Seen by the server and by the command line client, and by nothing else. Types only: no I/O,
//! no policy, no conversion from the server's inner types (that is the server's work). Field names
//! are literal in the contract; adding a field is fine, renaming or dropping one is not.

mod auth;
mod backup;
mod bot;
mod data;
mod error;
mod exec;
mod fs;
mod health;
mod image;
mod metrics;
mod operation;
mod snapshot;
mod terminal;
mod user;
mod workspace;

pub use auth::{
    ApiKey, ApiKeyList, AuditEntry, AuditPage, CreateKeyRequest, CreatedKey, LoginRequest, LoginResponse, Scope,
    TicketRequest, TicketResponse, TicketUse, TokenResponse,
};
pub use backup::{Backup, BackupList, RestoreMode, RestoreRequest, RestoredResponse};
pub use bot::{
    Bot, BotCheck, BotCheckList, BotDeleting, BotPage, BotStatus, CheckState, CheckStatus, CreateBotRequest,
    GuestAccess, Member, MemberList, MemberRole, PutMemberRequest, PutOwnerRequest, UpdateBotRequest,
};
pub use data::ImportedResponse;
pub use error::{ErrorBody, ErrorCode, UnknownErrorCode};
pub use exec::{
    ExecDone, ExecInfo, ExecList, ExecOutput, ExecRequest, ExecResult, ExecStarted, ExecState, ExecStreamEvent,
    ResizeRequest, SignalRequest, StdinRequest,
};
pub use fs::{
    ArchiveResult, ChangeModeRequest, ChangedFile, CopyFileRequest, DeleteFileRequest, Encoding, ExtractRequest,
    FileContent, FileDone, FileEvent, FileInfo, FileList, PackRequest, PathRequest, RenameFileRequest, SearchMatch,
    SearchResults, UploadedFile, UploadedFiles, WriteFileRequest,
};
pub use health::{Health, NotReady, Ping, Probe, ProbeStatus, Readiness};
pub use image::{GpuDevice, GpuList, Image, ImageList, ImportedImages, PruneResponse, PullRequest};
pub use metrics::{
    CpuMetrics, IoMetrics, MemoryMetrics, Metrics, MetricsResponse, MetricsStatus, NetworkMetrics, StorageMetrics,
};
pub use operation::{
    LayerPhase, LayerProgress, Operation, OperationError, OperationKind, OperationList, OperationState, Progress,
    StreamEvent,
};
pub use snapshot::{
    RollbackRequest, RollbackResponse, Snapshot, SnapshotItem, SnapshotKind, SnapshotList, SnapshotRequest,
};
pub use terminal::{TerminalInfo, TerminalMessage};
pub use user::{
    CreateUserRequest, PasswordChange, PasswordReset, Role, UpdateMeRequest, UpdateUserRequest, User, UserList,
};
pub use workspace::{
    Container, ContainerInfo, CreateWorkspaceRequest, Desired, GpuRequest, Isolation, Limits, LimitsRequest,
    LimitsResponse, RestartedResponse, StartedResponse, StateEvent, StoppedResponse, WorkspaceStatus,
};

/// Header with the id of the operation that an answer belongs to.
pub const HEADER_OPERATION_ID: &str = "x-operation-id";
/// Header with the id of the request, taken from the caller if sane, else made.
pub const HEADER_REQUEST_ID: &str = "x-request-id";
/// Header that makes a POST repeatable.
pub const HEADER_IDEMPOTENCY_KEY: &str = "idempotency-key";
