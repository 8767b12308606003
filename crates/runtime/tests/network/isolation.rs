//! What a workspace reaches, and what reaches it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use skep_runtime::network::{Attachment, Network, NetworkConfig, NetworkError, NetworkMode};

use crate::probe::{Reached, Server, at, open_tcp, open_udp, tcp, udp};
use crate::stage::{
    ALLOWED, METADATA, PRIVATE, PUBLIC, RESOLVER, Stage, UPLINK, Workspace, inside, on_stage, output, run, run_in,
};
use crate::system_calls::{bind_to_device, do_not_route};

async fn attached(network: &Network, workspace: &Workspace) -> (Attachment, IpAddr) {
    let attachment = network.attach(&workspace.bot, &workspace.netns).await.unwrap();
    let address = attachment.address.unwrap();
    (attachment, address)
}

fn bridge_netfilter(on: bool) {
    let value = if on { "1" } else { "0" };
    for name in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}; is br_netfilter loaded?"));
    }
}

async fn everything_is_as_the_contract_says(stage: &Stage, config: NetworkConfig) {
    let own = config.cni_conf_dir.is_none();
    let network = stage.network(config).await;
    let one = stage.workspace_with_user_namespace();
    let two = stage.workspace_with_user_namespace();
    let (_, one_address) = attached(&network, &one).await;
    let (_, two_address) = attached(&network, &two).await;
    let from = Some(one.netns.as_path());

    let _internet = [53, 80].map(|port| Server::start(Some(&stage.internet()), port));
    let _neighbour = Server::start(Some(&two.netns), 80);
    let _host = [53, 80].map(|port| Server::start(None, port));
    let uplink: IpAddr = UPLINK.parse().unwrap();
    let gateway: IpAddr = stage.gateway().parse().unwrap();

    assert_eq!(
        open_tcp(from, at(PUBLIC, 80)).await,
        Reached::Open(uplink),
        "the internet, masqueraded"
    );
    assert_eq!(
        open_udp(from, at(PUBLIC, 80)).await,
        Reached::Open(uplink),
        "the internet by UDP"
    );
    for port in [53, 80] {
        for closed in [PRIVATE, METADATA, UPLINK, &stage.gateway()] {
            assert_eq!(
                tcp(from, at(closed, port)).await,
                Reached::Closed,
                "{closed}:{port} by TCP"
            );
            assert_eq!(
                udp(from, at(closed, port)).await,
                Reached::Closed,
                "{closed}:{port} by UDP"
            );
        }
    }
    assert_eq!(
        open_tcp(from, at(RESOLVER, 53)).await,
        Reached::Open(uplink),
        "the resolver by TCP"
    );
    assert_eq!(
        open_udp(from, at(RESOLVER, 53)).await,
        Reached::Open(uplink),
        "the resolver by UDP"
    );
    assert_eq!(
        tcp(from, at(RESOLVER, 80)).await,
        Reached::Closed,
        "the resolver's other ports"
    );
    assert_eq!(
        tcp(from, at(two_address, 80)).await,
        Reached::Closed,
        "the neighbour by TCP"
    );
    assert_eq!(
        udp(from, at(two_address, 80)).await,
        Reached::Closed,
        "the neighbour by UDP"
    );
    assert_eq!(
        open_tcp(None, at(two_address, 80)).await,
        Reached::Open(gateway),
        "host to workspace"
    );
    let _own = Server::start(from, 81);
    assert_eq!(
        open_tcp(from, at(one_address, 81)).await,
        Reached::Open(one_address),
        "its own address"
    );
    assert_eq!(
        open_tcp(from, at("127.0.0.1", 81)).await,
        Reached::Open("127.0.0.1".parse().unwrap()),
        "loopback"
    );
    if own {
        let listed = run_in(&one.netns, "ip -6 -o addr show dev eth0");
        assert_eq!(listed, "", "IPv6 where there is none to reach");
    } else {
        link_local_is_closed(&one.netns, &two.netns).await;
    }

    run_in(
        &stage.internet(),
        &format!("ip route add {} via {UPLINK}", stage.subnet),
    );
    let outside = stage.internet();
    assert_eq!(
        tcp(Some(&outside), at(two_address, 80)).await,
        Reached::Closed,
        "outside to workspace"
    );

    for workspace in [&one, &two] {
        network.check(&workspace.bot, &workspace.netns).await.unwrap();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
    }
}

/// IPv6 link-local addresses are there without being asked for.
async fn link_local_is_closed(one: &Path, two: &Path) {
    let target = link_local(two).await;
    let own = link_local(one).await;
    let _two = Server::start(Some(two), 82);
    let _one = Server::start(Some(one), 82);
    assert!(
        matches!(open_tcp(Some(one), own).await, Reached::Open(_)),
        "its own link-local address answers"
    );
    assert_eq!(
        tcp(Some(one), target).await,
        Reached::Closed,
        "the neighbour over link-local"
    );
    assert_eq!(
        udp(Some(one), target).await,
        Reached::Closed,
        "the neighbour over link-local by UDP"
    );
}

async fn link_local(netns: &Path) -> SocketAddr {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let listed = run_in(netns, "ip -6 -o addr show dev eth0 scope link -tentative");
        let mut words = listed.split_ascii_whitespace();
        let index = words.next().and_then(|index| index.trim_end_matches(':').parse().ok());
        let address = words.nth(2).and_then(|address| address.split('/').next()?.parse().ok());
        if let (Some(index), Some(address)) = (index, address) {
            return std::net::SocketAddrV6::new(address, 82, 0, index).into();
        }
        assert!(std::time::Instant::now() < limit, "no link-local address: {listed:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn a_workspace_reaches_the_internet_and_nothing_else_without_bridge_netfilter() {
    on_stage(async |stage| {
        bridge_netfilter(false);
        everything_is_as_the_contract_says(&stage, stage.config()).await;
    });
}

#[test]
fn a_workspace_reaches_the_internet_and_nothing_else_with_bridge_netfilter() {
    on_stage(async |stage| {
        bridge_netfilter(true);
        everything_is_as_the_contract_says(&stage, stage.config()).await;
    });
}

#[test]
fn a_users_own_configuration_is_isolated_just_the_same() {
    for plugin in [
        r#""type":"ptp","ipMasq":true"#,
        r#""type":"bridge","bridge":"cni7","isGateway":true,"ipMasq":true"#,
    ] {
        on_stage(async move |stage| {
            write_configuration(&stage, plugin);
            let config = NetworkConfig {
                cni_conf_dir: Some(stage.path("conf")),
                ..stage.config()
            };
            everything_is_as_the_contract_says(&stage, config).await;
            assert!(stage.leases().is_empty());
        });
    }
}

pub(crate) fn write_configuration(stage: &Stage, plugin: &str) {
    let leases = stage.path("run").join("one/cni/leases");
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"skep","plugins":[{{{plugin},"ipam":{{"type":"host-local",
            "dataDir":"{}","ranges":[[{{"subnet":"{}","gateway":"{}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#,
        leases.display(),
        stage.subnet,
        stage.gateway()
    );
    std::fs::write(stage.path("conf").join("10-user.conflist"), text).unwrap();
}

#[test]
fn a_network_without_a_host_side_is_refused_unless_accepted() {
    on_stage(async |stage| {
        // In place of macvlan, which not every kernel has: a result that names nothing on the host's side.
        let plugin = stage.path("hidden");
        let result =
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.1.2/24"}]}"#;
        std::fs::write(&plugin, format!("#!/bin/sh\ncat >/dev/null\necho '{result}'\n")).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = r#"{"cniVersion":"1.0.0","name":"hidden","type":"hidden"}"#;
        std::fs::write(stage.path("conf").join("10-user.conf"), text).unwrap();
        let mut config = NetworkConfig {
            cni_conf_dir: Some(stage.path("conf")),
            cni_bin_dir: Some(stage.path("")),
            ..stage.config()
        };
        let workspace = stage.workspace();
        let network = stage.network(config.clone()).await;
        let refused = network.attach(&workspace.bot, &workspace.netns).await.unwrap_err();
        assert!(matches!(refused, NetworkError::Unisolated { .. }), "{refused}");
        assert!(refused.to_string().contains("network.unisolated"), "{refused}");
        assert!(stage.leases().is_empty() && stage.records().is_empty());
        drop(network);
        config.unisolated = true;
        let network = stage.network(config).await;
        let (attachment, _) = attached(&network, &workspace).await;
        assert_eq!(attachment.host_interface, None);
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn what_is_allowed_is_open_and_no_more() {
    on_stage(async |stage| {
        let config = NetworkConfig {
            allow: vec![
                format!("{ALLOWED}/32:80/tcp").parse().unwrap(),
                format!("{UPLINK}:81").parse().unwrap(),
            ],
            ..stage.config()
        };
        let network = stage.network(config).await;
        let workspace = stage.workspace();
        let (_, address) = attached(&network, &workspace).await;
        let from = Some(workspace.netns.as_path());
        let _internet = [80, 81].map(|port| Server::start(Some(&stage.internet()), port));
        let _host = [81, 82].map(|port| Server::start(None, port));
        let uplink: IpAddr = UPLINK.parse().unwrap();
        assert_eq!(open_tcp(from, at(ALLOWED, 80)).await, Reached::Open(uplink));
        assert_eq!(udp(from, at(ALLOWED, 80)).await, Reached::Closed);
        assert_eq!(tcp(from, at(ALLOWED, 81)).await, Reached::Closed);
        assert_eq!(tcp(from, at(PRIVATE, 80)).await, Reached::Closed);
        assert_eq!(
            open_tcp(from, at(UPLINK, 81)).await,
            Reached::Open(address),
            "a service of the host's"
        );
        assert_eq!(tcp(from, at(UPLINK, 82)).await, Reached::Closed);
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn new_resolvers_replace_the_old_ones() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        attached(&network, &workspace).await;
        let from = Some(workspace.netns.as_path());
        let _internet = Server::start(Some(&stage.internet()), 53);
        assert!(matches!(open_udp(from, at(RESOLVER, 53)).await, Reached::Open(_)));
        network.set_resolvers(vec![PRIVATE.parse().unwrap()]).await.unwrap();
        assert!(matches!(open_udp(from, at(PRIVATE, 53)).await, Reached::Open(_)));
        assert_eq!(udp(from, at(RESOLVER, 53)).await, Reached::Closed);
    });
}

#[test]
fn mode_none_has_loopback_only() {
    on_stage(async |stage| {
        let config = NetworkConfig {
            mode: NetworkMode::None,
            ..stage.config()
        };
        let before = stage.interfaces();
        let network = stage.network(config).await;
        let workspace = stage.workspace_with_user_namespace();
        let attachment = network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        assert_eq!(attachment.address, None);
        let _own = Server::start(Some(&workspace.netns), 80);
        let loopback = open_tcp(Some(&workspace.netns), at("127.0.0.1", 80)).await;
        assert_eq!(loopback, Reached::Open("127.0.0.1".parse().unwrap()));
        assert_eq!(tcp(Some(&workspace.netns), at(PUBLIC, 80)).await, Reached::Closed);
        assert_eq!(stage.interfaces(), before);
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn a_port_that_lost_its_isolation_is_open_until_the_next_check() {
    on_stage(async |stage| {
        bridge_netfilter(false);
        // In our own network there is nothing to say to a neighbour with, isolated or not.
        write_configuration(
            &stage,
            r#""type":"bridge","bridge":"cni7","isGateway":true,"ipMasq":true"#,
        );
        let config = NetworkConfig {
            cni_conf_dir: Some(stage.path("conf")),
            ..stage.config()
        };
        let network = stage.network(config).await;
        let (one, two) = (stage.workspace(), stage.workspace());
        for workspace in [&one, &two] {
            let (attachment, _) = attached(&network, workspace).await;
            let port = attachment.host_interface.unwrap();
            run(&format!("ip link set {port} type bridge_slave isolated off"));
        }
        let target = link_local(&two.netns).await;
        link_local(&one.netns).await;
        let server = Server::start(Some(&two.netns), 82);
        let open = open_tcp(Some(&one.netns), target).await;
        assert!(
            matches!(open, Reached::Open(_)),
            "what the other tests find closed can be open: {open:?}"
        );
        for workspace in [&one, &two] {
            network.check(&workspace.bot, &workspace.netns).await.unwrap();
        }
        drop(server);
        link_local_is_closed(&one.netns, &two.netns).await;
    });
}

/// UDP to two hundred neighbours that are none, in the ways a workspace has: by the routes, from a socket of the
/// interface, and past the routes.
fn ask_for_neighbours(netns: &Path, subnet: &str) {
    let first = subnet.replace(".0/24", "");
    let asking = inside(netns, move || {
        for (device, past_the_routes) in [(false, false), (true, false), (true, true)] {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            if device {
                bind_to_device(&socket, c"eth0").unwrap();
            }
            if past_the_routes {
                do_not_route(&socket).unwrap();
            }
            for last in 50..250 {
                // An answer to one before it is not about this one.
                drop(socket.send_to(b"?", format!("{first}.{last}:9")));
            }
        }
    });
    asking.join().unwrap();
}

fn neighbours(listed: &str) -> Vec<&str> {
    listed
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect()
}

#[test]
fn a_workspace_cannot_fill_the_hosts_table_of_neighbours() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace_with_user_namespace();
        let (_, address) = attached(&network, &workspace).await;
        let _internet = Server::start(Some(&stage.internet()), 80);
        let _own = Server::start(Some(&workspace.netns), 80);
        ask_for_neighbours(&workspace.netns, &stage.subnet);
        let within = stage.subnet.replace("0/24", "");
        let listed = run_in(&workspace.netns, "ip neigh show nud all dev eth0");
        let found = neighbours(&listed);
        let others: Vec<_> = found
            .iter()
            .filter(|address| address.starts_with(&within) && **address != stage.gateway())
            .collect();
        assert!(others.is_empty(), "inside: {others:?}");
        let listed = output(&format!("ip neigh show nud all dev {}", stage.bridge));
        let found = neighbours(&listed);
        let others: Vec<_> = found
            .iter()
            .filter(|found| found.starts_with(&within) && **found != address.to_string())
            .collect();
        assert!(others.is_empty(), "on the host: {others:?}");
        // What it is there for still works.
        let from = Some(workspace.netns.as_path());
        assert_eq!(
            open_tcp(from, at(PUBLIC, 80)).await,
            Reached::Open(UPLINK.parse().unwrap())
        );
        let gateway = stage.gateway().parse().unwrap();
        assert_eq!(open_tcp(None, at(address, 80)).await, Reached::Open(gateway));
        let redirects = run_in(
            &workspace.netns,
            "cat /proc/sys/net/ipv4/conf/all/accept_redirects /proc/sys/net/ipv4/conf/eth0/accept_redirects",
        );
        assert_eq!(redirects, "0\n0\n", "the host's hint to a shorter way");
    });
}

/// What keeps a workspace from having neighbours.
fn narrowness(workspace: &Workspace) -> String {
    let routes = run_in(&workspace.netns, "ip -4 route show table main");
    let settings = "ipv6/conf/eth0/disable_ipv6 ipv4/conf/all/accept_redirects ipv4/conf/eth0/accept_redirects";
    let files: Vec<String> = settings
        .split(' ')
        .map(|name| format!("/proc/sys/net/{name}"))
        .collect();
    routes + &run_in(&workspace.netns, &format!("cat {}", files.join(" ")))
}

#[test]
fn a_workspace_that_an_earlier_server_left_its_neighbours_loses_them_at_the_next_look() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace_with_user_namespace();
        let (_, address) = attached(&network, &workspace).await;
        let as_attached = narrowness(&workspace);
        drop(network);
        let (subnet, gateway) = (stage.subnet.clone(), stage.gateway());
        let mut widening = vec![
            format!("ip route add {subnet} dev eth0 proto kernel scope link src {address}"),
            "ip route del local default dev eth0 table main".to_owned(),
            format!("ip route del {gateway} dev eth0"),
        ];
        // All of it, and as it is where it was cut off before its last step.
        while !widening.is_empty() {
            for command in &widening {
                run_in(&workspace.netns, command);
            }
            let opened = inside(&workspace.netns, || {
                std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
                std::fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "1").unwrap();
            });
            opened.join().unwrap();
            assert_ne!(narrowness(&workspace), as_attached);
            let network = stage.network(stage.config()).await;
            network.look(&workspace.bot, &workspace.netns).await.unwrap();
            assert_eq!(narrowness(&workspace), as_attached, "after {widening:?}");
            network.look(&workspace.bot, &workspace.netns).await.unwrap();
            widening.pop();
        }
    });
}
