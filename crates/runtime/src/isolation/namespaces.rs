//! The user and the network namespace of a workspace: made before its first process, pinned to files.
//!
//! The network namespace is owned by the user namespace. That is what lets the workspace mount sysfs,
//! set `net.*` and listen on low ports. The user namespace belongs to the workspace's own root as the host sees it, a user
//! whom nobody outside is, so that what the kernel limits for each user is limited for all of a workspace together, and
//! no workspace takes it from the host's root.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::Pid;
use skep_names::{BotId, IDS_PER_BOT};

use super::{HostPaths, IdBlock, Result, Tried, make_directory, remove_file, unmount_all};
use crate::failpoint;
use crate::system_calls::NamespaceHolder;

/// Where the kernel says which capability is its highest.
const LAST_CAPABILITY: &str = "/proc/sys/kernel/cap_last_cap";

/// Makes the namespaces of a bot and pins them; what an earlier start left there is replaced.
/// Without ids there is only a network namespace, owned by the host. `daemon`: the process that starts container runtimes.
pub(crate) fn make(paths: &HostPaths, bot: &BotId, ids: Option<IdBlock>, daemon: i32) -> Result<()> {
    let flags = libc::CLONE_NEWNET | ids.map_or(0, |_| libc::CLONE_NEWUSER);
    let owner = ids.map(|ids| owner_for(ids, daemon)).transpose()?.flatten();
    let holder = NamespaceHolder::new(flags, owner).tried(|| format!("making the namespaces of workspace {bot}"))?;
    let process = Path::new("/proc").join(holder.pid().to_string());
    if let Some(ids) = ids {
        map_ids(&process, ids)?;
        pin(&process.join("ns/user"), &paths.user_namespace(bot))?;
        failpoint::USER_NAMESPACE_PINNED.pass().tried(pinning)?;
    }
    let place = paths.network_namespace(bot);
    if let Some(directory) = place.parent() {
        make_directory(directory, 0o755)?;
        make_shared_mount(directory)?;
    }
    pin(&process.join("ns/net"), &place)?;
    failpoint::NETWORK_NAMESPACE_PINNED.pass().tried(pinning)
}

/// Whom a user namespace with these ids belongs to; `None`: to the host's root. A root without some capability has it
/// over the namespace only as its owner, and container runtimes need several: `CAP_SYS_RESOURCE`, to raise limits of
/// their container's first process, for one. They have what `daemon`, which starts them, has.
pub(super) fn owner_for(ids: IdBlock, daemon: i32) -> Result<Option<u32>> {
    Ok(owner_where(held_by_us_and(daemon)?, last_capability()?, ids))
}

/// `held`: capabilities as bits. `last`: the kernel's highest; rustix's own set of all has bits that no kernel has.
fn owner_where(held: [u64; 2], last: u32, ids: IdBlock) -> Option<u32> {
    let by_both = held[0] & held[1];
    let has_all = (0..=last).all(|capability| by_both >> capability & 1 == 1);
    has_all.then(|| ids.base())
}

fn held_by_us_and(daemon: i32) -> Result<[u64; 2]> {
    let held = |process| {
        let sets = rustix::thread::capabilities(process);
        let sets = sets.tried(|| format!("reading our capabilities and those of process {daemon}"))?;
        Ok(sets.effective.bits())
    };
    Ok([held(None)?, held(Pid::from_raw(daemon))?])
}

fn last_capability() -> Result<u32> {
    let reading = || format!("reading {LAST_CAPABILITY}");
    let last = std::fs::read_to_string(LAST_CAPABILITY).tried(reading)?;
    last.trim().parse().map_err(io::Error::other).tried(reading)
}

fn pinning() -> String {
    "pinning the namespaces of a workspace".to_owned()
}

/// Lets the namespaces go; they end with their last process. Repeatable.
pub(crate) fn remove(paths: &HostPaths, bot: &BotId) -> Result<()> {
    for pinned in [paths.network_namespace(bot), paths.user_namespace(bot)] {
        unmount_all(&pinned)?;
        remove_file(&pinned)?;
    }
    Ok(())
}

pub(super) fn map_ids(process: &Path, ids: IdBlock) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let map = process.join(file);
        std::fs::write(&map, format!("0 {} {IDS_PER_BOT}", ids.base()))
            .tried(|| format!("giving a user namespace its ids from {}", ids.base()))?;
    }
    Ok(())
}

fn pin(namespace: &Path, place: &Path) -> Result<()> {
    if let Some(parent) = place.parent() {
        make_directory(parent, 0o755)?;
    }
    unmount_all(place)?;
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(place)
        .tried(|| format!("making {}", place.display()))?;
    rustix::mount::mount_bind(namespace, place).tried(|| format!("pinning a namespace to {}", place.display()))
}

/// Makes the directory of named network namespaces a shared mount, as `ip netns` does at its first use. That use
/// would else lay a mount over pins of ours, and they could never be let go.
fn make_shared_mount(directory: &Path) -> Result<()> {
    let making = || format!("making a shared mount of {}", directory.display());
    // Whoever does the same at the same moment, `ip netns` too, takes this lock: two mounts would hide one another.
    let locked = File::open(directory).tried(making)?;
    locked.lock().tried(making)?;
    let share = || mount_change(directory, MountPropagationFlags::SHARED);
    match share() {
        Err(Errno::INVAL) => mount_bind_recursive(directory, directory)
            .and_then(|()| share())
            .tried(making),
        shared => shared.tried(making),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::fs::inotify;

    use super::*;

    /// Takes every instance that it can get, tells how many, and holds them until its input ends.
    const GREEDY: &str = "import ctypes, sys
init = ctypes.CDLL(None).inotify_init
taken = 0
while init() >= 0:
    taken += 1
print(taken, flush=True)
sys.stdin.read()";

    /// Those of a workspace, and what they are claimed in.
    fn claimed_ids() -> (tempfile::TempDir, IdBlock) {
        let directory = tempfile::tempdir().unwrap();
        let paths = HostPaths {
            run_root: directory.path().join("run"),
            run_dir: directory.path().join("run/id"),
            data_root: directory.path().join("data"),
        };
        let ids = IdBlock::claim(&paths, "id", &BotId::random()).unwrap();
        (directory, ids)
    }

    #[test]
    fn one_workspace_cannot_take_the_hosts_inotify_instances() {
        let (_directory, ids) = claimed_ids();
        let flags = libc::CLONE_NEWNET | libc::CLONE_NEWUSER;
        let holder = NamespaceHolder::new(flags, Some(ids.base())).unwrap();
        map_ids(&Path::new("/proc").join(holder.pid().to_string()), ids).unwrap();
        let mut greedy = Command::new("nsenter")
            .arg(format!("--user=/proc/{}/ns/user", holder.pid()))
            .arg("--preserve-credentials")
            .args(["python3", "-c", GREEDY])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut told = std::io::BufReader::new(greedy.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut told, &mut line).unwrap();
        let taken: u64 = line.trim().parse().unwrap();
        let left = inotify::init(inotify::CreateFlags::CLOEXEC);
        drop(greedy.stdin.take());
        assert!(greedy.wait().unwrap().success());
        left.expect("the host has its own");
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
        let limit: u64 = limit.trim().parse().unwrap();
        assert!(
            (1..=limit).contains(&taken),
            "the limit of one user, {limit}, is that of a workspace: {taken}"
        );
    }

    #[test]
    fn a_workspace_owns_its_namespace_where_we_and_the_daemon_have_every_capability_of_the_kernel() {
        const ALL: u64 = 0x1ff_ffff_ffff;
        const WITHOUT_SYS_RESOURCE: u64 = 0x1ff_feff_ffff;
        let (_directory, ids) = claimed_ids();
        assert_eq!(owner_where([ALL, ALL], 40, ids), Some(ids.base()));
        assert_eq!(owner_where([WITHOUT_SYS_RESOURCE, ALL], 40, ids), None);
        assert_eq!(owner_where([ALL, WITHOUT_SYS_RESOURCE], 40, ids), None);
        assert_eq!(owner_where([ALL, ALL], 41, ids), None, "a later kernel has one more");
        assert_eq!(owner_where([u64::MAX; 2], 63, ids), Some(ids.base()));
        // What is asked of the kernel is of that kind.
        let this = i32::try_from(std::process::id()).unwrap();
        let [own, of_daemon] = held_by_us_and(this).unwrap();
        let last = last_capability().unwrap();
        assert!((30..63).contains(&last), "{last}");
        assert_eq!(own, of_daemon);
        assert_ne!(own & 1 << 21, 0, "these tests need CAP_SYS_ADMIN: {own:x}");
        assert_eq!(owner_for(ids, this).unwrap(), owner_where([own, own], last, ids));
    }

    #[test]
    fn the_directory_of_namespaces_is_one_mount_however_many_make_it() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| make_shared_mount(directory.path()).unwrap());
            }
        });
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = format!(" {} ", directory.path().display());
        let found: Vec<&str> = mounts.lines().filter(|line| line.contains(&here)).collect();
        unmount_all(directory.path()).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(" shared:"), "{found:?}");
    }
}
