//! What the host's kernel is told about a workspace: file systems, devices, refused system calls.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use skep_runtime::BridgeEndpoint;

use super::{Subject, Workspace};

/// Makes calls that must be refused, with arguments that get another answer where no filter is in force, and prints
/// `<name> <errno>` for each (0: it worked); for the last ones `<name> <signal>`.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void call(const char *name, long number, long a, long b, long c, long d, long e) {
    errno = 0;
    long answer = syscall(number, a, b, c, d, e, 0);
    if (answer == 0 && number == SYS_clone) _exit(0);
    printf("%s %d\n", name, answer < 0 ? errno : 0);
    fflush(stdout);
}

int main(void) {
    call("bpf", SYS_bpf, -1, 0, 0, 0, 0);
    call("perf_event_open", SYS_perf_event_open, 0, 0, -1, -1, 0);
    call("userfaultfd", SYS_userfaultfd, -1, 0, 0, 0, 0);
    call("keyctl", SYS_keyctl, 0, -3, 1, 0, 0);
    call("add_key", SYS_add_key, 0, 0, 0, 0, 0);
    call("request_key", SYS_request_key, 0, 0, 0, 0, 0);
    call("io_uring_setup", 425, 1, 0, 0, 0, 0);
    call("io_uring_enter", 426, -1, 0, 0, 0, 0);
    call("io_uring_register", 427, -1, 0, 0, 0, 0);
    call("open_by_handle_at", SYS_open_by_handle_at, -1, 0, 0, 0, 0);
    call("mount", SYS_mount, 0, 0, 0, 0, 0);
    call("umount2", SYS_umount2, 0, 0, 0, 0, 0);
    call("pivot_root", SYS_pivot_root, 0, 0, 0, 0, 0);
    call("open_tree", 428, -1, 0, -1, 0, 0);
    call("move_mount", 429, -1, 0, -1, 0, -1);
    call("fsopen", 430, 0, -1, 0, 0, 0);
    call("fsmount", 432, -1, -1, 0, 0, 0);
    call("mount_setattr", 442, -1, 0, 0, 0, 0);
    call("unshare", SYS_unshare, 0, 0, 0, 0, 0);
    call("setns", SYS_setns, -1, 0, 0, 0, 0);
    call("clone into a user namespace", SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    call("clone into a mount namespace", SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
    call("clone into a process namespace", SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    call("clone into a network namespace", SYS_clone, CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0);
    call("clone into a cgroup namespace", SYS_clone, CLONE_NEWCGROUP | SIGCHLD, 0, 0, 0, 0);
    call("clone3", 435, 0, 0, 0, 0, 0);
    call("kexec_load", SYS_kexec_load, 0, 0, 0, 0, 0);
    call("init_module", SYS_init_module, 0, 0, 0, 0, 0);
    call("reboot", SYS_reboot, 0, 0, 0, 0, 0);
    call("syslog", SYS_syslog, 10, 0, 0, 0, 0);
    call("acct", SYS_acct, 0, 0, 0, 0, 0);
    call("swapon", SYS_swapon, 0, 0, 0, 0, 0);
    call("quotactl", SYS_quotactl, 0, 0, 0, 0, 0);
    call("socket to the hypervisor", SYS_socket, AF_VSOCK, SOCK_STREAM, 0, 0, 0);
    call("the same, spelled otherwise", SYS_socket, AF_VSOCK | 1L << 32, SOCK_STREAM, 0, 0, 0);
    call("personality of another system", SYS_personality, 0x0400000, 0, 0, 0, 0);
    call("space without a byte", SYS_fallocate, -1, 0, 0, 1, 0);
    call("space beyond the end", SYS_fallocate, -1, 1, 0, 1, 0);
    call("space by bits that the kernel ignores", SYS_fallocate, -1, 1L << 32, 0, 1, 0);
    call("space of zeros", SYS_fallocate, -1, 0x11, 0, 1, 0);
    call("space that was shared", SYS_fallocate, -1, 0x40, 0, 1, 0);
    call("space by another name", SYS_ioctl, -1, 0x4030582a, 0, 0, 0);
    call("no file for a hole", SYS_fallocate, -1, 0x03, 0, 1, 0);
    call("no file for a terminal", SYS_ioctl, -1, 0x5401, 0, 0, 0);
    call("no file for attributes", SYS_ioctl, -1, 0x801c581f, 0, 0, 0);
#ifdef __x86_64__
    pid_t child = fork();
    if (child == 0) {
        long answer;
        __asm__ volatile("int $0x80" : "=a"(answer) : "a"(20L) : "memory");
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("the 32-bit gate %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
#endif
    return 0;
}
"#;

/// A static program, so that it runs in any image; compiled once for all cases.
fn probe() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let (source, program) = (directory.path().join("probe.c"), directory.path().join("probe"));
        std::fs::write(&source, PROBE).expect("write the probe");
        let mut compiler = Command::new("cc");
        let compiled = compiler.args(["-static", "-O1", "-o"]).arg(&program).arg(&source);
        let output = compiled.output().expect("cc is needed (Debian: gcc, libc6-dev)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (directory, program)
    });
    program
}

/// Each with the answer that the contract names: EPERM, `clone3` ENOSYS, the 32-bit gate SIGSYS; and that of a file
/// system which cannot reserve space.
pub async fn refused_system_calls_answer_as_promised(subject: &dyn Subject) {
    let workspace = Workspace::new(subject);
    workspace.create().await;
    if subject.isolates() {
        let place = subject.layer_on_disk(&workspace.bot).join("probe");
        std::fs::copy(probe(), &place).expect("copy the probe");
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
        workspace.start().await;
        let answers = workspace.output("/probe").await;
        assert!(answers.lines().count() >= 35, "{answers}");
        for answer in answers.lines() {
            let (name, number) = answer.rsplit_once(' ').expect("a name and a number");
            let expected = match name {
                _ if name.starts_with("space ") => rustix::io::Errno::OPNOTSUPP.raw_os_error(),
                // These are let through.
                _ if name.starts_with("no file ") => rustix::io::Errno::BADF.raw_os_error(),
                "clone3" => rustix::io::Errno::NOSYS.raw_os_error(),
                "the 32-bit gate" => rustix::process::Signal::SYS.as_raw(),
                _ => rustix::io::Errno::PERM.raw_os_error(),
            };
            assert_eq!(number, expected.to_string(), "{name}");
        }
    }
    workspace.remove().await;
}

/// Where, of what kind, and what its options must be.
const FILE_SYSTEMS: &[(&str, &str, &[&str])] = &[
    ("/", "overlay", &["nosuid", "nodev"]),
    ("/proc", "proc", &["nosuid", "nodev", "noexec"]),
    ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
    ("/dev", "tmpfs", &["nosuid"]),
    ("/dev/pts", "devpts", &["nosuid", "noexec"]),
    ("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "size=65536k"]),
    ("/opt/memoh", "", &["ro", "nosuid", "nodev"]),
    ("/etc/resolv.conf", "", &["ro", "nosuid", "nodev", "noexec"]),
    (
        "/run/memoh",
        "tmpfs",
        &["nosuid", "nodev", "noexec", "size=1024k", "nr_inodes=64", "mode=700"],
    ),
];

/// Everything in `/dev`; `core` and `fd` and the like are links of the runtime's.
const DEVICES: &[&str] = &[
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
    "tty", "urandom", "zero",
];

/// Kinds, options, sizes; nothing of the host beside them.
pub async fn file_systems_and_devices_are_as_promised(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    if subject.isolates() {
        let mounts = workspace.output("cat /proc/mounts").await;
        let rows: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        for (place, kind, options) in FILE_SYSTEMS {
            // The last one mounted on a place is the one that is seen.
            let row = rows.iter().rfind(|row| row[1] == *place);
            let row = row.unwrap_or_else(|| panic!("nothing is mounted at {place}: {mounts}"));
            assert!(kind.is_empty() || row[2] == *kind, "{place} is {}", row[2]);
            let present: Vec<&str> = row[3].split(',').collect();
            for option in *options {
                assert!(present.contains(option), "{place} lacks {option}: {}", row[3]);
            }
        }
        let groups = rows.iter().filter(|row| row[2].starts_with("cgroup"));
        for row in groups {
            assert!(
                row[3].split(',').any(|option| option == "ro"),
                "{} can be written: {}",
                row[1],
                row[3]
            );
        }
        devices_are_the_promised(&workspace).await;
        nothing_of_the_host_is_written(&workspace).await;
        the_socket_directory_is_a_small_tmpfs_without_links(subject, &workspace);
    }
    workspace.remove().await;
}

async fn devices_are_the_promised(workspace: &Workspace<'_>) {
    let listed = workspace.output("ls -A /dev").await;
    let unexpected: Vec<&str> = listed.lines().filter(|name| !DEVICES.contains(name)).collect();
    assert_eq!(unexpected, Vec::<&str>::new(), "more than was promised is in /dev");
    for works in [
        "echo x > /dev/null",
        "head -c 1 /dev/zero > /dev/null",
        "head -c 1 /dev/random > /dev/null && head -c 1 /dev/urandom > /dev/null",
        "test -c /dev/full && ! echo x > /dev/full",
        "test -c /dev/tty && test -e /dev/ptmx",
    ] {
        let result = workspace.sh(works).await;
        assert_eq!(result.exit_code, 0, "{works:?}: {result:?}");
    }
    let blocks = workspace.output("find / -xdev -type b | wc -l").await;
    assert_eq!(blocks, "0", "a block device is there");
}

async fn nothing_of_the_host_is_written(workspace: &Workspace<'_>) {
    for attempt in [
        "echo 1 > /sys/kernel/profiling",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 0 > /proc/sys/kernel/yama/ptrace_scope",
        "echo x > /proc/sysrq-trigger",
        "find /sys/fs/cgroup -name cgroup.procs | while read f; do echo 1 > $f && exit 0; done; exit 1",
        "find /sys/fs/cgroup -mindepth 2 -type d | while read d; do mkdir $d/mine && exit 0; done; exit 1",
        "touch /sys/fs/mine",
        "touch /opt/memoh/mine",
        "cp /bin/busybox /run/memoh/run && /run/memoh/run true",
        "head -c 70000000 /dev/zero > /dev/shm/full",
        "head -c 2000000 /dev/zero > /run/memoh/full",
        "cat /proc/kcore | head -c 1 | grep -q .",
        "cat /proc/keys | grep -q .",
        "cat /proc/timer_list | grep -q .",
        "ls /sys/firmware | grep -q .",
    ] {
        let result = workspace.sh(attempt).await;
        assert_ne!(result.exit_code, 0, "{attempt:?} worked: {result:?}");
    }
    workspace
        .output("rm -f /dev/shm/full /run/memoh/full /run/memoh/run")
        .await;
}

fn the_socket_directory_is_a_small_tmpfs_without_links(subject: &dyn Subject, workspace: &Workspace<'_>) {
    let BridgeEndpoint::Unix { directory, .. } = subject.runtime().bridge_endpoint(&workspace.bot).unwrap() else {
        panic!("a bridge on TCP");
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let place = directory.to_string_lossy();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(&*place));
    let line = line.unwrap_or_else(|| panic!("nothing is mounted at {place}"));
    let options: Vec<&str> = line.split([' ', ',']).collect();
    for option in [
        "nosuid",
        "nodev",
        "noexec",
        "nosymfollow",
        "tmpfs",
        "size=1024k",
        "nr_inodes=64",
        "mode=700",
    ] {
        assert!(options.contains(&option), "{place} lacks {option}: {line}");
    }
}
