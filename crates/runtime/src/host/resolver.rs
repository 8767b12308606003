//! Which `resolv.conf` workspaces get, mounted read-only.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What is written when the host has no resolver that a workspace could reach.
const FALLBACK: &str = "nameserver 1.1.1.1\nnameserver 8.8.8.8\n";

/// The file to mount at `/etc/resolv.conf`, and the servers it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// On the host.
    pub(crate) file: PathBuf,
    /// For the rules: port 53 is open to them, wherever they are.
    pub(crate) servers: Vec<IpAddr>,
}

/// Chooses for a host whose root directory is `root` (`/`).
///
/// 1. `/run/systemd/resolve/resolv.conf`, if it exists: the true servers behind systemd's stub.
/// 2. `/etc/resolv.conf` without loopback servers, which a workspace could not reach. When it names both
///    kinds, `<run_directory>/resolv.conf` is its copy without the loopback ones.
/// 3. `<data_root>/resolv.conf`, made (0644) with `1.1.1.1` and `8.8.8.8` when it is missing.
///
/// May be repeated, and is at each start of a workspace and by reconcile; a copy is written anew in one step.
///
/// # Errors
/// A file that is there and cannot be read, or one that cannot be written.
pub(crate) fn choose_resolver(root: &Path, data_root: &Path, run_directory: &Path) -> std::io::Result<Resolver> {
    let systemd = root.join("run/systemd/resolve/resolv.conf");
    if let Some(text) = read_if_there(&systemd)? {
        return Ok(Resolver {
            file: systemd,
            servers: servers(&text).collect(),
        });
    }
    let own = root.join("etc/resolv.conf");
    let text = read_if_there(&own)?.unwrap_or_default();
    let usable: Vec<IpAddr> = servers(&text).filter(|server| !is_loopback(server)).collect();
    if usable.is_empty() {
        return fallback(data_root);
    }
    let file = if servers(&text).any(|server| is_loopback(&server)) {
        write_copy(run_directory, &without_loopback(&text))?
    } else {
        own
    };
    Ok(Resolver { file, servers: usable })
}

fn fallback(data_root: &Path) -> std::io::Result<Resolver> {
    let file = data_root.join("resolv.conf");
    let text = match read_if_there(&file)? {
        Some(text) => text,
        None => {
            write_whole(&file, FALLBACK)?;
            FALLBACK.to_owned()
        }
    };
    Ok(Resolver {
        servers: servers(&text).collect(),
        file,
    })
}

fn write_copy(run_directory: &Path, text: &str) -> std::io::Result<PathBuf> {
    let file = run_directory.join("resolv.conf");
    // Written in place would change it under the workspaces that have it mounted; unchanged is left alone.
    if read_if_there(&file)?.as_deref() != Some(text) {
        std::fs::create_dir_all(run_directory)?;
        write_whole(&file, text)?;
    }
    Ok(file)
}

/// A reader never sees half of it, nor a file that its mode keeps a workspace's user from reading.
fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let draft = file.with_extension("conf.new");
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&draft)?;
    out.write_all(text.as_bytes())?;
    // The mode above is cut by the umask.
    out.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    out.sync_all()?;
    std::fs::rename(&draft, file)
}

fn read_if_there(file: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        // NotFound also for a link that leads nowhere, as systemd's does while it does not run.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(std::io::Error::new(
            error.kind(),
            format!("reading {}: {error}", file.display()),
        )),
    }
}

fn servers(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines().filter_map(server)
}

/// The server a line names. A scope (`fe80::1%eth0`) means an interface of the host, so such a server is
/// none for a workspace.
fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    (words.next()? == "nameserver")
        .then(|| words.next()?.parse().ok())
        .flatten()
}

fn is_loopback(address: &IpAddr) -> bool {
    address.to_canonical().is_loopback() || address.is_unspecified()
}

fn without_loopback(text: &str) -> String {
    text.lines()
        .filter(|line| !server(line).is_some_and(|server| is_loopback(&server)))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    struct Host {
        root: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for directory in ["etc", "data", "run/systemd/resolve", "run/skep"] {
                std::fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            Self { root }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            std::fs::write(self.path(path), text).unwrap();
        }

        fn choose(&self) -> Resolver {
            choose_resolver(self.root.path(), &self.path("data"), &self.path("run/skep")).unwrap()
        }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn systemds_own_file_comes_first() {
        let host = Host::new();
        host.write(
            "run/systemd/resolve/resolv.conf",
            "nameserver 10.0.0.2\nnameserver fd00::2\n",
        );
        host.write("etc/resolv.conf", "nameserver 9.9.9.9\n");
        let chosen = host.choose();
        assert_eq!(chosen.file, host.path("run/systemd/resolve/resolv.conf"));
        assert_eq!(chosen.servers, addresses(&["10.0.0.2", "fd00::2"]));
    }

    #[test]
    fn the_hosts_file_is_used_as_it_is_when_it_has_no_loopback_server() {
        let host = Host::new();
        host.write("etc/resolv.conf", "search lan\nnameserver 192.168.1.1 # router\n");
        let chosen = host.choose();
        assert_eq!(chosen.file, host.path("etc/resolv.conf"));
        assert_eq!(chosen.servers, addresses(&["192.168.1.1"]));
    }

    #[test]
    fn loopback_servers_are_left_out() {
        let host = Host::new();
        host.write(
            "etc/resolv.conf",
            "search lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 9.9.9.9\noptions ndots:2\n",
        );
        let chosen = host.choose();
        assert_eq!(chosen.file, host.path("run/skep/resolv.conf"));
        assert_eq!(chosen.servers, addresses(&["9.9.9.9"]));
        let text = std::fs::read_to_string(&chosen.file).unwrap();
        assert_eq!(text, "search lan\nnameserver 9.9.9.9\noptions ndots:2\n");
        assert_eq!(std::fs::metadata(&chosen.file).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn an_unchanged_copy_stays_the_file_that_is_mounted() {
        let host = Host::new();
        host.write("etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 9.9.9.9\n");
        let first = std::fs::metadata(host.choose().file).unwrap().ino();
        assert_eq!(std::fs::metadata(host.choose().file).unwrap().ino(), first);
    }

    #[test]
    fn a_host_with_loopback_servers_only_gets_the_fallback() {
        for text in [
            "nameserver 127.0.0.1\n",
            "nameserver ::1\nnameserver 127.1.2.3\n",
            "search lan\n",
            "",
        ] {
            let host = Host::new();
            host.write("etc/resolv.conf", text);
            let chosen = host.choose();
            assert_eq!(chosen.file, host.path("data/resolv.conf"), "{text:?}");
            assert_eq!(chosen.servers, addresses(&["1.1.1.1", "8.8.8.8"]));
            assert_eq!(std::fs::read_to_string(&chosen.file).unwrap(), FALLBACK);
            assert_eq!(std::fs::metadata(&chosen.file).unwrap().mode() & 0o777, 0o644);
        }
    }

    #[test]
    fn a_host_without_any_file_gets_the_fallback() {
        let host = Host::new();
        symlink("../run/systemd/resolve/stub-resolv.conf", host.path("etc/resolv.conf")).unwrap();
        assert_eq!(host.choose().file, host.path("data/resolv.conf"));
    }

    #[test]
    fn an_existing_fallback_is_kept() {
        let host = Host::new();
        host.write("data/resolv.conf", "nameserver 10.1.1.1\n");
        let chosen = host.choose();
        assert_eq!(chosen.servers, addresses(&["10.1.1.1"]));
        assert_eq!(std::fs::read_to_string(&chosen.file).unwrap(), "nameserver 10.1.1.1\n");
    }
}
