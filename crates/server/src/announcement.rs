//! Where the servers of this host are, for its command line: one file for each data root, and one for all that names
//! the server meant by a command which names none. They hold no secret.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::RUN_ROOT;
use crate::server::RunningServer;

/// The file's name, directly below [`RUN_ROOT`] and in the directory of each data root there.
const FILE: &str = "server.json";

/// A server, as it says of itself. Readable by all: it names a key, it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// `http://host:port`
    pub server: String,
    /// Its process.
    pub pid: u32,
    /// When that process began, in the kernel's ticks since boot: the number of a process is given again, not so the
    /// two together. `None`: told by an older release.
    #[serde(default)]
    pub started: Option<u64>,
    /// The data root it owns.
    pub data_root: PathBuf,
    /// The id of that.
    pub data_root_id: String,
    /// The file with the admin key.
    pub admin_key: PathBuf,
}

/// The server that a command means which names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// That one.
    pub server: Announced,
    /// What else runs on this host.
    pub others: Vec<Announced>,
}

impl Announced {
    fn of(server: &RunningServer) -> Self {
        let pid = std::process::id();
        Self {
            server: format!("http://{}", reachable(server.address())),
            pid,
            started: start_of(pid),
            data_root: server.data_root().path().to_owned(),
            data_root_id: server.data_root().id().to_string(),
            admin_key: server.admin_key().to_owned(),
        }
    }

    /// Whether its process is the one that wrote this.
    pub fn lives(&self) -> bool {
        match (self.started, start_of(self.pid)) {
            (Some(told), Some(found)) => told == found,
            (None, found) => found.is_some(),
            (Some(_), None) => false,
        }
    }
}

/// Where a client of this host reaches a server that listens on all addresses.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The kernel's word on when a process began; `None`: there is none of that number.
fn start_of(pid: u32) -> Option<u64> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, brackets too. The start is the 22nd field, the state after the name the 3rd.
    let (_, fields) = line.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// What a server says of itself, until this is dropped.
#[derive(Debug)]
pub struct Announcement {
    run_root: PathBuf,
    announced: Announced,
}

impl Announcement {
    /// Says where this server is; a command that names none means it from now on.
    ///
    /// # Errors
    /// What the file system says, and of which file.
    pub fn publish(server: &RunningServer) -> io::Result<Self> {
        Self::publish_in(Path::new(RUN_ROOT), Announced::of(server))
    }

    fn publish_in(run_root: &Path, announced: Announced) -> io::Result<Self> {
        let own = of_data_root(run_root, &announced.data_root_id);
        write_whole(&own, &announced, &own)?;
        write_whole(&run_root.join(FILE), &announced, &own)?;
        Ok(Self {
            run_root: run_root.to_owned(),
            announced,
        })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Err(error) = withdraw_in(&self.run_root, &self.announced) {
            tracing::warn!(%error, server = self.announced.server, "what names this server is left behind");
        }
    }
}

/// What the server of this data root says of itself, or said before it was killed.
///
/// # Errors
/// It cannot be read, or is no announcement.
pub fn of_data_root_here(data_root_id: &str) -> io::Result<Option<Announced>> {
    of_data_root_in(Path::new(RUN_ROOT), data_root_id)
}

fn of_data_root_in(run_root: &Path, data_root_id: &str) -> io::Result<Option<Announced>> {
    match read(&of_data_root(run_root, data_root_id))? {
        Some(found) => Ok(Some(found)),
        // An older release had the one file only.
        None => Ok(read(&run_root.join(FILE))?.filter(|server| server.data_root_id == data_root_id)),
    }
}

/// The server that a command of this host means: the one that was started last and runs, else one that is named and
/// does not run; `None` when none is named.
///
/// # Errors
/// The file of all cannot be read, or is no announcement.
pub fn meant_here() -> io::Result<Option<Meant>> {
    meant_in(Path::new(RUN_ROOT))
}

fn meant_in(run_root: &Path) -> io::Result<Option<Meant>> {
    let named = read(&run_root.join(FILE))?;
    let mut others = living(run_root);
    let chosen = match named {
        Some(named) if named.lives() => Some(named),
        named => others.first().cloned().or(named),
    };
    Ok(chosen.map(|server| {
        others.retain(|other| *other != server);
        Meant { server, others }
    }))
}

/// Takes away what an ended server said; another one that runs takes its place.
///
/// # Errors
/// What the file system says.
pub fn withdraw(ended: &Announced) -> io::Result<()> {
    withdraw_in(Path::new(RUN_ROOT), ended)
}

/// Only what is still this server's: the next one on the same data root may be there already.
fn withdraw_in(run_root: &Path, ended: &Announced) -> io::Result<()> {
    let own = of_data_root(run_root, &ended.data_root_id);
    if read(&own)?.as_ref() == Some(ended) {
        remove(&own)?;
    }
    let shared = run_root.join(FILE);
    let mut ended = ended.clone();
    while read(&shared)?.as_ref() == Some(&ended) {
        let Some(other) = living(run_root).into_iter().find(|other| *other != ended) else {
            return remove(&shared);
        };
        write_whole(&shared, &other, &own)?;
        // One that ended meanwhile took its own file away first, and may have looked at the shared one before it was named.
        if read(&of_data_root(run_root, &other.data_root_id))?.as_ref() == Some(&other) {
            return Ok(());
        }
        ended = other;
    }
    Ok(())
}

/// Every server that runs, the one that began last first. What cannot be read, or is not for us to read, names none.
fn living(run_root: &Path) -> Vec<Announced> {
    let Ok(directories) = std::fs::read_dir(run_root) else {
        return Vec::new();
    };
    let mut found: Vec<Announced> = directories
        .flatten()
        .filter_map(|directory| read(&directory.path().join(FILE)).ok().flatten())
        .filter(Announced::lives)
        .collect();
    found.sort_by_key(|server| std::cmp::Reverse((server.started, server.pid)));
    found
}

fn of_data_root(run_root: &Path, data_root_id: &str) -> PathBuf {
    run_root.join(data_root_id).join(FILE)
}

fn read(path: &Path) -> io::Result<Option<Announced>> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| of_file(path, error.into())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(of_file(path, error)),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(of_file(path, error)),
        _ => Ok(()),
    }
}

fn of_file(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// It appears whole or not at all. It is written beside `own`, the file of the writer's data root, under one name: one
/// process at a time owns that root, and the next one writes over what a killed one left.
fn write_whole(path: &Path, announced: &Announced, own: &Path) -> io::Result<()> {
    let mut text = serde_json::to_vec(announced)?;
    text.push(b'\n');
    for file in [own, path] {
        make_parent(file).map_err(|error| of_file(file, error))?;
    }
    let temporary = own.with_extension("new");
    write_text(&temporary, &text).map_err(|error| of_file(&temporary, error))?;
    std::fs::rename(&temporary, path).map_err(|error| of_file(path, error))
}

/// Whatever the umask of whoever started us: everybody on this host may look where the server is.
fn make_parent(file: &Path) -> io::Result<()> {
    let directory = file.parent().unwrap_or_else(|| Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o755))
}

fn write_text(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a process that runs: this one.
    fn running(id: &str) -> Announced {
        let pid = std::process::id();
        Announced {
            server: format!("http://127.0.0.1:1/{id}"),
            pid,
            started: start_of(pid),
            data_root: PathBuf::from("/x").join(id),
            data_root_id: id.to_owned(),
            admin_key: PathBuf::from("/x").join(id).join("admin.key"),
        }
    }

    fn meant(run_root: &Path) -> Option<(String, usize)> {
        let meant = meant_in(run_root).unwrap();
        meant.map(|meant| (meant.server.data_root_id, meant.others.len()))
    }

    #[test]
    fn each_of_two_servers_is_found_whichever_began_or_ended_last() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(meant(root), None);
        let first = Announcement::publish_in(root, running("a")).unwrap();
        assert_eq!(meant(root), Some(("a".to_owned(), 0)));
        let second = Announcement::publish_in(root, running("b")).unwrap();
        assert_eq!(meant(root), Some(("b".to_owned(), 1)));
        let of_first = of_data_root_in(root, "a").unwrap();
        assert_eq!(of_first, Some(running("a")), "`down` of the first one finds it");
        drop(second);
        assert_eq!(meant(root), Some(("a".to_owned(), 0)), "the first one runs on");
        assert_eq!(of_data_root_in(root, "b").unwrap(), None);
        drop(first);
        assert_eq!(meant(root), None);
        assert!(!root.join(FILE).exists());
    }

    #[test]
    fn what_a_killed_server_left_gives_way_to_one_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let alive = Announcement::publish_in(root, running("a")).unwrap();
        // Its number is given to another process by now.
        let killed = Announced {
            started: running("b").started.map(|ticks| ticks + 1),
            ..running("b")
        };
        std::mem::forget(Announcement::publish_in(root, killed.clone()).unwrap());
        assert_eq!(meant(root), Some(("a".to_owned(), 0)));
        drop(alive);
        assert_eq!(
            meant(root),
            Some(("b".to_owned(), 0)),
            "it is told that it does not answer"
        );
        assert!(!of_data_root_in(root, "b").unwrap().unwrap().lives());
        withdraw_in(root, &killed).unwrap();
        assert_eq!(meant(root), None);
    }

    #[test]
    fn a_server_takes_away_nothing_of_the_next_one_on_its_data_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let first = Announcement::publish_in(root, running("a")).unwrap();
        let next = Announced {
            server: "http://127.0.0.1:2".to_owned(),
            ..running("a")
        };
        let second = Announcement::publish_in(root, next.clone()).unwrap();
        drop(first);
        assert_eq!(of_data_root_in(root, "a").unwrap(), Some(next));
        drop(second);
        assert_eq!(meant(root), None);
    }

    #[test]
    fn everybody_may_look_whatever_the_directory_was() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::set_permissions(root, Permissions::from_mode(0o700)).unwrap();
        let announcement = Announcement::publish_in(root, running("a")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(root), mode(&root.join("a"))), (0o755, 0o755));
        assert_eq!(mode(&root.join(FILE)), 0o644);
        drop(announcement);
    }

    #[test]
    fn what_a_server_was_writing_when_it_was_killed_is_not_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir(root.join("a")).unwrap();
        let half = of_data_root(root, "a").with_extension("new");
        std::fs::write(&half, "{").unwrap();
        let announcement = Announcement::publish_in(root, running("a")).unwrap();
        assert!(!half.exists(), "the next server of that data root writes over it");
        assert_eq!(of_data_root_in(root, "a").unwrap(), Some(running("a")));
        drop(announcement);
        let left: Vec<_> = std::fs::read_dir(root.join("a")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_process_is_itself_and_none_is_none() {
        assert!(running("a").lives());
        let old = Announced {
            started: None,
            ..running("a")
        };
        assert!(old.lives());
        assert!(!Announced { pid: u32::MAX, ..old }.lives());
    }
}
