//! What a workspace sees and may do. Walls are tried only on backends that have them.

use std::os::unix::fs::MetadataExt;

use skep_runtime::BridgeEndpoint;

use super::{CASE_LIMITS, Subject, Workspace};

/// Values as given.
pub async fn the_environment_asked_for_is_there(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    assert_eq!(
        workspace.output("echo $GREETING $HOME $BRIDGE_SOCKET_PATH").await,
        "hello /data /run/memoh/bridge.sock"
    );
    workspace.remove().await;
}

/// Ids on disk are those seen inside, whatever ids the workspace has on the host.
pub async fn root_inside_owns_what_it_writes(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    workspace
        .output("echo x > /by-root && echo y > /by-user && chown 1000:1000 /by-user")
        .await;
    assert_eq!(
        workspace.output("stat -c %u:%g /by-root /by-user").await,
        "0:0\n1000:1000"
    );
    let layer = subject.layer_on_disk(&workspace.bot);
    let owner = |name: &str| {
        let found = std::fs::symlink_metadata(layer.join(name)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!((owner("by-root"), owner("by-user")), ((0, 0), (1000, 1000)));
    workspace.remove().await;
}

/// And the bridge's peer is exactly the bot's own root.
pub async fn two_bots_have_different_ids(subject: &dyn Subject) {
    let (one, two) = (Workspace::running(subject).await, Workspace::running(subject).await);
    if subject.isolates() {
        let (first, second) = (first_id(&one).await, first_id(&two).await);
        assert!(
            first.abs_diff(second) >= 65_536,
            "blocks at {first} and {second} overlap"
        );
        for (workspace, id) in [(&one, first), (&two, second)] {
            let endpoint = subject.runtime().bridge_endpoint(&workspace.bot).unwrap();
            assert!(
                matches!(endpoint, BridgeEndpoint::Unix { owner_uid, .. } if owner_uid == id),
                "{endpoint:?}"
            );
        }
    }
    one.remove().await;
    two.remove().await;
}

async fn first_id(workspace: &Workspace<'_>) -> u32 {
    let map = workspace.output("cat /proc/self/uid_map").await;
    let map: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((map[0], map[2]), (0, 65_536), "root of the host is mapped");
    map[1]
}

/// Capabilities, `no_new_privs`, the filter of system calls, devices, mounts.
pub async fn nothing_more_than_promised_is_allowed(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    if subject.isolates() {
        let status = workspace.output("cat /proc/self/status").await;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .trim()
                .to_owned()
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), "00000000800405fb", "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
        refused(&workspace).await;
    }
    workspace.remove().await;
}

async fn processes_refused(workspace: &Workspace<'_>) -> u64 {
    let bot = workspace.bot.clone();
    let refused = workspace.subject.runtime().refused_processes(&[bot]).await;
    refused.expect("a count")[&workspace.bot]
}

async fn refused(workspace: &Workspace<'_>) {
    for attempt in [
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /sys",
        "umount /etc/resolv.conf",
        "unshare -U true",
        "unshare -m true",
        "nsenter -t 1 -m true",
        "mknod /tmp/null c 1 3",
        "mknod /tmp/disk b 254 0",
        "chown 65536 /tmp",
        "echo x > /opt/memoh/file",
        "echo x > /etc/resolv.conf",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/1/oom_score_adj && test $(cat /proc/1/oom_score_adj) -lt 0",
        "hostname other",
        "chroot /proc/1/root/.. test -d /work",
        "cat /proc/1/environ",
        "cat /proc/1/maps",
        "head -c 1 /proc/1/mem",
        "readlink /proc/1/fd/0",
        "head -c 1 /proc/1/fd/0",
        "readlink /proc/1/exe",
        "readlink /proc/1/cwd",
        "ls /proc/1/root/",
        "ls /proc/scsi/scsi",
        "test -s /proc/kcore",
        "test -s /proc/interrupts",
        "ulimit -Hn 1000000",
        "ulimit -c unlimited",
    ] {
        let result = workspace.sh(attempt).await;
        assert_ne!(result.exit_code, 0, "{attempt:?} worked: {result:?}");
    }
    for works in [
        "test $(id -u) = 0",
        "su user -c 'test $(id -u) = 1000'",
        "echo x > /dev/null && head -c 4 /dev/urandom && test -c /dev/ptmx",
        "touch /dev/shm/x && rm /dev/shm/x",
        "test $(cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' -) = 0-65535",
        "chmod 4755 /tmp/setuid || touch /tmp/setuid && chmod 4755 /tmp/setuid",
        "mkfifo /tmp/pipe",
    ] {
        let result = workspace.sh(works).await;
        assert_eq!(result.exit_code, 0, "{works:?} failed: {result:?}");
    }
}

/// Its end is the host's to order; what it is told from inside is not.
pub async fn a_signal_from_inside_does_not_end_a_workspace(subject: &dyn Subject) {
    let workspace = Workspace::running(subject).await;
    for signal in ["TERM", "INT", "HUP", "KILL"] {
        workspace.output(&format!("kill -{signal} 1")).await;
        assert_eq!(workspace.output("echo works").await, "works", "after SIG{signal}");
    }
    workspace.stop().await;
    workspace.remove().await;
}

/// In force from the start, changed without a restart, counted.
pub async fn limits_are_in_force(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    if subject.isolates() {
        let usage = runtime.usage(&workspace.bot).await.unwrap();
        assert_eq!(usage.memory_limit_bytes, Some(CASE_LIMITS.memory_bytes));
        assert!(usage.cpu_nanoseconds.unwrap() > 0 && usage.pids.unwrap() >= 1);
        let fewer = skep_runtime::Limits {
            pids: 16,
            memory_bytes: 64 << 20,
            ..CASE_LIMITS
        };
        runtime.apply_limits(&workspace.bot, &fewer).await.unwrap();
        assert_eq!(
            runtime.usage(&workspace.bot).await.unwrap().memory_limit_bytes,
            Some(64 << 20)
        );
        assert_eq!(processes_refused(&workspace).await, 0);
        let forks = workspace.sh("for i in $(seq 40); do sleep 5 & done; wait").await;
        assert!(
            forks.stderr.contains("fork") || forks.exit_code != 0,
            "40 processes of 16: {forks:?}"
        );
        assert!(processes_refused(&workspace).await > 0);
        let eats = workspace
            .sh("head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null")
            .await;
        assert_ne!(eats.exit_code, 0, "190 MB in 64 MiB: {eats:?}");
    }
    workspace.remove().await;
}

/// Refused where the kernel refuses it (cgroups of version 1; those of version 2 take the memory from whoever has it), and what
/// was in force stays so.
pub async fn a_limit_of_memory_below_what_is_in_use_is_refused(subject: &dyn Subject) {
    if !subject.isolates() || !std::path::Path::new("/sys/fs/cgroup/memory").is_dir() {
        return;
    }
    let runtime = subject.runtime();
    let workspace = Workspace::running(subject).await;
    workspace.output("head -c 50000000 /dev/zero > /dev/shm/used").await;
    let less = skep_runtime::Limits {
        memory_bytes: 24 << 20,
        ..CASE_LIMITS
    };
    let refused = runtime.apply_limits(&workspace.bot, &less).await.unwrap_err();
    assert!(
        matches!(&refused, skep_runtime::RuntimeError::Rejected { reason } if reason.contains("in use")),
        "{refused:?}"
    );
    runtime.apply_limits(&workspace.bot, &CASE_LIMITS).await.unwrap();
    let usage = runtime.usage(&workspace.bot).await.unwrap();
    assert_eq!(usage.memory_limit_bytes, Some(CASE_LIMITS.memory_bytes));
    assert_eq!(workspace.output("echo works").await, "works");
    workspace.remove().await;
}
