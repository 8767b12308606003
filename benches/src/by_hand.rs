//! The same, done by hand: `ctr`, runc, and CNI's plugins as cnitool runs them.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::Result;
use crate::stage::Stage;

/// Containers of ours lie in another namespace of containerd.
const NAMESPACE: &str = "bench-by-hand";
const BRIDGE: &str = "skbyhand0";
const PLUGIN_DIRECTORIES: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// Containers made by hand; removes its bridge in the end.
pub(crate) struct ByHand<'a> {
    stage: &'a Stage,
}

impl<'a> ByHand<'a> {
    /// Pulls the image, so that a run needs no registry.
    pub(crate) async fn prepare(stage: &'a Stage) -> Result<Self> {
        let by_hand = Self { stage };
        by_hand.pull(&stage.image).await?;
        Ok(by_hand)
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::from(self.stage.containerd.ctr());
        command.args(["--namespace", NAMESPACE]).args(arguments);
        command
    }

    pub(crate) async fn pull(&self, image: &str) -> Result<()> {
        run(&mut self.ctr(&["images", "pull", "--plain-http", image])).await
    }

    /// Removes an image with all that only it needs.
    pub(crate) async fn forget(&self, image: &str) -> Result<()> {
        run(&mut self.ctr(&["images", "rm", "--sync", image])).await
    }

    /// Removes what nothing refers to, in all namespaces: contents are shared between them.
    pub(crate) async fn collect_garbage(&self) -> Result<()> {
        run(&mut self.ctr(&["content", "prune", "references"])).await
    }

    /// `ctr run -d` under runc, in a network namespace with loopback, bridge with masquerade, and portmap.
    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        self.create_with(name, &[]).await
    }

    /// The same with a filter of system calls, as ours have: what a start costs is compared.
    pub(crate) async fn create_filtered(&self, name: &str) -> Result<()> {
        self.create_with(name, &["--seccomp"]).await
    }

    /// Stops a container, keeps its layer as `version`, and starts it again on a new layer above that: the four
    /// calls of a snapshot. Returns how long they took, less the starts of `ctr` itself.
    pub(crate) async fn snapshot(&self, name: &str, version: &str) -> Result<Duration> {
        let alone = self.ctr_alone().await?;
        let begun = Instant::now();
        let calls: [&[&str]; 4] = [
            &["tasks", "rm", "--force", name],
            &["snapshots", "commit", version, name],
            &["snapshots", "prepare", name, version],
            &["tasks", "start", "--detach", name],
        ];
        for call in calls {
            run(&mut self.ctr(call)).await?;
        }
        Ok(begun.elapsed().saturating_sub(alone * 4))
    }

    /// How long `ctr` takes to do nothing.
    async fn ctr_alone(&self) -> Result<Duration> {
        let begun = Instant::now();
        run(&mut self.ctr(&["--version"])).await?;
        Ok(begun.elapsed())
    }

    async fn create_with(&self, name: &str, more: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", name])).await?;
        let mut result = Value::Null;
        for plugin in ["loopback", "bridge", "portmap"] {
            let added = plug("ADD", name, plugin, &result).await?;
            if plugin == "bridge" {
                result = serde_json::from_slice(&added)?;
            }
        }
        let network = format!("network:{}", namespace(name));
        let mut arguments = vec!["run", "-d", "--with-ns", &network];
        arguments.extend(more);
        arguments.extend([&self.stage.image, name, "sleep", "1000000"]);
        run(&mut self.ctr(&arguments)).await
    }

    /// `ctr task exec`.
    pub(crate) async fn exec(&self, name: &str, id: &str, argv: &[&str]) -> Result<()> {
        run(self.ctr(&["tasks", "exec", "--exec-id", id, name]).args(argv)).await
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        run(&mut self.ctr(&["tasks", "rm", "--force", name])).await?;
        run(&mut self.ctr(&["containers", "rm", name])).await?;
        for plugin in ["portmap", "bridge", "loopback"] {
            plug("DEL", name, plugin, &Value::Null).await?;
        }
        run(Command::new("ip").args(["netns", "del", name])).await
    }
}

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        let removed = std::process::Command::new("ip")
            .args(["link", "del", BRIDGE])
            .stderr(Stdio::null())
            .status();
        if let Err(error) = removed {
            eprintln!("the bridge made by hand is left: {error}");
        }
        let leases = Path::new("/var/lib/cni/networks").join(NAMESPACE);
        if let Err(error) = std::fs::remove_dir_all(&leases)
            && leases.exists()
        {
            eprintln!("{} is left: {error}", leases.display());
        }
    }
}

fn namespace(name: &str) -> String {
    format!("/var/run/netns/{name}")
}

async fn plug(verb: &str, name: &str, plugin: &str, previous: &Value) -> Result<Vec<u8>> {
    let mut config = json!({"cniVersion": "0.4.0", "name": NAMESPACE, "type": plugin});
    let more = match plugin {
        "bridge" => json!({
            "bridge": BRIDGE, "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.99.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
        }),
        "portmap" => json!({"capabilities": {"portMappings": true}}),
        _ => json!({}),
    };
    let fields = config.as_object_mut().ok_or("a configuration is an object")?;
    fields.extend(more.as_object().cloned().unwrap_or_default());
    if !previous.is_null() {
        fields.insert("prevResult".into(), previous.clone());
    }
    let directory = PLUGIN_DIRECTORIES
        .into_iter()
        .find(|directory| Path::new(directory).join(plugin).exists())
        .ok_or("the CNI plugins are missing")?;
    let mut child = Command::new(Path::new(directory).join(plugin))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", name)
        .env("CNI_NETNS", namespace(name))
        .env("CNI_IFNAME", if plugin == "loopback" { "lo" } else { "eth0" })
        .env("CNI_PATH", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    stdin.write_all(config.to_string().as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{plugin} {verb}: {}", String::from_utf8_lossy(&output.stdout)).into())
    }
}

async fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().await?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{:?} failed: {said}", command.as_std()).into())
    }
}
