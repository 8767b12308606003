//! Everything that can go wrong on the command line, and the exit code each kind has.

use std::process::ExitCode;
use std::time::Duration;

use skep_api::ErrorCode;

use crate::output::printable_lines;

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server answered with an error of its own.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code of the contract, empty when the answer was not ours.
        code: String,
        /// The sentence for a person.
        message: String,
        /// To find the line in the server's log.
        request_id: Option<String>,
    },
    /// An event stream ended in `error`.
    #[error("{message}")]
    StreamFailed {
        /// Stable code, when it was told.
        code: Option<String>,
        /// `<stage>: <cause>`.
        message: String,
    },
    /// An event stream or a download ended before its end was told.
    #[error("the server's answer ended early while {0}; `skep ops ls` shows how it went on")]
    CutOff(&'static str),
    /// Nothing answers.
    #[error("cannot reach {url}: {source}{hint}")]
    NotReachable {
        /// What was tried.
        url: String,
        /// What to do about it.
        hint: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was reached, and does not answer.
    #[error("{url} was reached and gave no answer within {} s", limit.as_secs())]
    Late {
        /// What was asked.
        url: String,
        /// How long was waited.
        limit: Duration,
    },
    /// Nobody named a server, and none runs here.
    #[error("no server is named and none runs here: `skep up` starts one, --server or SKEP_SERVER names another")]
    NoServer,
    /// There is no credential to use.
    #[error("not signed in: use `skep login`, --token or SKEP_TOKEN ({0})")]
    NoCredential(String),
    /// What only root may do on this machine.
    #[error("{0}: run it as root")]
    NotRoot(String),
    /// A name that fits nothing.
    #[error("no bot is called {0:?}, and no id begins with it")]
    NoSuchBot(String),
    /// A name that fits several.
    #[error("{name:?} fits {count} bots; use more of the id:{list}")]
    AmbiguousBot {
        /// What was asked for.
        name: String,
        /// How many fit.
        count: usize,
        /// One line for each.
        list: String,
    },
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The answer is not what the contract says.
    #[error("the server answered something unexpected while {doing}: {what}")]
    Unexpected {
        /// What was being done.
        doing: &'static str,
        /// What came.
        what: String,
    },
    /// Something on this machine failed.
    #[error("{doing}: {source}")]
    Local {
        /// What was tried on what.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A program on this machine failed.
    #[error("{0}")]
    Failed(String),
    /// The command ran and ended with this code, which becomes ours. Says nothing.
    #[error("exit code {0}")]
    CommandEnded(u8),
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failed call to this machine.
    pub(crate) fn local(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Local {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// 1 failure, 2 usage, 3 not found, 4 not allowed, 5 not reachable; for a command, its own.
    pub(crate) fn exit_number(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::AmbiguousBot { .. } => 2,
            Self::NoSuchBot(_) => 3,
            Self::NoCredential(_) | Self::NotRoot(_) => 4,
            Self::NotReachable { .. } | Self::NoServer => 5,
            Self::CommandEnded(code) => *code,
            Self::Refused { status, code, .. } => match code.parse() {
                Ok(code) => exit_of_code(code),
                Err(_) => exit_of_status(*status),
            },
            Self::StreamFailed { code, .. } => match code.as_deref().map(str::parse) {
                Some(Ok(code)) => exit_of_code(code),
                Some(Err(_)) | None => 1,
            },
            Self::CutOff(_) | Self::Late { .. } | Self::Unexpected { .. } | Self::Local { .. } | Self::Failed(_) => 1,
        }
    }

    /// Tells the person, once, on standard error, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !matches!(self, Self::CommandEnded(_)) {
            eprintln!("skep: {}", printable_lines(&self.to_string()));
        }
        if let Self::Refused {
            status: 500..,
            request_id: Some(id),
            ..
        } = self
        {
            eprintln!("skep: the server's log has more under the request id {id}");
        }
        ExitCode::from(self.exit_number())
    }
}

/// An error and its causes in one line, each said once.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !line.contains(&said) {
            line.push_str(": ");
            line.push_str(&said);
        }
        next = cause.source();
    }
    line
}

/// The same whether it came as an answer or as the end of a stream.
fn exit_of_code(code: ErrorCode) -> u8 {
    use ErrorCode as Code;
    match code {
        Code::BotNotFound
        | Code::ContainerNotFound
        | Code::VersionNotFound
        | Code::BackupNotFound
        | Code::ImageNotFound
        | Code::NotFound => 3,
        Code::Unauthorized
        | Code::InvalidCredentials
        | Code::BotAccessDenied
        | Code::Forbidden
        | Code::ImageNotAllowed => 4,
        Code::RuntimeUnavailable | Code::StoreUnavailable | Code::BridgeUnavailable => 5,
        _ => 1,
    }
}

/// Of a code that this release does not know, or of what is no Skep server.
fn exit_of_status(status: u16) -> u8 {
    match status {
        401 | 403 => 4,
        404 => 3,
        // Of a proxy before it.
        502..=504 => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> u8 {
        Failure::Refused {
            status,
            code: code.into(),
            message: String::new(),
            request_id: None,
        }
        .exit_number()
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        assert_eq!(refused(500, "internal"), 1);
        assert_eq!(refused(404, "bot_not_found"), 3);
        assert_eq!(refused(401, "unauthorized"), 4);
        assert_eq!(refused(403, "bot_access_denied"), 4);
        assert_eq!(refused(503, "runtime_unavailable"), 5);
        assert_eq!(refused(502, ""), 5);
        assert_eq!(refused(409, "workspace_stopped"), 1);
        assert_eq!(Failure::NoServer.exit_number(), 5);
        assert_eq!(Failure::Usage(String::new()).exit_number(), 2);
        assert_eq!(Failure::CommandEnded(77).exit_number(), 77);
        assert_eq!(Failure::NotRoot(String::new()).exit_number(), 4);
        assert_eq!(refused(404, "a code of another release"), 3);
    }

    #[test]
    fn a_stream_that_fails_has_the_exit_code_of_the_answer() {
        for (status, code, exit) in [
            (404, "image_not_found", 3),
            (404, "version_not_found", 3),
            (404, "backup_not_found", 3),
            (403, "image_not_allowed", 4),
            (503, "runtime_unavailable", 5),
            (503, "store_unavailable", 5),
            (503, "bridge_unavailable", 5),
            (500, "container_start_failed", 1),
        ] {
            let stream = Failure::StreamFailed {
                code: Some(code.into()),
                message: String::new(),
            };
            assert_eq!((refused(status, code), stream.exit_number()), (exit, exit), "{code}");
        }
    }
}
