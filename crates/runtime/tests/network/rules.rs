//! The rules themselves: loaded first, watched, put back.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use skep_runtime::CheckStatus;
use skep_runtime::network::{FLOWS_MAX, Network, NetworkConfig, NetworkError, RulesCheck};

use crate::isolation::write_configuration;
use crate::probe::{Reached, Server, at, open_tcp, tcp};
use crate::stage::{PRIVATE, PUBLIC, RESOLVER, Stage, UPLINK, Workspace, inside, on_stage, output, run};

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(15);
    while !holds().await {
        assert!(Instant::now() < limit, "{what}: not within 15 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn table(stage: &Stage) -> String {
    output(&format!("nft -s list table inet {}", stage.table))
}

#[test]
fn rules_that_are_lost_come_back() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        let from = Some(workspace.netns.as_path());
        let _internet = Server::start(Some(&stage.internet()), 80);
        let before = table(&stage);
        let name = &stage.table;
        for loss in [
            "nft flush ruleset".to_owned(),
            format!("nft delete table inet {name}"),
            format!("nft flush chain inet {name} forward"),
            format!("nft insert rule inet {name} forward accept"),
            format!("nft delete element inet {name} private4 {{ 10.0.0.0/8 }}"),
            format!("nft delete element inet {name} ports {{ {} }}", stage.bridge),
            format!("nft add element inet {name} ports {{ up0 }}"),
        ] {
            run(&loss);
            eventually(&format!("the table after {loss}"), async || {
                let listed = std::process::Command::new("nft")
                    .args(["-s", "list", "table", "inet", name])
                    .output();
                String::from_utf8_lossy(&listed.unwrap().stdout) == before.as_str()
            })
            .await;
            assert_eq!(tcp(from, at(PRIVATE, 80)).await, Reached::Closed, "after {loss}");
            eventually(&format!("the internet after {loss}"), async || {
                tcp(from, at(PUBLIC, 80)).await == Reached::Open(UPLINK.parse().unwrap())
            })
            .await;
        }
        assert_eq!(network.check_rules().await.unwrap(), RulesCheck::InForce);
        network.check(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

/// An `nft` that refuses to load anything while a file is there.
fn breakable_nft(stage: &Stage) -> NetworkConfig {
    let nft = stage.path("nft");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = -f ] && [ -e {} ] && {{ echo broken by the test >&2; exit 1; }}\nexec nft \"$@\"\n",
        stage.path("broken").display()
    );
    std::fs::write(&nft, text).unwrap();
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).unwrap();
    NetworkConfig { nft, ..stage.config() }
}

#[test]
fn nothing_passes_while_the_rules_are_away() {
    on_stage(async |stage| {
        let network = stage.network(breakable_nft(&stage)).await;
        let (one, two) = (stage.workspace(), stage.workspace());
        let address = network.attach(&one.bot, &one.netns).await.unwrap().address.unwrap();
        let from = Some(one.netns.as_path());
        let _internet = Server::start(Some(&stage.internet()), 80);
        let _own = Server::start(from, 80);
        let uplink: IpAddr = UPLINK.parse().unwrap();
        assert_eq!(open_tcp(from, at(PUBLIC, 80)).await, Reached::Open(uplink));

        std::fs::write(stage.path("broken"), "").unwrap();
        run("nft flush ruleset");
        eventually("readiness says so", async || {
            network.readiness().await.status == CheckStatus::Error
        })
        .await;
        for closed in [PUBLIC, PRIVATE, UPLINK] {
            assert_eq!(tcp(from, at(closed, 80)).await, Reached::Closed, "{closed}");
        }
        assert_eq!(tcp(None, at(address, 80)).await, Reached::Closed);
        let refused = network.attach(&two.bot, &two.netns).await.unwrap_err();
        assert!(matches!(refused, NetworkError::RulesMissing { .. }), "{refused}");
        assert!(network.check_rules().await.is_err());

        std::fs::remove_file(stage.path("broken")).unwrap();
        eventually("readiness", async || {
            network.readiness().await.status == CheckStatus::Ok
        })
        .await;
        assert_eq!(open_tcp(from, at(PUBLIC, 80)).await, Reached::Open(uplink));
        assert_eq!(tcp(from, at(PRIVATE, 80)).await, Reached::Closed);
        network.attach(&two.bot, &two.netns).await.unwrap();
    });
}

#[test]
fn rules_come_before_the_bridge_and_a_failure_leaves_none_up() {
    on_stage(async |stage| {
        let config = breakable_nft(&stage);
        std::fs::write(stage.path("broken"), "").unwrap();
        let network = Network::new(config).unwrap();
        let workspace = stage.workspace();
        network.prepare().await.unwrap_err();
        assert!(!stage.interfaces().contains(&stage.bridge), "{:?}", stage.interfaces());
        network.attach(&workspace.bot, &workspace.netns).await.unwrap_err();
        std::fs::remove_file(stage.path("broken")).unwrap();
        network.prepare().await.unwrap();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn other_tables_changes_disturb_nothing() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let before = output(&format!("nft -a list table inet {}", stage.table));
        run("nft add table inet other");
        run("nft add chain inet other c");
        run("nft delete table inet other");
        assert_eq!(network.check_rules().await.unwrap(), RulesCheck::InForce);
        assert_eq!(
            output(&format!("nft -a list table inet {}", stage.table)),
            before,
            "it was loaded again"
        );
    });
}

#[test]
fn a_forward_policy_of_drop_is_told_with_its_mend() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        let _internet = Server::start(Some(&stage.internet()), 80);
        run("nft add table ip filter");
        run("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        assert_eq!(tcp(Some(&workspace.netns), at(PUBLIC, 80)).await, Reached::Closed);
        assert_eq!(network.readiness().await.status, CheckStatus::Ok);
        let findings = network.prepare().await.unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        let check = network.readiness().await;
        assert_eq!((check.status, &check.detail), (CheckStatus::Warn, &findings[0]));
        let mends = findings[0].split_once("with: ").unwrap().1;
        for mend in mends.split("; ") {
            run(&mend.replace('"', ""));
        }
        assert!(
            matches!(open_tcp(Some(&workspace.netns), at(PUBLIC, 80)).await, Reached::Open(_)),
            "{mends}"
        );
        assert_eq!(network.prepare().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_bridge_or_table_of_another_data_root_is_refused_with_the_key() {
    on_stage(async |stage| {
        let _first = stage.network(stage.config()).await;
        let other = |bridge: &str, table: &str| NetworkConfig {
            bridge: bridge.into(),
            table: table.into(),
            data_root_id: "two".into(),
            subnet: "10.219.0.0/24".parse().unwrap(),
            ..stage.config()
        };
        for (bridge, table, key) in [
            (stage.bridge.as_str(), "skept_other", "network.bridge"),
            ("sktother", stage.table.as_str(), "network.table"),
        ] {
            let refused = Network::new(other(bridge, table)).unwrap().prepare().await.unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(key) && text.contains("data root one"), "{text}");
        }
        stage.network(other("sktother", "skept_other")).await;
    });
}

#[test]
fn a_subnet_the_host_uses_elsewhere_is_refused_with_the_key() {
    on_stage(async |stage| {
        let inside = stage.subnet.replace(".0/24", ".128/25");
        run(&format!("ip route add {inside} via 192.0.2.2"));
        let refused = Network::new(stage.config()).unwrap().prepare().await.unwrap_err();
        assert!(refused.to_string().contains("network.subnet"), "{refused}");
    });
}

#[test]
fn teardown_leaves_the_host_as_it_was() {
    on_stage(async |stage| {
        let before = stage.interfaces();
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        network.teardown().await.unwrap_err();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        drop(workspace);
        network.teardown().await.unwrap();
        network.teardown().await.unwrap();
        stage.interfaces_become(&before).await;
        assert_eq!(output("nft list tables"), "");
        assert_eq!(std::fs::read_dir(stage.path("run").join("claims")).unwrap().count(), 0);
    });
}

#[test]
fn teardown_also_removes_what_an_ended_server_left() {
    on_stage(async |stage| {
        let before = stage.interfaces();
        drop(stage.network(stage.config()).await);
        Network::new(stage.config()).unwrap().teardown().await.unwrap();
        stage.interfaces_become(&before).await;
        assert_eq!(output("nft list tables"), "");
    });
}

#[test]
fn a_bridge_of_the_users_configuration_is_claimed_too() {
    on_stage(async |stage| {
        let text = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"cni7","ipam":{}}"#;
        std::fs::write(stage.path("conf").join("10-user.conf"), text).unwrap();
        let of = |data_root: &str, table: &str| NetworkConfig {
            cni_conf_dir: Some(stage.path("conf")),
            data_root_id: data_root.into(),
            table: table.into(),
            ..stage.config()
        };
        let _first = stage.network(of("one", "skept_one")).await;
        let refused = Network::new(of("two", "skept_two"))
            .unwrap()
            .prepare()
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("workspace.cni_conf_dir"), "{refused}");
    });
}

/// More than a workspace may have, each to a port of its own.
fn open_too_many_flows(workspace: &Workspace, first_port: u32) {
    let asking = inside(&workspace.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in first_port..first_port + FLOWS_MAX + 1000 {
            // What is refused is told of the next one.
            drop(socket.send_to(b"?", format!("{PUBLIC}:{port}")));
        }
    });
    asking.join().unwrap();
}

/// With a port for all workspaces, or with one for each.
#[test]
fn one_workspace_cannot_fill_the_hosts_table_of_connections() {
    for ptp in [false, true] {
        on_stage(async move |stage| cannot_fill_the_table_of_connections(stage, ptp).await);
    }
}

async fn cannot_fill_the_table_of_connections(stage: Stage, ptp: bool) {
    let mut config = stage.config();
    if ptp {
        write_configuration(&stage, r#""type":"ptp","ipMasq":true"#);
        config.cni_conf_dir = Some(stage.path("conf"));
    }
    let network = stage.network(config).await;
    let (greedy, other) = (stage.workspace(), stage.workspace());
    for workspace in [&greedy, &other] {
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
    }
    let _internet = Server::start(Some(&stage.internet()), 80);
    // None of them ends before they are counted.
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "600").unwrap();
    open_too_many_flows(&greedy, 1024);
    // They are still counted when another one comes and goes, and when the host has other resolvers.
    let third = stage.workspace();
    network.attach(&third.bot, &third.netns).await.unwrap();
    network.detach(&third.bot, &third.netns).await.unwrap();
    network.set_resolvers(vec![PRIVATE.parse().unwrap()]).await.unwrap();
    open_too_many_flows(&greedy, 32_768);
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    let count: u32 = count.trim().parse().unwrap();
    // The host's own are among them, and the kernel may count one too few while it adds one.
    let limited = FLOWS_MAX / 2..FLOWS_MAX + 100;
    assert!(limited.contains(&count), "{count} connections");
    let uplink: IpAddr = UPLINK.parse().unwrap();
    assert_eq!(
        open_tcp(Some(&other.netns), at(PUBLIC, 80)).await,
        Reached::Open(uplink)
    );
    assert_eq!(network.check_rules().await.unwrap(), RulesCheck::InForce);
}

#[test]
fn other_resolvers_do_not_keep_what_another_program_changed() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let before = table(&stage);
        for resolver in [PRIVATE, RESOLVER] {
            run(&format!("nft insert rule inet {} forward accept", stage.table));
            network.set_resolvers(vec![resolver.parse().unwrap()]).await.unwrap();
            assert_eq!(table(&stage), before.replace(RESOLVER, resolver));
        }
        assert_eq!(network.check_rules().await.unwrap(), RulesCheck::InForce);
    });
}
