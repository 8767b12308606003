//! The log of a workspace's bridge, read on the host.
//!
//! The bridge writes it into the directory of its socket, which is the tenant's: whatever lies there is opened
//! without following anything, read within limits and made harmless text before it goes anywhere. When a workspace
//! ends a backend keeps a copy, and takes that away with the workspace.
//!
//! Every function here blocks for a few milliseconds at most.

mod follow;
mod harmless;
mod keep;
mod open;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use follow::LogFollower;
pub use keep::{forget, keep};

use harmless::harmless_text;

/// What is read of a log and kept of it at most, in bytes: as much as the bridge's ring holds.
pub const LOG_BYTES: usize = 256 * 1024;
/// The bridge's names for the two halves of its ring, the older one first.
pub(crate) const LIVE_FILES: [&str; 2] = ["bridge.log.1", "bridge.log"];

/// How often the files are looked at when the log is copied meanwhile.
const LOOKS: u32 = 3;

/// Where the log of one bot's workspace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlaces {
    /// The directory of the bridge's socket; there only while the workspace runs or has just died.
    pub live_directory: PathBuf,
    /// The copy of what earlier runs wrote.
    pub kept_file: PathBuf,
}

impl LogPlaces {
    /// All that there is, the oldest line first, at most [`LOG_BYTES`]: what was kept, then what runs now. Control
    /// characters other than line ends and tabs are written as escapes, what is not UTF-8 as U+FFFD.
    ///
    /// # Errors
    /// A file that is there cannot be read. None being there is an empty log.
    pub fn read(&self) -> io::Result<String> {
        Ok(self.look()?.text())
    }

    /// The copy and the live files as they were at one moment: a workspace may end, and its log be copied, meanwhile.
    fn look(&self) -> io::Result<Seen> {
        for _ in 1..LOOKS {
            let seen = self.look_once()?;
            if keep::identity(&self.kept_file)? == seen.kept_identity {
                return Ok(seen);
            }
        }
        self.look_once()
    }

    fn look_once(&self) -> io::Result<Seen> {
        let (kept_identity, kept) = keep::read(&self.kept_file)?;
        let mut live = Vec::new();
        for file in open::live(&self.live_directory)? {
            let from = file.size()?.saturating_sub(LOG_BYTES as u64);
            let bytes = file.read_at(from, LOG_BYTES)?;
            let read_to = from + bytes.len() as u64;
            live.push(SeenFile { file, bytes, read_to });
        }
        Ok(Seen {
            kept_identity,
            kept,
            live,
        })
    }
}

/// What was read at once.
struct Seen {
    kept_identity: Option<(u64, u64)>,
    kept: String,
    live: Vec<SeenFile>,
}

struct SeenFile {
    file: open::LogFile,
    bytes: Vec<u8>,
    read_to: u64,
}

impl Seen {
    fn text(&self) -> String {
        let mut text = self.kept.clone();
        for file in &self.live {
            // Each run begins with a line of its own.
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&harmless_text(&file.bytes));
        }
        harmless::cut_to_tail(&mut text, LOG_BYTES);
        text
    }
}
