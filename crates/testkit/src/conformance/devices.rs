//! Devices beyond the usual, by CDI: made-up specifications of real devices that no workspace has by itself.

use std::path::Path;

use serde_json::{Value, json};
use skep_names::BotId;
use skep_runtime::{InstanceSpec, RuntimeError};

use super::{CASE_LIMITS, Subject, Workspace};
use crate::containerd_rig::{instance_spec, until};

/// The device of the cases: `/dev/fuse`, which anybody who has a node may open.
const CARD: &str = "example.com/gpu=0";

/// Writes a specification of a subject's.
fn write(subject: &dyn Subject, file: &str, text: &str) {
    std::fs::create_dir_all(subject.cdi_directory()).expect("make the directory of specifications");
    std::fs::write(subject.cdi_directory().join(file), text).expect("write a specification");
}

/// Device 0 with all that a specification can ask for, device 1 that nobody asks for.
fn specification(directory: &Path, generation: &str) -> Value {
    json!({
        "cdiVersion": "0.6.0",
        "kind": "example.com/gpu",
        "containerEdits": {
            "env": [format!("{generation}=yes"), "GREETING=from the device"],
            "mounts": [{
                "hostPath": directory.join("library"), "containerPath": "/usr/lib/example",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }],
            "hooks": [{
                "hookName": "createRuntime", "path": "/bin/sh",
                "args": ["sh", "-c", format!("env >{}", directory.join("hook").display())],
            }],
        },
        "devices": [
            { "name": "0", "containerEdits": { "deviceNodes": [{
                "path": "/dev/example/card0", "hostPath": "/dev/fuse", "permissions": "rw",
                "fileMode": 0o640, "uid": 0, "gid": 44,
            }] } },
            { "name": "1", "containerEdits": { "deviceNodes": [{ "path": "/dev/example/card1", "hostPath": "/dev/kmsg" }] } },
        ],
    })
}

fn write_specification(subject: &dyn Subject, generation: &str) {
    let directory = subject.cdi_directory();
    std::fs::create_dir_all(directory.join("library")).expect("make a library");
    std::fs::write(directory.join("library/lib.txt"), "of the host").expect("write a library");
    write(
        subject,
        "example.json",
        &specification(&directory, generation).to_string(),
    );
}

fn wish(subject: &dyn Subject, bot: &BotId) -> InstanceSpec {
    InstanceSpec {
        cdi_devices: vec![CARD.to_owned()],
        ..instance_spec(bot, &subject.image())
    }
}

async fn with_card(subject: &dyn Subject) -> Workspace<'_> {
    let workspace = Workspace::new(subject);
    let made = subject.runtime().create(&wish(subject, &workspace.bot)).await;
    assert_eq!(made.expect("create a workspace").instance.cdi_devices, [CARD]);
    workspace.start().await;
    workspace
}

async fn has_card(workspace: &Workspace<'_>) {
    let opened = workspace.sh("exec 3<>/dev/example/card0 && echo opened").await;
    assert_eq!(opened.stdout, "opened\n", "{opened:?}");
}

/// Owned as the specification says, seen from inside.
pub async fn a_device_asked_for_is_there_and_no_other(subject: &dyn Subject) {
    write_specification(subject, "FIRST");
    let workspace = with_card(subject).await;
    has_card(&workspace).await;
    let seen = workspace.output("stat -c '%u:%g %a %t:%T' /dev/example/card0").await;
    assert_eq!(seen, "0:44 640 a:e5");
    assert_eq!(workspace.output("ls /dev/example").await, "card0");
    assert_eq!(workspace.output("echo $FIRST, $GREETING").await, "yes, from the device");
    if subject.isolates() {
        assert_eq!(workspace.output("cat /usr/lib/example/lib.txt").await, "of the host");
        let written = workspace.sh("echo x > /usr/lib/example/lib.txt").await;
        assert_ne!(written.exit_code, 0, "a mount that is to be read only is written");
        let told = std::fs::read_to_string(subject.cdi_directory().join("hook")).expect("the hook was called");
        assert!(told.contains("PATH=/usr/local/sbin"), "{told}");
        assert!(
            !told.contains("GREETING"),
            "the hook has the workspace's environment: {told}"
        );
        for refused in ["mknod /tmp/kmsg c 1 11", "mknod /dev/example/card1 c 1 11"] {
            assert_ne!(workspace.sh(refused).await.exit_code, 0, "{refused}");
        }
    }
    let limits = skep_runtime::Limits {
        pids: 200,
        ..CASE_LIMITS
    };
    let applied = subject.runtime().apply_limits(&workspace.bot, &limits).await;
    applied.expect("apply limits");
    has_card(&workspace).await;
    workspace.remove().await;
}

/// And what it says of the environment now counts, not what it said once.
pub async fn a_device_is_kept_over_starts_and_states(subject: &dyn Subject) {
    write_specification(subject, "FIRST");
    let workspace = with_card(subject).await;
    workspace.stop().await;
    write_specification(subject, "SECOND");
    workspace.start().await;
    has_card(&workspace).await;
    assert_eq!(workspace.output("echo $FIRST-$SECOND").await, "-yes");
    workspace.stop().await;
    let (runtime, bot) = (subject.runtime(), &workspace.bot);
    let layers = runtime.layers().expect("layers");
    let container = skep_names::container_id_for(bot);
    let (version, next) = (format!("{container}-v1"), format!("{container}-after"));
    layers.commit(bot, &version).await.expect("commit");
    workspace.start().await;
    has_card(&workspace).await;
    workspace.stop().await;
    layers.stage(bot, &next, &version).await.expect("stage");
    layers.swap(bot, &next).await.expect("swap");
    workspace.start().await;
    has_card(&workspace).await;
    workspace.stop().await;
    subject.lose_container(bot);
    let again = runtime.create(&wish(subject, bot)).await.expect("create again");
    assert_eq!(again.instance.cdi_devices, [CARD]);
    workspace.start().await;
    has_card(&workspace).await;
    let told = runtime.inspect(bot).await.expect("inspect").expect("an instance");
    assert_eq!(told.cdi_devices, [CARD]);
    workspace.remove().await;
}

/// A hook that fails, with a process of its own in the container's cgroup.
const FAILS_AND_LEAVES_A_PROCESS: &str = r#"
pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
group=$(sed -n -e 's|^[0-9]*:pids:|/pids|p' -e 's|^0::||p' /proc/$pid/cgroup | head -n 1)
sleep 300 >/dev/null 2>&1 </dev/null &
echo $! >"/sys/fs/cgroup$group/cgroup.procs"
exit 3"#;

/// Nothing is started with less, and nothing of the try is left.
pub async fn a_device_that_is_gone_keeps_a_workspace_from_starting(subject: &dyn Subject) {
    write_specification(subject, "FIRST");
    let workspace = with_card(subject).await;
    workspace.stop().await;
    let before = subject.traces();
    let file = subject.cdi_directory().join("example.json");
    std::fs::remove_file(&file).expect("remove the specification");
    let refused = subject.runtime().start(&workspace.bot, &CASE_LIMITS).await;
    let Err(RuntimeError::Rejected { reason }) = refused else {
        panic!("started without its device: {refused:?}");
    };
    assert!(reason.contains(CARD), "{reason}");
    assert_eq!(before, subject.traces());
    if subject.isolates() {
        // Its nodes are made by then.
        let mut failing = specification(&subject.cdi_directory(), "FIRST");
        failing["containerEdits"]["hooks"][0]["args"] = json!(["sh", "-c", FAILS_AND_LEAVES_A_PROCESS]);
        write(subject, "example.json", &failing.to_string());
        let refused = subject.runtime().start(&workspace.bot, &CASE_LIMITS).await;
        assert!(matches!(refused, Err(RuntimeError::Other { .. })), "{refused:?}");
        // A container that could not be made is cleared away by its shim, in its own time; the OCI runtime gives up
        // on a cgroup that is not empty.
        until("nothing is left of a start that failed", async || {
            let now = subject.traces();
            if now == before { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }
    write_specification(subject, "FIRST");
    workspace.start().await;
    has_card(&workspace).await;
    workspace.remove().await;
}

/// Unknown, claimed twice, in a broken file; a broken file of others is nothing to it.
pub async fn devices_that_cannot_be_given_are_told(subject: &dyn Subject) {
    write_specification(subject, "FIRST");
    write(
        subject,
        "broken.yaml",
        "cdiVersion: 0.6.0\nkind: other.com/gpu\ndevices: 3\n",
    );
    let runtime = subject.runtime();
    let check = async |name: &str| runtime.check_devices(&[name.to_owned()]).await;
    check(CARD).await.expect("a device of a whole file");
    let names: Vec<String> = runtime
        .devices()
        .await
        .expect("a list")
        .into_iter()
        .map(|device| device.name)
        .collect();
    assert_eq!(names, [CARD, "example.com/gpu=1"]);
    let told = |refused: Result<(), RuntimeError>| match refused {
        Err(RuntimeError::Rejected { reason }) => reason,
        other => panic!("not refused: {other:?}"),
    };
    let unknown = told(check("other.com/gpu=0").await);
    assert!(unknown.contains("example.com/gpu=0, example.com/gpu=1"), "{unknown}");
    assert!(unknown.contains("broken.yaml"), "{unknown}");
    let twice = specification(&subject.cdi_directory(), "FIRST").to_string();
    write(subject, "twice.json", &twice);
    assert!(told(check(CARD).await).contains("two files"));
    let foreign = "cdiVersion: 0.6.0\nkind: a.com/gpu\ndevices:\n- name: x\n  containerEdits:\n    \
                   deviceNodes:\n    - path: /dev/x\n      hostPath: /dev/fuse\n      uid: 70000\n";
    write(subject, "foreign.yaml", foreign);
    if subject.isolates() {
        assert!(told(check("a.com/gpu=x").await).contains("70000"));
    }
}
