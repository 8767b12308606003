//! Limits and devices in the words of the runtime specification.

use std::path::Path;

use serde_json::{Value, json};

use crate::Limits;

/// Length of a scheduler period in microseconds, the kernel's default.
const CPU_PERIOD: u64 = 100_000;

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
        resources["memory"] = memory(i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX), support);
    }
    if limits.pids > 0 {
        resources["pids"] = json!({ "limit": limits.pids });
    }
    resources
}

/// For a running workspace: what is not limited any more is named too.
pub(crate) fn limits_as_resources(limits: &Limits, support: LimitSupport) -> Value {
    let or_unlimited = |value: u64| i64::try_from(value).ok().filter(|value| *value > 0).unwrap_or(-1);
    json!({
        "cpu": { "quota": quota(limits), "period": CPU_PERIOD },
        "memory": memory(or_unlimited(limits.memory_bytes), support),
        "pids": { "limit": or_unlimited(limits.pids) },
    })
}

/// `swap` counts memory and swap together: equal means none.
fn memory(limit: i64, support: LimitSupport) -> Value {
    if support.swap {
        json!({ "limit": limit, "swap": limit })
    } else {
        json!({ "limit": limit })
    }
}

fn quota(limits: &Limits) -> i64 {
    let quota = limits.cpu_millicores.saturating_mul(CPU_PERIOD / 1000);
    // The kernel's least quota is 1 ms.
    i64::try_from(quota)
        .ok()
        .filter(|quota| *quota > 0)
        .map_or(-1, |quota| quota.max(1000))
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
        assert_eq!(resources["cpu"]["quota"], -1);
        assert_eq!(resources["memory"], json!({ "limit": -1, "swap": -1 }));
        assert_eq!(resources["pids"]["limit"], -1);
    }

    #[test]
    fn all_devices_but_the_listed_are_denied_first() {
        let resources = resources(&LIMITS, None);
        assert_eq!(resources["devices"][0], json!({ "allow": false, "access": "rwm" }));
        assert!(resources.get("memory").is_none());
    }
}
