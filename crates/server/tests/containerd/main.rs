//! A server from a configuration on a real containerd: it starts, is ready, refuses a second one on
//! its data root, and ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use skep_server::config::{Config, Settings};
use skep_server::serve::{self, ServeError};
use skep_store::DataRootError;
use skep_testkit::ContainerdServer;
use skep_testkit::server::http_client;

fn config(directory: &Path, socket: &Path) -> Config {
    let set = |key: &str, value: String| (format!("SKEP_{key}"), value);
    let environment = [
        set("WORKSPACE__DATA_ROOT", directory.join("data").display().to_string()),
        set("SERVER__ADDR", "127.0.0.1:0".into()),
        set("ADMIN__PASSWORD", "a password".into()),
        set("NETWORK__MODE", "none".into()),
        set("CONTAINERD__SOCKET_PATH", socket.display().to_string()),
        set("CONTAINERD__NAMESPACE", "skep-server-test".into()),
    ];
    let settings = Settings::read(Some(Path::new("/dev/null")), &environment).expect("the settings");
    Config::settle(&settings).expect("the configuration")
}

/// What a server keeps until a reboot; a test takes it away, also when it fails.
struct RunDirectory(PathBuf);

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_on_containerd_is_ready_and_ends() {
    let containerd = ContainerdServer::start().await.expect("containerd starts");
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path(), containerd.socket());
    let mut server = serve::start(config.clone()).await.expect("the server starts");
    let _run_directory = RunDirectory(Path::new("/run/skep").join(server.data_root().id().to_string()));

    let ready = http_client().get(format!("http://{}/ready", server.address()));
    let answer = ready.send().await.expect("an answer");
    let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a body"));
    assert_eq!(status, 200, "{text}");

    let second = serve::start(config).await.err();
    assert!(
        matches!(second, Some(ServeError::DataRoot(DataRootError::Held { .. }))),
        "{second:?}"
    );

    server.shut_down(Duration::from_secs(10)).await;
    assert!(directory.path().join("data/runtime/bridge").is_file());
}
