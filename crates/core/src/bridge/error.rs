//! Why something asked of a bridge failed, as far as a caller acts differently.

use skep_bridge_protocol::reason;
use tonic::{Code, Status};

/// The result of everything asked of a bridge.
pub type BridgeResult<T> = Result<T, BridgeError>;

/// The sentences come from the bridge, cut and cleaned ([`sentence`]): they are a stranger's, fit to be shown to
/// whoever may use the bot, and to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// No connection, or it was lost, or the bridge took too long.
    #[error("container not reachable: {0}")]
    Unreachable(String),
    /// It answered what no bridge of ours would.
    #[error("container not reachable: the bridge answered {0}")]
    Untrustworthy(String),
    /// No such file.
    #[error("{0}")]
    NotFound(String),
    /// The tenant's own rights do not allow it.
    #[error("{0}")]
    PermissionDenied(String),
    /// A directory, or not one, or neither a file; a name too long; a path that cannot be.
    #[error("{0}")]
    InvalidPath(String),
    /// Another value that cannot be.
    #[error("{0}")]
    InvalidArgument(String),
    /// A directory with entries, an existing target, a process that is over: the state excludes it.
    #[error("{0}")]
    Conflict(String),
    /// The file is not the one the caller has seen.
    #[error("{0}")]
    Changed(String),
    /// No space, quota or inode left.
    #[error("{0}")]
    NoSpace(String),
    /// The process could not be started at all.
    #[error("{0}")]
    NotStarted(String),
    /// As many of its kind are under way as may be.
    #[error("{0}")]
    TooMany(String),
    /// Over a limit of ours; says the limit and the way round it.
    #[error("{0}")]
    TooLarge(String),
    /// The range begins behind the end of a file of this many bytes.
    #[error("the range lies outside of the {size} bytes there are")]
    OutsideOfFile {
        /// Bytes of the file.
        size: u64,
    },
    /// The workspace's bridge is of an older kind that lacks it.
    #[error("the bridge of this workspace is too old for {0}")]
    Unsupported(String),
    /// What the caller sent broke off, so nothing was changed.
    #[error("{0}")]
    SourceBroken(String),
}

impl BridgeError {
    /// Whether the connection is to be given up.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Untrustworthy(_))
    }

    /// The bridge answered too late.
    pub(crate) fn late(what: &str) -> Self {
        Self::Unreachable(format!("{what} took too long"))
    }
}

/// The longest sentence of a bridge that is passed on, in characters.
const LONGEST_SENTENCE: usize = 1024;

/// A bridge's sentence without control characters, and not longer than anybody reads.
pub(crate) fn sentence(text: &str) -> String {
    let clean = text
        .chars()
        .take(LONGEST_SENTENCE)
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    clean.collect()
}

impl From<Status> for BridgeError {
    fn from(status: Status) -> Self {
        let text = sentence(status.message());
        let word = status
            .metadata()
            .get(reason::METADATA_KEY)
            .and_then(|word| word.to_str().ok());
        match word {
            Some(reason::EXEC_NOT_STARTED) => return Self::NotStarted(text),
            Some(reason::EXEC_EXITED | reason::NOT_EMPTY) => return Self::Conflict(text),
            Some(
                reason::IS_A_DIRECTORY | reason::NOT_A_DIRECTORY | reason::NOT_A_REGULAR_FILE | reason::NAME_TOO_LONG,
            ) => return Self::InvalidPath(text),
            Some(reason::CHANGED) => return Self::Changed(text),
            Some(reason::TOO_MANY) => return Self::TooMany(text),
            Some(reason::NO_SPACE) => return Self::NoSpace(text),
            _ => {}
        }
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            Code::PermissionDenied => Self::PermissionDenied(text),
            Code::InvalidArgument => Self::InvalidArgument(text),
            Code::AlreadyExists | Code::FailedPrecondition => Self::Conflict(text),
            Code::Aborted => Self::Changed(text),
            Code::ResourceExhausted => Self::NoSpace(text),
            Code::Unimplemented if text.is_empty() => Self::Unsupported("this".to_owned()),
            Code::Unimplemented => Self::Unsupported(text),
            Code::DataLoss => Self::Untrustworthy(text),
            // The word of both ends for a message beyond their limits, which ours do not send.
            Code::OutOfRange => Self::Untrustworthy("a longer message than is taken of one".to_owned()),
            Code::DeadlineExceeded => Self::late("the bridge"),
            _ => Self::Unreachable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_of_a_stranger_is_cut_and_cleaned() {
        assert_eq!(sentence("no\u{1b}[31m\nfile"), "no [31m file");
        assert_eq!(sentence(&"x".repeat(5000)).len(), LONGEST_SENTENCE);
    }

    #[test]
    fn the_word_in_the_metadata_wins_over_the_code() {
        let mut status = Status::failed_precondition("is a directory");
        assert!(matches!(BridgeError::from(status.clone()), BridgeError::Conflict(_)));
        status
            .metadata_mut()
            .insert(reason::METADATA_KEY, reason::IS_A_DIRECTORY.parse().unwrap());
        assert!(matches!(BridgeError::from(status), BridgeError::InvalidPath(_)));
    }
}
