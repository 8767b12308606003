//! Why a verb of a runtime failed, as far as a caller acts differently.

/// The error of every verb.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// Display says what was tried on what; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The named thing is not there.
    #[error("{what} not found")]
    NotFound { what: String },
    /// The named thing is there and differs from what was asked.
    #[error("{what} exists")]
    AlreadyExists { what: String },
    /// This backend cannot do it.
    #[error("{what} is not supported on the {backend} backend")]
    Unsupported { backend: &'static str, what: String },
    /// The backend does not answer.
    #[error("{runtime} is not reachable")]
    Unavailable {
        runtime: &'static str,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// What was asked can never work as it was asked, or is not allowed now; the reason is for the caller.
    #[error("{reason}")]
    Rejected { reason: String },
    /// The registry failed, or what it sent was not what it said.
    #[error("{reason}")]
    Registry { reason: String },
    /// The registry has no such image.
    #[error("image {reference} not found")]
    ImageNotFound { reference: String },
    /// The network could not be set up.
    #[error("network setup failed: {reason}")]
    Network {
        /// For a caller: names no path of the host.
        reason: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// An archive that is not taken; the reason is for whoever sent it.
    #[error("{reason}")]
    ArchiveRefused { reason: String },
    /// No space left on the device.
    #[error("no space left: {operation}")]
    NoSpace { operation: String },
    /// Anything else.
    #[error("{operation} failed")]
    Other {
        operation: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RuntimeError {
    /// Wraps a cause with what was tried on what.
    pub fn other(operation: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
