//! Why devices cannot be given, for whoever asked for them.

use std::fmt;

use super::Broken;

/// The most names that one sentence lists.
const MOST_LISTED: usize = 64;

/// Display is the sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CdiError {
    /// No file names it.
    Unknown {
        /// Asked for and not there.
        names: Vec<String>,
        /// What there is.
        known: Vec<String>,
        /// Files that cannot be read: what was asked for may be in one of them.
        broken: Vec<Broken>,
    },
    /// A file names it, and it cannot be given here.
    Unusable {
        /// Which.
        device: String,
        /// What is in the way.
        reason: String,
    },
}

impl std::error::Error for CdiError {}

impl fmt::Display for CdiError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { device, reason } => write!(to, "the device {device} cannot be used: {reason}"),
            Self::Unknown { names, known, broken } => {
                write!(to, "this host has no device {}; ", names.join(", "))?;
                match known.as_slice() {
                    [] => write!(to, "it has none at all")?,
                    known => write!(to, "there are {}", listed(known))?,
                }
                for Broken { file, reason } in broken.iter().take(MOST_LISTED) {
                    write!(to, "; {file} is broken: {reason}")?;
                }
                Ok(())
            }
        }
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MOST_LISTED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MOST_LISTED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
