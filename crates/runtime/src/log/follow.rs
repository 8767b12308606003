//! A log as it grows: over the turns of its ring, over ends and new starts of its workspace.

use std::io;

use super::harmless::harmless_text;
use super::open::LogFile;
use super::{LOG_BYTES, LogPlaces, open};

/// A line that does not end is told when it is this long, in bytes.
const LONGEST_LINE: usize = 64 * 1024;

/// Reads what was added since the last time. Holds the present file open, so that nothing that was written to it is
/// missed when it is replaced or its directory is gone.
#[derive(Debug)]
pub struct LogFollower {
    places: LogPlaces,
    held: Option<Held>,
    /// What came of a line that has not ended.
    unfinished: Vec<u8>,
}

#[derive(Debug)]
struct Held {
    file: LogFile,
    read_to: u64,
}

impl LogFollower {
    /// All that there is already, as [`LogPlaces::read`] gives it (a line that has not ended excepted: it comes when
    /// it has), and a follower of what comes.
    ///
    /// # Errors
    /// As of [`LogPlaces::read`].
    pub fn begin(places: LogPlaces) -> io::Result<(String, Self)> {
        let mut seen = places.look()?;
        let mut held = None;
        let mut unfinished = Vec::new();
        if let Some(last) = seen.live.last_mut() {
            let whole = last.bytes.iter().rposition(|byte| *byte == b'\n');
            unfinished = last.bytes.split_off(whole.map_or(0, |end| end + 1));
        }
        let text = seen.text();
        if let Some(last) = seen.live.pop() {
            held = Some(Held {
                file: last.file,
                read_to: last.read_to,
            });
        }
        let follower = Self {
            places,
            held,
            unfinished,
        };
        Ok((text, follower))
    }

    /// Whole lines that were added since, at most [`LOG_BYTES`] of each file; empty when there are none.
    ///
    /// # Errors
    /// A file that is there cannot be read.
    pub fn added(&mut self) -> io::Result<String> {
        let mut text = String::new();
        let live = open::live(&self.places.live_directory)?;
        let held = self.held.as_ref().map(|held| held.file.identity);
        let at = live.iter().position(|file| Some(file.identity) == held);
        // The rest of the held file, wherever its name leads by now.
        self.read_held(&mut text)?;
        let new = match at {
            Some(at) => at + 1,
            None => {
                self.end_of_file(&mut text);
                0
            }
        };
        for file in live.into_iter().skip(new) {
            self.end_of_file(&mut text);
            self.held = Some(Held { file, read_to: 0 });
            self.read_held(&mut text)?;
        }
        Ok(text)
    }

    fn read_held(&mut self, into: &mut String) -> io::Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let size = held.file.size()?;
        if size < held.read_to {
            // Its tenant has shortened it: what it has now is new.
            held.read_to = 0;
        }
        if size - held.read_to > LOG_BYTES as u64 {
            into.push_str("skep: lines were left out here\n");
            held.read_to = size - LOG_BYTES as u64;
            self.unfinished.clear();
        }
        let most = usize::try_from(size - held.read_to).unwrap_or(LOG_BYTES);
        let bytes = held.file.read_at(held.read_to, most)?;
        held.read_to += bytes.len() as u64;
        self.unfinished.extend_from_slice(&bytes);
        self.tell_whole_lines(into);
        Ok(())
    }

    fn tell_whole_lines(&mut self, into: &mut String) {
        let end = self.unfinished.iter().rposition(|byte| *byte == b'\n');
        let whole: Vec<u8> = self.unfinished.drain(..end.map_or(0, |end| end + 1)).collect();
        into.push_str(&harmless_text(&whole));
        if self.unfinished.len() > LONGEST_LINE {
            self.end_line(into);
        }
    }

    /// Nothing more comes from the held file.
    fn end_of_file(&mut self, into: &mut String) {
        self.end_line(into);
        self.held = None;
    }

    fn end_line(&mut self, into: &mut String) {
        if !self.unfinished.is_empty() {
            into.push_str(&harmless_text(&self.unfinished));
            into.push('\n');
            self.unfinished.clear();
        }
    }
}
