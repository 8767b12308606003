//! Image references, normalised once and compared in that form only.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An image reference in its full form: `host/path:tag`, `host/path@digest` or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference(String);

/// The text cannot be an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an image reference")]
pub struct InvalidImageReference(pub String);

impl ImageReference {
    /// The full form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry's host, with its port when it has one.
    pub fn host(&self) -> &str {
        self.0.split_once('/').map_or("", |(host, _)| host)
    }

    /// The repository's path on its registry, without tag and digest.
    pub fn repository(&self) -> &str {
        let rest = self.0.split_once('/').map_or(self.0.as_str(), |(_, rest)| rest);
        let rest = rest.split_once('@').map_or(rest, |(path, _)| path);
        rest.split_once(':').map_or(rest, |(path, _)| path)
    }

    /// The tag, when there is one.
    pub fn tag(&self) -> Option<&str> {
        let rest = self.0.split_once('/')?.1;
        let rest = rest.split_once('@').map_or(rest, |(path, _)| path);
        rest.split_once(':').map(|(_, tag)| tag)
    }

    /// The digest (`sha256:…`), when there is one. It wins over the tag.
    pub fn digest(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, digest)| digest)
    }
}

impl FromStr for ImageReference {
    type Err = InvalidImageReference;

    fn from_str(text: &str) -> Result<Self, InvalidImageReference> {
        let invalid = || InvalidImageReference(text.to_owned());
        let full = match text.split_once('/') {
            None => format!("docker.io/library/{text}"),
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => text.to_owned(),
            Some(_) => format!("docker.io/{text}"),
        };
        let (host, rest) = full.split_once('/').ok_or_else(invalid)?;
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (named, None),
        };
        if !is_host(host) || !is_path(path) || !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
            return Err(invalid());
        }
        Ok(Self(if tag.is_none() && digest.is_none() {
            format!("{full}:latest")
        } else {
            full
        }))
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"[]".contains(byte));
    edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-[]:".contains(&byte))
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_path(path: &str) -> bool {
    path.len() <= 255
        && path.split('/').all(|part| {
            let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            edge(part.as_bytes().first())
                && edge(part.as_bytes().last())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
        })
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn is_digest(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte)))
}

impl TryFrom<String> for ImageReference {
    type Error = InvalidImageReference;

    fn try_from(text: String) -> Result<Self, InvalidImageReference> {
        text.parse()
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> Self {
        reference.0
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_their_full_form() {
        for (short, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim"),
            ("me/tool", "docker.io/me/tool:latest"),
            ("ghcr.io/me/tool:1", "ghcr.io/me/tool:1"),
            ("localhost/tool", "localhost/tool:latest"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
        ] {
            assert_eq!(
                short.parse::<ImageReference>().map(|full| full.to_string()),
                Ok(full.to_owned())
            );
        }
    }

    #[test]
    fn parts_are_found() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let reference: ImageReference = format!("127.0.0.1:5000/a/b:t@{digest}").parse().unwrap();
        assert_eq!((reference.host(), reference.repository()), ("127.0.0.1:5000", "a/b"));
        assert_eq!(
            (reference.tag(), reference.digest()),
            (Some("t"), Some(digest.as_str()))
        );
    }

    #[test]
    fn junk_is_refused() {
        for bad in [
            "",
            "UPPER",
            "a b",
            "a:",
            "x/../y",
            "a@sha256:1",
            "a//b",
            "-a",
            "../etc/passwd",
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad:?} was accepted");
        }
    }
}
