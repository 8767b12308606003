//! The containerd backend on a containerd of the test's own, with its own data root, cgroup and image.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_names::{BotId, ImageReference};
use skep_runtime::Runtime;
use skep_runtime::containerd::{ContainerdConfig, ContainerdRuntime, IsolationConfig, UserNamespaceMode};
use skep_runtime::images::RegistrySettings;
use skep_runtime::layer_access::LayerProgram;
use skep_runtime::network::{NetworkConfig, NetworkMode};

use crate::{ContainerdRelease, ContainerdServer, images, mounts_below, unmount_below};

/// The image every rig has.
pub const RIG_IMAGE: &str = "skep.test/busybox:1";

/// The host's `etc/resolv.conf`, below [`ContainerdConfig::host_root`].
pub const RIG_RESOLVER: &str = "nameserver 192.0.2.53\n";

/// Environment variable that chooses the program that makes containers in tests: `crun` (by the wrapper where
/// the host needs it) or `runc`. Unset: as the server chooses.
pub const OCI_RUNTIME_VARIABLE: &str = "SKEP_TEST_OCI_RUNTIME";

/// Which program makes containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OciRuntime {
    /// As the server chooses.
    Chosen,
    /// By the wrapper where the host's cgroups are hybrid.
    Crun,
    /// Always.
    Runc,
}

/// How a rig differs from the usual one.
#[derive(Debug, Clone)]
pub struct RigOptions {
    /// Which containerd.
    pub release: ContainerdRelease,
    /// Which program makes containers.
    pub oci_runtime: OciRuntime,
    /// `isolation.user_namespace`.
    pub user_namespace: UserNamespaceMode,
    /// Process 1 of every workspace in place of the bridge; run by the image's own shell.
    pub script: Option<String>,
    /// Workspaces' network, in the rig's own data root; `None`: loopback only. A test that has one calls
    /// [`Network::teardown`](skep_runtime::network::Network::teardown) at its end.
    pub network: Option<NetworkConfig>,
}

impl Default for RigOptions {
    fn default() -> Self {
        let oci_runtime = match std::env::var(OCI_RUNTIME_VARIABLE).as_deref() {
            Ok("crun") => OciRuntime::Crun,
            Ok("runc") => OciRuntime::Runc,
            Ok(other) => panic!("{OCI_RUNTIME_VARIABLE} is {other:?}, neither crun nor runc"),
            Err(_) => OciRuntime::Chosen,
        };
        Self {
            release: ContainerdRelease::chosen(),
            oci_runtime,
            user_namespace: UserNamespaceMode::Required,
            script: None,
            network: None,
        }
    }
}

/// Everything of one test, gone when it is dropped.
pub struct ContainerdRig {
    runtime: Arc<ContainerdRuntime>,
    config: ContainerdConfig,
    // After the runtime in the order of drops: its connections end first.
    server: ContainerdServer,
}

impl ContainerdRig {
    /// The usual rig, see [`RigOptions::default`].
    ///
    /// # Panics
    /// When containerd, `ctr`, busybox or the wanted runtime is missing, or something does not start.
    pub async fn start() -> Self {
        Self::start_with(RigOptions::default()).await
    }

    /// # Panics
    /// As [`ContainerdRig::start`].
    pub async fn start_with(options: RigOptions) -> Self {
        let server = ContainerdServer::start_release(options.release)
            .await
            .expect("start a containerd");
        let config = configuration(&server, &options);
        prepare_runtime_directory(&config.runtime_dir, options.script.as_deref());
        std::fs::create_dir_all(config.host_root.join("etc")).expect("make the directory of resolv.conf");
        std::fs::write(config.host_root.join("etc/resolv.conf"), RIG_RESOLVER).expect("write resolv.conf");
        let runtime = ContainerdRuntime::new(config.clone()).expect("make the backend");
        runtime.network().prepare().await.expect("prepare the network");
        let rig = Self {
            runtime,
            config,
            server,
        };
        rig.import(images::busybox_image().oci_archive(None), RIG_IMAGE).await;
        rig
    }

    /// The backend.
    pub fn runtime(&self) -> &Arc<ContainerdRuntime> {
        &self.runtime
    }

    /// Its configuration.
    pub fn config(&self) -> &ContainerdConfig {
        &self.config
    }

    /// Its containerd.
    pub fn server(&mut self) -> &mut ContainerdServer {
        &mut self.server
    }

    /// A second backend on the same data root, as the next server would make it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn next_server(&self) -> Arc<ContainerdRuntime> {
        ContainerdRuntime::new(self.config.clone()).expect("make the backend again")
    }

    /// A second backend that reaches containerd by another socket.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn server_behind(&self, socket: PathBuf) -> Arc<ContainerdRuntime> {
        let config = ContainerdConfig {
            socket,
            ..self.config.clone()
        };
        ContainerdRuntime::new(config).expect("make the backend again")
    }

    /// [`RIG_IMAGE`].
    pub fn image(&self) -> ImageReference {
        RIG_IMAGE.parse().expect("the name of the rig's image")
    }

    /// What containerd's own client says.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let output = self
            .server
            .ctr()
            .args(["--namespace", &self.config.namespace])
            .args(arguments)
            .output()
            .expect("run ctr");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The directory on disk of a bot's writable layer.
    ///
    /// # Panics
    /// When it has none.
    pub fn layer_on_disk(&self, bot: &BotId) -> PathBuf {
        let key = skep_names::container_id_for(bot);
        let mounts = self.ctr(&["snapshots", "mounts", "/x", &key]);
        let upper = mounts
            .split(['=', ',', ' '])
            .skip_while(|word| *word != "upperdir")
            .nth(1);
        PathBuf::from(upper.unwrap_or_else(|| panic!("no upper directory in {mounts}")))
    }

    /// Stores an image from an OCI archive.
    ///
    /// # Panics
    /// When it cannot be imported.
    pub async fn import(&self, archive: Vec<u8>, name: &str) {
        let name: ImageReference = name.parse().expect("the name of an image");
        let archive = Box::new(io::Cursor::new(archive));
        self.runtime
            .import(archive, Some(&name))
            .await
            .expect("import an image");
    }

    /// Where it looks for specifications of devices.
    pub fn cdi_directory(&self) -> PathBuf {
        self.server.directory().join("cdi")
    }

    fn run_dir(&self) -> PathBuf {
        self.config.run_root.join(&self.config.data_root_id)
    }

    /// Each step is taken whatever came of the others: nobody else would find what is left.
    fn clean_up(&self) -> io::Result<()> {
        let run_dir = self.run_dir();
        let steps = [
            self.remove_pins(),
            unmount_below(&run_dir).and_then(|()| remove_if_there(std::fs::remove_dir_all(&run_dir))),
            self.remove_claims(),
            remove_cgroups(&self.config.cgroup_parent),
        ];
        steps.into_iter().collect()
    }

    /// Network namespaces of every bot that left anything here, those of a half-made start included.
    fn remove_pins(&self) -> io::Result<()> {
        let run_dir = self.run_dir();
        let mut removed = Ok(());
        for directory in [
            run_dir.join("running"),
            run_dir.join("userns"),
            run_dir.join("root"),
            run_dir.join("devices"),
            self.config.data_root.join("run"),
        ] {
            for bot in names_in(&directory)? {
                let pin = Path::new("/run/netns").join(format!("skep-{bot}"));
                let gone = unmount_below(&pin).and_then(|()| remove_if_there(std::fs::remove_file(&pin)));
                removed = removed.and(gone);
            }
        }
        removed
    }

    fn remove_claims(&self) -> io::Result<()> {
        let claims = self.claims()?;
        let removed: Vec<io::Result<()>> = claims.iter().map(std::fs::remove_file).collect();
        removed.into_iter().collect()
    }

    /// Everything that belongs to this rig's workspaces: what containerd keeps, and what is on the host.
    ///
    /// # Panics
    /// When it cannot be listed.
    pub fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        for listing in [
            &["containers", "ls", "-q"][..],
            &["tasks", "ls", "-q"],
            &["snapshots", "ls"],
            &["leases", "ls", "-q"],
        ] {
            let text = self.ctr(listing);
            traces.extend(text.lines().map(|line| format!("{}: {line}", listing[0])));
        }
        let mounts = mounts_below(Path::new("/")).expect("the mount table");
        let ours = |path: &PathBuf| path.starts_with(self.server.directory()) || path.starts_with(self.run_dir());
        traces.extend(
            mounts
                .iter()
                .filter(|path| ours(path))
                .map(|path| format!("mount: {}", path.display())),
        );
        traces.extend(
            self.claims()
                .expect("claims")
                .iter()
                .map(|file| format!("claim: {}", file.display())),
        );
        for directory in [
            self.run_dir().join("running"),
            self.run_dir().join("userns"),
            self.run_dir().join("root"),
            self.run_dir().join("devices"),
            self.config.data_root.join("run"),
            self.config.data_root.join("logs"),
            Path::new("/sys/fs/cgroup/pids").join(self.config.cgroup_parent.trim_start_matches('/')),
        ] {
            let names = names_in(&directory).expect("a directory of ours");
            let names = names.iter().filter(|name| name.contains('-'));
            traces.extend(names.map(|name| format!("{}: {name}", directory.display())));
        }
        traces.sort();
        traces
    }

    /// The files that claim ids for this data root.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn claims(&self) -> io::Result<Vec<PathBuf>> {
        let directory = self.config.run_root.join("ids");
        let mut ours = Vec::new();
        for name in names_in(&directory)? {
            let file = directory.join(name);
            // Others claim and release at the same time.
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.contains(&self.config.data_root_id) {
                ours.push(file);
            }
        }
        Ok(ours)
    }
}

impl Drop for ContainerdRig {
    fn drop(&mut self) {
        // Containers hold cgroups and namespaces: they go first.
        if let Err(error) = self.server.end() {
            eprintln!("ending the containerd of a test failed: {error}");
        }
        if let Err(error) = self.clean_up() {
            eprintln!("cleaning up data root {} failed: {error}", self.config.data_root_id);
        }
    }
}

fn configuration(server: &ContainerdServer, options: &RigOptions) -> ContainerdConfig {
    let data_root_id = BotId::random().to_string();
    let directory = server.directory();
    let runtime_dir = directory.join("runtime");
    let wrapper = runtime_dir.join(skep_bridge_binary::CRUN_WRAPPER_FILE);
    let hybrid = Path::new("/sys/fs/cgroup/unified").is_dir();
    let runtime_binary = match options.oci_runtime {
        OciRuntime::Chosen => None,
        OciRuntime::Runc => Some(PathBuf::from("runc")),
        OciRuntime::Crun if hybrid => Some(wrapper.clone()),
        OciRuntime::Crun => Some(PathBuf::from("crun")),
    };
    let network_id = data_root_id.clone();
    let mut loopback_only = NetworkConfig::new(&data_root_id);
    loopback_only.mode = NetworkMode::None;
    ContainerdConfig {
        socket: server.socket().to_owned(),
        namespace: "skep-test".into(),
        runtime: "io.containerd.runc.v2".into(),
        runtime_binary,
        crun_wrapper: Some(wrapper),
        layer_program: LayerProgram {
            program: skep_bridge_binary::unpack_layer_program(&directory.join("programs")).expect("unpack skep-layer"),
            scratch: directory.join("layers"),
            spool: directory.join("spool"),
        },
        snapshotter: "overlayfs".into(),
        data_root: directory.join("data"),
        cgroup_parent: format!("/skep-test-{data_root_id}"),
        data_root_id,
        run_root: PathBuf::from("/run/skep"),
        runtime_dir,
        host_root: directory.join("host"),
        base_environment: [("TZ".to_owned(), "UTC".to_owned())].into(),
        isolation: IsolationConfig {
            user_namespace: options.user_namespace,
            ..Default::default()
        },
        cdi_spec_dirs: vec![directory.join("cdi")],
        registries: RegistrySettings::default(),
        network: options.network.clone().map_or(loopback_only, |network| NetworkConfig {
            data_root_id: network_id,
            ..network
        }),
    }
}

/// # Panics
/// When it cannot be written.
fn prepare_runtime_directory(directory: &Path, script: Option<&str>) {
    skep_bridge_binary::unpack(directory).expect("unpack the bridge");
    let Some(script) = script else { return };
    let bridge = directory.join(skep_bridge_binary::BRIDGE_FILE);
    std::fs::write(&bridge, format!("#!/bin/sh\n{script}\n")).expect("write the script");
    std::fs::set_permissions(&bridge, std::fs::Permissions::from_mode(0o755)).expect("make the script executable");
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a group and those below it from every hierarchy; groups with processes refuse.
fn remove_cgroups(group: &str) -> io::Result<()> {
    let name = group.trim_start_matches('/');
    let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        hierarchies.push(entry?.path());
    }
    for parent in hierarchies.iter().map(|hierarchy| hierarchy.join(name)) {
        if !parent.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_if_there(std::fs::remove_dir(entry.path()))?;
            }
        }
        remove_if_there(std::fs::remove_dir(&parent))?;
    }
    Ok(())
}

/// Waits until something holds, for at most 50 s: less than the minute after which a daemon that is silent is given up.
///
/// # Panics
/// When it does not, with what was seen last.
pub async fn until<T: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(50);
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(seen) => assert!(
                std::time::Instant::now() < end,
                "not within 50 s: {what}; last seen: {seen}"
            ),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The usual wish for a workspace.
pub fn instance_spec(bot: &BotId, image: &ImageReference) -> skep_runtime::InstanceSpec {
    skep_runtime::InstanceSpec {
        bot: bot.clone(),
        image: image.clone(),
        snapshotter: None,
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        cdi_devices: Vec::new(),
        labels: Default::default(),
    }
}

/// As a trait object, for suites that run on every backend.
pub fn as_runtime(rig: &ContainerdRig) -> Arc<dyn Runtime> {
    rig.runtime().clone()
}
