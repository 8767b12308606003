//! The one error of the rules, and the stable codes that a client sees.

use std::borrow::Cow;
use std::sync::Arc;

use skep_runtime::RuntimeError;
use skep_store::StoreError;

use crate::bridge::BridgeError;

/// The result of every rule.
pub type Result<T> = std::result::Result<T, Error>;

/// A cause, kept for the log alone: it may hold paths of the host or SQL.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// The stable `code` of an error on the wire.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The code of that word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    Unauthorized = "unauthorized",
    InvalidCredentials = "invalid_credentials",
    BotAccessDenied = "bot_access_denied",
    Forbidden = "forbidden",
    BotNotFound = "bot_not_found",
    ContainerNotFound = "container_not_found",
    VersionNotFound = "version_not_found",
    BackupNotFound = "backup_not_found",
    ImageNotFound = "image_not_found",
    NotFound = "not_found",
    InvalidId = "invalid_id",
    InvalidBody = "invalid_body",
    InvalidPath = "invalid_path",
    InvalidArgument = "invalid_argument",
    MethodNotAllowed = "method_not_allowed",
    Conflict = "conflict",
    PreconditionFailed = "precondition_failed",
    RangeNotSatisfiable = "range_not_satisfiable",
    BodyTooLarge = "body_too_large",
    RateLimited = "rate_limited",
    QueueFull = "queue_full",
    OperationInProgress = "operation_in_progress",
    OperationCancelled = "operation_cancelled",
    IdempotencyKeyReused = "idempotency_key_reused",
    WorkspaceExists = "workspace_exists",
    WorkspaceStopped = "workspace_stopped",
    SnapshotLimit = "snapshot_limit",
    ArchiveRefused = "archive_refused",
    ExecNotStarted = "exec_not_started",
    ImageNotAllowed = "image_not_allowed",
    ImagePullFailed = "image_pull_failed",
    NetworkSetupFailed = "network_setup_failed",
    ContainerStartFailed = "container_start_failed",
    Unsupported = "unsupported",
    RuntimeUnavailable = "runtime_unavailable",
    StoreUnavailable = "store_unavailable",
    BridgeUnavailable = "bridge_unavailable",
    DiskFull = "disk_full",
    Internal = "internal",
}

/// Display is the sentence for a person, without host paths, SQL or secrets, wherever it is told: in an answer, an
/// event, the journal or a check. [`Error::with_causes`] has everything, for the log.
///
/// It can be cloned, because everybody who waits for one operation gets its one outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// 404.
    #[error("bot not found")]
    BotNotFound,
    /// 403.
    #[error("bot access denied")]
    BotAccessDenied,
    /// 403.
    #[error("{0}")]
    Forbidden(String),
    /// 404.
    #[error("container not found for bot")]
    ContainerNotFound,
    /// 404.
    #[error("version {0} not found")]
    VersionNotFound(u64),
    /// 404.
    #[error("{0}")]
    BackupNotFound(String),
    /// 404.
    #[error("image {0} not found")]
    ImageNotFound(String),
    /// 404 of anything else: the sentence.
    #[error("{0}")]
    NotFound(String),
    /// 400.
    #[error("{0}")]
    InvalidId(String),
    /// 400.
    #[error("{0}")]
    InvalidPath(String),
    /// 400.
    #[error("{0}")]
    InvalidArgument(String),
    /// 409: the thing is in a state that excludes this.
    #[error("{0}")]
    Conflict(String),
    /// 412.
    #[error("{0}")]
    PreconditionFailed(String),
    /// 416: how many bytes there are.
    #[error("the range lies outside of the {size} bytes there are")]
    RangeNotSatisfiable { size: u64 },
    /// 413.
    #[error("{0}")]
    BodyTooLarge(String),
    /// 429.
    #[error("{0}")]
    RateLimited(String),
    /// 429.
    #[error("{0} operations of this bot wait already")]
    QueueFull(usize),
    /// 409: the id of the operation under way.
    #[error("operation {0} is under way")]
    OperationInProgress(String),
    /// 409: what overtook or cancelled it.
    #[error("the operation was cancelled by {0}")]
    OperationCancelled(String),
    /// 422.
    #[error("the idempotency key was used with another body")]
    IdempotencyKeyReused,
    /// 409: says the way.
    #[error("{0}")]
    WorkspaceExists(String),
    /// 409.
    #[error("{0}")]
    SnapshotLimit(String),
    /// 409.
    #[error("the workspace is stopped")]
    WorkspaceStopped,
    /// 400: what is wrong with an archive.
    #[error("{0}")]
    ArchiveRefused(String),
    /// 400: a command that could not be started.
    #[error("{0}")]
    ExecNotStarted(String),
    /// 403.
    #[error("{0}")]
    ImageNotAllowed(String),
    /// 502.
    #[error("image pull failed: {0}")]
    ImagePullFailed(String),
    /// 500.
    #[error("network setup failed: {reason}")]
    NetworkSetupFailed {
        reason: String,
        #[source]
        source: Option<Cause>,
    },
    /// 500.
    #[error("container start failed: {reason}")]
    ContainerStartFailed {
        reason: String,
        #[source]
        source: Option<Cause>,
    },
    /// 501.
    #[error("{0}")]
    Unsupported(String),
    /// 503.
    #[error("the runtime is not reachable")]
    RuntimeUnavailable {
        #[source]
        source: Option<Cause>,
    },
    /// 503.
    #[error("the store is not reachable")]
    StoreUnavailable {
        #[source]
        source: Option<Cause>,
    },
    /// 507: the store has no space to write.
    #[error("no space left: the store cannot grow")]
    StoreFull {
        #[source]
        source: Option<Cause>,
    },
    /// 503: the whole sentence, as `container not reachable: …`.
    #[error("{0}")]
    BridgeUnavailable(String),
    /// 503: the server goes down.
    #[error("the server is going down")]
    GoingDown,
    /// 507.
    #[error("{0}")]
    DiskFull(String),
    /// 507: what there was no space for.
    #[error("no space left: {}", without_host_paths(.operation))]
    NoSpace { operation: String },
    /// 500: the layer that a workspace writes to is not there.
    #[error("container snapshot chain not found")]
    LayersNotFound,
    /// 500: a defect or failure of ours; names what was tried.
    #[error("{} failed", without_host_paths(.operation))]
    Internal {
        operation: String,
        #[source]
        source: Option<Cause>,
    },
    /// Something that failed at a stage of a create; its code is the cause's.
    #[error("{stage}: {cause}")]
    AtStage { stage: &'static str, cause: Box<Error> },
    /// What an operation that ended earlier said, read from the journal.
    #[error("{message}")]
    Recorded { code: Code, message: String },
}

impl Error {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::BotNotFound => Code::BotNotFound,
            Self::BotAccessDenied => Code::BotAccessDenied,
            Self::Forbidden(_) => Code::Forbidden,
            Self::ContainerNotFound => Code::ContainerNotFound,
            Self::VersionNotFound(_) => Code::VersionNotFound,
            Self::BackupNotFound(_) => Code::BackupNotFound,
            Self::ImageNotFound(_) => Code::ImageNotFound,
            Self::NotFound(_) => Code::NotFound,
            Self::InvalidId(_) => Code::InvalidId,
            Self::InvalidPath(_) => Code::InvalidPath,
            Self::InvalidArgument(_) => Code::InvalidArgument,
            Self::Conflict(_) => Code::Conflict,
            Self::PreconditionFailed(_) => Code::PreconditionFailed,
            Self::RangeNotSatisfiable { .. } => Code::RangeNotSatisfiable,
            Self::BodyTooLarge(_) => Code::BodyTooLarge,
            Self::RateLimited(_) => Code::RateLimited,
            Self::QueueFull(_) => Code::QueueFull,
            Self::OperationInProgress(_) => Code::OperationInProgress,
            Self::OperationCancelled(_) => Code::OperationCancelled,
            Self::IdempotencyKeyReused => Code::IdempotencyKeyReused,
            Self::WorkspaceExists(_) => Code::WorkspaceExists,
            Self::SnapshotLimit(_) => Code::SnapshotLimit,
            Self::WorkspaceStopped => Code::WorkspaceStopped,
            Self::ArchiveRefused(_) => Code::ArchiveRefused,
            Self::ExecNotStarted(_) => Code::ExecNotStarted,
            Self::ImageNotAllowed(_) => Code::ImageNotAllowed,
            Self::ImagePullFailed(_) => Code::ImagePullFailed,
            Self::NetworkSetupFailed { .. } => Code::NetworkSetupFailed,
            Self::ContainerStartFailed { .. } => Code::ContainerStartFailed,
            Self::Unsupported(_) => Code::Unsupported,
            Self::RuntimeUnavailable { .. } | Self::GoingDown => Code::RuntimeUnavailable,
            Self::StoreUnavailable { .. } => Code::StoreUnavailable,
            Self::BridgeUnavailable(_) => Code::BridgeUnavailable,
            Self::DiskFull(_) | Self::NoSpace { .. } | Self::StoreFull { .. } => Code::DiskFull,
            Self::LayersNotFound | Self::Internal { .. } => Code::Internal,
            Self::AtStage { cause, .. } => cause.code(),
            Self::Recorded { code, .. } => *code,
        }
    }

    /// It came to nothing because somebody did not answer, or the store had no space, and either may be over before
    /// anybody asks again; or because it was cancelled.
    pub(crate) fn says_nothing_of_the_workspace(&self) -> bool {
        match self {
            Self::StoreFull { .. } => true,
            Self::AtStage { cause, .. } => cause.says_nothing_of_the_workspace(),
            other => matches!(
                other.code(),
                Code::OperationCancelled | Code::RuntimeUnavailable | Code::StoreUnavailable
            ),
        }
    }

    /// Wraps a cause with what was tried.
    pub fn internal(operation: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Internal {
            operation: operation.into(),
            source: Some(Arc::new(source)),
        }
    }

    /// Says at which stage it happened, unless the sentence begins with one: the first that says so knows best.
    pub(crate) fn at(self, stage: &'static str) -> Self {
        let sentence = self.to_string();
        if sentence.starts_with(stage) || stages::ALL.iter().any(|known| sentence.starts_with(known)) {
            return self;
        }
        Self::AtStage {
            stage,
            cause: Box::new(self),
        }
    }

    /// What was tried with all its causes, for the log alone: here are the paths of the host that no sentence has.
    pub fn with_causes(&self) -> String {
        let mut text = match self {
            Self::AtStage { stage, cause } => return format!("{stage}: {}", cause.with_causes()),
            Self::Internal { operation, .. } => format!("{operation} failed"),
            Self::NoSpace { operation } => format!("no space left: {operation}"),
            other => other.to_string(),
        };
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }
}

/// The stages of a create, as its errors begin with them.
pub(crate) mod stages {
    pub(crate) const PULL: &str = "image pull failed";
    pub(crate) const START: &str = "container start failed";
    pub(crate) const NETWORK: &str = "network setup failed";
    pub(crate) const RESTORE: &str = "restore preserved data failed";
    pub(crate) const ALL: [&str; 4] = [PULL, START, NETWORK, RESTORE];
}

/// A sentence up to the first path of the host in it, for an `…`. Whatever follows goes too: a path may have spaces.
pub fn without_host_paths(operation: &str) -> Cow<'_, str> {
    let is_begin = |before: Option<char>| before.is_none_or(|letter| !letter.is_alphanumeric());
    let path = operation
        .match_indices('/')
        .find(|(at, _)| is_begin(operation[..*at].chars().next_back()));
    match path {
        Some((at, _)) => {
            let kept = operation[..at].trim_end_matches(|letter: char| !letter.is_alphanumeric());
            Cow::Owned(format!("{kept} …").trim_start().to_owned())
        }
        None => Cow::Borrowed(operation),
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Exists { .. } | StoreError::Damaged { .. } | StoreError::Newer { .. } => Self::Internal {
                operation: "keeping the state".to_owned(),
                source: Some(Arc::new(error)),
            },
            StoreError::Full { .. } => Self::StoreFull {
                source: Some(Arc::new(error)),
            },
            StoreError::Failed { .. } | StoreError::Migrate(_) | StoreError::Orphan { .. } => Self::StoreUnavailable {
                source: Some(Arc::new(error)),
            },
        }
    }
}

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        let text = error.to_string();
        match error {
            BridgeError::Unreachable(_) | BridgeError::Untrustworthy(_) => Self::BridgeUnavailable(text),
            BridgeError::NotFound(_) => Self::NotFound(text),
            BridgeError::PermissionDenied(_) => Self::Forbidden(text),
            BridgeError::InvalidPath(_) => Self::InvalidPath(text),
            BridgeError::InvalidArgument(_) | BridgeError::SourceBroken(_) => Self::InvalidArgument(text),
            BridgeError::Conflict(_) => Self::Conflict(text),
            BridgeError::Changed(_) => Self::PreconditionFailed(text),
            BridgeError::NoSpace(_) => Self::DiskFull(text),
            BridgeError::NotStarted(_) => Self::ExecNotStarted(text),
            BridgeError::TooMany(_) => Self::RateLimited(text),
            BridgeError::TooLarge(_) => Self::BodyTooLarge(text),
            BridgeError::OutsideOfFile { size } => Self::RangeNotSatisfiable { size },
            BridgeError::Unsupported(_) => Self::Unsupported(text),
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::NotFound { what } => Self::NotFound(format!("{what} not found")),
            RuntimeError::AlreadyExists { what } => Self::Conflict(format!("{what} exists")),
            RuntimeError::Unsupported { .. } => Self::Unsupported(error.to_string()),
            RuntimeError::Unavailable { .. } => Self::RuntimeUnavailable {
                source: Some(Arc::new(error)),
            },
            RuntimeError::Rejected { reason } => Self::InvalidArgument(reason),
            RuntimeError::Registry { reason } => Self::ImagePullFailed(reason),
            RuntimeError::ImageNotFound { reference } => Self::ImageNotFound(reference),
            RuntimeError::Network { reason, source } => Self::NetworkSetupFailed {
                reason,
                source: source.map(Arc::from),
            },
            RuntimeError::ArchiveRefused { reason } => Self::ArchiveRefused(reason),
            RuntimeError::NoSpace { operation } => Self::NoSpace { operation },
            RuntimeError::Other { ref operation, .. } => Self::Internal {
                operation: operation.clone(),
                source: Some(Arc::new(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn the_cause_is_kept_out_of_the_sentence() {
        let error: Error = RuntimeError::other("preparing a layer", std::io::Error::other("/secret/path")).into();
        assert_eq!(error.to_string(), "preparing a layer failed");
        assert!(error.with_causes().ends_with("/secret/path"), "{}", error.with_causes());
    }

    #[test]
    fn no_path_of_the_host_is_in_a_sentence_and_each_is_in_the_log() {
        let other = |operation: &str| RuntimeError::other(operation, std::io::Error::other("busy"));
        let full = |operation: &str| RuntimeError::NoSpace {
            operation: operation.to_owned(),
        };
        let network = RuntimeError::Network {
            reason: "the CNI plugin bridge failed".to_owned(),
            source: Some("/opt/cni/bin/bridge: no".into()),
        };
        for (error, sentence, logged) in [
            (other("mounting /a b/c d failed"), "mounting … failed", "/a b/c d"),
            (other("writing 5 to (/sys/fs)"), "writing 5 to … failed", "/sys/fs"),
            (other("/srv/x"), "… failed", "/srv/x"),
            (other("mount:/srv/x"), "mount … failed", "/srv/x"),
            (other("pull host:5000/a/b:1"), "pull host:5000/a/b:1 failed", "busy"),
            (full("copying to /srv/x"), "no space left: copying to …", "/srv/x"),
            (
                network,
                "network setup failed: the CNI plugin bridge failed",
                "/opt/cni/bin",
            ),
        ] {
            let error = Error::from(error);
            assert_eq!(error.to_string(), sentence);
            assert!(error.with_causes().contains(logged), "{}", error.with_causes());
            let error = error.at("a stage");
            let staged = match sentence.starts_with(stages::NETWORK) {
                true => sentence.to_owned(),
                false => format!("a stage: {sentence}"),
            };
            assert_eq!(error.to_string(), staged);
            assert!(error.with_causes().contains(logged), "{}", error.with_causes());
        }
    }
}
