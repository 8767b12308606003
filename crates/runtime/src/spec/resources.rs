//! Limits and devices in the words of the runtime specification.

use std::path::Path;

use serde_json::{Value, json};

use crate::Limits;

/// Length of a scheduler period in microseconds, the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// No limit of processes: the kernel's own limit of process ids.
const MOST_PIDS: u64 = 4_194_304;
/// No limit of memory: beyond any host; the kernel rounds it.
const MOST_MEMORY: u64 = 1 << 62;
/// No limit of processor time: 10,000 cores.
const MOST_QUOTA: u64 = 10_000 * CPU_PERIOD;

/// Character devices a workspace may use, as major and minor; `None` is any.
const DEVICES: [(i64, Option<i64>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// What this host's kernel can limit beyond the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitSupport {
    /// Swap is accounted; without it a limit of swap cannot be set.
    pub(crate) swap: bool,
}

impl LimitSupport {
    /// Looks at the cgroup file systems.
    pub(crate) fn of_this_host() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        Self {
            // cgroup v2 ignores the limit quietly where there is no swap accounting; v1 refuses it.
            swap: !v1.is_dir() || v1.join("memory.memsw.limit_in_bytes").exists(),
        }
    }
}

/// Devices and limits together.
pub(super) fn resources(limits: &Limits, support: Option<LimitSupport>) -> Value {
    let mut devices = vec![json!({ "allow": false, "access": "rwm" })];
    for (major, minor) in DEVICES {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        devices.push(rule);
    }
    let mut resources = support.map_or_else(|| json!({}), |support| starting_limits(limits, support));
    resources["devices"] = Value::Array(devices);
    resources
}

/// Only what is limited is named: a new cgroup has no limits of its own.
fn starting_limits(limits: &Limits, support: LimitSupport) -> Value {
    let mut resources = json!({});
    if limits.cpu_millicores > 0 {
        resources["cpu"] = json!({ "quota": quota(limits), "period": CPU_PERIOD });
    }
    if limits.memory_bytes > 0 {
        resources["memory"] = memory(limits.memory_bytes.min(MOST_MEMORY), support);
    }
    if limits.pids > 0 {
        resources["pids"] = json!({ "limit": limits.pids });
    }
    resources
}

/// For a running workspace: what is not limited any more is named too.
pub(crate) fn limits_as_resources(limits: &Limits, support: LimitSupport) -> Value {
    // Not -1: crun 1.8 writes it as it stands or as a huge positive number, which the kernel refuses.
    let limited = |value: u64, most: u64| if value == 0 { most } else { value.min(most) };
    json!({
        "cpu": { "quota": limited(quota(limits), MOST_QUOTA), "period": CPU_PERIOD },
        "memory": memory(limited(limits.memory_bytes, MOST_MEMORY), support),
        "pids": { "limit": limited(limits.pids, MOST_PIDS) },
    })
}

/// `swap` counts memory and swap together: equal means none.
fn memory(limit: u64, support: LimitSupport) -> Value {
    if support.swap {
        json!({ "limit": limit, "swap": limit })
    } else {
        json!({ "limit": limit })
    }
}

/// 0 without a limit. The kernel's least quota is 1 ms.
fn quota(limits: &Limits) -> u64 {
    match limits.cpu_millicores {
        0 => 0,
        millicores => millicores.saturating_mul(CPU_PERIOD / 1000).clamp(1000, MOST_QUOTA),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        cpu_millicores: 1500,
        memory_bytes: 1 << 30,
        pids: 100,
        storage_bytes: 0,
    };

    #[test]
    fn limits_become_quota_memory_and_pids() {
        let resources = resources(&LIMITS, Some(LimitSupport { swap: true }));
        assert_eq!(resources["cpu"]["quota"], 150_000);
        assert_eq!(resources["memory"], json!({ "limit": 1 << 30, "swap": 1 << 30 }));
        assert_eq!(resources["pids"]["limit"], 100);
    }

    #[test]
    fn no_limit_is_told_to_a_running_workspace() {
        let resources = limits_as_resources(&Limits::default(), LimitSupport { swap: true });
        assert_eq!(resources["cpu"]["quota"], MOST_QUOTA);
        assert_eq!(
            resources["memory"],
            json!({ "limit": MOST_MEMORY, "swap": MOST_MEMORY })
        );
        assert_eq!(resources["pids"]["limit"], MOST_PIDS);
    }

    #[test]
    fn all_devices_but_the_listed_are_denied_first() {
        let resources = resources(&LIMITS, None);
        assert_eq!(resources["devices"][0], json!({ "allow": false, "access": "rwm" }));
        assert!(resources.get("memory").is_none());
    }
}
