//! A real registry (docker-registry) on a free loopback port, for one test.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// User name that [`Registry::start_with_password`] asks for.
pub const USERNAME: &str = "puller";
/// Password that [`Registry::start_with_password`] asks for.
pub const PASSWORD: &str = "correct horse";

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running registry. Its process and its files are gone when this is dropped.
pub struct Registry {
    address: SocketAddr,
    process: Child,
    credentials: Option<(String, String)>,
    directory: TempDir,
}

impl Registry {
    /// Starts a registry that serves everybody.
    ///
    /// # Panics
    /// When docker-registry is missing or does not listen within 20 s.
    pub fn start() -> Self {
        Self::start_in(new_directory(), None)
    }

    /// Starts a registry that asks for [`USERNAME`] and [`PASSWORD`] (HTTP basic).
    ///
    /// # Panics
    /// As [`Registry::start`]; also when htpasswd is missing.
    pub fn start_with_password() -> Self {
        let directory = new_directory();
        let file = directory.path().join("htpasswd");
        let made = Command::new("htpasswd")
            .args(["-Bbn", USERNAME, PASSWORD])
            .output()
            .expect("htpasswd is needed (Debian: apache2-utils)");
        assert!(made.status.success(), "htpasswd failed: {made:?}");
        fs::write(&file, made.stdout).expect("write htpasswd");
        Self::start_in(directory, Some(&file))
    }

    fn start_in(directory: TempDir, htpasswd: Option<&Path>) -> Self {
        let config = directory.path().join("config.yml");
        fs::write(&config, configuration(directory.path(), htpasswd)).expect("write the registry's configuration");
        let log = directory.path().join("log");
        let output = fs::File::create(&log).expect("create the registry's log");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("clone the log's descriptor"))
            .stderr(output)
            .spawn()
            .expect("docker-registry is needed (Debian: docker-registry)");
        let address = wait_for_address(&log, &mut process);
        Self {
            address,
            process,
            credentials: htpasswd.map(|_| (USERNAME.to_owned(), PASSWORD.to_owned())),
            directory,
        }
    }

    /// `127.0.0.1:<port>`: the host part of references to this registry.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The full reference of an image in this registry, `127.0.0.1:<port>/<repository>:<tag>`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// User name and password it asks for.
    pub fn credentials(&self) -> Option<(&str, &str)> {
        self.credentials
            .as_ref()
            .map(|(username, password)| (username.as_str(), password.as_str()))
    }

    /// The file that holds a blob, for a test that spoils it.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        self.directory
            .path()
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait().map(drop)) {
            eprintln!("the registry on {} could not be ended: {error}", self.address);
        }
    }
}

fn new_directory() -> TempDir {
    TempDir::with_prefix("skep-test-registry-").expect("make a directory for the registry")
}

fn configuration(directory: &Path, htpasswd: Option<&Path>) -> String {
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
        directory.join("data").display()
    );
    if let Some(file) = htpasswd {
        text += &format!(
            "auth:\n  htpasswd:\n    realm: skep-test\n    path: {}\n",
            file.display()
        );
    }
    text
}

/// The registry chooses its port and writes it to its log: no port is guessed, so none is taken twice.
fn wait_for_address(log: &Path, process: &mut Child) -> SocketAddr {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let text = fs::read_to_string(log).expect("read the registry's log");
        let found = text
            .split("listening on ")
            .nth(1)
            .map(|rest| rest.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap_or(""));
        if let Some(Ok(address)) = found.map(str::parse) {
            return address;
        }
        let ended = process.try_wait().expect("look at the registry");
        assert!(ended.is_none(), "docker-registry ended with {ended:?}: {text}");
        assert!(Instant::now() < deadline, "docker-registry does not listen: {text}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::http_client;

    #[tokio::test]
    async fn a_registry_answers_and_asks_for_its_password() {
        let open = Registry::start();
        let answer = http_client().get(format!("{}/v2/", open.url())).send().await.unwrap();
        assert_eq!(answer.status(), 200);

        let closed = Registry::start_with_password();
        let request = || http_client().get(format!("{}/v2/", closed.url()));
        assert_eq!(request().send().await.unwrap().status(), 401);
        let signed_in = request().basic_auth(USERNAME, Some(PASSWORD)).send().await.unwrap();
        assert_eq!(signed_in.status(), 200);
    }
}
