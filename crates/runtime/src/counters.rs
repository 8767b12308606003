//! What the kernel counts of a workspace, read from the files of its control group and of its interface on the
//! host's side, on hosts with cgroups of version 1, 2 or both. Nothing here enters a namespace of the workspace.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{IoBytes, NetworkBytes, Usage};

/// Where the kernel shows its interfaces.
const INTERFACES: &str = "/sys/class/net";
/// More is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Where the hierarchies of a host are. Each controller is in one of them alone, on a hybrid host too: what is not
/// found in version 1 is looked for in version 2.
pub(crate) struct Hierarchies {
    /// Of version 1, by controller.
    version_1: HashMap<&'static str, PathBuf>,
    version_2: PathBuf,
}

/// The files of one group in all hierarchies.
pub(crate) struct Group<'a> {
    pub(crate) hierarchies: &'a Hierarchies,
    /// `/skep/workspace-…`
    pub(crate) name: &'a str,
}

/// Controllers that count something of what is told here.
const CONTROLLERS: [&str; 4] = ["cpuacct", "memory", "blkio", "pids"];

impl Hierarchies {
    /// Below a mount of all of them: `/sys/fs/cgroup`.
    pub(crate) fn below(root: &Path) -> Self {
        // In version 2 a group of a controller's name could lie there, and is no hierarchy.
        if root.join("cgroup.controllers").exists() {
            return Self {
                version_1: HashMap::new(),
                version_2: root.to_owned(),
            };
        }
        let by_name = CONTROLLERS.map(|controller| (controller, root.join(controller)));
        let unified = root.join("unified");
        Self {
            version_1: by_name
                .into_iter()
                .filter(|(_, hierarchy)| hierarchy.is_dir())
                .collect(),
            version_2: if unified.is_dir() { unified } else { root.to_owned() },
        }
    }
}

impl Group<'_> {
    /// Its counters; what the host does not count is `None`.
    pub(crate) fn usage(&self) -> Usage {
        let (cpu_nanoseconds, cpu_user_nanoseconds, cpu_kernel_nanoseconds) = self.cpu();
        let (memory_bytes, memory_limit_bytes) = self.memory();
        Usage {
            cpu_nanoseconds,
            cpu_user_nanoseconds,
            cpu_kernel_nanoseconds,
            memory_bytes,
            memory_limit_bytes,
            pids: number(&self.pids_directory().join("pids.current")),
            io: self.io(),
            ..Usage::default()
        }
    }

    /// Whether processes are in it. A group that is gone has none.
    pub(crate) fn has_processes(&self) -> bool {
        number(&self.pids_directory().join("pids.current")).is_some_and(|pids| pids > 0)
    }

    /// Its processes, by their numbers on the host. A group that is gone has none.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.pids_directory().join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// All, in user mode, in the kernel.
    fn cpu(&self) -> (Option<u64>, Option<u64>, Option<u64>) {
        if let Some(directory) = self.in_version_1("cpuacct") {
            let of = |file| number(&directory.join(file));
            let all = of("cpuacct.usage");
            let parts = shared_out(all, of("cpuacct.usage_user"), of("cpuacct.usage_sys"));
            return (all, parts.map(|parts| parts.0), parts.map(|parts| parts.1));
        }
        let file = self.in_version_2().join("cpu.stat");
        let of = |name| field(&file, name).map(|microseconds| microseconds.saturating_mul(1000));
        (of("usage_usec"), of("user_usec"), of("system_usec"))
    }

    /// Without page cache that the kernel gives up at once, as `docker stats` counts; and the limit.
    fn memory(&self) -> (Option<u64>, Option<u64>) {
        let (used, reclaimable, most) = match self.in_version_1("memory") {
            Some(directory) => (
                number(&directory.join("memory.usage_in_bytes")),
                field(&directory.join("memory.stat"), "total_inactive_file"),
                limit(&directory.join("memory.limit_in_bytes")),
            ),
            None => {
                let directory = self.in_version_2();
                (
                    number(&directory.join("memory.current")),
                    field(&directory.join("memory.stat"), "inactive_file"),
                    limit(&directory.join("memory.max")),
                )
            }
        };
        let used = used.map(|used| used.saturating_sub(reclaimable.unwrap_or(0)));
        (used, most)
    }

    /// To and from disks.
    pub(crate) fn io(&self) -> Option<IoBytes> {
        if let Some(directory) = self.in_version_1("blkio") {
            let file = directory.join("blkio.throttle.io_service_bytes_recursive");
            let flat = directory.join("blkio.throttle.io_service_bytes");
            let text = std::fs::read_to_string(file).or_else(|_| std::fs::read_to_string(flat));
            return text.ok().map(|text| io_of_version_1(&text));
        }
        let text = std::fs::read_to_string(self.in_version_2().join("io.stat")).ok()?;
        Some(io_of_version_2(&text))
    }

    /// How often the own limit of processes of each group below this one refused one. Where this one is, is looked up
    /// once for all of them.
    pub(crate) fn refused_processes_of<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Option<u64>> {
        let directory = self.pids_directory();
        let file = |name: &str| directory.join(name.trim_start_matches('/')).join("pids.events");
        names.map(|name| field(&file(name), "max")).collect()
    }

    fn pids_directory(&self) -> PathBuf {
        self.in_version_1("pids").unwrap_or_else(|| self.in_version_2())
    }

    /// Its directory in the hierarchy of a controller, where version 1 has that controller.
    fn in_version_1(&self, controller: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.version_1.get(controller)?;
        Some(hierarchy.join(self.relative()))
    }

    fn in_version_2(&self) -> PathBuf {
        self.hierarchies.version_2.join(self.relative())
    }

    fn relative(&self) -> &str {
        self.name.trim_start_matches('/')
    }
}

/// What went through an interface of the host, as the workspace at its other end sees it: what the host sends, it
/// receives. `None` when it is gone.
pub(crate) fn network(host_interface: &str) -> Option<NetworkBytes> {
    network_of(&Path::new(INTERFACES).join(host_interface))
}

fn network_of(host_interface: &Path) -> Option<NetworkBytes> {
    let directory = host_interface.join("statistics");
    Some(NetworkBytes {
        received: number(&directory.join("tx_bytes"))?,
        sent: number(&directory.join("rx_bytes"))?,
    })
}

/// Bytes that processes, and those they have waited for, have written to files of a file system on a disk. One that is
/// gone was waited for, or is not told.
pub(crate) fn written_by(pids: &[i32]) -> u64 {
    let of_process = |pid: &i32| written_of(&std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?);
    pids.iter().filter_map(of_process).fold(0, u64::saturating_add)
}

/// Counted when a page is dirtied, in whatever group of whatever version its process is.
fn written_of(io: &str) -> Option<u64> {
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

/// Version 1 counts the whole to the nanosecond and its parts by the clock's ticks, so that they can be far from adding
/// up. The whole is shared out in their proportion, as the kernel itself does in version 2.
fn shared_out(all: Option<u64>, user: Option<u64>, kernel: Option<u64>) -> Option<(u64, u64)> {
    let (all, user, kernel) = (all?, u128::from(user?), u128::from(kernel?));
    let of_user = u128::from(all) * user / (user + kernel).max(1);
    let of_user = u64::try_from(of_user).unwrap_or(all);
    Some((of_user, all - of_user))
}

/// Lines `8:0 Read 4096`, and sums that begin with `Total`.
fn io_of_version_1(text: &str) -> IoBytes {
    let sum = |kind: &str| {
        let of_line = |line: &str| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let is_it = words.next() == Some(kind);
            words.next().filter(|_| is_it)?.parse::<u64>().ok()
        };
        text.lines().filter_map(of_line).fold(0, u64::saturating_add)
    };
    IoBytes {
        read: sum("Read"),
        written: sum("Write"),
    }
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 …`.
fn io_of_version_2(text: &str) -> IoBytes {
    let sum = |key: &str| {
        let values = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key));
        values
            .filter_map(|value| value.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    IoBytes {
        read: sum("rbytes="),
        written: sum("wbytes="),
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// `max`, 0 and absurd numbers mean none.
fn limit(file: &Path) -> Option<u64> {
    number(file).filter(|limit| (1..=NO_LIMIT).contains(limit))
}

fn field(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of files as a host has it.
    fn recorded(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = root.path().join(name);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("its directory");
            std::fs::write(file, text).expect("a file");
        }
        root
    }

    fn usage_of(root: &tempfile::TempDir) -> Usage {
        group_of(&Hierarchies::below(root.path())).usage()
    }

    fn group_of(hierarchies: &Hierarchies) -> Group<'_> {
        Group {
            hierarchies,
            name: "/skep/workspace-x",
        }
    }

    /// Of Debian 12 on its own kernel, 6.1.
    const VERSION_2: &[(&str, &str)] = &[
        ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n"),
        (
            "skep/workspace-x/cpu.stat",
            "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 12\nnr_throttled 1\nthrottled_usec 9\n",
        ),
        ("skep/workspace-x/memory.current", "104857600\n"),
        (
            "skep/workspace-x/memory.stat",
            "anon 73400320\nfile 31457280\nkernel 0\ninactive_anon 0\nactive_anon 73400320\ninactive_file 20971520\nactive_file 10485760\n",
        ),
        ("skep/workspace-x/memory.max", "2147483648\n"),
        ("skep/workspace-x/pids.current", "7\n"),
        (
            "skep/workspace-x/io.stat",
            "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 \n253:0 rbytes=100 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n",
        ),
    ];

    #[test]
    fn refused_processes_are_counted_by_group() {
        for pids in ["", "pids/"] {
            let events = format!("{pids}skep/workspace-x/pids.events");
            let controllers = if pids.is_empty() {
                "cgroup.controllers"
            } else {
                "pids/tasks"
            };
            let root = recorded(&[(controllers, ""), (&events, "max 3\n")]);
            let all = Group {
                hierarchies: &Hierarchies::below(root.path()),
                name: "/",
            };
            let names = ["/skep/workspace-x", "/skep/workspace-gone"];
            assert_eq!(all.refused_processes_of(names.into_iter()), [Some(3), None], "{pids}");
        }
    }

    const VERSION_1: &[(&str, &str)] = &[
        ("cpuacct/skep/workspace-x/cpuacct.usage", "1234567890\n"),
        ("cpuacct/skep/workspace-x/cpuacct.usage_user", "1000000000\n"),
        ("cpuacct/skep/workspace-x/cpuacct.usage_sys", "234567890\n"),
        ("memory/skep/workspace-x/memory.usage_in_bytes", "104857600\n"),
        (
            "memory/skep/workspace-x/memory.stat",
            "inactive_file 1\ntotal_inactive_file 20971520\ntotal_active_file 3\n",
        ),
        ("memory/skep/workspace-x/memory.limit_in_bytes", "9223372036854771712\n"),
        ("pids/skep/workspace-x/pids.current", "3\n"),
        (
            "blkio/skep/workspace-x/blkio.throttle.io_service_bytes",
            "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 0\n8:0 Total 12288\n8:16 Read 1\nTotal 12289\n",
        ),
    ];

    #[test]
    fn version_2_is_read_in_its_own_units() {
        let usage = usage_of(&recorded(VERSION_2));
        assert_eq!(usage.cpu_nanoseconds, Some(1_234_567_000));
        assert_eq!(usage.cpu_user_nanoseconds, Some(1_000_000_000));
        assert_eq!(usage.cpu_kernel_nanoseconds, Some(234_567_000));
        assert_eq!(usage.memory_bytes, Some(80 << 20));
        assert_eq!(usage.memory_limit_bytes, Some(2 << 30));
        assert_eq!(usage.pids, Some(7));
        let io = IoBytes {
            read: 4196,
            written: 8193,
        };
        assert_eq!(usage.io, Some(io));
    }

    #[test]
    fn version_1_is_read_from_each_controller() {
        let usage = usage_of(&recorded(VERSION_1));
        assert_eq!(usage.cpu_nanoseconds, Some(1_234_567_890));
        assert_eq!(usage.cpu_user_nanoseconds, Some(1_000_000_000));
        assert_eq!(usage.cpu_kernel_nanoseconds, Some(234_567_890));
        assert_eq!(usage.memory_bytes, Some(80 << 20));
        assert_eq!(usage.memory_limit_bytes, None, "the kernel's way to say none");
        assert_eq!(usage.pids, Some(3));
        let io = IoBytes {
            read: 4097,
            written: 8192,
        };
        assert_eq!(usage.io, Some(io));
    }

    #[test]
    fn parts_of_version_1_add_up_to_the_whole() {
        assert_eq!(shared_out(Some(1000), Some(900), Some(300)), Some((750, 250)));
        assert_eq!(shared_out(Some(1000), Some(0), Some(0)), Some((0, 1000)));
        assert_eq!(shared_out(Some(u64::MAX), Some(u64::MAX), Some(0)), Some((u64::MAX, 0)));
        assert_eq!(shared_out(None, Some(1), Some(1)), None);
    }

    #[test]
    fn a_hybrid_host_is_read_where_each_controller_is() {
        let mut files: Vec<(&str, &str)> = VERSION_1.to_vec();
        files.retain(|(name, _)| !name.starts_with("memory/") && !name.starts_with("pids/"));
        files.push(("unified/cgroup.controllers", "memory pids\n"));
        files.push(("unified/skep/workspace-x/memory.current", "5000\n"));
        files.push(("unified/skep/workspace-x/memory.max", "max\n"));
        files.push(("unified/skep/workspace-x/pids.current", "2\n"));
        files.push(("unified/skep/workspace-x/cgroup.procs", "11\n12\n"));
        let root = recorded(&files);
        let usage = usage_of(&root);
        assert_eq!(usage.cpu_nanoseconds, Some(1_234_567_890), "by version 1");
        assert_eq!((usage.memory_bytes, usage.pids), (Some(5000), Some(2)), "by version 2");
        assert_eq!(usage.memory_limit_bytes, None);
        let hierarchies = Hierarchies::below(root.path());
        assert!(group_of(&hierarchies).has_processes());
        assert_eq!(group_of(&hierarchies).processes(), [11, 12]);
    }

    #[test]
    fn what_a_process_has_written_is_counted_as_it_is_dirtied() {
        let io = "rchar: 10\nwchar: 99\nsyscw: 1\nread_bytes: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(written_of(io), Some(4096));
        assert_eq!(written_of("rchar: 10\n"), None);
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(written_by(&[i32::MAX]), 0, "one that is gone");
        let once = written_by(&[own]);
        assert!(written_by(&[own, own]) >= 2 * once);
    }

    #[test]
    fn a_group_that_is_gone_has_no_counters() {
        let root = recorded(&[("cgroup.controllers", "cpu memory pids\n")]);
        assert_eq!(usage_of(&root), Usage::default());
        let hierarchies = Hierarchies::below(root.path());
        assert!(!group_of(&hierarchies).has_processes());
        assert_eq!(group_of(&hierarchies).processes(), [0; 0]);
    }

    #[test]
    fn zero_and_absurd_limits_are_none() {
        for (text, limit) in [
            ("0\n", None),
            ("max\n", None),
            ("1152921504606846977\n", None),
            ("1152921504606846976\n", Some(1 << 60)),
            ("4096\n", Some(4096)),
        ] {
            let root = recorded(&[
                ("cgroup.controllers", "memory\n"),
                ("skep/workspace-x/memory.max", text),
            ]);
            assert_eq!(usage_of(&root).memory_limit_bytes, limit, "{text}");
        }
    }

    #[test]
    fn an_interface_is_told_from_the_other_end() {
        let interface = tempfile::tempdir().expect("a directory");
        let statistics = interface.path().join("statistics");
        std::fs::create_dir(&statistics).expect("a directory");
        std::fs::write(statistics.join("tx_bytes"), "1234\n").expect("written");
        std::fs::write(statistics.join("rx_bytes"), "56\n").expect("written");
        let bytes = network_of(interface.path()).expect("there");
        assert_eq!((bytes.received, bytes.sent), (1234, 56));
        assert!(network("lo").is_some(), "every host has one");
        assert_eq!(network("no-such-interface"), None);
    }
}
