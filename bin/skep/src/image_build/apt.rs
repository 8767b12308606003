//! The package mirror this host uses, so that an image is made from it and goes on using it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Recipe;
use crate::failure::{Failure, Result};

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Of the distribution.
    pub(crate) address: String,
    /// Of its security updates; may be the same.
    pub(crate) security: String,
    /// Who signs, on this host.
    pub(crate) keyring: PathBuf,
}

impl Mirror {
    /// What apt of this host is told, when it is of the same distribution; else the public mirror.
    pub(crate) fn of_this_host(recipe: &Recipe) -> Result<Self> {
        let sources = read_sources(Path::new("/etc/apt"));
        Self::from_sources(&sources, recipe)
    }

    fn from_sources(sources: &[Source], recipe: &Recipe) -> Result<Self> {
        let (address, security, keyring) = match recipe.distribution.as_str() {
            "debian" => (
                "http://deb.debian.org/debian",
                "http://deb.debian.org/debian-security",
                "/usr/share/keyrings/debian-archive-keyring.gpg",
            ),
            _ => (
                "http://archive.ubuntu.com/ubuntu",
                "http://security.ubuntu.com/ubuntu",
                "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            ),
        };
        let of_release = |source: &&Source| {
            source
                .address
                .trim_end_matches('/')
                .ends_with(&format!("/{}", recipe.distribution))
                && !source.suite.contains("-security")
        };
        let of_security =
            |source: &&Source| source.suite.ends_with("-security") && source.address.contains(&recipe.distribution);
        let found = |source: Option<&Source>, default: &str| {
            source.map_or(default.to_owned(), |source| {
                source.address.trim_end_matches('/').to_owned()
            })
        };
        let main = sources.iter().find(of_release);
        let keyring = main
            .and_then(|source| source.signed_by.clone())
            .filter(|keyring| keyring.exists())
            .unwrap_or_else(|| PathBuf::from(keyring));
        Ok(Self {
            address: found(main, address),
            security: found(sources.iter().find(of_security), security),
            keyring,
        })
    }
}

/// One line or stanza of apt's lists, for one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    address: String,
    suite: String,
    signed_by: Option<PathBuf>,
}

/// All sources of binary packages. What cannot be read is left out: apt would not use it either.
fn read_sources(directory: &Path) -> Vec<Source> {
    let mut files = vec![directory.join("sources.list")];
    let more = fs::read_dir(directory.join("sources.list.d"));
    files.extend(more.into_iter().flatten().flatten().map(|entry| entry.path()));
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(text.split("\n\n").flat_map(parse_stanza)),
            _ => {}
        }
    }
    sources
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb ")?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        address: words.next()?.to_owned(),
        suite: words.next()?.to_owned(),
        signed_by: signed_by.map(PathBuf::from),
    })
}

fn parse_stanza(stanza: &str) -> Vec<Source> {
    let field = |name: &str| {
        stanza
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value.trim())
    };
    if field("Enabled").eq_ignore_ascii_case("no") || !field("Types").split_whitespace().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let signed_by = Some(field("Signed-By"))
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from);
    let suites: Vec<&str> = field("Suites").split_whitespace().collect();
    let make = |address: &str, suite: &str| Source {
        address: address.to_owned(),
        suite: suite.to_owned(),
        signed_by: signed_by.clone(),
    };
    field("URIs")
        .split_whitespace()
        .flat_map(|address| suites.iter().map(move |suite| make(address, suite)))
        .collect()
}

/// Tells apt in the image to use the same mirror, and what this host says about proxies and old dates.
pub(crate) fn write_sources(recipe: &Recipe, mirror: &Mirror, root: &Path) -> Result<()> {
    let components = if recipe.distribution == "debian" {
        "main"
    } else {
        "main universe"
    };
    let security = if recipe.distribution == "debian" && is_old_debian(&recipe.release) {
        // Before bullseye the suite was named otherwise.
        format!("{}/updates", recipe.release)
    } else {
        format!("{}-security", recipe.release)
    };
    let keyring = Path::new("/usr/share/keyrings").join(mirror.keyring.file_name().unwrap_or_default());
    let signed = format!("Signed-By: {}\n", keyring.display());
    // sid has neither updates nor security.
    let text = if matches!(recipe.release.as_str(), "sid" | "unstable") {
        format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {components}\n{signed}",
            mirror.address, recipe.release
        )
    } else {
        format!(
            "Types: deb\nURIs: {}\nSuites: {release} {release}-updates\nComponents: {components}\n{signed}\n\
             Types: deb\nURIs: {}\nSuites: {security}\nComponents: {components}\n{signed}",
            mirror.address,
            mirror.security,
            release = recipe.release,
        )
    };
    let write = |path: PathBuf, text: &[u8]| {
        fs::write(&path, text).map_err(|error| Failure::local(format!("cannot write {}", path.display()), error))
    };
    write(
        root.join(format!("etc/apt/sources.list.d/{}.sources", recipe.distribution)),
        text.as_bytes(),
    )?;
    write(root.join("etc/apt/sources.list"), b"")?;
    if !root.join(keyring.strip_prefix("/").unwrap_or(&keyring)).exists() {
        let bytes = fs::read(&mirror.keyring)
            .map_err(|error| Failure::local(format!("cannot read {}", mirror.keyring.display()), error))?;
        write(root.join(keyring.strip_prefix("/").unwrap_or(&keyring)), &bytes)?;
    }
    write(
        root.join("etc/apt/apt.conf.d/90skep-host"),
        settings_of_this_host().as_bytes(),
    )
}

fn is_old_debian(release: &str) -> bool {
    matches!(release, "jessie" | "stretch" | "buster")
}

/// Proxies, and the dates of frozen mirrors; credentials and hooks of the host stay on the host.
fn settings_of_this_host() -> String {
    let mut text = String::from("// From the host that this image was made on.\n");
    let Ok(dump) = std::process::Command::new("apt-config").arg("dump").output() else {
        return text;
    };
    for line in String::from_utf8_lossy(&dump.stdout).lines() {
        let kept = [
            "Acquire::http::Proxy ",
            "Acquire::https::Proxy ",
            "Acquire::Check-Valid-Until ",
            "Acquire::Check-Date ",
        ];
        if kept.iter().any(|key| line.starts_with(key)) && !line.contains('@') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            distribution: "debian".into(),
            release: "bookworm".into(),
            name: "n".into(),
            packages: vec![],
        }
    }

    #[test]
    fn both_forms_of_apts_lists_are_read() {
        let line = parse_line("deb [arch=amd64 signed-by=/k.gpg] http://m/debian bookworm main # x").unwrap();
        assert_eq!(
            line,
            Source {
                address: "http://m/debian".into(),
                suite: "bookworm".into(),
                signed_by: Some("/k.gpg".into())
            }
        );
        assert!(parse_line("# deb http://m/debian bookworm main").is_none());
        assert!(parse_line("deb-src http://m/debian bookworm main").is_none());
        let stanza =
            "Types: deb\n# old: x\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg";
        assert_eq!(parse_stanza(stanza).len(), 2);
        assert!(parse_stanza("Enabled: no\nTypes: deb\nURIs: http://m/debian\nSuites: x").is_empty());
    }

    #[test]
    fn the_hosts_mirror_wins_and_the_public_one_is_the_default() {
        let source = |address: &str, suite: &str| Source {
            address: address.into(),
            suite: suite.into(),
            signed_by: None,
        };
        let sources = [
            source("http://near/debian/", "bookworm"),
            source("http://near/debian-security", "bookworm-security"),
        ];
        let mirror = Mirror::from_sources(&sources, &recipe()).unwrap();
        assert_eq!(
            (mirror.address.as_str(), mirror.security.as_str()),
            ("http://near/debian", "http://near/debian-security")
        );
        let mirror = Mirror::from_sources(&[source("http://x/other", "stable")], &recipe()).unwrap();
        assert_eq!(mirror.address, "http://deb.debian.org/debian");
    }
}
