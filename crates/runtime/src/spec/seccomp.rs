//! The system calls a workspace may make: an allow list; everything else answers EPERM.
//!
//! Only the native architecture is named. Each further one costs some 10 ms at every start, and a closed
//! 32-bit gate is one attack surface less: a program that uses it is killed.

use serde_json::{Value, json};

/// New namespaces by `clone`: mount, cgroup, uts, ipc, user, pid, network.
const NEW_NAMESPACES: u64 = 0x7E02_0000;
/// Sockets to the hypervisor.
const AF_VSOCK: u64 = 40;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EOPNOTSUPP: u32 = 95;

/// Execution domains that change nothing a kernel would have to guard: Linux, 32-bit names, and their
/// variants without address randomisation, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// The kernel looks at so much of an argument that is an `int`: whoever sets bits above it must not get past a filter.
const INT: u64 = 0xFFFF_FFFF;

/// Modes of `fallocate` that take no space: holes are punched, ranges are taken out or moved apart.
const MODES_OF_HOLES: [u64; 3] = [0x03, 0x08, 0x20];

/// Bits and their value in the modes that take space which nobody writes: as such, with or without a longer file;
/// zeroed ranges; unshared ones; ranges of zeros that are written by the disk.
const MODES_OF_SPACE: [(u64, u64); 4] = [(INT & !1, 0), (0x10, 0x10), (0x40, 0x40), (0x80, 0x80)];

/// Of the number of an `ioctl`: its type, and that of XFS's own, under which there are more names for `fallocate`, on
/// every file system.
const TYPE_OF_IOCTL: u64 = 0xFF00;
const IOCTLS_OF_XFS: u64 = 0x5800;
/// Of that type, all with the argument of `FS_IOC_RESVSP`.
const IOCTLS_OF_SPACE: (u64, u64) = (0xFFFF_FF00, 0x4030_5800);
/// Of that type, harmless: `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`.
const IOCTLS_OF_ATTRIBUTES: [u64; 2] = [0x801C_581F, 0x401C_5820];

/// The filter in the words of the runtime specification.
pub(super) fn filter() -> Value {
    let mut rules = vec![
        json!({ "names": allowed(), "action": "SCMP_ACT_ALLOW" }),
        json!({
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
        }),
        // Its flags are in memory, where no filter can look; with ENOSYS every C library falls back to clone.
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
    rules.extend(socket_rules());
    rules.extend(space_rules());
    rules.extend(PERSONALITIES.map(|personality| {
        json!({
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": personality, "op": "SCMP_CMP_EQ" }],
        })
    }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [architecture()],
        "syscalls": rules,
    })
}

/// Any family that differs from the refused one in a bit that the kernel looks at.
fn socket_rules() -> impl Iterator<Item = Value> {
    let bits = (0..u64::BITS).map(|bit| 1_u64 << bit).filter(|bit| INT & bit != 0);
    bits.map(|bit| {
        json!({
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": bit, "valueTwo": !AF_VSOCK & bit, "op": "SCMP_CMP_MASKED_EQ" }],
        })
    })
}

/// Space that is only reserved is taken at once and counted for nobody, so that nobody would be found who takes the
/// host's last. It answers as on a file system that cannot reserve any: programs and C libraries write zeros then.
fn space_rules() -> Vec<Value> {
    let rule = |name: &str, (bits, value): (u64, u64)| {
        json!({
            "names": [name],
            "args": [{ "index": 1, "value": bits, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }],
        })
    };
    let allowed = |name, compared| {
        let mut rule = rule(name, compared);
        rule["action"] = json!("SCMP_ACT_ALLOW");
        rule
    };
    let unsupported = |name, compared| {
        let mut rule = rule(name, compared);
        rule["action"] = json!("SCMP_ACT_ERRNO");
        rule["errnoRet"] = json!(EOPNOTSUPP);
        rule
    };
    let mut rules = vec![unsupported("ioctl", IOCTLS_OF_SPACE)];
    rules.extend(MODES_OF_HOLES.map(|mode| allowed("fallocate", (INT, mode))));
    rules.extend(MODES_OF_SPACE.map(|compared| unsupported("fallocate", compared)));
    rules.extend(IOCTLS_OF_ATTRIBUTES.map(|number| allowed("ioctl", (INT, number))));
    // A rule can only say what is equal: another type is one that differs in a bit.
    let bits = (0..u64::BITS)
        .map(|bit| 1 << bit)
        .filter(|bit| TYPE_OF_IOCTL & bit != 0);
    rules.extend(bits.map(|bit| allowed("ioctl", (bit, !IOCTLS_OF_XFS & bit))));
    rules
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        "powerpc64" => "SCMP_ARCH_PPC64LE",
        other => other,
    }
}

fn allowed() -> Vec<&'static str> {
    let groups = [
        FILES,
        MEMORY,
        PROCESSES,
        SIGNALS_AND_TIME,
        SOCKETS,
        WAITING,
        IDENTITY,
        SYSTEM,
    ];
    let mut names: Vec<&str> = groups.iter().flat_map(|group| group.split_whitespace()).collect();
    if std::env::consts::ARCH == "x86_64" {
        names.extend(["arch_prctl", "modify_ldt"]);
    }
    names
}

/// Names, contents and attributes of files. Not: mounting of any kind, `open_by_handle_at`, quotas.
const FILES: &str = "access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr \
    flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 \
    getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link \
    linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile \
    setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask \
    unlink unlinkat utime utimensat utimes vmsplice write writev chroot";

/// Not: `userfaultfd`, NUMA policy.
const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock \
    mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    process_madvise process_mrelease remap_file_pages get_mempolicy";

/// Not: `unshare`, `setns`, `kcmp`, `bpf`, `perf_event_open`.
const PROCESSES: &str = "capget capset execve execveat exit exit_group fork vfork get_robust_list \
    get_thread_area getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid ioprio_get \
    ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_getfd pidfd_open \
    pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace rseq sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
    set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid tgkill times tkill wait4 \
    waitid";

const SIGNALS_AND_TIME: &str = "adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep \
    getitimer gettimeofday nanosleep pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack signalfd \
    signalfd4 time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create \
    timerfd_gettime timerfd_settime";

const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg \
    recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketpair";

/// Queues, pipes, semaphores. Not: `io_uring_*`.
const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd \
    eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake io_cancel io_destroy io_getevents \
    io_pgetevents io_setup io_submit mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl \
    msgget msgrcv msgsnd pipe pipe2 poll ppoll pselect6 select semctl semget semop semtimedop shmat shmctl shmdt \
    shmget";

const IDENTITY: &str = "getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid \
    setgroups setregid setresgid setresuid setreuid setuid";

/// Not: modules, `kexec`, `reboot`, clocks, swap, host names, key rings, `syslog`, accounting, I/O ports.
const SYSTEM: &str = "getrandom sysinfo uname";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_refused_is_not_allowed() {
        let allowed = allowed();
        for refused in [
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "open_by_handle_at",
            "mount",
            "umount2",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "mount_setattr",
            "unshare",
            "setns",
            "clone",
            "clone3",
            "pivot_root",
            "reboot",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "kexec_file_load",
            "swapon",
            "swapoff",
            "syslog",
            "acct",
            "settimeofday",
            "clock_settime",
            "iopl",
            "ioperm",
            "quotactl",
            "kcmp",
            "lookup_dcookie",
            "vhangup",
            "sethostname",
            "setdomainname",
        ] {
            assert!(!allowed.contains(&refused), "{refused} is allowed");
        }
    }

    /// What a call with that argument, the first of `socket` and else the second, is answered: 0 when it is let through.
    fn answer(name: &str, argument: u64) -> u64 {
        let index = u32::from(name != "socket");
        let filter = filter();
        let rules = filter["syscalls"].as_array().unwrap().iter();
        let of_it = rules.filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name)));
        let matching = of_it.filter(|rule| {
            let compared = &rule["args"][0];
            assert_eq!(
                (&compared["index"], &compared["op"]),
                (&json!(index), &json!("SCMP_CMP_MASKED_EQ"))
            );
            argument & compared["value"].as_u64().unwrap() == compared["valueTwo"].as_u64().unwrap()
        });
        let mut answers: Vec<_> = matching.map(|rule| rule["errnoRet"].as_u64().unwrap_or(0)).collect();
        answers.dedup();
        assert!(answers.len() < 2, "{name} {argument:x}: which one counts?");
        answers.pop().unwrap_or(u64::from(EPERM))
    }

    #[test]
    fn space_cannot_be_taken_without_being_written() {
        let unsupported = u64::from(EOPNOTSUPP);
        for mode in [
            0,
            1,
            0x10,
            0x11,
            0x40,
            0x41,
            0x80,
            1 << 32,
            (1 << 32) | 1,
            (1 << 63) | 0x10,
        ] {
            assert_eq!(answer("fallocate", mode), unsupported, "{mode:x}");
        }
        for mode in [0x03, 0x08, 0x20, (1 << 32) | 0x03] {
            assert_eq!(answer("fallocate", mode), 0, "{mode:x}");
        }
        for reserving in [0x4030_5828, 0x4030_582A, 0x4030_5839, 0xFF_4030_5828] {
            assert_eq!(answer("ioctl", reserving), unsupported, "{reserving:x}");
        }
        // TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD, FS_IOC_GETFLAGS, FICLONE, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR.
        for harmless in [
            0x5401,
            0x5413,
            0x5421,
            0x541B,
            0x8008_6601,
            0x4004_9409,
            0x801C_581F,
            0x401C_5820,
        ] {
            assert_eq!(answer("ioctl", harmless), 0, "{harmless:x}");
        }
    }

    #[test]
    fn no_spelling_of_a_socket_to_the_hypervisor_is_let_through() {
        for refused in [AF_VSOCK, AF_VSOCK | 1 << 32, AF_VSOCK | 1 << 63] {
            assert_eq!(answer("socket", refused), u64::from(EPERM), "{refused:x}");
        }
        // Unix, the Internet's two, netlink.
        for family in [1, 2, 10, 16] {
            assert_eq!(answer("socket", family), 0, "{family}");
        }
    }

    #[test]
    fn no_name_is_there_twice() {
        let mut names = allowed();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn only_the_native_architecture_is_named() {
        assert_eq!(filter()["architectures"].as_array().unwrap().len(), 1);
        assert!(architecture().starts_with("SCMP_ARCH_"));
    }
}
