//! Listing a directory, or a tree depth first, sorted by name. A directory of a million entries is held as one block
//! of names; what is told about an entry is asked only for those that are shown.

use std::cmp::Ordering;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use skep_bridge_protocol::workspace::FileInfo;

use super::info;

/// So many names are put in order at first.
const FIRST_SORTED: usize = 4096;

#[derive(Default)]
pub(crate) struct Walk<'a> {
    pub(crate) recursive: bool,
    /// Only what comes after this relative path in the order of the walk; empty: everything.
    pub(crate) after: &'a [u8],
    /// A directory right below the root with more descendants than this is shown closed; 0: none is.
    pub(crate) collapse_threshold: u32,
    /// Directories on another file system than the root's are not entered.
    pub(crate) one_file_system: bool,
}

/// One entry of a walk.
pub(crate) struct Item<'a> {
    /// Below the root of the walk; a closed directory's second entry ends in `/`.
    pub(crate) relative: &'a [u8],
    /// How many descendants a closed directory has.
    pub(crate) collapsed: Option<u64>,
    directory: &'a OwnedFd,
    name: &'a CStr,
    pub(crate) is_directory: bool,
}

impl Item<'_> {
    /// Opens a regular file to be read. `None`: it is something else, may not be read, or went away.
    pub(crate) fn open_regular(&self) -> io::Result<Option<File>> {
        let passed_over = |error: Errno| match error {
            Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::LOOP | Errno::NXIO => Ok(None),
            error => Err(error.into()),
        };
        match rustix::fs::statat(self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if info::kind(&stat) == FileType::RegularFile => {}
            Ok(_) => return Ok(None),
            Err(error) => return passed_over(error),
        }
        // It may have become something else meanwhile, which is neither waited for nor read.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::openat(self.directory, self.name, flags, Mode::empty()) {
            Ok(opened) if info::kind(&rustix::fs::fstat(&opened)?) == FileType::RegularFile => Ok(Some(opened.into())),
            Ok(_) => Ok(None),
            Err(error) => passed_over(error),
        }
    }

    /// `None`: it went away since its name was read.
    pub(crate) fn info(&self, root: &Path) -> io::Result<Option<FileInfo>> {
        let mut info = match info::of_entry(self.directory.as_fd(), self.name) {
            Ok(info) => info,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(count) = self.collapsed {
            info.summary = format!("{count} items (not expanded)");
        }
        info.name = self.name.to_bytes().to_vec();
        info.path = joined(std::os::unix::ffi::OsStrExt::as_bytes(root.as_os_str()), self.relative);
        Ok(Some(info))
    }
}

/// An empty part adds nothing.
pub(super) fn joined(root: &[u8], relative: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(root.len() + relative.len() + 1);
    path.extend_from_slice(root);
    if !root.is_empty() && !relative.is_empty() && !root.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(relative);
    path
}

/// What is told of each entry. A break pauses the walk after it.
pub(crate) type Visit<'a> = dyn FnMut(&Item<'_>) -> io::Result<ControlFlow<()>> + 'a;

/// Calls `visit` for each entry below `root` (a link to a directory is followed, links below it are not), until it breaks.
///
/// # Errors
/// As [`Walking::begin`] and [`Walking::go_on`].
pub(crate) fn walk(root: &Path, options: &Walk<'_>, visit: &mut Visit<'_>) -> io::Result<()> {
    Walking::begin(root, options)?.go_on(visit).map(drop)
}

/// A walk that can pause: it holds the directories that it is in open, and no thread.
pub(crate) struct Walking {
    levels: Vec<Level>,
    root_device: u64,
    recursive: bool,
    collapse_threshold: u32,
    one_file_system: bool,
    /// The entry after which it paused, which may have to be entered.
    shown: Option<Step>,
}

impl Walking {
    /// # Errors
    /// Those of opening and reading `root`.
    pub(crate) fn begin(root: &Path, options: &Walk<'_>) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        Ok(Self {
            root_device: rustix::fs::fstat(&opened)?.st_dev,
            levels: vec![Level::read(opened, Vec::new(), options.after)?],
            recursive: options.recursive,
            collapse_threshold: options.collapse_threshold,
            one_file_system: options.one_file_system,
            shown: None,
        })
    }

    /// Goes on until `visit` breaks. `Continue`: nothing is left.
    ///
    /// # Errors
    /// What `visit` says. A directory below the root that may not be entered, or that went away, shows its own entry alone.
    pub(crate) fn go_on(&mut self, visit: &mut Visit<'_>) -> io::Result<ControlFlow<()>> {
        if let Some(step) = self.shown.take()
            && self.enter(step, visit)?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(step) = level.next() else {
                self.levels.pop();
                continue;
            };
            if step.resume.is_none() && visit(&level.item(&step, &level.place_of(&step), None))?.is_break() {
                self.shown = Some(step);
                return Ok(ControlFlow::Break(()));
            }
            if self.enter(step, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens the directory of a step, if it is one that is to be entered, or shows it closed.
    fn enter(&mut self, step: Step, visit: &mut Visit<'_>) -> io::Result<ControlFlow<()>> {
        let done = Ok(ControlFlow::Continue(()));
        // What was shown closed on the page before is not opened on this one.
        if !self.recursive || !step.is_directory || step.resume.as_deref() == Some(b"") {
            return done;
        }
        let Some(level) = self.levels.last() else { return done };
        let Some(opened) = open_below(&level.directory, &step.name)? else {
            return done;
        };
        if self.one_file_system && rustix::fs::fstat(&opened)?.st_dev != self.root_device {
            return done;
        }
        let place = level.place_of(&step);
        if level.prefix.is_empty() && self.collapse_threshold > 0 {
            let count = count_below(&opened)?;
            if count > u64::from(self.collapse_threshold) {
                return visit(&level.item(&step, &[&place[..], b"/"].concat(), Some(count)));
            }
        }
        self.levels
            .push(Level::read(opened, place, &step.resume.unwrap_or_default())?);
        done
    }
}

/// An entry that the walk has come to.
struct Step {
    name: CString,
    is_directory: bool,
    /// For the one that the place to go on after begins with: what comes after below it.
    resume: Option<Vec<u8>>,
}

/// One open directory of the walk with its sorted names.
struct Level {
    directory: OwnedFd,
    prefix: Vec<u8>,
    names: Names,
    next: usize,
    /// The first of the names that are left, and what of `after` lies below it.
    resume: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Level {
    fn read(directory: OwnedFd, prefix: Vec<u8>, after: &[u8]) -> io::Result<Self> {
        let (first, rest) = match after.iter().position(|&byte| byte == b'/') {
            Some(slash) => (&after[..slash], Some(after[slash + 1..].to_vec())),
            None => (after, None),
        };
        Ok(Self {
            names: Names::read(&directory, first)?,
            directory,
            prefix,
            next: 0,
            resume: (!after.is_empty()).then(|| (first.to_vec(), rest)),
        })
    }

    /// Below the root of the walk.
    fn place_of(&self, step: &Step) -> Vec<u8> {
        joined(&self.prefix, step.name.to_bytes())
    }

    fn item<'a>(&'a self, step: &'a Step, relative: &'a [u8], collapsed: Option<u64>) -> Item<'a> {
        Item {
            relative,
            collapsed,
            directory: &self.directory,
            name: &step.name,
            is_directory: step.is_directory,
        }
    }

    fn next(&mut self) -> Option<Step> {
        if self.next == self.names.sorted {
            self.names.sort_more();
        }
        let place = *self.names.places.get(self.next)?;
        self.next += 1;
        let name = self.names.name(place).to_owned();
        let is_directory = match place.kind {
            Kind::Directory => true,
            Kind::Other => false,
            Kind::Unknown => info::of_entry(self.directory.as_fd(), name.as_c_str())
                .is_ok_and(|info| info.mode & 0o170_000 == 0o040_000),
        };
        let resume = match self.resume.take() {
            // `a` was the last one shown: what is below it comes next, from its beginning.
            Some((first, None)) if first == name.to_bytes() => Some(b"\0".to_vec()),
            Some((first, Some(rest))) if first == name.to_bytes() => Some(rest),
            _ => None,
        };
        Some(Step {
            name,
            is_directory,
            resume,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Directory,
    Other,
    Unknown,
}

#[derive(Clone, Copy)]
struct Place {
    start: usize,
    kind: Kind,
}

/// The names of one directory in one block, each with its NUL.
struct Names {
    bytes: Vec<u8>,
    places: Vec<Place>,
    /// The first so many places are in order, and before all others.
    sorted: usize,
}

impl Names {
    /// Those that come not before `first`.
    fn read(directory: &OwnedFd, first: &[u8]) -> io::Result<Self> {
        let mut names = Self {
            bytes: Vec::new(),
            places: Vec::new(),
            sorted: 0,
        };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if name == b".\0" || name == b"..\0" || entry.file_name().to_bytes() < first {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Directory => Kind::Directory,
                FileType::Unknown => Kind::Unknown,
                _ => Kind::Other,
            };
            names.places.push(Place {
                start: names.bytes.len(),
                kind,
            });
            names.bytes.extend_from_slice(name);
        }
        Ok(names)
    }

    /// Puts as many more in order as there are already: a page of a large directory sorts little more than it shows.
    fn sort_more(&mut self) {
        let bytes = &self.bytes;
        let by_name = |left: &Place, right: &Place| compare(&bytes[left.start..], &bytes[right.start..]);
        let rest = &mut self.places[self.sorted..];
        let count = self.sorted.max(FIRST_SORTED).min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count, by_name);
        }
        rest[..count].sort_unstable_by(by_name);
        self.sorted += count;
    }

    fn name(&self, place: Place) -> &CStr {
        // Each name was stored with its NUL.
        CStr::from_bytes_until_nul(&self.bytes[place.start..]).unwrap_or_default()
    }
}

fn compare(left: &[u8], right: &[u8]) -> Ordering {
    for (left, right) in left.iter().zip(right) {
        match left.cmp(right) {
            Ordering::Equal if *left == 0 => return Ordering::Equal,
            Ordering::Equal => {}
            other => return other,
        }
    }
    Ordering::Equal
}

/// `None`: it may not be entered, or is no longer a directory.
pub(super) fn open_below(directory: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn count_below(directory: &OwnedFd) -> io::Result<u64> {
    let mut count = 0;
    let mut open = vec![(directory.try_clone()?, Names::read(directory, b"")?)];
    while let Some((directory, names)) = open.last_mut() {
        let Some(place) = names.places.pop() else {
            open.pop();
            continue;
        };
        count += 1;
        let name = names.name(place);
        let is_directory = match place.kind {
            Kind::Unknown => rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| info::kind(&stat) == FileType::Directory),
            kind => kind == Kind::Directory,
        };
        if is_directory && let Some(opened) = open_below(directory, name)? {
            let names = Names::read(&opened, b"")?;
            open.push((opened, names));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for path in ["a/c/d", "a/e", "a-b", "b", "z/1", "z/2", "z/3"] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("parents");
            fs::write(path, b"x").expect("a file");
        }
        std::os::unix::fs::symlink("a", directory.path().join("link")).expect("a link");
        directory
    }

    fn listed(root: &Path, options: &Walk<'_>, limit: usize) -> Vec<String> {
        let mut names = Vec::new();
        walk(root, options, &mut |item| {
            names.push(String::from_utf8_lossy(item.relative).into_owned());
            Ok(if names.len() == limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
        .expect("a walk");
        names
    }

    #[test]
    fn one_directory_is_sorted_by_name() {
        let tree = tree();
        let options = Walk::default();
        assert_eq!(listed(tree.path(), &options, 99), ["a", "a-b", "b", "link", "z"]);
        let options = Walk {
            after: b"a-b",
            ..options
        };
        assert_eq!(listed(tree.path(), &options, 99), ["b", "link", "z"]);
    }

    #[test]
    fn more_names_than_are_put_in_order_at_once_are_sorted_from_any_of_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut names: Vec<String> = (0..FIRST_SORTED * 3).map(|number| number.to_string()).collect();
        for name in &names {
            fs::write(directory.path().join(name), b"").expect("a file");
        }
        names.sort_unstable();
        for start in [0, 1, FIRST_SORTED, FIRST_SORTED * 2 + 1, names.len() - 1] {
            let after = names[..start].last().cloned().unwrap_or_default();
            let options = Walk {
                after: after.as_bytes(),
                ..Walk::default()
            };
            assert!(
                listed(directory.path(), &options, 0) == names[start..],
                "after {after:?}"
            );
        }
    }

    #[test]
    fn a_tree_is_listed_depth_first_and_links_are_not_entered() {
        let tree = tree();
        let options = Walk {
            recursive: true,
            ..Walk::default()
        };
        let expected = ["a", "a/c", "a/c/d", "a/e", "a-b", "b", "link", "z", "z/1", "z/2", "z/3"];
        assert_eq!(listed(tree.path(), &options, 99), expected);
    }

    #[test]
    fn a_walk_goes_on_after_any_entry_of_the_page_before() {
        let tree = tree();
        for collapse_threshold in [0, 2] {
            let all = listed(
                tree.path(),
                &Walk {
                    recursive: true,
                    collapse_threshold,
                    ..Walk::default()
                },
                99,
            );
            for (index, after) in all.iter().enumerate() {
                let options = Walk {
                    recursive: true,
                    after: after.as_bytes(),
                    collapse_threshold,
                    ..Walk::default()
                };
                assert_eq!(listed(tree.path(), &options, 99), all[index + 1..], "after {after}");
            }
        }
    }

    #[test]
    fn a_walk_that_pauses_after_each_entry_shows_the_same() {
        let tree = tree();
        for collapse_threshold in [0, 2] {
            let options = Walk {
                recursive: true,
                collapse_threshold,
                ..Walk::default()
            };
            let mut names = Vec::new();
            let mut walking = Walking::begin(tree.path(), &options).expect("begun");
            let mut pause = |item: &Item<'_>| {
                names.push(String::from_utf8_lossy(item.relative).into_owned());
                Ok(ControlFlow::Break(()))
            };
            while walking.go_on(&mut pause).expect("a walk").is_break() {}
            assert_eq!(names, listed(tree.path(), &options, 0), "{collapse_threshold}");
        }
    }

    #[test]
    fn a_walk_goes_on_after_a_name_that_went_away() {
        let tree = tree();
        let options = Walk {
            recursive: true,
            after: b"a/d",
            ..Walk::default()
        };
        assert_eq!(listed(tree.path(), &options, 2), ["a/e", "a-b"]);
    }

    #[test]
    fn a_large_top_directory_is_shown_closed() {
        let tree = tree();
        let options = Walk {
            recursive: true,
            collapse_threshold: 2,
            ..Walk::default()
        };
        assert_eq!(
            listed(tree.path(), &options, 99),
            ["a", "a/", "a-b", "b", "link", "z", "z/"]
        );
        let mut summaries = Vec::new();
        walk(tree.path(), &options, &mut |item| {
            summaries.extend(
                item.info(tree.path())?
                    .filter(|info| !info.summary.is_empty())
                    .map(|info| info.summary),
            );
            Ok(ControlFlow::Continue(()))
        })
        .expect("a walk");
        assert_eq!(summaries, ["3 items (not expanded)", "3 items (not expanded)"]);
    }

    #[test]
    fn what_is_no_directory_is_an_error() {
        let tree = tree();
        let options = Walk::default();
        let error = walk(&tree.path().join("b"), &options, &mut |_| Ok(ControlFlow::Continue(()))).expect_err("no");
        assert_eq!(error.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    }
}
