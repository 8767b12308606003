//! Attach, detach, check and sweep: what is held, and that it is given back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_names::BotId;
use skep_runtime::network::{NetworkConfig, NetworkError, RulesCheck};

use crate::stage::{PUBLIC, on_stage, output, run, run_in};

#[test]
fn a_thousand_cycles_leave_nothing() {
    on_stage(async |stage| {
        let stage = Arc::new(stage);
        let network = Arc::new(stage.network(stage.config()).await);
        let baseline = stage.interfaces();
        let mut times = Vec::new();
        for _ in 0..125 {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let (stage, network) = (stage.clone(), network.clone());
                tasks.spawn(async move {
                    let workspace = stage.workspace();
                    let started = Instant::now();
                    network.attach(&workspace.bot, &workspace.netns).await.unwrap();
                    let attached = started.elapsed();
                    network.detach(&workspace.bot, &workspace.netns).await.unwrap();
                    (attached, started.elapsed() - attached)
                });
            }
            times.extend(tasks.join_all().await);
            assert!(stage.leases().is_empty(), "{:?}", stage.leases());
        }
        assert!(stage.records().is_empty(), "{:?}", stage.records());
        stage.interfaces_become(&baseline).await;
        report("8 at a time", &times);
    });
}

fn report(what: &str, times: &[(Duration, Duration)]) {
    let (mut attach, mut detach): (Vec<_>, Vec<_>) = times.iter().copied().unzip();
    attach.sort();
    detach.sort();
    let middle = times.len() / 2;
    println!(
        "{what}: attach {:?}, detach {:?} (medians of {})",
        attach[middle],
        detach[middle],
        times.len()
    );
}

#[test]
fn one_after_the_other_takes_its_time() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let mut times = Vec::new();
        for _ in 0..40 {
            let workspace = stage.workspace();
            let started = Instant::now();
            network.attach(&workspace.bot, &workspace.netns).await.unwrap();
            let attached = started.elapsed();
            network.detach(&workspace.bot, &workspace.netns).await.unwrap();
            times.push((attached, started.elapsed() - attached));
        }
        report("one by one", &times);
    });
}

#[test]
fn eight_at_once_have_eight_addresses() {
    on_stage(async |stage| {
        let network = Arc::new(stage.network(stage.config()).await);
        let workspaces: Vec<_> = (0..8).map(|_| Arc::new(stage.workspace())).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for workspace in workspaces.clone() {
            let network = network.clone();
            tasks.spawn(async move {
                let attachment = network.attach(&workspace.bot, &workspace.netns).await.unwrap();
                assert_eq!(network.address(&workspace.bot).unwrap(), attachment.address);
                attachment.address.unwrap()
            });
        }
        let addresses: BTreeSet<_> = tasks.join_all().await.into_iter().collect();
        assert_eq!(addresses.len(), 8);
        assert_eq!(stage.leases().len(), 8);
        for workspace in workspaces {
            network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        }
        assert!(stage.leases().is_empty());
    });
}

#[test]
fn detach_works_when_the_namespace_is_gone_and_when_repeated() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        workspace.lose_namespace();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        assert!(stage.leases().is_empty() && stage.records().is_empty());
        assert!(stage.interfaces().contains(&stage.bridge));
        assert_eq!(network.address(&workspace.bot).unwrap(), None);
    });
}

#[test]
fn a_left_over_interface_is_in_nobodys_way() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        run_in(&workspace.netns, "ip link add eth0 type veth peer name left0");
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        network.check(&workspace.bot, &workspace.netns).await.unwrap();
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn a_duplicate_allocation_is_released_first() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        let other = stage.workspace();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        network.attach(&other.bot, &other.netns).await.unwrap();
        let record = format!("{}.json", workspace.bot);
        std::fs::remove_file(stage.records().iter().find(|path| path.ends_with(&record)).unwrap()).unwrap();
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        assert_eq!(stage.leases().len(), 2);
        network.check(&other.bot, &other.netns).await.unwrap();
        network.check(&workspace.bot, &workspace.netns).await.unwrap();
    });
}

#[test]
fn attaching_again_replaces_the_old_attachment() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let first = stage.workspace();
        network.attach(&first.bot, &first.netns).await.unwrap();
        let second = stage.workspace();
        network.attach(&first.bot, &second.netns).await.unwrap();
        assert_eq!(stage.leases().len(), 1);
        network.check(&first.bot, &second.netns).await.unwrap();
    });
}

#[test]
fn two_failures_leave_nothing_and_the_bridge_stays() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let missing = stage.workspace();
        missing.lose_namespace();
        let error = network.attach(&missing.bot, &missing.netns).await.unwrap_err();
        assert!(matches!(error, NetworkError::Plugin { .. }), "{error}");
        assert!(stage.leases().is_empty() && stage.records().is_empty());
        assert!(stage.interfaces().contains(&stage.bridge));
    });
}

#[test]
fn a_full_subnet_says_so_and_frees_with_the_next_detach() {
    on_stage(async |stage| {
        let config = NetworkConfig {
            subnet: stage.subnet.replace("/24", "/29").parse().unwrap(),
            ..stage.config()
        };
        let network = stage.network(config).await;
        let workspaces: Vec<_> = (0..6).map(|_| stage.workspace()).collect();
        for workspace in &workspaces[..5] {
            network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        }
        let error = network
            .attach(&workspaces[5].bot, &workspaces[5].netns)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no IP addresses available"), "{error}");
        network.detach(&workspaces[0].bot, &workspaces[0].netns).await.unwrap();
        network.attach(&workspaces[5].bot, &workspaces[5].netns).await.unwrap();
    });
}

#[test]
fn check_finds_what_is_missing_and_mends_a_lost_isolation() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        let unknown = network.check(&workspace.bot, &workspace.netns).await.unwrap_err();
        assert!(matches!(unknown, NetworkError::Broken { .. }), "{unknown}");
        let attachment = network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        let port = attachment.host_interface.unwrap();
        let isolated = || output(&format!("ip -d link show {port}")).contains("isolated on");
        assert!(isolated());
        run(&format!("ip link set {port} type bridge_slave isolated off"));
        network.check(&workspace.bot, &workspace.netns).await.unwrap();
        assert!(isolated());
        run_in(&workspace.netns, "ip addr flush dev eth0");
        let broken = network.check(&workspace.bot, &workspace.netns).await.unwrap_err();
        assert!(matches!(broken, NetworkError::Broken { .. }), "{broken}");
        run(&format!("ip link del {port}"));
        let broken = network.check(&workspace.bot, &workspace.netns).await.unwrap_err();
        assert!(matches!(broken, NetworkError::Broken { .. }), "{broken}");
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        assert!(stage.leases().is_empty());
    });
}

#[test]
fn a_bridge_that_somebody_deleted_is_made_again_and_its_workspaces_are_told() {
    on_stage(async |stage| {
        let network = stage.network(stage.config()).await;
        let workspace = stage.workspace();
        let missing = async || match network.look(&workspace.bot, &workspace.netns).await {
            Ok(()) => None,
            Err(NetworkError::Broken { reason, .. }) => Some(reason),
            Err(other) => panic!("{other}"),
        };
        network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        assert_eq!(missing().await, None);
        assert!(!network.restore_bridge().await.unwrap());
        run(&format!("ip link del {}", stage.bridge));
        assert_eq!(missing().await, Some(format!("{} is gone", stage.bridge)));
        assert!(network.restore_bridge().await.unwrap());
        assert!(!network.restore_bridge().await.unwrap());
        let cut_off = missing().await.unwrap();
        assert!(cut_off.ends_with("is no port of its bridge any more"), "{cut_off}");
        // As a start anew does it.
        network.detach(&workspace.bot, &workspace.netns).await.unwrap();
        let again = stage.workspace();
        network.attach(&again.bot, &again.netns).await.unwrap();
        network.look(&again.bot, &again.netns).await.unwrap();
        assert_eq!(network.check_rules().await.unwrap(), RulesCheck::InForce);
        run_in(&again.netns, &format!("ping -c 3 -W 10 {PUBLIC}"));
    });
}

#[test]
fn the_next_server_takes_up_what_runs_and_sweeps_the_rest() {
    on_stage(async |stage| {
        let (live, dead, young) = (stage.workspace(), stage.workspace(), stage.workspace());
        let network = stage.network(stage.config()).await;
        for workspace in [&live, &dead, &young] {
            network.attach(&workspace.bot, &workspace.netns).await.unwrap();
        }
        drop(network);
        dead.lose_namespace();
        for bot in [&live.bot, &dead.bot] {
            let record = stage.path("run").join(format!("one/cni/attachments/{bot}.json"));
            let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
            std::fs::File::options()
                .write(true)
                .open(record)
                .unwrap()
                .set_modified(hour_ago)
                .unwrap();
        }
        let network = stage.network(stage.config()).await;
        network.sweep(&BTreeSet::from([live.bot.clone()])).await.unwrap();
        network.check(&live.bot, &live.netns).await.unwrap();
        network.check(&young.bot, &young.netns).await.unwrap();
        assert_eq!(network.address(&dead.bot).unwrap(), None);
        assert_eq!(stage.leases().len(), 2);
    });
}

#[test]
fn nothing_is_attached_before_prepare() {
    on_stage(async |stage| {
        let network = skep_runtime::network::Network::new(stage.config()).unwrap();
        let workspace = stage.workspace();
        let error = network.attach(&workspace.bot, &workspace.netns).await.unwrap_err();
        assert!(matches!(error, NetworkError::RulesMissing { .. }), "{error}");
        network.detach(&BotId::random(), &workspace.netns).await.unwrap();
    });
}
