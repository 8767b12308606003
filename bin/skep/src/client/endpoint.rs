//! Which server, and with what credential: options, environment, the server of this host, a login.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skep_server::announcement::{self, Announced, Meant};

use crate::arguments::Shared;
use crate::failure::{Failure, Result};
use crate::output::printable;

/// A server and how we are known to it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `http://host:port`, without a slash at the end.
    pub(crate) server: String,
    /// A token or an API key.
    pub(crate) token: Option<String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// The server of this host that a command means which names none; `None` when there is none.
///
/// # Errors
/// What names it is there and cannot be read or understood.
pub(crate) fn server_here() -> Result<Option<Meant>> {
    announcement::meant_here().map_err(|error| Failure::local("cannot find the server of this host", error))
}

/// The admin key, for whoever may read it; `None` for everybody else.
fn key_of(server: &Announced) -> Option<String> {
    let key = fs::read_to_string(&server.admin_key).ok()?;
    Some(key.trim().to_owned()).filter(|key| !key.is_empty())
}

/// A token that `skep login` was given, and whose server it is for.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredLogin {
    /// The server's address.
    pub(crate) server: String,
    /// The token.
    pub(crate) token: String,
}

impl StoredLogin {
    /// Where it is kept: below `$XDG_CONFIG_HOME`, else `~/.config`.
    fn path() -> Option<PathBuf> {
        let below = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let below = below.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
        Some(below.join("skep/login.json"))
    }

    /// The stored login; `None` when nobody signed in.
    pub(crate) fn read() -> Result<Option<Self>> {
        let Some(path) = Self::path() else { return Ok(None) };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::local(format!("cannot read {}", path.display()), error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Failure::local(format!("cannot understand {}", path.display()), error))
    }

    /// Keeps the login, readable by its owner alone, and returns where.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let path = Self::path().ok_or_else(|| Failure::Usage("HOME is not set: nowhere to keep a login".into()))?;
        let failed = |error| Failure::local(format!("cannot write {}", path.display()), error);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let temporary = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        // The mode above counts for a new file only.
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        Ok(path)
    }
}

impl Endpoint {
    /// What the options, the environment, the server of this host and a stored login say together.
    ///
    /// # Errors
    /// There is no server to be found, or nothing to be known by.
    pub(crate) fn find(shared: &Shared) -> Result<Self> {
        let found = found_of(shared)?;
        match found.token {
            Some(_) => Ok(found),
            None => Err(Failure::NoCredential(format!("the server is {}", found.server))),
        }
    }

    /// The same for commands that need no credential, such as `login`.
    pub(crate) fn find_server(shared: &Shared) -> Result<String> {
        Ok(found_of(shared)?.server)
    }
}

fn found_of(shared: &Shared) -> Result<Endpoint> {
    let local = match server_here() {
        // The one that is named need not be here.
        Err(_) if is_named(shared) => None,
        here => here?,
    };
    let found = choose(shared, local.as_ref(), StoredLogin::read()?)?;
    if let Some(note) = local.and_then(|meant| note_of_others(shared, &meant, &found)) {
        eprintln!("skep: {}", printable(&note));
    }
    Ok(found)
}

/// Whoever removes `demo` should know on which of two servers.
fn note_of_others(shared: &Shared, meant: &Meant, found: &Endpoint) -> Option<String> {
    if is_named(shared) || meant.others.is_empty() || found.server != meant.server.server {
        return None;
    }
    Some(format!(
        "{} servers run here; this is {} of {} (--server or SKEP_SERVER names another)",
        meant.others.len() + 1,
        found.server,
        meant.server.data_root.display()
    ))
}

fn is_named(shared: &Shared) -> bool {
    shared.server.as_deref().is_some_and(|server| !server.is_empty())
}

fn choose(shared: &Shared, local: Option<&Meant>, login: Option<StoredLogin>) -> Result<Endpoint> {
    let given = shared.token.clone().filter(|token| !token.is_empty());
    if let Some(server) = shared.server.as_deref().filter(|server| !server.is_empty()) {
        let server = clean(server)?;
        let token = given
            .or_else(|| login.filter(|login| login.server == server).map(|login| login.token))
            .or_else(|| {
                let here = local
                    .iter()
                    .flat_map(|meant| meant.others.iter().chain([&meant.server]));
                here.filter(|here| clean(&here.server).is_ok_and(|here| here == server))
                    .find_map(key_of)
            });
        return Ok(Endpoint { server, token });
    }
    let local = local.map(|meant| &meant.server);
    if let Some(local) = local
        && let Some(token) = given.clone().or_else(|| key_of(local))
    {
        return Ok(Endpoint {
            server: clean(&local.server)?,
            token: Some(token),
        });
    }
    if let Some(login) = login {
        return Ok(Endpoint {
            server: clean(&login.server)?,
            token: given.or(Some(login.token)),
        });
    }
    match local {
        Some(local) => Ok(Endpoint {
            server: clean(&local.server)?,
            token: given,
        }),
        None => Err(Failure::NoServer),
    }
}

/// An address in the one form we join paths to.
fn clean(server: &str) -> Result<String> {
    let full = if server.contains("://") {
        server.to_owned()
    } else {
        format!("http://{server}")
    };
    match reqwest::Url::parse(&full) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            Ok(url.as_str().trim_end_matches('/').to_owned())
        }
        _ => Err(Failure::Usage(format!("{server:?} is not the address of a server"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::arguments::OutputForm;

    fn shared(server: Option<&str>, token: Option<&str>) -> Shared {
        Shared {
            server: server.map(str::to_owned),
            token: token.map(str::to_owned),
            output: OutputForm::Table,
        }
    }

    fn announced(number: u16, key: &Path) -> Announced {
        Announced {
            server: format!("http://127.0.0.1:{number}"),
            pid: 1,
            started: None,
            data_root: "/x".into(),
            data_root_id: number.to_string(),
            admin_key: key.to_owned(),
        }
    }

    fn local(key: &Path) -> Meant {
        Meant {
            server: announced(1, key),
            others: Vec::new(),
        }
    }

    fn login() -> StoredLogin {
        StoredLogin {
            server: "https://far.example".into(),
            token: "stored".into(),
        }
    }

    #[test]
    fn the_admin_key_of_this_host_is_used_by_whoever_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("admin.key");
        fs::write(&key, "secret\n").unwrap();
        let found = choose(&shared(None, None), Some(&local(&key)), Some(login())).unwrap();
        assert_eq!(
            (found.server.as_str(), found.token.as_deref()),
            ("http://127.0.0.1:1", Some("secret"))
        );
        let found = choose(
            &shared(None, None),
            Some(&local(&directory.path().join("none"))),
            Some(login()),
        )
        .unwrap();
        assert_eq!(
            (found.server.as_str(), found.token.as_deref()),
            ("https://far.example", Some("stored"))
        );
    }

    #[test]
    fn what_is_typed_wins_and_a_key_goes_to_its_own_server_only() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("admin.key");
        fs::write(&key, "secret").unwrap();
        let found = choose(&shared(Some("other:80"), None), Some(&local(&key)), Some(login())).unwrap();
        assert_eq!((found.server.as_str(), found.token), ("http://other", None));
        let found = choose(
            &shared(Some("http://127.0.0.1:1/"), Some("mine")),
            Some(&local(&key)),
            None,
        )
        .unwrap();
        assert_eq!(found.token.as_deref(), Some("mine"));
        // Also to another one than the one that is meant without a word.
        let among = Meant {
            server: announced(2, Path::new("/none")),
            others: vec![announced(1, &key)],
        };
        let found = choose(&shared(Some("127.0.0.1:1"), None), Some(&among), None).unwrap();
        assert_eq!(found.token.as_deref(), Some("secret"));
    }

    #[test]
    fn a_server_that_nobody_named_is_told_when_it_is_not_the_only_one() {
        let none = Path::new("/none");
        let alone = local(none);
        let among = Meant {
            others: vec![announced(2, none)],
            ..local(none)
        };
        let found = |server: &str| Endpoint {
            server: server.into(),
            token: None,
        };
        let here = found("http://127.0.0.1:1");
        let note = note_of_others(&shared(None, None), &among, &here).unwrap();
        assert!(
            note.starts_with("2 servers run here; this is http://127.0.0.1:1 of /x"),
            "{note}"
        );
        assert_eq!(note_of_others(&shared(None, None), &alone, &here), None);
        assert_eq!(note_of_others(&shared(Some("127.0.0.1:1"), None), &among, &here), None);
        let login = found("https://far.example");
        assert_eq!(note_of_others(&shared(None, None), &among, &login), None);
    }

    #[test]
    fn with_nothing_there_is_no_server() {
        assert!(matches!(
            choose(&shared(None, Some("t")), None, None),
            Err(Failure::NoServer)
        ));
    }
}
