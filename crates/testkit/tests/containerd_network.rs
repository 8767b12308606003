//! Workspaces on a bridge of this host: what they are attached to, and what the sweep keeps as it should be.

use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use skep_names::BotId;
use skep_runtime::network::NetworkConfig;
use skep_runtime::{Limits, Runtime, Swept, TaskState};
use skep_testkit::containerd_rig::{ContainerdRig, RIG_RESOLVER, RigOptions, instance_spec, until};

const SCRIPT: &str = "trap 'exit 0' TERM; cp /etc/resolv.conf /asked; while :; do sleep 1 & wait; done";

/// A rig with a network that is gone with it, however its test ends.
struct OnABridge {
    rig: ContainerdRig,
    network: NetworkConfig,
}

impl Drop for OnABridge {
    fn drop(&mut self) {
        let (bridge, table) = (&self.network.bridge, &self.network.table);
        // Nothing is there any more after a test that went well.
        for (program, arguments) in [
            ("ip", ["link", "delete", bridge].as_slice()),
            ("nft", &["delete", "table", "inet", table]),
        ] {
            if let Err(error) = Command::new(program).args(arguments).output() {
                eprintln!("{program} {arguments:?}: {error}");
            }
        }
    }
}

impl OnABridge {
    async fn start() -> Self {
        static STARTED: AtomicU8 = AtomicU8::new(0);
        // Of this process and of this test of it.
        let unique = (std::process::id() as u8).wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed));
        let mut network = NetworkConfig::new("");
        network.bridge = format!("skt{unique:02x}");
        network.table = format!("skt{unique:02x}");
        network.subnet = format!("10.215.{unique}.0/24").parse().unwrap();
        let rig = ContainerdRig::start_with(RigOptions {
            script: Some(SCRIPT.into()),
            network: Some(network.clone()),
            ..Default::default()
        })
        .await;
        Self { rig, network }
    }

    /// One that runs.
    async fn workspace(&self) -> BotId {
        let bot = BotId::random();
        let runtime = self.rig.runtime();
        runtime.create(&instance_spec(&bot, &self.rig.image())).await.unwrap();
        runtime.start(&bot, &Limits::default()).await.unwrap();
        bot
    }

    async fn stop(&self, bot: &BotId) {
        self.rig.runtime().stop(bot, Duration::from_secs(5)).await.unwrap();
    }

    async fn end(&self, bots: &[BotId]) {
        for bot in bots {
            self.rig.runtime().remove(bot).await.unwrap();
        }
        self.rig.runtime().network().teardown().await.unwrap();
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_workspace_on_a_bridge_has_an_address_and_releases_it() {
    let host = OnABridge::start().await;
    let runtime = host.rig.runtime();
    let bot = BotId::random();
    runtime.create(&instance_spec(&bot, &host.rig.image())).await.unwrap();
    for _ in 0..2 {
        let begun = Instant::now();
        let started = runtime.start(&bot, &Limits::default()).await.unwrap();
        println!("start on a bridge: {:?}", begun.elapsed());
        let address = started.address.expect("an address");
        assert!(matches!(address, std::net::IpAddr::V4(v4) if host.network.subnet.contains(&v4)));
        assert_eq!(runtime.address(&bot).await.unwrap(), Some(address));
        let begun = Instant::now();
        host.stop(&bot).await;
        println!("stop on a bridge: {:?}", begun.elapsed());
        assert_eq!(runtime.address(&bot).await.unwrap(), None);
    }
    host.end(&[bot]).await;
}

impl OnABridge {
    /// As programs do that keep it: a file is put in the place of the one before.
    fn change_resolver(&self, text: &str) {
        let file = self.rig.config().host_root.join("etc/resolv.conf");
        let draft = file.with_extension("new");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, file).unwrap();
    }

    /// What a workspace had in its file when it was started.
    async fn resolver_of(&self, bot: &BotId) -> String {
        let file = self.rig.layer_on_disk(bot).join("asked");
        until("process 1 has read its resolver", async || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            text.ends_with('\n').then_some(text).ok_or("half of it".to_owned())
        })
        .await
    }

    /// To which of these port 53 is open.
    fn open_among<'a>(&self, servers: &[&'a str]) -> Vec<&'a str> {
        let rules = output("nft", &["list", "chain", "inet", &self.network.table, "allowed"]);
        let is_open = |server: &&&str| rules.contains(&format!("daddr {server} "));
        servers.iter().filter(is_open).copied().collect()
    }
}

#[tokio::test]
async fn the_rules_follow_the_hosts_resolver_and_keep_those_that_are_in_use() {
    let host = OnABridge::start().await;
    let runtime = host.rig.runtime();
    let all = ["192.0.2.53", "10.66.0.1", "10.66.0.2"];
    let first = host.workspace().await;
    assert_eq!(host.resolver_of(&first).await, RIG_RESOLVER);
    assert_eq!(host.open_among(&all), ["192.0.2.53"]);

    // A start does not wait for the sweep.
    host.change_resolver("nameserver 10.66.0.1\n");
    let second = host.workspace().await;
    assert_eq!(host.resolver_of(&second).await, "nameserver 10.66.0.1\n");
    assert_eq!(host.open_among(&all), ["192.0.2.53", "10.66.0.1"]);

    host.change_resolver("nameserver 10.66.0.2\n");
    runtime.sweep().await.unwrap();
    assert_eq!(host.open_among(&all), all, "both run with the file of their start");
    host.stop(&first).await;
    host.stop(&second).await;
    runtime.sweep().await.unwrap();
    assert_eq!(host.open_among(&all), ["10.66.0.2"]);

    // One that cannot be reached from inside makes it the fallback.
    host.change_resolver("nameserver 127.0.0.53\n");
    runtime.start(&first, &Limits::default()).await.unwrap();
    assert_eq!(host.open_among(&["1.1.1.1", "8.8.8.8"]), ["1.1.1.1", "8.8.8.8"]);
    host.end(&[first, second]).await;
}

#[tokio::test]
async fn the_sweep_isolates_a_port_again_and_tells_what_it_cannot_mend() {
    let host = OnABridge::start().await;
    let runtime = host.rig.runtime();
    let (whole, broken) = (host.workspace().await, host.workspace().await);
    let port_of = |bot: &BotId| {
        let netns = format!("skep-{bot}");
        let own = output("ip", &["-netns", &netns, "-o", "link", "show", "eth0"]);
        let peer = own.split("eth0@if").nth(1).and_then(|rest| rest.split(':').next());
        let peer = peer.unwrap_or_else(|| panic!("no peer in {own}")).to_owned();
        let links = output("ip", &["-o", "link", "show", "master", &host.network.bridge]);
        let line = links.lines().find(|line| line.starts_with(&format!("{peer}: ")));
        let name = line.and_then(|line| line.split(": ").nth(1)?.split('@').next().map(str::to_owned));
        name.unwrap_or_else(|| panic!("no {peer} in {links}"))
    };
    let (kept, lost) = (port_of(&whole), port_of(&broken));
    let isolated = |port: &str| output("ip", &["-d", "link", "show", port]).contains("isolated on");
    assert!(isolated(&kept));
    output("ip", &["link", "set", &kept, "type", "bridge_slave", "isolated", "off"]);
    output("ip", &["link", "delete", &lost]);
    let swept = runtime.sweep().await.unwrap();
    assert!(isolated(&kept), "it is open to its neighbours");
    let missing: Vec<_> = swept.broken_networks.iter().collect();
    assert_eq!(missing, [(&broken, &format!("{lost} is gone"))]);
    for bot in [&whole, &broken] {
        let task = runtime.inspect(bot).await.unwrap().unwrap().task;
        assert_eq!(task, TaskState::Running, "nothing was stopped");
    }
    host.stop(&broken).await;
    runtime.start(&broken, &Limits::default()).await.unwrap();
    assert_eq!(runtime.sweep().await.unwrap(), Swept::default());
    host.end(&[whole, broken]).await;
}
