//! The specification of a workspace's container, written by us from nothing: no default of a daemon, and
//! nothing of an image but its environment, reaches it.
//!
//! Plain JSON in the OCI runtime specification's own words: it is what the container runtimes read, and it
//! comes out the same for the same input, so that an unchanged one need not be stored again.

mod devices;
mod environment;
mod resources;
mod seccomp;

use std::path::Path;

use serde_json::{Value, json};
use skep_names::{BRIDGE_PATH_INSIDE, IDS_PER_BOT, RUN_DIRECTORY_INSIDE, RUNTIME_DIRECTORY_INSIDE};

use crate::Limits;

pub(crate) use devices::GivenDevices;
pub(crate) use environment::{environment, image_environment};
pub(crate) use resources::{LimitSupport, limits_as_resources};

/// What a workspace's root may do; `CAP_SETFCAP` only where it is not the host's root.
const CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
];

/// Hidden: the common default of container engines, and the host's interrupts.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Not `/sys/fs/cgroup`: crun would make its controllers writable again.
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A workspace goes before the server and containerd when the host runs out of memory.
const OOM_SCORE_ADJUSTMENT: i32 = 300;

/// Open files: soft limit of every process, and hard limit where the daemon may give as much.
pub(crate) const OPEN_FILES: (u64, u64) = (1024, 65_536);

/// Pseudo-terminals of a workspace at one time: all on a host share one limit, by default of 3072 outside of its own `/dev/pts`.
const TERMINALS: &str = "max=256";

/// Everything the specification depends on.
pub(crate) struct SpecInput<'a> {
    /// Shown as host name.
    pub(crate) host_name: &'a str,
    /// Of process 1.
    pub(crate) environment: &'a [String],
    /// To be in force from the start.
    pub(crate) limits: Limits,
    /// What this host can limit; `None`: start without limits, as the configuration says.
    pub(crate) limit_support: Option<LimitSupport>,
    /// Absolute cgroup path below the one parent of all workspaces.
    pub(crate) cgroup: &'a str,
    /// First id and pinned user namespace; `None`: root inside is root outside.
    pub(crate) user_namespace: Option<(u32, &'a Path)>,
    /// The pinned network namespace.
    pub(crate) network_namespace: &'a Path,
    /// Host's resolver file.
    pub(crate) resolv_conf: &'a Path,
    /// Host's directory with the bridge.
    pub(crate) runtime_dir: &'a Path,
    /// Host's socket directory.
    pub(crate) socket_directory: &'a Path,
    /// Hard limit of open files the daemon can give.
    pub(crate) open_files_hard: u64,
    /// Whether a system call filter is set; off only by a configuration key named after the danger.
    pub(crate) seccomp: bool,
    /// A loaded profile, where the kernel has AppArmor.
    pub(crate) apparmor_profile: Option<&'a str>,
    /// What its devices add.
    pub(crate) devices: Option<&'a GivenDevices>,
}

/// The capabilities of a workspace's root, by name.
pub(crate) fn capabilities(user_namespace: bool) -> Vec<String> {
    let more = user_namespace.then_some("CAP_SETFCAP");
    CAPABILITIES.into_iter().chain(more).map(str::to_owned).collect()
}

/// The specification, in the words of OCI runtime-spec 1.0.2.
pub(crate) fn specification(input: &SpecInput<'_>) -> Value {
    let mut specification = json!({
        "ociVersion": "1.0.2",
        "hostname": input.host_name,
        "root": { "path": "rootfs", "readonly": false },
        "process": process(input),
        "mounts": mounts(input),
        "linux": linux(input),
    });
    if let Some(devices) = input.devices {
        devices::add(&mut specification, input.environment, devices);
    }
    specification
}

fn process(input: &SpecInput<'_>) -> Value {
    let capabilities = capabilities(input.user_namespace.is_some());
    let (soft, hard) = OPEN_FILES;
    let hard = hard.min(input.open_files_hard);
    let mut process = json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": [BRIDGE_PATH_INSIDE],
        "env": input.environment,
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities,
            "permitted": capabilities,
            "effective": capabilities,
        },
        "noNewPrivileges": true,
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "soft": soft.min(hard), "hard": hard },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ],
        "oomScoreAdj": OOM_SCORE_ADJUSTMENT,
    });
    if let Some(profile) = input.apparmor_profile {
        process["apparmorProfile"] = profile.into();
    }
    process
}

fn mounts(input: &SpecInput<'_>) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let bind = |destination: &str, source: &Path, options: &[&str]| {
        mount(destination, "bind", &source.to_string_lossy(), options)
    };
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
                TERMINALS
            ]
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"]
        ),
        bind(
            "/etc/resolv.conf",
            input.resolv_conf,
            &["bind", "ro", "nosuid", "nodev", "noexec"]
        ),
        bind(
            RUNTIME_DIRECTORY_INSIDE,
            input.runtime_dir,
            &["rbind", "ro", "nosuid", "nodev"]
        ),
        bind(
            RUN_DIRECTORY_INSIDE,
            input.socket_directory,
            &["bind", "rw", "nosuid", "nodev", "noexec"]
        ),
    ])
}

fn linux(input: &SpecInput<'_>) -> Value {
    let mut namespaces = vec![
        json!({ "type": "mount" }),
        json!({ "type": "pid" }),
        json!({ "type": "ipc" }),
        json!({ "type": "uts" }),
        json!({ "type": "cgroup" }),
        json!({ "type": "network", "path": input.network_namespace }),
    ];
    let mut linux = json!({
        "resources": resources::resources(&input.limits, input.limit_support),
        "cgroupsPath": input.cgroup,
        "sysctl": { "net.ipv4.ping_group_range": ping_group_range(input) },
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READ_ONLY_PATHS,
        "rootfsPropagation": "private",
    });
    if let Some((base, path)) = input.user_namespace {
        namespaces.push(json!({ "type": "user", "path": path }));
        // Equal to the namespace's own, else the runtime refuses.
        let mapping = json!([{ "containerID": 0, "hostID": base, "size": IDS_PER_BOT }]);
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    if input.seccomp {
        linux["seccomp"] = seccomp::filter();
    }
    linux["namespaces"] = Value::Array(namespaces);
    linux
}

/// Lets every group of the workspace open ICMP sockets: `ping` works without `CAP_NET_RAW`.
fn ping_group_range(input: &SpecInput<'_>) -> &'static str {
    match input.user_namespace {
        Some(_) => "0 65535",
        None => "0 2147483647",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(user_namespace: Option<(u32, &Path)>) -> Value {
        confined(user_namespace, None)
    }

    fn confined(user_namespace: Option<(u32, &Path)>, apparmor_profile: Option<&str>) -> Value {
        specification(&SpecInput {
            host_name: "workspace",
            environment: &[],
            limits: Limits::default(),
            limit_support: None,
            cgroup: "/skep/workspace-x",
            user_namespace,
            network_namespace: Path::new("/run/netns/skep-x"),
            resolv_conf: Path::new("/etc/resolv.conf"),
            runtime_dir: Path::new("/opt/skep"),
            socket_directory: Path::new("/data/run/x"),
            open_files_hard: 20_000,
            seccomp: true,
            apparmor_profile,
            devices: None,
        })
    }

    #[test]
    fn the_capability_to_set_file_capabilities_comes_only_with_a_user_namespace() {
        let with = input(Some((65_536, Path::new("/run/userns"))));
        let without = input(None);
        let bounding = |spec: &Value| spec["process"]["capabilities"]["bounding"].as_array().unwrap().len();
        assert_eq!((bounding(&with), bounding(&without)), (11, 10));
        assert!(without["linux"].get("uidMappings").is_none());
        assert_eq!(with["linux"]["uidMappings"][0]["hostID"], 65_536);
    }

    #[test]
    fn a_profile_is_named_only_where_the_kernel_has_apparmor() {
        let with = confined(None, Some("skep-workspace"));
        assert_eq!(with["process"]["apparmorProfile"], "skep-workspace");
        assert!(input(None)["process"].get("apparmorProfile").is_none());
    }

    #[test]
    fn nothing_is_inheritable_or_ambient() {
        let capabilities = &input(None)["process"]["capabilities"];
        assert!(capabilities.get("inheritable").is_none() && capabilities.get("ambient").is_none());
    }

    #[test]
    fn a_workspace_has_its_own_part_of_the_hosts_terminals() {
        let specification = input(None);
        let mut mounts = specification["mounts"].as_array().unwrap().iter();
        let terminals = mounts.find(|mount| mount["destination"] == "/dev/pts").unwrap();
        assert!(terminals["options"].as_array().unwrap().contains(&"max=256".into()));
    }

    #[test]
    fn open_files_never_exceed_what_the_daemon_can_give() {
        assert_eq!(input(None)["process"]["rlimits"][0]["hard"], 20_000);
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(
            serde_json::to_vec(&input(None)).unwrap(),
            serde_json::to_vec(&input(None)).unwrap()
        );
    }
}
