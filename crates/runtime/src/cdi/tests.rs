//! What is made of specification files, good and bad. `/dev/null` and `/dev/loop0`'s kind stand for devices.

use super::*;

struct Directories {
    all: Vec<tempfile::TempDir>,
}

impl Directories {
    fn new(count: usize) -> Self {
        Self {
            all: (0..count).map(|_| tempfile::tempdir().unwrap()).collect(),
        }
    }

    fn write(&self, directory: usize, file: &str, text: &str) -> &Self {
        std::fs::write(self.all[directory].path().join(file), text).unwrap();
        self
    }

    fn read(&self) -> Registry {
        let paths: Vec<_> = self.all.iter().map(|one| one.path().to_owned()).collect();
        Registry::read(&paths)
    }
}

/// One device `a.com/gpu=x` with these edits, in YAML.
fn edits_of(edits: &str) -> Result<Edits, String> {
    let directories = Directories::new(1);
    let text = format!("cdiVersion: 1.0.0\nkind: a.com/gpu\ndevices: [{{name: x, containerEdits: {edits}}}]\n");
    let registry = directories.write(0, "a.yaml", &text).read();
    if let Some(broken) = registry.broken().first() {
        return Err(broken.reason.clone());
    }
    let names = ["a.com/gpu=x".to_owned()];
    registry.edits(&names).map_err(|error| error.to_string())
}

fn spec_with_env(value: &str) -> String {
    format!("cdiVersion: 0.5.0\nkind: a.com/gpu\ndevices: [{{name: x, containerEdits: {{env: [{value}]}}}}]\n")
}

#[test]
fn a_file_as_nvidias_generator_writes_it_is_read() {
    let text = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
    hostPath: /dev/null
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - update-ldcache
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /bin/sh
    options:
    - ro
    - nosuid
    - nodev
    - rbind
    - rprivate
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
  name: all
"#;
    let directories = Directories::new(1);
    let registry = directories.write(0, "nvidia.yaml", text).read();
    assert_eq!(registry.broken(), []);
    let names: Vec<_> = registry.devices().into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["nvidia.com/gpu=0", "nvidia.com/gpu=all"]);
    let edits = registry.edits(&names).unwrap();
    let nodes: Vec<_> = edits
        .nodes
        .iter()
        .map(|node| (node.path.as_str(), node.major, node.minor, node.access.as_str()))
        .collect();
    assert_eq!(nodes, [("/dev/nvidiactl", 1, 3, "rwm"), ("/dev/nvidia0", 1, 5, "rwm")]);
    assert_eq!(edits.env, ["NVIDIA_VISIBLE_DEVICES=void"]);
    assert_eq!(edits.hooks.len(), 1, "what is said of the whole file is said once");
    assert_eq!(edits.hooks[0].time, HookTime::CreateContainer);
    assert_eq!(edits.mounts[0].kind, "bind");
}

#[test]
fn a_later_directory_counts_for_more_and_two_files_of_one_for_nothing() {
    let directories = Directories::new(2);
    directories
        .write(0, "a.yaml", &spec_with_env("FROM=first"))
        .write(1, "b.yaml", &spec_with_env("FROM=second"));
    let names = ["a.com/gpu=x".to_owned()];
    assert_eq!(directories.read().edits(&names).unwrap().env, ["FROM=second"]);
    directories.write(1, "c.yaml", &spec_with_env("FROM=third"));
    let registry = directories.read();
    assert_eq!(registry.devices(), []);
    let refused = registry.edits(&names).unwrap_err();
    assert!(matches!(refused, CdiError::Unusable { .. }), "{refused}");
}

#[test]
fn an_unknown_device_is_told_with_what_there_is() {
    let directories = Directories::new(1);
    directories
        .write(0, "a.yaml", &spec_with_env("A=1"))
        .write(0, "b.json", "{")
        .write(0, "notes.txt", "not one of them");
    let refused = directories
        .read()
        .edits(&["b.com/gpu=0".to_owned()])
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("this host has no device b.com/gpu=0; there are a.com/gpu=x; b.json is broken: "),
        "{refused}"
    );
    let none = Registry::read(&[PathBuf::from("/no/such/directory")]);
    let refused = none.edits(&["b.com/gpu=0".to_owned()]).unwrap_err().to_string();
    assert_eq!(refused, "this host has no device b.com/gpu=0; it has none at all");
}

#[test]
fn what_is_wrong_with_a_file_is_wrong_with_it_alone() {
    for (text, why) in [
        ("cdiVersion: 9.0.0\nkind: b.com/gpu\ndevices: []\n", "cdiVersion"),
        ("cdiVersion: 1.0.0\nkind: gpu\ndevices: []\n", "vendor/class"),
        (
            "cdiVersion: 1.0.0\nkind: b.com/gpu\ndevices: [{name: 'a b', containerEdits: {}}]\n",
            "name of a device",
        ),
        (
            "cdiVersion: 1.0.0\nkind: b.com/gpu\nextra: 1\ndevices: []\n",
            "unknown field",
        ),
        (
            "cdiVersion: 1.0.0\nkind: b.com/gpu\ndevices: [{name: x, containerEdits: {}}, {name: x, containerEdits: {}}]\n",
            "twice",
        ),
        ("cdiVersion: &a [*a]\n", ""),
        ("\u{0}", ""),
        ("", ""),
    ] {
        let directories = Directories::new(1);
        directories
            .write(0, "a.yaml", &spec_with_env("A=1"))
            .write(0, "b.yaml", text);
        let registry = directories.read();
        assert_eq!(registry.devices().len(), 1, "{text:?}");
        let [broken] = registry.broken() else {
            panic!("{text:?} is not told as broken");
        };
        assert_eq!(broken.file, "b.yaml");
        assert!(broken.reason.contains(why), "{text:?}: {}", broken.reason);
    }
}

#[test]
fn edits_that_are_not_whole_break_their_file() {
    for (edits, why) in [
        ("{env: [novalue]}", "NAME=value"),
        ("{deviceNodes: [{path: dev/x}]}", "absolute"),
        ("{deviceNodes: [{path: /dev/x, permissions: rx}]}", "permissions"),
        ("{deviceNodes: [{path: /dev/x, type: z}]}", "type"),
        ("{hooks: [{hookName: sometimes, path: /bin/true}]}", "sometimes"),
        ("{hooks: [{hookName: poststop, path: bin/true}]}", "absolute"),
        ("{mounts: [{hostPath: '', containerPath: /x}]}", "not whole"),
    ] {
        let refused = edits_of(edits).unwrap_err();
        assert!(refused.contains(why), "{edits}: {refused}");
    }
    let secret = edits_of("{env: ['=secret']}").unwrap_err();
    assert!(!secret.contains("secret"), "{secret}");
}

#[test]
fn what_cannot_be_given_here_is_refused_with_its_reason() {
    for (edits, why) in [
        (
            "{deviceNodes: [{path: /dev/x, hostPath: /dev/no-such-device}]}",
            "/dev/no-such-device",
        ),
        ("{deviceNodes: [{path: /dev/x, hostPath: /etc/passwd}]}", "no device"),
        (
            "{deviceNodes: [{path: /dev/x, hostPath: /dev/null, type: b}]}",
            "another type",
        ),
        ("{deviceNodes: [{path: /dev/x, type: p}]}", "pipe"),
        ("{deviceNodes: [{path: /dev/null}]}", "/dev/null"),
        ("{deviceNodes: [{path: /dev/../x, hostPath: /dev/null}]}", ".."),
        (
            "{mounts: [{hostPath: /no/such/library, containerPath: /x}]}",
            "/no/such/library",
        ),
        ("{mounts: [{hostPath: /etc, containerPath: /}]}", "hide"),
        ("{mounts: [{hostPath: /etc, containerPath: /run}]}", "hide /run/memoh"),
        (
            "{mounts: [{hostPath: /etc, containerPath: /run/memoh/x}]}",
            "hide /run/memoh",
        ),
        ("{mounts: [{hostPath: /etc, containerPath: /data}]}", "hide /data"),
        (
            "{mounts: [{hostPath: /etc, containerPath: //opt//memoh/}]}",
            "hide /opt/memoh",
        ),
        ("{netDevices: [{hostInterfaceName: eth0, name: eth0}]}", "netDevices"),
        ("{intelRdt: {closID: x}}", "intelRdt"),
    ] {
        let refused = edits_of(edits).unwrap_err();
        assert!(
            refused.starts_with("the device a.com/gpu=x cannot be used: ") && refused.contains(why),
            "{edits}: {refused}"
        );
    }
}

#[test]
fn what_a_file_says_of_a_node_counts_and_the_host_fills_the_rest() {
    let edits =
        edits_of("{deviceNodes: [{path: /dev/x, type: b, major: 240, minor: 7, fileMode: 0640, uid: 5, gid: 44}]}");
    let node = &edits.unwrap().nodes[0];
    assert_eq!((node.kind, node.major, node.minor), (NodeKind::Block, 240, 7));
    assert_eq!((node.mode, node.uid, node.gid), (0o640, 5, 44));
    let edits = edits_of("{deviceNodes: [{path: /dev/x, hostPath: /dev/zero}]}").unwrap();
    let node = &edits.nodes[0];
    assert_eq!((node.kind, node.major, node.minor), (NodeKind::Character, 1, 5));
    assert_eq!((node.mode, node.uid, node.gid), (0o666, 0, 0));
}

#[test]
fn a_hook_never_has_an_empty_environment_and_always_an_end() {
    let edits = edits_of("{hooks: [{hookName: createContainer, path: /bin/true, env: []}]}").unwrap();
    let hook = &edits.hooks[0];
    assert!(hook.env[0].starts_with("PATH=/"), "{:?}", hook.env);
    assert_eq!(
        (hook.args.as_slice(), hook.timeout_seconds),
        (&["/bin/true".to_owned()][..], 60)
    );
    let edits = edits_of("{hooks: [{hookName: poststop, path: /bin/true, args: [a, b], env: [C=d], timeout: 3}]}");
    let hook = &edits.unwrap().hooks[0];
    assert_eq!((hook.args.len(), hook.timeout_seconds), (2, 3));
    assert_eq!(hook.env, ["C=d"]);
}

#[test]
fn ids_that_a_user_namespace_has_not_are_told() {
    let check = |edits: &str| edits_of(edits).unwrap().check_mapped_ids();
    assert!(check("{deviceNodes: [{path: /dev/x, hostPath: /dev/null, gid: 65536}]}").is_err());
    assert!(check("{additionalGids: [0, 70000]}").unwrap_err().contains("70000"));
    assert_eq!(
        check("{deviceNodes: [{path: /dev/x, hostPath: /dev/null, gid: 65535}], additionalGids: [44, 44]}"),
        Ok(())
    );
    let groups = edits_of("{additionalGids: [44, 0, 44, 45]}").unwrap();
    assert_eq!(groups.additional_gids, [44, 45]);
}

#[test]
fn mounts_above_others_come_first_and_the_last_word_on_a_place_counts() {
    let edits = edits_of(
        "{mounts: [{hostPath: /etc, containerPath: /x/y/z}, {hostPath: /usr, containerPath: /x}, \
         {hostPath: /bin, containerPath: /x/y/z, options: [ro]}]}",
    );
    let mounts = edits.unwrap().mounts;
    let places: Vec<_> = mounts
        .iter()
        .map(|mount| (mount.destination.as_str(), mount.source.as_str()))
        .collect();
    assert_eq!(places, [("/x", "/usr"), ("/x/y/z", "/bin")]);
    assert_eq!(mounts[1].options, ["ro", "bind"]);
}

#[test]
fn a_file_that_never_ends_or_is_no_file_is_told() {
    let directories = Directories::new(1);
    std::fs::create_dir(directories.all[0].path().join("a.yaml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", directories.all[0].path().join("b.json")).unwrap();
    directories.write(0, "c.json", &" ".repeat((8 << 20) + 1));
    let reasons: Vec<_> = directories
        .read()
        .broken()
        .iter()
        .map(|one| one.reason.clone())
        .collect();
    assert_eq!(
        reasons,
        [
            "it is no regular file",
            "it is no regular file",
            "it is longer than 8 MiB"
        ]
    );
}
