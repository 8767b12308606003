//! The rules that isolate workspaces, as text for nftables. Pure: it only writes.
//!
//! ```text
//!   workspace ──▶ host                 input:   answers, resolvers and allowed only
//!   workspace ──▶ other workspace      forward: closed (and each bridge port is isolated)
//!   workspace ──▶ private, link-local  forward: closed, unless allowed or a resolver's port 53
//!   workspace ──▶ internet             forward: open; masqueraded in our own network
//!   host      ──▶ workspace            open: nothing is said about output
//!   outside   ──▶ workspace            forward: closed
//!   flows of a workspace at one time   limited, as the host's table of connections is
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::allow::AllowEntry;

/// "This network", private, shared, loopback, link-local, protocol assignments, benchmarking, multicast, reserved
/// and broadcast.
const PRIVATE_IPV4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                            192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// Unspecified, loopback, mapped IPv4, local NAT64, Teredo, 6to4, unique local, link-local, site-local, multicast; and
/// of the well-known NAT64 prefix the parts that hide 10/8, 100.64/10, 127/8, 169.254/16, 172.16/12 and 192.168/16.
const PRIVATE_IPV6: &str = "::/127, ::ffff:0:0/96, 64:ff9b:1::/48, 2001::/32, 2002::/16, fc00::/7, fe80::/10, \
                            fec0::/10, ff00::/8, 64:ff9b::a00:0/104, 64:ff9b::6440:0/106, 64:ff9b::7f00:0/104, \
                            64:ff9b::a9fe:0/112, 64:ff9b::ac10:0/108, 64:ff9b::c0a8:0/112";

/// Connections one workspace's address may have at one time, those that end by themselves after a while included: the
/// host's table of them is one for all, of 65,536 to 262,144 by default.
pub const FLOWS_MAX: u32 = 4096;

/// The sets that count them. The kernel fills and empties them; a table that is replaced counts from nothing.
pub(super) const FLOW_SETS: [&str; 2] = ["flows4", "flows6"];

/// The set of host-side interfaces that the rules hold for.
pub(super) const PORTS: &str = "ports";

/// What the table says, but for the interfaces it holds for.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) table: String,
    /// Of our own network; a CNI configuration of the user's masquerades by itself.
    pub(super) subnet: Option<Ipv4Net>,
    pub(super) allow: Vec<AllowEntry>,
    pub(super) resolvers: BTreeSet<IpAddr>,
}

impl Rules {
    /// Text that replaces the table in one step, also when there is none yet. `ports` are host-side interfaces.
    pub(super) fn replacement(&self, ports: &BTreeSet<String>) -> String {
        let table = &self.table;
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}{}{}{}{}{}}}\n",
            sets(ports),
            counted(),
            self.allowed(),
            INPUT,
            self.forward(),
            self.postrouting()
        )
    }

    /// Text that makes the table, which is there, hold for more interfaces.
    pub(super) fn more_ports(&self, ports: &BTreeSet<String>) -> String {
        format!("add element inet {} {PORTS} {}\n", self.table, elements(ports))
    }

    /// Text that lets interfaces go that the table holds for.
    pub(super) fn fewer_ports(&self, ports: &BTreeSet<String>) -> String {
        format!("delete element inet {} {PORTS} {}\n", self.table, elements(ports))
    }

    /// Text that opens the table, which is there, to the present resolvers and what is allowed, and to no others.
    pub(super) fn other_resolvers(&self) -> String {
        let table = &self.table;
        let mut text = format!("flush chain inet {table} allowed\n");
        for rule in self.allowed_rules() {
            text.push_str(&format!("add rule inet {table} allowed {rule}\n"));
        }
        text
    }

    /// Text that removes the table, also when there is none.
    pub(super) fn removal(&self) -> String {
        format!("table inet {0}\ndelete table inet {0}\n", self.table)
    }

    fn allowed(&self) -> String {
        let mut chain = String::from("  chain allowed {\n");
        for rule in self.allowed_rules() {
            line(&mut chain, &rule);
        }
        chain + "  }\n"
    }

    fn allowed_rules(&self) -> impl Iterator<Item = String> {
        let resolvers = self.resolvers.iter().map(|resolver| {
            let family = if resolver.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept")
        });
        resolvers.chain(self.allow.iter().map(AllowEntry::rule))
    }

    fn forward(&self) -> String {
        let mut chain = String::from("  chain forward {\n    type filter hook forward priority -10; policy accept;\n");
        line(&mut chain, "iifname != @ports oifname != @ports accept");
        line(&mut chain, "ct state established,related accept");
        line(&mut chain, "oifname @ports drop");
        if let Some(subnet) = self.subnet {
            // An address that is not its own would not be masqueraded and could be taken for a neighbour's.
            line(&mut chain, &format!("ip saddr != {subnet} drop"));
        }
        line(&mut chain, "jump counted");
        line(&mut chain, "jump allowed");
        line(&mut chain, "ip daddr @private4 reject with icmpx admin-prohibited");
        line(&mut chain, "ip6 daddr @private6 reject with icmpx admin-prohibited");
        chain + "  }\n"
    }

    fn postrouting(&self) -> String {
        let Some(subnet) = self.subnet else {
            return String::new();
        };
        let mut chain =
            String::from("  chain postrouting {\n    type nat hook postrouting priority 100; policy accept;\n");
        line(&mut chain, &format!("ip saddr {subnet} oifname != @ports masquerade"));
        chain + "  }\n"
    }
}

const INPUT: &str = "  chain input {
    type filter hook input priority -10; policy accept;
    iifname != @ports accept
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    jump counted
    jump allowed
    reject with icmpx admin-prohibited
  }
";

fn sets(ports: &BTreeSet<String>) -> String {
    let mut text = format!("  set {PORTS} {{\n    type ifname;\n");
    if !ports.is_empty() {
        line(&mut text, &format!("elements = {}", elements(ports)));
    }
    text.push_str("  }\n");
    for (name, kind, elements) in [
        ("private4", "ipv4_addr", PRIVATE_IPV4),
        ("private6", "ipv6_addr", PRIVATE_IPV6),
    ] {
        text.push_str(&format!(
            "  set {name} {{\n    type {kind}; flags interval;\n    elements = {{ {elements} }}\n  }}\n"
        ));
    }
    for (name, kind) in FLOW_SETS.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
        text.push_str(&format!(
            "  set {name} {{\n    type {kind}; size 65536; flags dynamic;\n  }}\n"
        ));
    }
    text
}

fn elements(ports: &BTreeSet<String>) -> String {
    let names: Vec<String> = ports.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", names.join(", "))
}

/// Refuses what would be one connection too many.
fn counted() -> String {
    let mut chain = String::from("  chain counted {\n");
    for (name, family) in FLOW_SETS.into_iter().zip(["ip", "ip6"]) {
        line(
            &mut chain,
            &format!(
                "ct state new add @{name} {{ {family} saddr ct count over {FLOWS_MAX} }} reject with icmpx admin-prohibited"
            ),
        );
    }
    chain + "  }\n"
}

fn line(text: &mut String, rule: &str) {
    text.push_str("    ");
    text.push_str(rule);
    text.push('\n');
}

/// Whether a name can be an interface's and stand in a rule.
pub fn is_interface_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    (1..=15).contains(&name.len()) && name.bytes().all(fits) && name != "." && name != ".."
}

/// Whether a name can be a table's.
pub fn is_table_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    name.len() <= 64 && name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            table: "skep".into(),
            subnet: Some("10.88.0.0/16".parse().unwrap()),
            allow: vec!["10.0.0.5:443".parse().unwrap()],
            resolvers: ["192.168.1.1", "fd00::1"].map(|text| text.parse().unwrap()).into(),
        }
    }

    fn order_of(text: &str, parts: &[&str]) {
        let places: Vec<usize> = parts
            .iter()
            .map(|part| {
                text.find(part)
                    .unwrap_or_else(|| panic!("{part:?} is missing in\n{text}"))
            })
            .collect();
        assert!(places.is_sorted(), "{places:?} of {parts:?} in\n{text}");
    }

    #[test]
    fn the_table_is_replaced_in_one_text() {
        let text = rules().replacement(&BTreeSet::from(["skep0".into()]));
        assert!(text.starts_with("table inet skep\ndelete table inet skep\ntable inet skep {"));
        assert!(text.contains("elements = { \"skep0\" }"));
    }

    #[test]
    fn one_part_is_changed_without_the_rest() {
        let ports = BTreeSet::from(["veth1".into(), "veth2".into()]);
        let (more, fewer) = (rules().more_ports(&ports), rules().fewer_ports(&ports));
        assert_eq!(more, "add element inet skep ports { \"veth1\", \"veth2\" }\n");
        assert_eq!(fewer, "delete element inet skep ports { \"veth1\", \"veth2\" }\n");
        let text = rules().other_resolvers();
        assert!(text.starts_with("flush chain inet skep allowed\nadd rule inet skep allowed ip daddr 192.168.1.1 "));
        assert_eq!(text.lines().count(), 1 + rules().allowed_rules().count());
    }

    #[test]
    fn neighbours_are_closed_before_anything_is_allowed() {
        let text = rules().forward();
        order_of(
            &text,
            &[
                "established",
                "oifname @ports drop",
                "jump counted",
                "jump allowed",
                "@private4 reject",
                "@private6 reject",
            ],
        );
    }

    #[test]
    fn resolvers_are_open_on_port_53_only() {
        let text = rules().allowed();
        assert!(text.contains("ip daddr 192.168.1.1 meta l4proto { tcp, udp } th dport 53 accept"));
        assert!(text.contains("ip6 daddr fd00::1 meta l4proto { tcp, udp } th dport 53 accept"));
    }

    #[test]
    fn only_our_own_network_is_masqueraded() {
        assert!(
            rules()
                .postrouting()
                .contains("ip saddr 10.88.0.0/16 oifname != @ports masquerade")
        );
        let foreign = Rules {
            subnet: None,
            ..rules()
        };
        assert!(!foreign.replacement(&BTreeSet::new()).contains("masquerade"));
    }

    #[test]
    fn names_that_would_break_the_text_are_none() {
        for bad in ["", "a\"b", "a b", "a{", "0123456789abcdef", "..", "a;b"] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
        for bad in ["", "1a", "a b", "a;", "a{"] {
            assert!(!is_table_name(bad), "{bad:?}");
        }
        assert!(is_interface_name("skep0") && is_table_name("skep_1"));
    }
}
