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

const CA_FILE: &str = "ca.pem";
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running registry. Its process and its files are gone when this is dropped.
pub struct Registry {
    address: SocketAddr,
    process: Child,
    credentials: Option<(String, String)>,
    tls: bool,
    directory: TempDir,
}

/// What a registry asks for beyond the usual.
#[derive(Default)]
struct Asks {
    htpasswd: Option<PathBuf>,
    certificate: Option<Certificate>,
}

struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Registry {
    /// Starts a registry that serves everybody.
    ///
    /// # Panics
    /// When docker-registry is missing or does not listen within 20 s.
    pub fn start() -> Self {
        Self::start_in(new_directory(), Asks::default())
    }

    /// Starts a registry that speaks TLS with a certificate of an authority of its own, [`Registry::ca_file`].
    ///
    /// # Panics
    /// As [`Registry::start`]; also when openssl is missing.
    pub fn start_with_tls() -> Self {
        let directory = new_directory();
        let certificate = new_certificate(directory.path());
        Self::start_in(
            directory,
            Asks {
                certificate: Some(certificate),
                ..Asks::default()
            },
        )
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
        Self::start_in(
            directory,
            Asks {
                htpasswd: Some(file),
                ..Asks::default()
            },
        )
    }

    fn start_in(directory: TempDir, asks: Asks) -> Self {
        let config = directory.path().join("config.yml");
        fs::write(&config, configuration(directory.path(), &asks)).expect("write the registry's configuration");
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
            credentials: asks.htpasswd.map(|_| (USERNAME.to_owned(), PASSWORD.to_owned())),
            tls: asks.certificate.is_some(),
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

    /// `http://127.0.0.1:<port>`, with TLS `https://…`.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of the authority of a registry with TLS, in PEM form.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.tls.then(|| self.directory.path().join(CA_FILE))
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

/// An authority, and a certificate of it for 127.0.0.1.
fn new_certificate(directory: &Path) -> Certificate {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout ca.key -out {CA_FILE} \
           -subj '/CN=an authority of a test' -addext basicConstraints=critical,CA:TRUE
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr \
           -subj '/CN=a registry of a test'
         printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > server.ext
         openssl x509 -req -in server.csr -CA {CA_FILE} -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext \
           -out server.crt"
    );
    let mut shell = Command::new("sh");
    let made = shell.args(["-ec", &script]).current_dir(directory).output();
    let made = made.expect("run a shell");
    let errors = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl is needed (Debian: openssl): {errors}");
    Certificate {
        certificate: directory.join("server.crt"),
        key: directory.join("server.key"),
    }
}

fn configuration(directory: &Path, asks: &Asks) -> String {
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
        directory.join("data").display()
    );
    if let Some(Certificate { certificate, key }) = &asks.certificate {
        text += &format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
    }
    if let Some(file) = &asks.htpasswd {
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
        let found = text.split("listening on ").nth(1).map(|rest| {
            rest.split(|c: char| ['"', ','].contains(&c) || c.is_whitespace())
                .next()
                .unwrap_or("")
        });
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
