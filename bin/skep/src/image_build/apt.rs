//! Where this host's apt gets packages from, so that an image is made from there and goes on using it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Recipe;
use crate::failure::{Failure, Result};

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Of the distribution.
    pub(crate) address: String,
    /// Of its security updates; may be the same, and a host need not have one.
    security: Option<String>,
    /// Who signs, on this host.
    pub(crate) keyring: PathBuf,
}

impl Mirror {
    /// `named` by the user, else what apt of this host is told for the same distribution.
    ///
    /// # Errors
    /// This host's apt has no source of that distribution and none was named.
    pub(crate) fn of_this_host(recipe: &Recipe, named: Option<&str>) -> Result<Self> {
        if let Some(address) = named {
            return Ok(Self::new(recipe, address, None));
        }
        // apt itself reads its lists, in all their forms.
        let listed = Command::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(RELEASE) $(REPO_URI)",
                "Created-By: Packages",
            ])
            .output()
            .map_err(|error| Failure::local("cannot ask apt-get for this host's package sources", error))?;
        if !listed.status.success() {
            return Err(Failure::Failed(format!(
                "apt-get cannot list this host's package sources: {}",
                String::from_utf8_lossy(&listed.stderr).trim()
            )));
        }
        Self::from_sources(&String::from_utf8_lossy(&listed.stdout), recipe)
    }

    /// `sources`: a suite and an address in each line.
    fn from_sources(sources: &str, recipe: &Recipe) -> Result<Self> {
        let distribution = &recipe.distribution;
        let sources: Vec<(&str, &str)> = sources
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(suite, address)| (suite, address.trim_end_matches('/')))
            .collect();
        let main = sources
            .iter()
            .find(|(suite, address)| !suite.contains("-security") && address.ends_with(&format!("/{distribution}")));
        let Some((_, address)) = main else {
            return Err(Failure::Usage(format!(
                "this host's apt has no source of {distribution}: name one by --mirror"
            )));
        };
        let security = sources
            .iter()
            .find(|(suite, address)| suite.contains("-security") && address.contains(distribution.as_str()));
        Ok(Self::new(
            recipe,
            address,
            security.map(|(_, address)| (*address).to_owned()),
        ))
    }

    fn new(recipe: &Recipe, address: &str, security: Option<String>) -> Self {
        Self {
            address: address.trim_end_matches('/').to_owned(),
            security,
            keyring: format!("/usr/share/keyrings/{}-archive-keyring.gpg", recipe.distribution).into(),
        }
    }
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
    let stanza = |address: &str, suites: &str| {
        format!("Types: deb\nURIs: {address}\nSuites: {suites}\nComponents: {components}\n{signed}")
    };
    let release = &recipe.release;
    // sid has neither updates nor security.
    let text = if matches!(release.as_str(), "sid" | "unstable") {
        stanza(&mirror.address, release)
    } else {
        let main = stanza(&mirror.address, &format!("{release} {release}-updates"));
        match &mirror.security {
            Some(address) => format!("{main}\n{}", stanza(address, &security)),
            None => main,
        }
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
    let Ok(dump) = Command::new("apt-config").arg("dump").output() else {
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
            mirror: None,
        }
    }

    #[test]
    fn the_hosts_own_sources_of_the_distribution_are_taken() {
        let sources = "nodistro http://other/debian-like\nbookworm-security http://near/debian-security/\n\
                       bookworm http://near/debian/\nbookworm-updates http://near/debian/\n";
        let mirror = Mirror::from_sources(sources, &recipe()).unwrap();
        assert_eq!(mirror.address, "http://near/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://near/debian-security"));
        let mirror = Mirror::from_sources("bookworm http://near/debian", &recipe()).unwrap();
        assert_eq!(mirror.security, None);
    }

    #[test]
    fn a_host_without_a_source_is_told_to_name_one() {
        let error = Mirror::from_sources("stable http://x/other\n", &recipe()).unwrap_err();
        assert!(error.to_string().contains("--mirror"), "{error}");
        let mirror = Mirror::of_this_host(&recipe(), Some("http://named/debian/")).unwrap();
        assert_eq!(mirror.address, "http://named/debian");
    }
}
