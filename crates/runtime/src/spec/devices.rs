//! What the devices of a workspace add to its specification.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cdi::{Edits, Hook, Node, NodeKind, set_variables};
use crate::isolation::NODE_MOUNT_OPTIONS;

/// Devices whose nodes are made.
pub(crate) struct GivenDevices {
    pub(crate) edits: Edits,
    /// Where each of the nodes lies on the host, in their order.
    pub(crate) nodes_on_host: Vec<PathBuf>,
}

/// Adds them. What a device says of the environment counts for more than what the workspace has.
pub(super) fn add(specification: &mut Value, environment: &[String], given: &GivenDevices) {
    let edits = &given.edits;
    let mut environment = environment.to_vec();
    set_variables(&mut environment, &edits.env);
    specification["process"]["env"] = json!(environment);
    if !edits.additional_gids.is_empty() {
        specification["process"]["user"]["additionalGids"] = json!(edits.additional_gids);
    }
    let nodes = edits.nodes.iter().zip(&given.nodes_on_host);
    let nodes = nodes.map(|(node, on_host)| {
        json!({ "destination": node.path, "type": "bind", "source": on_host, "options": NODE_MOUNT_OPTIONS })
    });
    let mounts = edits.mounts.iter().map(|mount| {
        json!({
            "destination": mount.destination, "type": mount.kind, "source": mount.source, "options": mount.options,
        })
    });
    append(&mut specification["mounts"], mounts.chain(nodes));
    append(
        &mut specification["linux"]["resources"]["devices"],
        edits.nodes.iter().map(rule),
    );
    if !edits.hooks.is_empty() {
        specification["hooks"] = hooks(&edits.hooks);
    }
}

fn append(list: &mut Value, more: impl Iterator<Item = Value>) {
    if let Some(list) = list.as_array_mut() {
        list.extend(more);
    }
}

fn rule(node: &Node) -> Value {
    let kind = match node.kind {
        NodeKind::Character => "c",
        NodeKind::Block => "b",
    };
    json!({ "allow": true, "type": kind, "major": node.major, "minor": node.minor, "access": node.access })
}

fn hooks(hooks: &[Hook]) -> Value {
    let mut all = json!({});
    for hook in hooks {
        let one = json!({
            "path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout_seconds,
        });
        match all[hook.time.as_str()].as_array_mut() {
            Some(same_time) => same_time.push(one),
            None => all[hook.time.as_str()] = json!([one]),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdi::{HookTime, Mount};

    fn given() -> GivenDevices {
        let hook = |time| Hook {
            time,
            path: "/usr/bin/vendor".to_owned(),
            args: vec!["vendor".to_owned()],
            env: vec!["A=1".to_owned()],
            timeout_seconds: 5,
        };
        GivenDevices {
            edits: Edits {
                nodes: vec![Node {
                    path: "/dev/card".to_owned(),
                    kind: NodeKind::Block,
                    major: 7,
                    minor: 3,
                    mode: 0o660,
                    access: "r".to_owned(),
                    uid: 0,
                    gid: 44,
                }],
                mounts: vec![Mount {
                    source: "/usr/lib/vendor".to_owned(),
                    destination: "/usr/lib/vendor".to_owned(),
                    kind: "bind".to_owned(),
                    options: vec!["bind".to_owned(), "ro".to_owned()],
                }],
                env: vec!["CARD=1".to_owned(), "LANG=vendor".to_owned()],
                hooks: vec![
                    hook(HookTime::CreateRuntime),
                    hook(HookTime::Poststop),
                    hook(HookTime::CreateRuntime),
                ],
                additional_gids: vec![44],
            },
            nodes_on_host: vec!["/run/skep/x/devices/y/0".into()],
        }
    }

    fn bare() -> Value {
        json!({
            "process": { "env": ["LANG=C", "HOME=/root"], "user": { "uid": 0, "gid": 0 } },
            "mounts": [{ "destination": "/dev" }],
            "linux": { "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        })
    }

    #[test]
    fn a_node_is_bound_and_allowed_and_no_other() {
        let mut specification = bare();
        add(&mut specification, &[], &given());
        let rules = &specification["linux"]["resources"]["devices"];
        assert_eq!(
            *rules,
            json!([
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "b", "major": 7, "minor": 3, "access": "r" },
            ])
        );
        let places: Vec<_> = specification["mounts"].as_array().unwrap().iter().collect();
        assert_eq!(places.len(), 3);
        assert_eq!(
            *places[2],
            json!({
                "destination": "/dev/card", "type": "bind", "source": "/run/skep/x/devices/y/0",
                "options": ["bind", "nosuid", "noexec"],
            })
        );
    }

    #[test]
    fn variables_of_a_device_take_the_place_of_those_of_the_same_name() {
        let mut specification = bare();
        add(
            &mut specification,
            &["LANG=C".to_owned(), "HOME=/root".to_owned()],
            &given(),
        );
        assert_eq!(
            specification["process"]["env"],
            json!(["HOME=/root", "CARD=1", "LANG=vendor"])
        );
        assert_eq!(specification["process"]["user"]["additionalGids"], json!([44]));
    }

    #[test]
    fn hooks_are_sorted_by_their_time_in_their_order() {
        let mut specification = bare();
        add(&mut specification, &[], &given());
        let hooks = &specification["hooks"];
        assert_eq!(hooks["createRuntime"].as_array().unwrap().len(), 2);
        assert_eq!(
            hooks["poststop"],
            json!([{ "path": "/usr/bin/vendor", "args": ["vendor"], "env": ["A=1"], "timeout": 5 }])
        );
    }
}
