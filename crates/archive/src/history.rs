//! What an archive would make, told without making it: every name with what it is at each moment, sorted on disk, so
//! that a name through a link, or a hard link to what is not there, is found before anything is unpacked.

use std::io;
use std::path::Path;

use crate::check::unwanted;
use crate::entry::{Entry, Kind};
use crate::error::{ArchiveError, Reason};
use crate::sort::Sorter;

/// Held in memory before records go to disk.
const MOST_BYTES: usize = 16 << 20;
/// After the name: the moment, what happens there, a size.
const TAIL_BYTES: usize = 2 + 8 + 1 + 8;

const DIRECTORY: u8 = b'd';
const FILE: u8 = b'f';
const SYMLINK: u8 = b'l';
const HARD_LINK: u8 = b'h';
/// Sorted before the link of the same moment: a link to itself leads to nothing.
const TARGET: u8 = b'T';

pub(crate) struct History {
    sorter: Sorter,
    moment: u64,
}

/// What there is in the end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl History {
    pub(crate) fn new(spill: &Path) -> Self {
        Self {
            sorter: Sorter::new(spill, MOST_BYTES),
            moment: 0,
        }
    }

    /// The next entry of the archive that is not left out.
    pub(crate) fn push(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let what = match entry.kind {
            Kind::Directory if entry.name.is_empty() => return Ok(()),
            Kind::Directory => DIRECTORY,
            Kind::Symlink => SYMLINK,
            Kind::HardLink => HARD_LINK,
            _ => FILE,
        };
        self.moment += 1;
        let told = |error: io::Error| ArchiveError::io("sort the names of", &entry.name, error);
        if what == HARD_LINK {
            self.record(&entry.link, TARGET, 0).map_err(told)?;
        }
        self.record(&entry.name, what, entry.size).map_err(told)
    }

    fn record(&mut self, name: &[u8], what: u8, size: u64) -> io::Result<()> {
        // With NUL for a slash, and two of them at its end, what lies in a directory comes right after it.
        let mut record = name.to_vec();
        for byte in &mut record {
            if *byte == b'/' {
                *byte = 0;
            }
        }
        record.extend_from_slice(&[0, 0]);
        record.extend_from_slice(&self.moment.to_be_bytes());
        record.push(what);
        record.extend_from_slice(&size.to_be_bytes());
        self.sorter.push(&record)
    }

    /// # Errors
    /// The first entry, by name, that cannot be made; as `check_while` when it is not wanted any more.
    pub(crate) fn finish(self, is_wanted: &dyn Fn() -> bool) -> Result<Totals, ArchiveError> {
        let told = |error: io::Error| ArchiveError::io("sort the names of", b"", error);
        let mut sorted = self.sorter.finish().map_err(told)?;
        let mut walk = Walk::default();
        while let Some(record) = sorted.next().map_err(told)? {
            if !is_wanted() {
                return Err(told(unwanted()));
            }
            let (name, tail) = record.split_at(record.len() - TAIL_BYTES);
            let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| tail[at + byte]));
            walk.step(name, number(2), tail[10], number(11))
                .map_err(|reason| ArchiveError::refused(&shown(name), reason))?;
        }
        walk.close_down_to(0);
        Ok(walk.totals)
    }
}

fn shown(name: &[u8]) -> Vec<u8> {
    name.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect()
}

#[derive(Default)]
struct Walk {
    /// The names that lead to the current one, as far as the archive has them.
    open: Vec<Name>,
    totals: Totals,
}

struct Name {
    name: Vec<u8>,
    /// What it is at the moment that was told last; `None`: only asked for.
    state: Option<u8>,
    size: u64,
    /// Entries below must be of this moment or a later one: before, this name was no directory.
    directory_since: u64,
    /// The same of all that it lies in.
    above_since: u64,
}

impl Walk {
    fn step(&mut self, name: &[u8], moment: u64, what: u8, size: u64) -> Result<(), Reason> {
        let is_open = |of: &Name| {
            name.strip_prefix(of.name.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest[0] == 0)
        };
        let open = self.open.iter().take_while(|of| is_open(of)).count();
        self.close_down_to(open);
        if self.open.last().is_none_or(|last| last.name != name) {
            let above_since = self
                .open
                .last()
                .map_or(0, |above| above.above_since.max(above.directory_since));
            self.open.push(Name {
                name: name.to_vec(),
                state: None,
                size: 0,
                directory_since: 0,
                above_since,
            });
        }
        match self.open.last_mut() {
            Some(last) if moment >= last.above_since => last.change(moment, what, size),
            _ => Err(Reason::ThroughLink),
        }
    }

    fn close_down_to(&mut self, count: usize) {
        for name in self.open.drain(count..) {
            self.totals.entries += u64::from(name.state.is_some());
            if name.state == Some(FILE) {
                self.totals.bytes += name.size;
            }
        }
    }
}

impl Name {
    fn change(&mut self, moment: u64, what: u8, size: u64) -> Result<(), Reason> {
        match (self.state, what) {
            (Some(FILE | SYMLINK | HARD_LINK), TARGET) => return Ok(()),
            (_, TARGET) => return Err(Reason::LinkNotInArchive),
            // A hard link may be one to a symbolic link.
            (Some(SYMLINK | HARD_LINK), DIRECTORY) => return Err(Reason::DirectoryOverLink),
            (None | Some(DIRECTORY), DIRECTORY) => {}
            (_, DIRECTORY) => self.directory_since = moment,
            // Nothing may lie below it, unless it becomes a directory again.
            _ => self.directory_since = u64::MAX,
        }
        (self.state, self.size) = (Some(what), size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each name with its kind (`d`, `f`, `l`, `h`) and, of a hard link, its target.
    fn history(steps: &[(&str, u8, &str)]) -> Result<Totals, Reason> {
        let spill = tempfile::tempdir().expect("a directory");
        let mut history = History::new(spill.path());
        for (name, kind, link) in steps {
            history
                .push(&Entry {
                    name: name.as_bytes().to_vec(),
                    kind: match kind {
                        b'd' => Kind::Directory,
                        b'l' => Kind::Symlink,
                        b'h' => Kind::HardLink,
                        _ => Kind::File,
                    },
                    link: link.as_bytes().to_vec(),
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    mtime: (0, 0),
                    size: 10,
                    segments: None,
                    attributes: Vec::new(),
                })
                .expect("noted");
        }
        history.finish(&|| true).map_err(|error| match error {
            ArchiveError::Refused(refusal) => refusal.reason,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn what_an_archive_would_make_is_known_before() {
        let totals = |entries, bytes| Ok(Totals { entries, bytes });
        for (steps, expected) in [
            (&[][..], totals(0, 0)),
            (&[("a", b'd', ""), ("a/b", b'f', ""), ("a!", b'f', "")], totals(3, 20)),
            (&[("a/b/c", b'f', ""), ("a", b'd', "")], totals(2, 10)),
            (&[("a", b'f', ""), ("a", b'f', "")], totals(1, 10)),
            (&[("a", b'f', ""), ("b", b'h', "a"), ("c", b'h', "b")], totals(3, 10)),
            (&[("l", b'l', ""), ("k", b'h', "l")], totals(2, 0)),
            (&[("a", b'f', ""), ("a", b'd', ""), ("a/b", b'f', "")], totals(2, 10)),
            (&[("l", b'l', ""), ("l", b'f', "")], totals(1, 10)),
            (&[("l", b'l', ""), ("l/x", b'f', "")], Err(Reason::ThroughLink)),
            (&[("l/x", b'f', ""), ("l", b'l', "")], Err(Reason::ThroughLink)),
            (&[("l", b'l', ""), ("l/x/y/z", b'f', "")], Err(Reason::ThroughLink)),
            (&[("f", b'f', ""), ("f/x", b'f', "")], Err(Reason::ThroughLink)),
            (
                &[("f", b'f', ""), ("f/x", b'f', ""), ("f", b'd', "")],
                Err(Reason::ThroughLink),
            ),
            (&[("l", b'l', ""), ("l", b'd', "")], Err(Reason::DirectoryOverLink)),
            (
                &[("l", b'l', ""), ("k", b'h', "l"), ("k", b'd', "")],
                Err(Reason::DirectoryOverLink),
            ),
            (&[("a", b'h', "b")], Err(Reason::LinkNotInArchive)),
            (&[("a", b'h', "b"), ("b", b'f', "")], Err(Reason::LinkNotInArchive)),
            (&[("a", b'h', "a")], Err(Reason::LinkNotInArchive)),
            (&[("d", b'd', ""), ("a", b'h', "d")], Err(Reason::LinkNotInArchive)),
            (&[("d/f", b'f', ""), ("a", b'h', "d")], Err(Reason::LinkNotInArchive)),
        ] {
            assert_eq!(history(steps), expected, "{steps:?}");
        }
    }
}
