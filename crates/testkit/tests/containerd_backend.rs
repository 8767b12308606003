//! The containerd backend with a shell script as process 1: what the host sees of a workspace, and what a
//! workspace sees of itself.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use skep_core::bridge::BridgePool;
use skep_names::{BotId, container_id_for};
use skep_runtime::containerd::{ContainerdRuntime, UserNamespaceMode};
use skep_runtime::{BridgeEndpoint, CheckStatus, Limits, Runtime, RuntimeError};
use skep_testkit::containerd_rig::{ContainerdRig, OciRuntime, RigOptions, as_runtime, instance_spec, until};
use skep_testkit::{ContainerdRelease, ContainerdServer};

/// Each case on each pair of a containerd and a program that makes containers.
macro_rules! matrix {
    ($($module:ident: $release:ident, $oci_runtime:ident => $($case:ident),+;)+) => {
        $(mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(RigOptions {
                        release: ContainerdRelease::$release,
                        oci_runtime: OciRuntime::$oci_runtime,
                        ..Default::default()
                    })
                    .await;
                }
            )+
        })+
    };
}

matrix! {
    on_1_6_with_crun: Installed, Crun =>
        a_hook_in_the_namespaces_is_no_root_of_the_host_and_has_no_variable_of_the_workspace,
        a_workspace_may_open_its_device_and_no_other_of_the_host,
        a_workspace_has_what_is_promised_and_nothing_more,
        a_released_layer_that_another_client_stands_on_stops_no_release,
        crun_is_refused_where_it_would_drop_flags_of_the_root,
        limits_are_in_force_from_the_start_and_change_without_a_restart;
    on_1_6_with_runc: Installed, Runc =>
        a_workspace_may_open_its_device_and_no_other_of_the_host,
        without_a_user_namespace_a_device_is_the_hosts_roots,
        a_workspace_has_what_is_promised_and_nothing_more,
        a_daemon_that_sees_other_mounts_is_refused_with_the_line_that_causes_it,
        what_another_runtime_may_leave_out_is_refused_or_told,
        without_a_user_namespace_a_workspace_has_one_capability_less,
        without_ids_of_its_own_only_a_workspaces_own_process_is_its_bridge,
        limits_are_in_force_from_the_start_and_change_without_a_restart;
    on_1_7_with_crun: V1_7, Crun =>
        a_workspace_may_open_its_device_and_no_other_of_the_host,
        a_workspace_has_what_is_promised_and_nothing_more,
        limits_are_in_force_from_the_start_and_change_without_a_restart;
    on_2_with_crun: V2, Crun =>
        a_released_layer_that_another_client_stands_on_stops_no_release,
        a_workspace_may_open_its_device_and_no_other_of_the_host,
        a_workspace_has_what_is_promised_and_nothing_more,
        limits_are_in_force_from_the_start_and_change_without_a_restart;
    on_2_with_runc: V2, Runc =>
        a_hook_in_the_namespaces_is_no_root_of_the_host_and_has_no_variable_of_the_workspace,
        a_workspace_may_open_its_device_and_no_other_of_the_host,
        without_a_user_namespace_a_device_is_the_hosts_roots,
        a_workspace_has_what_is_promised_and_nothing_more,
        without_a_user_namespace_a_workspace_has_one_capability_less,
        without_ids_of_its_own_only_a_workspaces_own_process_is_its_bridge,
        limits_are_in_force_from_the_start_and_change_without_a_restart;
}

const LIMITS: Limits = Limits {
    cpu_millicores: 1500,
    memory_bytes: 256 << 20,
    pids: 64,
    storage_bytes: 0,
};

/// Writes what it finds to `/found`, then waits for SIGTERM.
const LOOK_AROUND: &str = r#"
exec > /found.part 2>&1
trap 'exit 7' TERM
echo "uid_map: $(cat /proc/self/uid_map)"
grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status
echo "mount: $(mount -t tmpfs x /mnt 2>&1 && echo done)"
echo "mknod: $(mknod /tmp/null c 1 3 2>&1 && echo done)"
echo "unshare: $(unshare -U true 2>&1 && echo done)"
echo "chown: $(touch /tmp/far; chown 70000 /tmp/far 2>&1 && echo done)"
echo "nofile: $(ulimit -Sn) $(ulimit -Hn)"
echo "env: $GREETING $HOME $BRIDGE_SOCKET_PATH $TZ"
echo "net: $(ls /sys/class/net)"
echo "ping_group_range: $(cat /proc/sys/net/ipv4/ping_group_range)"
echo "resolv: $(cat /etc/resolv.conf)"
echo "root: $(grep ' / / ' /proc/self/mountinfo)"
echo "socket: $(touch /run/memoh/x && ls -ldn /run/memoh)"
touch /mine; mkdir -p /data
mv /found.part /found
while :; do sleep 1 & wait; done
"#;

async fn found(rig: &ContainerdRig, bot: &BotId) -> String {
    let file = rig.layer_on_disk(bot).join("found");
    until("process 1 looked around", async || {
        std::fs::read_to_string(&file).map_err(|error| error.to_string())
    })
    .await
}

fn value<'a>(found: &'a str, name: &str) -> &'a str {
    let line = found.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {found}")).trim()
}

async fn looked_around(options: RigOptions, user_namespace: UserNamespaceMode) -> (ContainerdRig, BotId, String) {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(LOOK_AROUND.into()),
        user_namespace,
        ..options
    })
    .await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    let started = rig.runtime().start(&bot, &LIMITS).await.unwrap();
    assert_eq!(
        started.isolation.user_namespace,
        user_namespace == UserNamespaceMode::Required
    );
    assert!(started.isolation.seccomp && started.isolation.no_new_privileges);
    let found = found(&rig, &bot).await;
    (rig, bot, found)
}

fn check_common(found: &str) {
    assert_eq!(value(found, "NoNewPrivs:"), "1");
    assert_eq!(value(found, "Seccomp:"), "2", "a filter is in force");
    for none in ["CapInh:", "CapAmb:"] {
        assert_eq!(value(found, none), "0000000000000000");
    }
    for refused in ["mount:", "mknod:", "unshare:"] {
        assert!(!value(found, refused).contains("done"), "{refused} worked: {found}");
    }
    assert_eq!(value(found, "env:"), "hello /data /run/memoh/bridge.sock UTC");
    assert_eq!(value(found, "net:"), "lo", "another interface is seen");
    assert_eq!(value(found, "resolv:"), "nameserver 192.0.2.53");
    assert!(value(found, "root:").contains("nosuid,nodev"), "{found}");
    assert!(value(found, "nofile:").starts_with("1024 "));
    assert!(value(found, "socket:").starts_with("drwx------"));
}

async fn a_workspace_has_what_is_promised_and_nothing_more(options: RigOptions) {
    let (rig, bot, found) = looked_around(options, UserNamespaceMode::Required).await;
    check_common(&found);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(value(&found, set), "00000000800405fb");
    }
    let map: Vec<u32> = value(&found, "uid_map:")
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let BridgeEndpoint::Unix {
        owner_uid, directory, ..
    } = rig.runtime().bridge_endpoint(&bot).unwrap()
    else {
        panic!("a bridge on TCP");
    };
    assert_eq!(map, [0, owner_uid, 65_536]);
    assert!(owner_uid >= 0x1000_0000);
    assert_eq!(std::fs::metadata(&directory).unwrap().uid(), owner_uid);
    assert!(
        !value(&found, "chown:").contains("done"),
        "an id beyond the block was given"
    );
    assert_eq!(value(&found, "ping_group_range:"), "0\t65535");
    let mine = std::fs::metadata(rig.layer_on_disk(&bot).join("mine")).unwrap();
    assert_eq!(
        (mine.uid(), mine.gid()),
        (0, 0),
        "ids on disk are not those seen inside"
    );
}

async fn without_a_user_namespace_a_workspace_has_one_capability_less(options: RigOptions) {
    let (rig, bot, found) = looked_around(options, UserNamespaceMode::Off).await;
    check_common(&found);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(value(&found, set), "00000000000405fb");
    }
    assert_eq!(value(&found, "uid_map:").split_whitespace().nth(1), Some("0"));
    rig.runtime().remove(&bot).await.unwrap();
}

async fn without_ids_of_its_own_only_a_workspaces_own_process_is_its_bridge(options: RigOptions) {
    let rig = ContainerdRig::start_with(RigOptions {
        user_namespace: UserNamespaceMode::Off,
        ..options
    })
    .await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    rig.runtime().start(&bot, &LIMITS).await.unwrap();
    let pool = BridgePool::new(as_runtime(&rig));
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    pool.wait_until_answering(&bot, limit).await.unwrap();
    let BridgeEndpoint::Unix {
        owner_uid,
        directory,
        file_name,
        ..
    } = rig.runtime().bridge_endpoint(&bot).unwrap()
    else {
        panic!("a bridge on TCP");
    };
    assert_eq!(owner_uid, 0, "its uid is everybody's");
    // This test is root too, and not of the workspace.
    let socket = directory.join(file_name);
    std::fs::remove_file(&socket).unwrap();
    let _impostor = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    pool.evict(&bot);
    let refused = pool.bridge(&bot).await.err().map(|error| error.to_string());
    let refused = refused.expect("an impostor was taken for the bridge");
    assert!(refused.contains("a process outside of the workspace"), "{refused}");
}

async fn crun_is_refused_where_it_would_drop_flags_of_the_root(options: RigOptions) {
    let rig = ContainerdRig::start_with(RigOptions {
        user_namespace: UserNamespaceMode::Off,
        ..options
    })
    .await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    let refused = rig.runtime().start(&bot, &LIMITS).await;
    assert!(matches!(refused, Err(RuntimeError::Rejected { .. })), "{refused:?}");
    assert_eq!(rig.claims().unwrap().len(), 0);
}

async fn a_daemon_that_sees_other_mounts_is_refused_with_the_line_that_causes_it(options: RigOptions) {
    let rig = ContainerdRig::start_with(options).await;
    let apart = rig.config().runtime_dir.join("containerd-apart");
    std::fs::write(&apart, "#!/bin/sh\nexec unshare --mount containerd \"$@\"\n").unwrap();
    std::fs::set_permissions(&apart, PermissionsExt::from_mode(0o755)).unwrap();
    let other = ContainerdServer::start_through(&apart).await.unwrap();
    let checks = rig.server_behind(other.socket().to_owned()).checks().await;
    let told = checks.iter().find(|check| check.detail.contains("mount namespace"));
    let told = told.unwrap_or_else(|| panic!("not told: {checks:?}"));
    assert_eq!(told.status, CheckStatus::Error);
    assert!(told.detail.contains("PrivateTmp="), "{told:?}");
    let checks = rig.runtime().checks().await;
    let own = checks.iter().find(|check| check.name == told.name).unwrap();
    assert_eq!(own.status, CheckStatus::Ok, "{own:?}");
}

async fn what_another_runtime_may_leave_out_is_refused_or_told(options: RigOptions) {
    let rig = ContainerdRig::start_with(options).await;
    let bot = BotId::random();
    rig.runtime().create(&instance_spec(&bot, &rig.image())).await.unwrap();
    // No shim of it need be there: nothing is asked of it.
    let mut config = rig.config().clone();
    config.runtime = "io.containerd.runsc.v1".to_owned();
    let other = ContainerdRuntime::new(config.clone()).unwrap();
    let refused = other.start(&bot, &LIMITS).await;
    let Err(RuntimeError::Rejected { reason }) = refused else {
        panic!("started with less: {refused:?}");
    };
    assert!(reason.contains("isolation.without_seccomp"), "{reason}");
    let checks = other.checks().await;
    let seccomp = checks.iter().find(|check| check.name == "seccomp").unwrap();
    assert_eq!(seccomp.status, CheckStatus::Error, "{seccomp:?}");
    assert_eq!(rig.claims().unwrap().len(), 0, "a refused start left its ids claimed");
    config.isolation.without_seccomp = true;
    config.isolation.without_apparmor = true;
    let accepted = ContainerdRuntime::new(config).unwrap();
    let isolation = accepted.inspect(&bot).await.unwrap().unwrap().isolation.unwrap();
    assert!(!isolation.seccomp && !isolation.apparmor, "{isolation:?}");
}

async fn limits_are_in_force_from_the_start_and_change_without_a_restart(options: RigOptions) {
    let (rig, bot, _) = looked_around(options, UserNamespaceMode::Required).await;
    let runtime = rig.runtime();
    let usage = runtime.usage(&bot).await.unwrap();
    assert_eq!(usage.memory_limit_bytes, Some(LIMITS.memory_bytes));
    assert!(usage.memory_bytes.unwrap() > 0 && usage.cpu_nanoseconds.unwrap() > 0);
    assert!(usage.pids.unwrap() >= 1);
    let parent = &rig.config().cgroup_parent;
    // Less than the group of the server and of containerd has: 1024 in version 1, 100 in version 2.
    let weight = match Path::new("/sys/fs/cgroup/cpu").is_dir() {
        true => (cgroup_value(parent, "cpu", "cpu.shares"), 1024),
        false => (cgroup_value(parent, "cpu", "cpu.weight"), 100),
    };
    assert!(weight.0.parse::<u32>().unwrap() < weight.1, "{weight:?}");
    let group = format!("{parent}/workspace-{bot}");
    assert_eq!(cgroup_value(&group, "pids", "pids.max"), "64");
    let more = Limits {
        memory_bytes: 128 << 20,
        pids: 32,
        ..LIMITS
    };
    runtime.apply_limits(&bot, &more).await.unwrap();
    assert_eq!(runtime.usage(&bot).await.unwrap().memory_limit_bytes, Some(128 << 20));
    assert_eq!(cgroup_value(&group, "pids", "pids.max"), "32");
    runtime.apply_limits(&bot, &Limits::default()).await.unwrap();
    assert_eq!(runtime.usage(&bot).await.unwrap().memory_limit_bytes, None);
}

fn cgroup_value(group: &str, controller: &str, file: &str) -> String {
    let v1 = format!("/sys/fs/cgroup/{controller}{group}/{file}");
    let v2 = format!("/sys/fs/cgroup{group}/{file}");
    let text = std::fs::read_to_string(v1)
        .or_else(|_| std::fs::read_to_string(v2))
        .unwrap();
    text.trim().to_owned()
}

/// Writes whose its device is and whether it opens, then waits for SIGTERM.
const OPEN_THE_CARD: &str = r#"
exec > /found.part 2>&1
trap 'exit 7' TERM
stat -c '%u:%g %a' /dev/card
grep -o '/dev/card [a-z]* [a-z,]*' /proc/mounts
exec 3<>/dev/card && echo opened
echo "of root alone: $(su -s /bin/sh nobody -c 'exec 3<>/dev/card' 2>/dev/null && echo opened)"
mv /found.part /found
while :; do sleep 0.1; done
"#;

/// One that runs, with `/dev/fuse` as its `/dev/card`.
async fn with_card(options: RigOptions, owner: u32) -> (ContainerdRig, BotId, String) {
    let rig = ContainerdRig::start_with(RigOptions {
        script: Some(OPEN_THE_CARD.to_owned()),
        ..options
    })
    .await;
    let node = serde_json::json!({ "path": "/dev/card", "hostPath": "/dev/fuse", "fileMode": 0o600, "uid": owner });
    let specification = serde_json::json!({
        "cdiVersion": "0.6.0", "kind": "example.com/gpu",
        "devices": [{ "name": "0", "containerEdits": { "deviceNodes": [node] } }],
    });
    std::fs::create_dir_all(rig.cdi_directory()).unwrap();
    std::fs::write(rig.cdi_directory().join("example.json"), specification.to_string()).unwrap();
    let bot = BotId::random();
    let spec = skep_runtime::InstanceSpec {
        cdi_devices: vec!["example.com/gpu=0".to_owned()],
        ..instance_spec(&bot, &rig.image())
    };
    rig.runtime().create(&spec).await.unwrap();
    rig.runtime().start(&bot, &LIMITS).await.unwrap();
    let file = rig.layer_on_disk(&bot).join("found");
    let found = until("what the workspace found", async || {
        std::fs::read_to_string(&file).map_err(|error| error.to_string())
    })
    .await;
    (rig, bot, found)
}

/// Whether a process in the control group of the workspace may open a device of the host.
fn opens_in_the_group(rig: &ContainerdRig, bot: &BotId, device: &str) -> bool {
    let parent = rig.config().cgroup_parent.trim_matches('/').to_owned();
    let group = Path::new(&parent).join(skep_names::container_id_for(bot));
    let first = Path::new("/sys/fs/cgroup/devices").join(&group);
    let group = match first.is_dir() {
        true => first,
        false => Path::new("/sys/fs/cgroup").join(&group),
    };
    let opened = std::process::Command::new("sh")
        .args(["-c", r#"echo $$ > "$0/cgroup.procs" && echo joined && exec 3<"$1""#])
        .arg(&group)
        .arg(device)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&opened.stdout).into_owned();
    assert_eq!(told, "joined\n", "{}", String::from_utf8_lossy(&opened.stderr));
    opened.status.success()
}

async fn a_workspace_may_open_its_device_and_no_other_of_the_host(options: RigOptions) {
    let (rig, bot, found) = with_card(options, 0).await;
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines[0], "0:0 600", "{found}");
    assert!(lines[1].contains("nosuid") && lines[1].contains("noexec"), "{found}");
    assert_eq!(lines[2..], ["opened", "of root alone: "], "{found}");
    assert!(opens_in_the_group(&rig, &bot, "/dev/fuse"));
    for other in ["/dev/loop-control", "/dev/kmsg", "/dev/loop0"] {
        std::fs::File::open(other).unwrap_or_else(|error| panic!("the host cannot open {other} itself: {error}"));
        assert!(!opens_in_the_group(&rig, &bot, other), "{other}");
    }
    // What a crash would have left of the start is swept; the workspace keeps its own.
    let place = rig.config().run_root.join(&rig.config().data_root_id).join("devices");
    let left = place.join(bot.as_str());
    assert!(!left.exists(), "the nodes are still mounted on the host");
    std::fs::create_dir_all(&left).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "left"])
        .arg(&left)
        .status();
    assert!(mounted.unwrap().success());
    rig.runtime().sweep().await.unwrap();
    assert!(!left.exists(), "a crash's leftover stays");
    assert!(opens_in_the_group(&rig, &bot, "/dev/fuse"));
    rig.runtime().remove(&bot).await.unwrap();
}

/// And may belong to any id.
async fn without_a_user_namespace_a_device_is_the_hosts_roots(options: RigOptions) {
    let options = RigOptions {
        user_namespace: UserNamespaceMode::Off,
        ..options
    };
    let (rig, bot, found) = with_card(options, 70_000).await;
    assert!(found.starts_with("70000:0 600\n"), "{found}");
    assert!(found.contains("\nopened\n"), "{found}");
    assert!(!opens_in_the_group(&rig, &bot, "/dev/loop-control"));
    rig.runtime().remove(&bot).await.unwrap();
}

async fn a_hook_in_the_namespaces_is_no_root_of_the_host_and_has_no_variable_of_the_workspace(options: RigOptions) {
    let rig = ContainerdRig::start_with(options).await;
    let bot = BotId::random();
    // The hook runs before the root file system is entered, and may write where anybody may.
    let told = tempfile::tempdir().unwrap();
    std::fs::set_permissions(told.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let file = told.path().join("environment");
    let hook = serde_json::json!({
        "hookName": "createContainer", "path": "/bin/sh",
        "args": ["sh", "-c", format!("env > {}", file.display())],
    });
    let specification = serde_json::json!({
        "cdiVersion": "0.6.0", "kind": "example.com/gpu",
        "devices": [{ "name": "0", "containerEdits": { "hooks": [hook] } }],
    });
    std::fs::create_dir_all(rig.cdi_directory()).unwrap();
    std::fs::write(rig.cdi_directory().join("example.json"), specification.to_string()).unwrap();
    let spec = skep_runtime::InstanceSpec {
        cdi_devices: vec!["example.com/gpu=0".to_owned()],
        ..instance_spec(&bot, &rig.image())
    };
    rig.runtime().create(&spec).await.unwrap();
    rig.runtime().start(&bot, &LIMITS).await.unwrap();
    let environment = std::fs::read_to_string(&file).expect("the hook was called");
    assert!(environment.contains("PATH=/usr/local/sbin"), "{environment}");
    assert!(!environment.contains("GREETING"), "{environment}");
    let BridgeEndpoint::Unix { owner_uid, .. } = rig.runtime().bridge_endpoint(&bot).unwrap() else {
        panic!("a workspace has a socket");
    };
    assert_ne!(owner_uid, 0);
    assert_eq!(file.metadata().unwrap().uid(), owner_uid);
    rig.runtime().remove(&bot).await.unwrap();
}

async fn a_released_layer_that_another_client_stands_on_stops_no_release(options: RigOptions) {
    let rig = ContainerdRig::start_with(options).await;
    let (bot, runtime) = (BotId::random(), rig.runtime());
    runtime.create(&instance_spec(&bot, &rig.image())).await.unwrap();
    let layers = runtime.layers().unwrap();
    let named = |role: &str| format!("{}-{role}", container_id_for(&bot));
    let [below, first, second] = ["below", "first", "second"].map(named);
    layers.commit(&bot, &below).await.unwrap();
    for (name, back) in [(&first, named("first-back")), (&second, named("second-back"))] {
        layers.commit(&bot, name).await.unwrap();
        layers.stage(&bot, &back, &below).await.unwrap();
        layers.swap(&bot, &back).await.unwrap();
    }
    rig.ctr(&["snapshots", "prepare", "of-another", &first]);
    layers.release(&bot, &first).await.unwrap();
    layers.release(&bot, &second).await.unwrap();
    let side = async || -> Vec<String> {
        let tree = layers.list(&bot).await.unwrap();
        tree.side.into_iter().map(|layer| layer.name).collect()
    };
    assert_eq!(side().await, [first.as_str()]);
    rig.ctr(&["snapshots", "rm", "of-another"]);
    layers.release(&bot, &second).await.unwrap();
    assert_eq!(side().await, Vec::<String>::new());
    runtime.remove(&bot).await.unwrap();
}
