//! What an ADD answered.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The result as the last plugin wrote it: it goes back to the plugins unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::network) struct Answer(pub(super) Value);

impl Answer {
    /// The address inside, IPv4 before IPv6.
    pub(in crate::network) fn address(&self) -> Option<IpAddr> {
        let addresses: Vec<IpAddr> = self
            .list("ips")
            .filter(|entry| self.is_inside(entry))
            .filter_map(|entry| entry.get("address")?.as_str()?.parse::<IpNet>().ok())
            .map(|network| network.addr())
            .collect();
        addresses
            .iter()
            .find(|address| address.is_ipv4())
            .or(addresses.first())
            .copied()
    }

    /// Interfaces on the host's side, in the result's order.
    pub(in crate::network) fn host_interfaces(&self) -> impl Iterator<Item = &str> {
        self.list("interfaces")
            .filter(|interface| sandbox(interface).is_empty())
            .filter_map(|interface| interface.get("name")?.as_str())
            .filter(|name| !name.is_empty())
    }

    /// Whether an address belongs to an interface inside; without an index it does.
    fn is_inside(&self, entry: &Value) -> bool {
        let Some(index) = entry.get("interface").and_then(Value::as_u64) else {
            return true;
        };
        let owner = self.list("interfaces").zip(0..).find(|(_, at)| *at == index);
        owner.is_none_or(|(interface, _)| !sandbox(interface).is_empty())
    }

    fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.get(name).and_then(Value::as_array).into_iter().flatten()
    }
}

fn sandbox(interface: &Value) -> &str {
    interface.get("sandbox").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bridge_result_names_both_sides() {
        let answer = Answer(json!({
            "cniVersion": "0.4.0",
            "interfaces": [
                {"name": "skep0", "mac": "02:00:00:00:00:01"},
                {"name": "veth1", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x"}
            ],
            "ips": [
                {"version": "6", "interface": 2, "address": "fd00::2/64"},
                {"version": "4", "interface": 2, "address": "10.88.0.2/16", "gateway": "10.88.0.1"}
            ]
        }));
        assert_eq!(answer.address(), Some("10.88.0.2".parse().unwrap()));
        assert_eq!(answer.host_interfaces().collect::<Vec<_>>(), ["skep0", "veth1"]);
    }

    #[test]
    fn an_address_of_the_host_is_not_the_workspaces() {
        let answer = Answer(json!({
            "interfaces": [{"name": "br"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 0, "address": "10.0.0.1/24"}, {"interface": 1, "address": "10.0.0.2/24"}]
        }));
        assert_eq!(answer.address(), Some("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn a_network_without_a_host_side_has_none() {
        let answer = Answer(json!({"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": []}));
        assert_eq!(answer.host_interfaces().count(), 0);
        assert_eq!(answer.address(), None);
    }
}
