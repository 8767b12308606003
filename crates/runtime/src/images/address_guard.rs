//! Keeps a registry from sending us where only this host may go.
//!
//! Redirects and token realms are a stranger's choice. Names are judged by the addresses they resolve
//! to at the moment of the connection, so that no second answer of a name server can slip past.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

const RESOLVE_LIMIT: Duration = Duration::from_secs(20);

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// All: the configuration names this host.
    Configured,
    /// All but link-local and metadata services: a user named this host as a registry.
    Named,
    /// Of those, no loopback either: a registry sent us there.
    Sent,
}

/// The address is not one to be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} is at {address}, a {kind} address, where a registry must not lead unless the configuration names it there"
)]
pub(super) struct Refused {
    host: String,
    address: IpAddr,
    kind: &'static str,
}

impl Reach {
    /// Judges the host of a URL as far as it can be without resolving: addresses and `localhost`.
    pub(super) fn check_url(self, url: &Url) -> Result<(), Refused> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                if name != "localhost" && !name.ends_with(".localhost") {
                    return Ok(());
                }
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            }
            None => return Ok(()),
        };
        self.check(url.host_str().unwrap_or_default(), address)
    }

    fn check(self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let kind = match (self, kind_of(address)) {
            (Self::Configured, _) | (_, Kind::Ordinary) | (Self::Named, Kind::Loopback) => return Ok(()),
            (_, Kind::Loopback) => "loopback",
            (_, Kind::LinkLocal) => "link-local",
            (_, Kind::Metadata) => "metadata",
            (_, Kind::Unusable) => "special",
        };
        Err(Refused {
            host: host.to_owned(),
            address,
            kind,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordinary,
    Loopback,
    LinkLocal,
    Metadata,
    Unusable,
}

fn kind_of(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_of_v4(address),
        IpAddr::V6(address) => kind_of_v6(address),
    }
}

fn kind_of_v4(address: Ipv4Addr) -> Kind {
    // Azure, Alibaba Cloud and Oracle Cloud keep theirs outside the link-local range.
    const METADATA: [[u8; 4]; 3] = [[168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]];
    if METADATA.contains(&address.octets()) {
        Kind::Metadata
    } else if address.is_loopback() || address.octets()[0] == 0 {
        // Linux connects 0.0.0.0 to this host.
        Kind::Loopback
    } else if address.is_link_local() {
        Kind::LinkLocal
    } else if address.is_multicast() || address.is_broadcast() {
        Kind::Unusable
    } else {
        Kind::Ordinary
    }
}

fn kind_of_v6(address: Ipv6Addr) -> Kind {
    // AWS's metadata service over IPv6.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if address == METADATA {
        Kind::Metadata
    } else if address.is_loopback() || address.is_unspecified() {
        Kind::Loopback
    } else if address.is_unicast_link_local() {
        Kind::LinkLocal
    } else if address.is_multicast() {
        Kind::Unusable
    } else if let [0x64, 0xff9b, 1, ..] = address.segments() {
        kind_of_local_nat64(address.octets())
    } else if let Some(inner) = inner_v4(address) {
        kind_of_v4(inner)
    } else {
        Kind::Ordinary
    }
}

/// Of the prefix for NAT64 within a network (RFC 8215). Where in it the IPv4 address is depends on the prefix's length there
/// (RFC 6052: 48, 56, 64 or 96 bits), which nobody tells us: no reading may be refused. Zeros are bits of the prefix.
fn kind_of_local_nat64(octets: [u8; 16]) -> Kind {
    let readings = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
    readings
        .into_iter()
        .map(|places| Ipv4Addr::from(places.map(|place: usize| octets[place])))
        .filter(|inner| inner.octets()[0] != 0)
        .map(kind_of_v4)
        .find(|kind| *kind != Kind::Ordinary)
        .unwrap_or(Kind::Ordinary)
}

/// The IPv4 address within one of IPv6: mapped, compatible, of NAT64 or of 6to4.
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |start: usize| Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3]);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(at(12)),
        [0x2002, ..] => Some(at(2)),
        _ => None,
    }
}

/// Resolves names and passes on only addresses within reach.
pub(super) struct GuardedResolver {
    reach: Reach,
    proxies: Vec<String>,
}

impl GuardedResolver {
    /// Proxies of the environment are the operator's choice and may be on loopback.
    pub(super) fn new(reach: Reach) -> Self {
        let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        let variables = variables
            .into_iter()
            .flat_map(|name| [name.to_owned(), name.to_lowercase()]);
        let urls = variables.filter_map(|name| Url::parse(&std::env::var(name).ok()?).ok());
        Self {
            reach,
            proxies: urls.filter_map(|url| url.host_str().map(str::to_owned)).collect(),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let proxy = self.proxies.iter().any(|proxy| proxy == name.as_str());
        let reach = if proxy { Reach::Configured } else { self.reach };
        Box::pin(async move {
            let looked_up = tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name.as_str(), 0)));
            let mut refused = None;
            let mut allowed: Vec<SocketAddr> = Vec::new();
            for address in looked_up.await?? {
                match reach.check(name.as_str(), address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(reason) => refused = Some(reason),
                }
            }
            match refused {
                Some(reason) if allowed.is_empty() => Err(reason.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_may_not_lead_to_this_host_or_its_metadata() {
        for bad in [
            "https://127.0.0.1/",
            "https://127.9.9.9:8443/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0.0.0.0/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://[64:ff9b:1::7f00:1]/",
            "https://[64:ff9b:1::a9fe:a9fe]/",
            "https://[64:ff9b:1:0:a9:fea9:fe00::]/",
            "https://[64:ff9b:1:a9fe:a9:fe00::]/",
            "https://[2002:7f00:1::]/",
            "https://169.254.169.254/latest",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://168.63.129.16/",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://a.localhost/",
        ] {
            let url = Url::parse(bad).unwrap();
            assert!(Reach::Sent.check_url(&url).is_err(), "{bad} was allowed");
            assert!(Reach::Configured.check_url(&url).is_ok(), "{bad} was refused");
        }
        for good in [
            "https://1.2.3.4/",
            "https://10.0.0.1/",
            "https://[2001:db8::1]/",
            "https://[64:ff9b:1::102:304]/",
            "https://example.com/",
        ] {
            assert!(
                Reach::Sent.check_url(&Url::parse(good).unwrap()).is_ok(),
                "{good} was refused"
            );
        }
    }

    #[test]
    fn a_user_may_name_a_registry_on_loopback_but_no_metadata_service() {
        assert!(
            Reach::Named
                .check_url(&Url::parse("https://localhost:5000/").unwrap())
                .is_ok()
        );
        assert!(
            Reach::Named
                .check_url(&Url::parse("https://169.254.169.254/").unwrap())
                .is_err()
        );
    }

    #[tokio::test]
    async fn names_are_judged_by_their_addresses() {
        let resolver = GuardedResolver::new(Reach::Sent);
        let refused = resolver.resolve("localhost".parse().unwrap()).await;
        let reason = refused.err().expect("localhost was resolved").to_string();
        assert!(reason.contains("loopback"), "{reason}");
    }
}
