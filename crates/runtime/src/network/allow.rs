//! `network.allow`: destinations in private ranges, or on the host, that workspaces may reach.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One entry: `ADDRESS[/PREFIX][:PORT[-PORT]][/tcp|/udp]`.
///
/// An IPv6 address stands in brackets when ports follow. Without ports every protocol is open; with ports
/// TCP and UDP are, unless one of them is named. Examples: `10.0.0.5:443`, `192.168.1.0/24`,
/// `10.0.0.0/8:8000-8999/tcp`, `[fd00::/8]:443`, `fd00::5`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowEntry {
    network: IpNet,
    ports: Option<Ports>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// The text is not an entry of `network.allow`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} in network.allow {reason}; write ADDRESS[/PREFIX][:PORT[-PORT]][/tcp|/udp], as in 10.0.0.5/32:443")]
pub struct InvalidAllowEntry {
    text: String,
    reason: &'static str,
}

impl AllowEntry {
    /// The rule that opens it, as nftables writes it.
    pub(super) fn rule(&self) -> String {
        let family = if self.network.addr().is_ipv4() { "ip" } else { "ip6" };
        let destination = format!("{family} daddr {}", self.network);
        match self.ports {
            None => format!("{destination} accept"),
            Some(ports) => format!("{destination} {} accept", ports.matched()),
        }
    }
}

impl Ports {
    fn matched(self) -> String {
        let range = self.range();
        match self.protocol {
            Some(Protocol::Tcp) => format!("tcp dport {range}"),
            Some(Protocol::Udp) => format!("udp dport {range}"),
            None => format!("meta l4proto {{ tcp, udp }} th dport {range}"),
        }
    }

    fn range(self) -> String {
        if self.first == self.last {
            self.first.to_string()
        } else {
            format!("{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for AllowEntry {
    type Err = InvalidAllowEntry;

    fn from_str(text: &str) -> Result<Self, InvalidAllowEntry> {
        let invalid = |reason| InvalidAllowEntry {
            text: text.to_owned(),
            reason,
        };
        let (network, ports) = split_ports(text).ok_or_else(|| invalid("has a bracket without its other half"))?;
        let network: IpNet = match network.parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => network.parse().map_err(|_| invalid("has no address or CIDR"))?,
        };
        if network.addr() != network.network() {
            return Err(invalid("has address bits beyond its prefix"));
        }
        let ports = match ports {
            None => None,
            Some(ports) => Some(parse_ports(ports).ok_or_else(|| invalid("has ports that are none"))?),
        };
        Ok(Self { network, ports })
    }
}

/// `(network, ports)`; `None` when brackets do not match.
fn split_ports(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (network, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((network, None)),
            rest => Some((network, Some(rest.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        // More than one colon outside brackets: an IPv6 address alone.
        Some((_, ports)) if ports.contains(':') => Some((text, None)),
        Some((network, ports)) => Some((network, Some(ports))),
        None => Some((text, None)),
    }
}

fn parse_ports(text: &str) -> Option<Ports> {
    let (range, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((range, "tcp")) => (range, Some(Protocol::Tcp)),
        Some((range, "udp")) => (range, Some(Protocol::Udp)),
        Some(_) => return None,
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(Ports { first, last, protocol })
}

impl TryFrom<String> for AllowEntry {
    type Error = InvalidAllowEntry;

    fn try_from(text: String) -> Result<Self, InvalidAllowEntry> {
        text.parse()
    }
}

impl From<AllowEntry> for String {
    fn from(entry: AllowEntry) -> Self {
        entry.to_string()
    }
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ports) = self.ports else {
            return write!(f, "{}", self.network);
        };
        if self.network.addr().is_ipv4() {
            write!(f, "{}:{}", self.network, ports.range())?;
        } else {
            write!(f, "[{}]:{}", self.network, ports.range())?;
        }
        match ports.protocol {
            Some(Protocol::Tcp) => f.write_str("/tcp"),
            Some(Protocol::Udp) => f.write_str("/udp"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_becomes_the_rule_that_opens_it() {
        for (text, rule) in [
            (
                "10.0.0.5/32:443",
                "ip daddr 10.0.0.5/32 meta l4proto { tcp, udp } th dport 443 accept",
            ),
            ("10.0.0.5:443/tcp", "ip daddr 10.0.0.5/32 tcp dport 443 accept"),
            ("10.0.0.5:53/udp", "ip daddr 10.0.0.5/32 udp dport 53 accept"),
            ("192.168.1.0/24", "ip daddr 192.168.1.0/24 accept"),
            (
                "10.0.0.0/8:8000-8999/tcp",
                "ip daddr 10.0.0.0/8 tcp dport 8000-8999 accept",
            ),
            (
                "[fd00::/8]:443",
                "ip6 daddr fd00::/8 meta l4proto { tcp, udp } th dport 443 accept",
            ),
            ("fd00::5", "ip6 daddr fd00::5/128 accept"),
            ("[fd00::5]", "ip6 daddr fd00::5/128 accept"),
        ] {
            assert_eq!(
                text.parse::<AllowEntry>().map(|entry| entry.rule()),
                Ok(rule.to_owned())
            );
        }
    }

    #[test]
    fn an_entry_reads_back_what_it_writes() {
        for text in [
            "10.0.0.5/32:443",
            "192.168.1.0/24",
            "[fd00::/8]:1-9/udp",
            "fd00::5/128",
            "10.0.0.0/8:80/tcp",
        ] {
            let entry: AllowEntry = text.parse().unwrap();
            assert_eq!(entry.to_string(), text);
            assert_eq!(entry.to_string().parse::<AllowEntry>().unwrap(), entry);
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_with_the_form() {
        for text in [
            "",
            "host",
            "10.0.0.5:",
            "10.0.0.5:0",
            "10.0.0.5:70000",
            "10.0.0.5:9-8",
            "10.0.0.5:80/sctp",
            "10.0.0.5/33",
            "10.0.0.5/24",
            "[fd00::5",
            "[fd00::5]80",
            "10.0.0.1; drop",
            "10.0.0.5:443\n",
        ] {
            let error = text.parse::<AllowEntry>().expect_err(text);
            assert!(error.to_string().contains("ADDRESS[/PREFIX]"), "{error}");
        }
    }
}
