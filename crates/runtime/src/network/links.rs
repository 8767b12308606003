//! Interfaces by netlink: what would otherwise cost a process for each question.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::error::NetworkError;

type Result<T> = std::result::Result<T, NetworkError>;

/// The kernel answers in microseconds; this is for a kernel that does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where the kernel's own routes (local addresses, broadcast) are.
const LOCAL_TABLE: u8 = 255;

/// A netlink socket of one network namespace, and the task that reads it.
pub(super) struct Links {
    handle: rtnetlink::Handle,
    reader: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// One interface, as far as the network cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Index of the bridge (or bond, VRF …) it is a port of.
    pub(super) controller: Option<u32>,
    /// `bridge`, `veth`, …; empty for hardware.
    pub(super) kind: String,
    /// As a bridge port: may not talk to other isolated ports.
    pub(super) isolated: bool,
    /// Bytes.
    pub(super) mtu: Option<u32>,
}

impl Links {
    /// Of the namespace this server is in.
    pub(super) fn here() -> Result<Self> {
        let connection = rtnetlink::new_connection().map_err(NetworkError::other("opening a netlink socket"))?;
        Ok(Self::drive(connection))
    }

    /// Of a named namespace: the socket stays there, the thread that opened it ends.
    pub(super) async fn inside(netns: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let opened = in_namespace(netns, "opening a netlink socket", move || {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        });
        Ok(Self::drive(opened.await?))
    }

    fn drive<R>(connection: (impl Future<Output = ()> + Send + 'static, rtnetlink::Handle, R)) -> Self {
        let (driver, handle, _unsolicited) = connection;
        Self {
            handle,
            reader: tokio::spawn(driver),
        }
    }

    /// The interface of this name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>> {
        let operation = format!("looking up interface {name}");
        let mut found = self.handle.link().get().match_name(name).execute();
        match limited(&operation, found.try_next()).await? {
            Ok(message) => Ok(message.map(|message| Link::from(&message))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(NetworkError::other(operation)(error)),
        }
    }

    /// The interface of this index.
    pub(super) async fn by_index(&self, index: u32) -> Result<Option<Link>> {
        let operation = format!("looking up interface {index}");
        let mut found = self.handle.link().get().match_index(index).execute();
        match limited(&operation, found.try_next()).await? {
            Ok(message) => Ok(message.map(|message| Link::from(&message))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(NetworkError::other(operation)(error)),
        }
    }

    /// Brings an interface up.
    pub(super) async fn set_up(&self, index: u32) -> Result<()> {
        self.change(
            format!("bringing interface {index} up"),
            LinkUnspec::new_with_index(index).up().build(),
        )
        .await
    }

    /// Takes an interface down.
    pub(super) async fn set_down(&self, index: u32) -> Result<()> {
        self.change(
            format!("taking interface {index} down"),
            LinkUnspec::new_with_index(index).down().build(),
        )
        .await
    }

    /// Forbids a bridge port to talk to other isolated ports.
    pub(super) async fn isolate_port(&self, index: u32) -> Result<()> {
        let message = LinkBridgePort::new(index)
            .append_info_data(InfoBridgePort::Isolated(true))
            .build();
        self.change(format!("isolating bridge port {index}"), message).await
    }

    async fn change(&self, operation: String, message: LinkMessage) -> Result<()> {
        let request = self.handle.link().change(message).execute();
        limited(&operation, request)
            .await?
            .map_err(NetworkError::other(operation))
    }

    /// Deletes an interface; one that is gone is a success.
    pub(super) async fn delete(&self, index: u32) -> Result<()> {
        let operation = format!("deleting interface {index}");
        match limited(&operation, self.handle.link().del(index).execute()).await? {
            Err(error) if !is_missing(&error) => Err(NetworkError::other(operation)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes a bridge that is down and has no address; one that exists is a success.
    pub(super) async fn add_bridge(&self, name: &str) -> Result<()> {
        let operation = format!("making bridge {name}");
        // Without one of its own it takes that of a port, and changes it whenever ports come and go.
        let random = uuid::Uuid::new_v4().into_bytes();
        let address = vec![0x02, random[0], random[1], random[2], random[3], random[4]];
        let bridge = LinkBridge::new(name).down().address(address).build();
        let request = self.handle.link().add(bridge).execute();
        match limited(&operation, request).await? {
            Err(error) if !is_errno(&error, rustix::io::Errno::EXIST) => Err(NetworkError::other(operation)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives an interface an address; one it has already is a success.
    pub(super) async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        let operation = format!("giving interface {index} the address {address}");
        let request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .execute();
        match limited(&operation, request).await? {
            Err(error) if !is_errno(&error, rustix::io::Errno::EXIST) => Err(NetworkError::other(operation)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Addresses by interface index.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, IpNet)>> {
        let operation = "listing addresses";
        let found = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let found = limited(operation, found)
            .await?
            .map_err(NetworkError::other(operation))?;
        let mut addresses = Vec::new();
        for message in found {
            let length = message.header.prefix_len;
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let own = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            if let Some(address) = local.or(own).and_then(|address| IpNet::new(address, length).ok()) {
                addresses.push((message.header.index, address));
            }
        }
        Ok(addresses)
    }

    /// IPv4 routes outside the kernel's own table.
    async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let operation = "listing routes";
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let found = self.handle.route().get(request).execute().try_collect::<Vec<_>>();
        let mut found = limited(operation, found)
            .await?
            .map_err(NetworkError::other(operation))?;
        found.retain(|route| route.header.table != LOCAL_TABLE);
        Ok(found)
    }

    /// Routes through these interfaces that the kernel would not make again by itself.
    pub(super) async fn routes_through(&self, indices: &BTreeSet<u32>) -> Result<Vec<RouteMessage>> {
        let mut routes = self.routes().await?;
        routes.retain(|route| {
            route.header.protocol != RouteProtocol::Kernel
                && output_of(route).is_some_and(|index| indices.contains(&index))
        });
        Ok(routes)
    }

    /// Destinations at least as narrow as `subnet` and inside it, by the interface they lead to.
    pub(super) async fn routes_within(&self, subnet: Ipv4Net) -> Result<Vec<(u32, Ipv4Net)>> {
        let routes = self.routes().await?;
        Ok(routes
            .iter()
            .filter_map(|route| {
                let address = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                })?;
                let destination = Ipv4Net::new(address, route.header.destination_prefix_length).ok()?;
                (subnet.contains(&destination)).then_some((output_of(route)?, destination))
            })
            .collect())
    }

    /// The MTU of the interface the default route leads to.
    pub(super) async fn uplink_mtu(&self) -> Result<Option<u32>> {
        let routes = self.routes().await?;
        let default = routes.iter().find(|route| route.header.destination_prefix_length == 0);
        let Some(index) = default.and_then(output_of) else {
            return Ok(None);
        };
        Ok(self.by_index(index).await?.and_then(|link| link.mtu))
    }

    /// Puts a route back; one that is there already is a success.
    pub(super) async fn restore_route(&self, route: RouteMessage) -> Result<()> {
        self.add_route("putting a route back", route).await
    }

    /// Leaves nothing on an interface's link but the gateway: what else is in `subnet` goes through it, as everything does.
    /// Repeatable, also where a first time was cut off.
    pub(super) async fn narrow_to(&self, index: u32, gateway: Ipv4Addr, subnet: Ipv4Net) -> Result<()> {
        let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
        let on_link = |address, length| route().destination_prefix(address, length).scope(RouteScope::Link);
        // Of a packet that asks for a neighbour (`SO_DONTROUTE`) from a socket of this interface the kernel would take
        // any destination for one, had it no route there at all. This one leads back to the sender.
        let neighbours = route()
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .priority(u32::MAX);
        let connected = on_link(subnet.network(), subnet.prefix_len()).protocol(RouteProtocol::Kernel);
        self.add_route("routing to the gateway", on_link(gateway, 32).build())
            .await?;
        self.add_route("routing to no other neighbour", neighbours.build())
            .await?;
        let operation = "removing the route to the subnet";
        match limited(operation, self.handle.route().del(connected.build()).execute()).await? {
            Err(error) if !is_errno(&error, rustix::io::Errno::SRCH) => Err(NetworkError::other(operation)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether [`Self::narrow_to`] came to its end.
    pub(super) async fn is_narrow(&self, index: u32, subnet: Ipv4Net) -> Result<bool> {
        Ok(!self.routes_within(subnet).await?.contains(&(index, subnet)))
    }

    /// Adds a route; one that is there already is a success.
    async fn add_route(&self, operation: &str, route: RouteMessage) -> Result<()> {
        match limited(operation, self.handle.route().add(route).execute()).await? {
            Err(error) if !is_errno(&error, rustix::io::Errno::EXIST) => Err(NetworkError::other(operation)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Brings up the loopback interface, which the kernel makes with every namespace.
    pub(super) async fn loopback_up(&self) -> Result<()> {
        // The first interface of every namespace, so no lookup is needed.
        self.set_up(1).await
    }
}

/// Does something in a named namespace, on a thread of its own: `setns` spoils it, so it must not go back into a pool.
pub(super) async fn in_namespace<T: Send + 'static>(
    netns: &Path,
    what: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let operation = format!("{what} in {}", netns.display());
    let path = netns.to_path_buf();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let done = std::fs::File::open(&path).and_then(|file| {
                use std::os::fd::AsFd;
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))?;
                work()
            });
            // The receiver is gone only when the caller was cancelled; then nobody wants the answer.
            drop(sender.send(done));
        })
        .map_err(NetworkError::other(operation.clone()))?;
    let done = receiver.await.map_err(NetworkError::other(operation.clone()))?;
    thread.join().map_err(|_| NetworkError::Other {
        operation: operation.clone(),
        source: "the thread panicked".into(),
    })?;
    done.map_err(NetworkError::other(operation))
}

/// The addresses in a list that belong to one interface.
pub(super) fn addresses_of(addresses: &[(u32, IpNet)], index: u32) -> impl Iterator<Item = IpAddr> + '_ {
    addresses
        .iter()
        .filter(move |(owner, _)| *owner == index)
        .map(|(_, address)| address.addr())
}

fn output_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            kind: String::new(),
            isolated: false,
            mtu: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn read_info(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => self.kind = "bridge".into(),
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::PortData(InfoPortData::BridgePort(ports)) => {
                    self.isolated = ports.contains(&InfoBridgePort::Isolated(true));
                }
                _ => {}
            }
        }
    }
}

async fn limited<T>(operation: &str, request: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(ANSWER_LIMIT, request)
        .await
        .map_err(NetworkError::other(operation))
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    is_errno(error, rustix::io::Errno::NODEV) || is_errno(error, rustix::io::Errno::NXIO)
}

fn is_errno(error: &rtnetlink::Error, errno: rustix::io::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}
