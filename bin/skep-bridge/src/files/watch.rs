//! What changes in a directory, or in a tree, by inotify: what comes, changes, goes and gets another name. Bounded in
//! the directories it looks at and in what it holds; what it can no longer tell it says to be lost.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::WatchEvent;
use skep_bridge_protocol::workspace::watch_event::Kind;

use super::walk::{Walk, joined, walk};

/// Directories of one watch.
const MOST_DIRECTORIES: usize = 8192;
/// Entries of new directories that are told of in one batch.
const MOST_FOUND: usize = 10_000;
/// Events that are read at once: at least 60, at most 1,024.
const READ_BYTES: usize = 16 * 1024;
/// The kernel tells the second half of a rename right after the first one.
const SECOND_HALF_WITHIN: Duration = Duration::from_millis(10);

/// What is watched, and what is known of it.
pub(crate) struct Watched {
    inotify: OwnedFd,
    /// Without links.
    directory: PathBuf,
    /// What was asked for, which is what is told.
    shown: Vec<u8>,
    scope: Scope,
    /// Each watch's directory, below `directory`.
    directories: HashMap<i32, Vec<u8>>,
    /// Entries that were told when their directory was found, and may come again.
    found: HashSet<Vec<u8>>,
    is_over: bool,
}

#[derive(PartialEq, Eq)]
enum Scope {
    /// One entry of the directory: a file is watched where it lies, so that one in its place is, too.
    Entry(Vec<u8>),
    Directory,
    Tree,
}

/// The first half of a rename, told as a removal until the second half comes.
struct Move {
    cookie: u32,
    from: Vec<u8>,
    /// Which event tells the removal.
    told_as: usize,
    /// The watches of a directory and of those below it, by their place in it.
    directories: Vec<(i32, Vec<u8>)>,
    /// Something has changed in them between the two halves.
    has_missed: bool,
}

/// One event as the kernel tells it.
struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Vec<u8>,
}

/// What [`Watched::read`] found.
pub(crate) struct Batch {
    pub(crate) events: Vec<WatchEvent>,
    /// There is nothing more now.
    pub(crate) is_drained: bool,
    /// What was watched is gone: nothing follows.
    pub(crate) is_over: bool,
}

impl Watched {
    /// Watches a directory's entries, all below it, or one file.
    ///
    /// # Errors
    /// Those of the file system; `InvalidInput` when there are too many directories.
    pub(crate) fn begin(path: &Path, recursive: bool) -> io::Result<Self> {
        let real = fs::canonicalize(path)?;
        let (directory, scope) = match (real.is_dir(), real.parent(), real.file_name()) {
            (false, Some(parent), Some(name)) => (parent.to_path_buf(), Scope::Entry(name.as_bytes().to_vec())),
            (_, _, _) if recursive => (real, Scope::Tree),
            (_, _, _) => (real, Scope::Directory),
        };
        let mut watched = Self {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            directory,
            shown: path.as_os_str().as_bytes().to_vec(),
            scope,
            directories: HashMap::new(),
            found: HashSet::new(),
            is_over: false,
        };
        watched.watch(b"", &mut |_, _| {})?;
        Ok(watched)
    }

    /// What is readable when there is something to [`Watched::read`].
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.inotify.try_clone()
    }

    /// What has happened since, up to a batch of it.
    ///
    /// # Errors
    /// Those of the file system; `InvalidInput` when there are too many directories by now.
    pub(crate) fn read(&mut self) -> io::Result<Batch> {
        let mut told = Told::default();
        let raw = read_raw(&self.inotify)?;
        let is_drained = raw.is_empty();
        let ends_in_half = raw
            .last()
            .is_some_and(|last| last.flags.contains(ReadFlags::MOVED_FROM));
        self.take_all(raw, &mut told)?;
        if ends_in_half {
            std::thread::sleep(SECOND_HALF_WITHIN);
            self.take_all(read_raw(&self.inotify)?, &mut told)?;
        }
        for (watch, _) in told.moves.into_iter().flat_map(|half| half.directories) {
            match inotify::remove_watch(&self.inotify, watch) {
                // It went to a place that is not watched, and may be deleted by now.
                Ok(()) | Err(_) => {}
            }
        }
        if is_drained {
            self.found.clear();
        }
        Ok(Batch {
            events: told.events.into_iter().flatten().collect(),
            is_drained,
            is_over: self.is_over,
        })
    }

    fn take_all(&mut self, raw: Vec<Raw>, told: &mut Told) -> io::Result<()> {
        for event in raw {
            if !self.is_over {
                self.take(event, told)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Raw, told: &mut Told) -> io::Result<()> {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            told.lost();
            // Directories may have come that nothing tells of any more.
            return self.watch(b"", &mut |_, _| {});
        }
        let Some(directory) = self.directories.get(&event.watch) else {
            // It is on its way to another place, or gone.
            if !event.flags.contains(ReadFlags::IGNORED)
                && let Some(half) = told.moves.iter_mut().find(|half| half.holds(event.watch))
            {
                half.has_missed = true;
            }
            return Ok(());
        };
        if event.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&event.watch);
            return Ok(());
        }
        if event.name.is_empty() {
            if directory.is_empty() {
                self.itself(event.flags, told);
            }
            return Ok(());
        }
        if matches!(&self.scope, Scope::Entry(name) if *name != event.name) {
            return Ok(());
        }
        let path = joined(directory, &event.name);
        self.entry(path, &event, told)
    }

    /// An event of the watched directory itself.
    fn itself(&mut self, flags: ReadFlags, told: &mut Told) {
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            self.is_over = true;
            told.tell(Kind::Removed, self.shown.clone(), self.is_directory_itself());
        } else if flags.contains(ReadFlags::ATTRIB) && self.is_directory_itself() {
            told.modified(self.shown.clone(), true);
        }
    }

    fn is_directory_itself(&self) -> bool {
        !matches!(self.scope, Scope::Entry(_))
    }

    fn entry(&mut self, path: Vec<u8>, event: &Raw, told: &mut Told) -> io::Result<()> {
        let is_directory = event.flags.contains(ReadFlags::ISDIR);
        if event.flags.contains(ReadFlags::CREATE) {
            return self.came(path, is_directory, told);
        }
        if event.flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.found.remove(&path);
        }
        if event.flags.contains(ReadFlags::MOVED_TO) {
            let half = told.moves.iter().position(|half| half.cookie == event.cookie);
            let half = half.map(|half| told.moves.swap_remove(half));
            return self.moved(half, path, is_directory, told);
        }
        let gone = ReadFlags::DELETE | ReadFlags::MOVED_FROM;
        if !event.flags.intersects(gone) {
            told.modified(self.shown(&path), is_directory);
            return Ok(());
        }
        self.found.remove(&path);
        if event.flags.contains(ReadFlags::MOVED_FROM) {
            let directories = if is_directory { self.detach(&path) } else { Vec::new() };
            told.moves.push(Move {
                cookie: event.cookie,
                from: self.shown(&path),
                told_as: told.events.len(),
                directories,
                has_missed: false,
            });
        }
        told.tell(Kind::Removed, self.shown(&path), is_directory);
        Ok(())
    }

    /// A new entry. What is in a new directory of a tree already may have come before it was watched.
    fn came(&mut self, path: Vec<u8>, is_directory: bool, told: &mut Told) -> io::Result<()> {
        if self.found.remove(&path) {
            return Ok(());
        }
        told.tell(Kind::Created, self.shown(&path), is_directory);
        if !is_directory || self.scope != Scope::Tree {
            return Ok(());
        }
        let mut found = Vec::new();
        let mut more = 0_usize;
        let room = MOST_FOUND.saturating_sub(self.found.len());
        self.watch(&path, &mut |path, is_directory| match found.len() < room {
            true => found.push((path, is_directory)),
            false => more += 1,
        })?;
        for (path, is_directory) in found {
            told.tell(Kind::Created, self.shown(&path), is_directory);
            self.found.insert(path);
        }
        if more > 0 {
            told.lost();
        }
        Ok(())
    }

    /// The second half of a rename, with the first one if that was watched, too. A directory is told alone.
    fn moved(&mut self, half: Option<Move>, to: Vec<u8>, is_directory: bool, told: &mut Told) -> io::Result<()> {
        let shown = self.shown(&to);
        let Some(half) = half else {
            told.tell(Kind::Created, shown, is_directory);
            return match is_directory && self.scope == Scope::Tree {
                true => self.watch(&to, &mut |_, _| {}),
                false => Ok(()),
            };
        };
        told.renamed(half.told_as, half.from, shown, is_directory);
        if half.has_missed {
            told.lost();
        }
        for (watch, below) in &half.directories {
            self.directories.insert(*watch, joined(&to, below));
        }
        match is_directory && self.scope == Scope::Tree && half.directories.is_empty() {
            true => self.watch(&to, &mut |_, _| {}),
            false => Ok(()),
        }
    }

    /// Takes the watches of a directory and of those below it out of what is known.
    fn detach(&mut self, path: &[u8]) -> Vec<(i32, Vec<u8>)> {
        let below = [path, b"/"].concat();
        let place = |directory: &Vec<u8>| match directory == path {
            true => Some(Vec::new()),
            false => directory.strip_prefix(&below[..]).map(<[u8]>::to_vec),
        };
        let detached = |(watch, directory): (&i32, &Vec<u8>)| Some((*watch, place(directory)?));
        let detached: Vec<_> = self.directories.iter().filter_map(detached).collect();
        for (watch, _) in &detached {
            self.directories.remove(watch);
        }
        detached
    }

    fn shown(&self, path: &[u8]) -> Vec<u8> {
        match self.scope {
            Scope::Entry(_) => self.shown.clone(),
            Scope::Directory | Scope::Tree => joined(&self.shown, path),
        }
    }

    /// Watches a directory, and in a tree all below it, of which `found` is told. Each is watched before its entries
    /// are read: what comes later is an event.
    fn watch(&mut self, path: &[u8], found: &mut dyn FnMut(Vec<u8>, bool)) -> io::Result<()> {
        if !self.add(path)? || self.scope != Scope::Tree {
            return Ok(());
        }
        let options = Walk {
            recursive: true,
            one_file_system: true,
            ..Walk::default()
        };
        let walked = walk(&self.real(path), &options, &mut |item| {
            let path = joined(path, item.relative);
            if item.is_directory {
                self.add(&path)?;
            }
            found(path, item.is_directory);
            Ok(ControlFlow::Continue(()))
        });
        match walked {
            // A new one that is gone again: its removal is told.
            Err(error) if !path.is_empty() && is_gone(&error) => Ok(()),
            walked => walked,
        }
    }

    /// `false`: it is gone, or is no directory (any more), or may not be looked at.
    fn add(&mut self, path: &[u8]) -> io::Result<bool> {
        let entries = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let flags = match path.is_empty() {
            true => entries | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF,
            false => entries,
        };
        match inotify::add_watch(&self.inotify, self.real(path), flags) {
            Ok(watch) => {
                self.directories.insert(watch, path.to_vec());
                match self.directories.len() > MOST_DIRECTORIES {
                    true => Err(too_many()),
                    false => Ok(true),
                }
            }
            Err(Errno::NOSPC) => Err(too_many()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) if !path.is_empty() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn real(&self, path: &[u8]) -> PathBuf {
        PathBuf::from(std::ffi::OsString::from_vec(joined(
            self.directory.as_os_str().as_bytes(),
            path,
        )))
    }
}

impl Move {
    fn holds(&self, watch: i32) -> bool {
        self.directories.iter().any(|(held, _)| *held == watch)
    }
}

/// Empty: there is nothing now.
fn read_raw(inotify: &OwnedFd) -> io::Result<Vec<Raw>> {
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut raw = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => raw.push(Raw {
                watch: event.wd(),
                flags: event.events(),
                cookie: event.cookie(),
                name: event
                    .file_name()
                    .map(|name| name.to_bytes().to_vec())
                    .unwrap_or_default(),
            }),
            Err(Errno::AGAIN) => return Ok(raw),
            Err(error) => return Err(error.into()),
        }
        if reader.is_buffer_empty() {
            return Ok(raw);
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS)
    )
}

fn too_many() -> io::Error {
    let text =
        format!("more directories than can be watched ({MOST_DIRECTORIES}, or what the kernel allows): watch a part");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// The events of a batch.
#[derive(Default)]
struct Told {
    /// `None`: it was told before the rest of it was known.
    events: Vec<Option<WatchEvent>>,
    moves: Vec<Move>,
    /// What has changed since it was last told otherwise: once is enough.
    modified: HashSet<Vec<u8>>,
}

impl Told {
    fn tell(&mut self, kind: Kind, path: Vec<u8>, is_directory: bool) {
        self.modified.remove(&path);
        self.events.push(Some(WatchEvent {
            kind: kind.into(),
            path,
            is_directory,
            from: Vec::new(),
        }));
    }

    fn modified(&mut self, path: Vec<u8>, is_directory: bool) {
        if !self.modified.contains(&path) {
            self.tell(Kind::Modified, path.clone(), is_directory);
            self.modified.insert(path);
        }
    }

    /// In the place of a removal.
    fn renamed(&mut self, told_as: usize, from: Vec<u8>, path: Vec<u8>, is_directory: bool) {
        self.modified.clear();
        self.events[told_as] = None;
        self.events.push(Some(WatchEvent {
            kind: Kind::Renamed.into(),
            path,
            is_directory,
            from,
        }));
    }

    fn lost(&mut self) {
        let last = self.events.last().and_then(Option::as_ref);
        if last.is_none_or(|last| last.kind() != Kind::Lost) {
            self.tell(Kind::Lost, Vec::new(), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads until there is nothing more.
    fn all(watched: &mut Watched) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        loop {
            let batch = watched.read().expect("read");
            events.extend(batch.events);
            if batch.is_drained {
                return events;
            }
        }
    }

    fn told(root: &Path, events: &[WatchEvent]) -> Vec<String> {
        let name = |path: &[u8]| {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            path.strip_prefix(root).unwrap_or(path).display().to_string()
        };
        let one = |event: &WatchEvent| match event.kind() {
            Kind::Renamed => format!("Renamed {} {}", name(&event.from), name(&event.path)),
            kind => format!("{kind:?} {}", name(&event.path)),
        };
        events.iter().map(one).collect()
    }

    #[test]
    fn what_leaves_is_told_before_what_takes_its_place() {
        let (inside, outside) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
        let mut watched = Watched::begin(inside.path(), true).expect("it watches");
        let (file, left) = (inside.path().join("file"), outside.path().join("left"));
        fs::write(&file, b"").expect("written");
        fs::rename(&file, &left).expect("moved out");
        fs::write(&file, b"").expect("written again");
        fs::rename(&file, inside.path().join("other")).expect("renamed");
        let events = told(inside.path(), &all(&mut watched));
        assert_eq!(
            events,
            ["Created file", "Removed file", "Created file", "Renamed file other"]
        );
    }

    #[test]
    fn more_changes_than_the_kernel_holds_are_lost_and_new_directories_are_watched_all_the_same() {
        let root = tempfile::tempdir().expect("a directory");
        let mut watched = Watched::begin(root.path(), true).expect("it watches");
        let held = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("the limit");
        let held: u32 = held.trim().parse().expect("a number");
        for number in 0..=held {
            let file = root.path().join(if number % 2 == 0 { "one" } else { "two" });
            fs::write(file, b"x").expect("written");
        }
        let late = root.path().join("late");
        fs::create_dir(&late).expect("made");
        let lost = told(root.path(), &all(&mut watched));
        assert_eq!(lost.last().map(String::as_str), Some("Lost "));
        fs::write(late.join("file"), b"").expect("written");
        assert_eq!(told(root.path(), &all(&mut watched)), ["Created late/file"]);
    }

    #[test]
    fn what_was_moved_out_is_not_watched_any_more() {
        let (inside, outside) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
        fs::create_dir_all(inside.path().join("a/b")).expect("made");
        let mut watched = Watched::begin(inside.path(), true).expect("it watches");
        let left = outside.path().join("left");
        fs::rename(inside.path().join("a"), &left).expect("moved out");
        assert_eq!(told(inside.path(), &all(&mut watched)), ["Removed a"]);
        fs::write(left.join("b/file"), b"").expect("written");
        assert!(all(&mut watched).is_empty());
        assert_eq!(watched.directories.len(), 1);
    }
}
