//! The one form of every failed answer, and its closed list of codes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer with a status of 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"message": "bot not found", "code": "bot_not_found", "request_id": "0191f3c2-8f0e-7d3a-9c56-0123456789ab"}))]
pub struct ErrorBody {
    /// The sentence a person reads.
    pub message: String,
    /// Stable; what a program acts on.
    pub code: ErrorCode,
    /// The same id stands in the server's log beside the cause.
    pub request_id: String,
    /// The operation that stands in the way, with `operation_in_progress`; or that failed, where it is a part of what was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<String>,
}

/// The text is not one of the codes this version knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownErrorCode(pub String);

impl fmt::Display for UnknownErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an error code", self.0)
    }
}

impl std::error::Error for UnknownErrorCode {}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Stable names of everything that can go wrong.
        // The schema's macro does not read a name that another macro passes on, so the rule stands here once;
        // a test below holds it against the list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// No credential, or one that does not count (any more).
    Unauthorized = "unauthorized",
    /// Wrong name or password.
    InvalidCredentials = "invalid_credentials",
    /// The caller may not do this with that bot.
    BotAccessDenied = "bot_access_denied",
    /// The caller may not do this.
    Forbidden = "forbidden",
    /// No such bot.
    BotNotFound = "bot_not_found",
    /// The bot has no workspace.
    ContainerNotFound = "container_not_found",
    /// No such version.
    VersionNotFound = "version_not_found",
    /// No such backup.
    BackupNotFound = "backup_not_found",
    /// The registry, or the store of images, has no such image.
    ImageNotFound = "image_not_found",
    /// No such route, file, user, key, operation or exec.
    NotFound = "not_found",
    /// An id of the wrong form.
    InvalidId = "invalid_id",
    /// A body that does not parse, or of the wrong type.
    InvalidBody = "invalid_body",
    /// A path that cannot be, or is of the wrong kind.
    InvalidPath = "invalid_path",
    /// A value that is not allowed.
    InvalidArgument = "invalid_argument",
    /// The route has no such method.
    MethodNotAllowed = "method_not_allowed",
    /// It was changed in between.
    PreconditionFailed = "precondition_failed",
    /// The range lies outside of the file.
    RangeNotSatisfiable = "range_not_satisfiable",
    /// The body is over a fixed size.
    BodyTooLarge = "body_too_large",
    /// Too many tries; see `Retry-After`.
    RateLimited = "rate_limited",
    /// The workspace's queue of operations is full.
    QueueFull = "queue_full",
    /// Another operation runs and the caller does not want to wait.
    OperationInProgress = "operation_in_progress",
    /// A delete overtook it, or it was cancelled.
    OperationCancelled = "operation_cancelled",
    /// The same idempotency key came with another body.
    IdempotencyKeyReused = "idempotency_key_reused",
    /// A name that is taken already.
    AlreadyExists = "already_exists",
    /// It is there, in a state or use that excludes this.
    Conflict = "conflict",
    /// The workspace exists and differs from what was asked.
    WorkspaceExists = "workspace_exists",
    /// The workspace is stopped and stays so.
    WorkspaceStopped = "workspace_stopped",
    /// The workspace was restarted under a stream.
    WorkspaceRestarted = "workspace_restarted",
    /// Too many versions are kept.
    SnapshotLimit = "snapshot_limit",
    /// The archive holds something that is not accepted.
    ArchiveRefused = "archive_refused",
    /// The command could not be started at all.
    ExecNotStarted = "exec_not_started",
    /// The caller may not use this image.
    ImageNotAllowed = "image_not_allowed",
    /// The image could not be fetched.
    ImagePullFailed = "image_pull_failed",
    /// The workspace's network could not be made.
    NetworkSetupFailed = "network_setup_failed",
    /// The workspace could not be started.
    ContainerStartFailed = "container_start_failed",
    /// This backend, or this version, cannot do it.
    Unsupported = "unsupported",
    /// The runtime does not answer.
    RuntimeUnavailable = "runtime_unavailable",
    /// The store does not answer.
    StoreUnavailable = "store_unavailable",
    /// The workspace's bridge does not answer.
    BridgeUnavailable = "bridge_unavailable",
    /// No space left, or over the storage limit.
    DiskFull = "disk_full",
    /// A defect or a failure of ours.
    Internal = "internal",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(text: &str) -> Result<Self, UnknownErrorCode> {
        ErrorCode::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or_else(|| UnknownErrorCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_as_itself() {
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn the_schema_has_the_names_of_the_wire() {
        let schema = serde_json::to_value(<ErrorCode as utoipa::PartialSchema>::schema()).unwrap();
        let names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(
            schema.to_string().contains(&serde_json::to_string(&names).unwrap()),
            "{schema}"
        );
    }
}
