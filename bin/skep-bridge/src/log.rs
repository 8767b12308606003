//! What the bridge tells whoever looks after the workspace: on stderr, and in a ring of two files beside its socket,
//! which the host reads.
//!
//! Never the text of a command, an argument or a value of an environment. The place is a small tmpfs that the tenant
//! can write: whatever is done to the files there, and however full it is, the bridge goes on and loses lines at most.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

/// The newer half of the ring.
const PRESENT: &str = "bridge.log";
/// The older half.
const EARLIER: &str = "bridge.log.1";
/// The longest that one half becomes, in bytes: 256 KiB in all, a quarter of the tmpfs.
const HALF_BYTES: u64 = 128 * 1024;
/// The longest message of one line, in bytes.
const LONGEST_MESSAGE: usize = 4 * 1024;

static RING: Mutex<Option<Ring>> = Mutex::new(None);

/// From now on lines are also kept in this directory.
///
/// # Errors
/// The directory cannot be opened.
pub(crate) fn keep_in(directory: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let ring = Ring {
        directory: rustix::fs::open(directory, flags, Mode::empty())?,
        present: None,
        lost_lines: 0,
        in_line: false,
    };
    *RING.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring);
    Ok(())
}

/// Tells one line. What it is made of may come from the tenant: control characters in it are written as escapes.
pub(crate) fn write_line(message: &str) {
    let message = one_line(message);
    // Nobody may be there to read it; a closed stderr must not end process 1.
    drop(writeln_stderr(&message));
    if let Some(ring) = RING.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        ring.append(&format!("{time} skep-bridge: {message}\n"));
    }
}

fn writeln_stderr(message: &str) -> io::Result<()> {
    io::Write::write_fmt(&mut io::stderr(), format_args!("skep-bridge: {message}\n"))
}

/// [`write_line`] with a format.
macro_rules! tell {
    ($($part:tt)*) => { $crate::log::write_line(&format!($($part)*)) };
}
pub(crate) use tell;

fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for letter in message.chars() {
        if line.len() >= LONGEST_MESSAGE {
            line.push('…');
            break;
        }
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

struct Ring {
    directory: OwnedFd,
    present: Option<OwnedFd>,
    /// Lines that could not be written, to be told when one can.
    lost_lines: u64,
    /// The last write broke off within a line.
    in_line: bool,
}

impl Ring {
    fn append(&mut self, line: &str) {
        let mut text = String::new();
        if self.in_line {
            text.push('\n');
        }
        if self.lost_lines > 0 {
            // A String takes whatever is written to it.
            writeln!(text, "skep-bridge: {} lines could not be kept", self.lost_lines).unwrap_or_default();
        }
        text.push_str(line);
        match self.write(text.as_bytes()) {
            Ok(()) => {
                self.lost_lines = 0;
                self.in_line = false;
            }
            // Most likely the tenant filled the file system: told with the next line that can be written.
            Err(_) => {
                self.lost_lines += 1;
                self.present = None;
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.has_room(bytes.len() as u64)? {
            self.turn()?;
        }
        if self.present.is_none() {
            self.present = Some(self.open()?);
        }
        let Some(present) = &self.present else { return Ok(()) };
        while !bytes.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(present, bytes))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.in_line = true;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Whether the present file can take that much. One that somebody has removed is let go.
    fn has_room(&mut self, bytes: u64) -> io::Result<bool> {
        if self.present.is_none() {
            self.present = Some(self.open()?);
        }
        let Some(present) = &self.present else { return Ok(true) };
        let seen = rustix::fs::fstat(present)?;
        if seen.st_nlink == 0 {
            self.present = None;
            return Ok(true);
        }
        Ok(seen.st_size.cast_unsigned().saturating_add(bytes) <= HALF_BYTES)
    }

    /// The present file becomes the earlier one.
    fn turn(&mut self) -> io::Result<()> {
        self.present = None;
        rustix::fs::renameat(&self.directory, PRESENT, &self.directory, EARLIER)
            // A directory in the way, say: better the newest lines than none.
            .or_else(|_| rustix::fs::unlinkat(&self.directory, PRESENT, AtFlags::empty()))?;
        Ok(())
    }

    /// Opens or makes the file; what is there and is no plain file is left alone.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, PRESENT, flags, Mode::from_raw_mode(0o600))?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn ring(directory: &Path) -> Ring {
        Ring {
            directory: rustix::fs::open(directory, OFlags::PATH, Mode::empty()).expect("a directory"),
            present: None,
            lost_lines: 0,
            in_line: false,
        }
    }

    #[test]
    fn the_two_files_never_hold_more_than_the_ring() {
        let place = tempfile::tempdir().expect("a directory");
        let mut ring = ring(place.path());
        let size = |name: &str| fs::metadata(place.path().join(name)).map_or(0, |found| found.len());
        for number in 0..10_000 {
            ring.append(&format!("line {number} {}\n", "x".repeat(80)));
            assert!(size(PRESENT) + size(EARLIER) <= 2 * HALF_BYTES);
        }
        let all = fs::read_to_string(place.path().join(EARLIER)).expect("the older half")
            + &fs::read_to_string(place.path().join(PRESENT)).expect("the newer half");
        assert!(all.len() as u64 > HALF_BYTES, "more than one half is kept");
        let numbers: Vec<u32> = all
            .lines()
            .map(|line| {
                line.split(' ')
                    .nth(1)
                    .and_then(|word| word.parse().ok())
                    .expect("a line")
            })
            .collect();
        assert_eq!(numbers.last(), Some(&9_999));
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "nothing between is missing"
        );
    }

    #[test]
    fn a_line_that_could_not_be_kept_is_told_with_the_next() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join(PRESENT)).expect("something in the way");
        let mut ring = ring(place.path());
        ring.append("one\n");
        ring.append("two\n");
        fs::remove_dir(place.path().join(PRESENT)).expect("out of the way");
        ring.append("three\n");
        assert_eq!(
            fs::read_to_string(place.path().join(PRESENT)).expect("the log"),
            "skep-bridge: 2 lines could not be kept\nthree\n"
        );
    }

    #[test]
    fn a_log_that_was_removed_begins_anew() {
        let place = tempfile::tempdir().expect("a directory");
        let mut ring = ring(place.path());
        ring.append("one\n");
        fs::remove_file(place.path().join(PRESENT)).expect("removed");
        ring.append("two\n");
        assert_eq!(
            fs::read_to_string(place.path().join(PRESENT)).expect("the log"),
            "two\n"
        );
    }

    #[test]
    fn links_and_pipes_in_place_of_the_log_are_not_written_to() {
        let place = tempfile::tempdir().expect("a directory");
        let elsewhere = place.path().join("elsewhere");
        fs::write(&elsewhere, b"").expect("written");
        std::os::unix::fs::symlink(&elsewhere, place.path().join(PRESENT)).expect("a link");
        ring(place.path()).append("one\n");
        assert_eq!(fs::read(&elsewhere).expect("read"), b"");
        fs::remove_file(place.path().join(PRESENT)).expect("removed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            place.path().join(PRESENT),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        ring(place.path()).append("one\n");
    }

    #[test]
    fn a_message_is_one_line_of_a_limited_length() {
        assert_eq!(one_line("a\nb\u{1b}[2Jc"), "a\\nb\\u{1b}[2Jc");
        assert!(one_line(&"x".repeat(100_000)).len() <= LONGEST_MESSAGE + 4);
    }
}
