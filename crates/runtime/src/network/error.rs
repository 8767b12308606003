//! Why the network could not do what it was asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::RuntimeError;

/// The cause's type where it comes from another layer.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Display says what was tried on what; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A configuration that can never work; names the key to change.
    #[error("{0}")]
    Configuration(String),
    /// Another data root uses it; names the key to change.
    #[error(
        "{kind} {name} is used by data root {holder}: give this server another one with `{key}` in its configuration"
    )]
    Claimed {
        /// `bridge` or `nftables table`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The data root that uses it.
        holder: String,
        /// The key to change.
        key: &'static str,
    },
    /// The network has no interface on the host's side, so no rule can hold for it.
    #[error(
        "the network of {configuration} has no interface on the host's side, so its traffic cannot be isolated; \
         set `network.unisolated = true` to accept that"
    )]
    Unisolated {
        /// Where it was read.
        configuration: String,
    },
    /// A program was not there or could not be run.
    #[error("{program} could not be run")]
    NotRun {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program did not end in time and was killed.
    #[error("{program} did not end within {limit:?}")]
    TimedOut {
        /// Its path.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// A CNI plugin answered with an error, or with something that is no answer.
    #[error("CNI plugin {plugin} failed to {command}: {reason}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// Its code, message, details and standard error.
        reason: String,
    },
    /// nftables refused.
    #[error("nft could not {operation}: {reason}")]
    Nft {
        /// What was asked.
        operation: &'static str,
        /// Its standard error.
        reason: String,
    },
    /// The rules are not in force: nothing is attached until they are.
    #[error("the rules that isolate workspaces are not in force: {reason}")]
    RulesMissing {
        /// What is known.
        reason: String,
    },
    /// What a check found wrong with one workspace's network.
    #[error("the network of {bot} is broken: {reason}")]
    Broken {
        /// The bot.
        bot: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else.
    #[error("{operation} failed")]
    Other {
        /// What was tried on what.
        operation: String,
        /// Why it failed.
        #[source]
        source: Cause,
    },
}

impl NetworkError {
    /// Wraps a cause with what was tried on what; for `map_err`.
    pub(super) fn other<E: Into<Cause>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Other {
            operation,
            source: source.into(),
        }
    }

    /// What it comes to for whoever has a workspace: without paths of the host, or what programs said of it.
    fn sentence(&self) -> String {
        let name = |program: &Path| program.file_name().unwrap_or_default().display().to_string();
        match self {
            Self::Configuration(_) => "its configuration cannot work".to_owned(),
            Self::Claimed { kind, name, .. } => format!("the {kind} {name} belongs to another server"),
            Self::Unisolated { .. } => "its traffic cannot be isolated".to_owned(),
            Self::NotRun { program, .. } => format!("{} could not be run", name(program)),
            Self::TimedOut { program, limit } => format!("{} did not end within {limit:?}", name(program)),
            Self::Plugin { plugin, command, .. } => format!("the CNI plugin {plugin} failed to {command}"),
            Self::Nft { .. } => "the rules that isolate workspaces could not be changed".to_owned(),
            Self::RulesMissing { .. } => "the rules that isolate workspaces are not in force".to_owned(),
            Self::Broken { .. } => "it does not work any more".to_owned(),
            Self::Other { .. } => "the host failed to do it".to_owned(),
        }
    }

    /// The whole chain of causes in one line, for the log and for the host's operator.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

impl From<NetworkError> for RuntimeError {
    fn from(error: NetworkError) -> Self {
        Self::Network {
            reason: error.sentence(),
            source: Some(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_hears_no_path_of_the_host_and_the_log_the_whole_chain() {
        let missing = || std::io::Error::other("/secret/file is not there");
        let program = || PathBuf::from("/secret/cni/bridge");
        for (error, sentence) in [
            (
                NetworkError::NotRun {
                    program: program(),
                    source: missing(),
                },
                "bridge could not be run",
            ),
            (
                NetworkError::TimedOut {
                    program: program(),
                    limit: Duration::from_secs(5),
                },
                "bridge did not end within 5s",
            ),
            (
                NetworkError::Plugin {
                    plugin: "bridge".to_owned(),
                    command: "ADD",
                    reason: "open /secret/x".to_owned(),
                },
                "the CNI plugin bridge failed to ADD",
            ),
            (
                NetworkError::other("writing /secret/y")(missing()),
                "the host failed to do it",
            ),
        ] {
            let chain = error.chain();
            let error = RuntimeError::from(error);
            assert_eq!(error.to_string(), format!("network setup failed: {sentence}"));
            let source = std::error::Error::source(&error).map(ToString::to_string);
            assert!(source.is_some_and(|source| chain.contains(&source) && chain.contains("/secret")));
        }
    }
}
