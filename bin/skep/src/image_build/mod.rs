//! Makes a base image from the distribution's own packages, on this host, without any registry.
//!
//! debootstrap fills a directory; the host's package mirror and its added certificates go along, so
//! that what works from the host works from a workspace; the directory becomes an OCI archive of one
//! layer. Needs root and debootstrap.

mod apt;
mod bootstrap;
mod certificates;
mod oci_archive;

use std::path::{Path, PathBuf};

use skep_names::ImageReference;

use crate::arguments::BuildArguments;
use crate::failure::{Failure, Result};

/// What an agent's workspace needs from the first minute on, beyond the distribution's minimum.
const BASE_PACKAGES: &[&str] = &["ca-certificates", "iproute2", "iputils-ping", "netbase", "procps"];

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// `debian` or `ubuntu`.
    pub(crate) distribution: String,
    /// For example `bookworm`.
    pub(crate) release: String,
    /// The image's full name.
    pub(crate) name: String,
    /// Packages beyond the minimum, sorted, each once.
    pub(crate) packages: Vec<String>,
    /// Where packages come from, when not from where this host's apt has them.
    pub(crate) mirror: Option<String>,
}

/// A finished archive; gone with this value.
pub(crate) struct Built {
    _directory: tempfile::TempDir,
    archive: PathBuf,
}

impl Built {
    /// The OCI archive.
    pub(crate) fn archive(&self) -> &Path {
        &self.archive
    }
}

impl Recipe {
    /// # Errors
    /// The distribution is none we know, or a name is malformed.
    pub(crate) fn new(build: &BuildArguments) -> Result<Self> {
        let unknown = || {
            Failure::Usage(format!(
                "--from {}: only debian:<release> and ubuntu:<release> can be built",
                build.from
            ))
        };
        let (distribution, release) = build.from.split_once(':').ok_or_else(unknown)?;
        let release = release.trim_end_matches("-slim");
        if !matches!(distribution, "debian" | "ubuntu") || !is_plain(release) {
            return Err(unknown());
        }
        let name = match &build.name {
            Some(name) => name.clone(),
            None => format!("skep.local/{distribution}:{release}"),
        };
        let name: ImageReference = name
            .parse()
            .map_err(|error| Failure::Usage(format!("--name: {error}")))?;
        let asked = build
            .packages
            .iter()
            .flat_map(|packages| packages.split([',', ' ', '\n']));
        let mut packages: Vec<String> = BASE_PACKAGES
            .iter()
            .copied()
            .chain(asked)
            .filter(|package| !package.is_empty())
            .map(str::to_owned)
            .collect();
        packages.sort();
        packages.dedup();
        if let Some(bad) = packages.iter().find(|package| !is_plain(package)) {
            return Err(Failure::Usage(format!("--packages: {bad:?} is not a package's name")));
        }
        Ok(Self {
            distribution: distribution.to_owned(),
            release: release.to_owned(),
            name: name.to_string(),
            packages,
            mirror: build.mirror.clone(),
        })
    }
}

/// Letters, digits and `+-.`, as in packages' names; never an option.
fn is_plain(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Makes the image, telling each step. Takes a minute or two; leaves nothing behind but the archive.
///
/// # Errors
/// debootstrap is missing or fails, or the disk is full.
pub(crate) fn build(recipe: &Recipe, tell: &mut dyn FnMut(&str)) -> Result<Built> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::Usage(
            "making an image needs root: debootstrap unpacks files of many owners".into(),
        ));
    }
    // /var/tmp is on a disk, where /tmp may be memory or forbid devices.
    let place = |error| Failure::local("cannot make a directory for the image in /var/tmp", error);
    let directory = tempfile::Builder::new()
        .prefix("skep-image-")
        .tempdir_in("/var/tmp")
        .map_err(place)?;
    let root = directory.path().join("root");
    let mirror = apt::Mirror::of_this_host(recipe, recipe.mirror.as_deref())?;
    tell(&format!(
        "installing {} {} from {}",
        recipe.distribution, recipe.release, mirror.address
    ));
    bootstrap::run(recipe, &mirror, &root, tell)?;
    tell("adding the host's package sources and certificates");
    apt::write_sources(recipe, &mirror, &root)?;
    let added = certificates::add(&root)?;
    if added > 0 {
        tell(&format!("{added} certificates of this host are trusted in the image"));
    }
    bootstrap::clean(&root)?;
    tell("packing the layer");
    let archive = directory.path().join("image.tar");
    oci_archive::write(&root, &archive, recipe)?;
    // The tree is large; only the archive is needed from here on.
    std::fs::remove_dir_all(&root)
        .map_err(|error| Failure::local(format!("cannot remove {}", root.display()), error))?;
    Ok(Built {
        _directory: directory,
        archive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(from: &str, name: Option<&str>, packages: &[&str]) -> Result<Recipe> {
        Recipe::new(&BuildArguments {
            from: from.into(),
            name: name.map(str::to_owned),
            packages: packages.iter().map(|package| (*package).to_owned()).collect(),
            mirror: None,
            to_file: None,
        })
    }

    #[test]
    fn a_recipe_has_a_name_and_each_package_once() {
        let made = recipe("debian:bookworm-slim", None, &["git, gcc", "git"]).unwrap();
        assert_eq!(made.name, "skep.local/debian:bookworm");
        assert_eq!(made.packages.iter().filter(|package| *package == "git").count(), 1);
        assert!(made.packages.contains(&"gcc".to_owned()));
    }

    #[test]
    fn what_is_no_distribution_or_package_is_refused() {
        assert!(recipe("alpine:3", None, &[]).is_err());
        assert!(recipe("debian", None, &[]).is_err());
        assert!(recipe("debian:--help", None, &[]).is_err());
        assert!(recipe("debian:bookworm", Some("NO NAME"), &[]).is_err());
        assert!(recipe("debian:bookworm", None, &["--force"]).is_err());
    }
}
