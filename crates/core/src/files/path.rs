//! Paths inside a workspace, as callers write them and as they are.

use crate::bridge::{BridgeError, BridgeResult};

/// The longest path Linux takes, its end included.
const LONGEST_PATH_BYTES: usize = 4095;

/// An absolute path inside a workspace, cleaned: no `.`, `..` or double slash, no slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspacePath {
    text: String,
    names_directory: bool,
}

impl WorkspacePath {
    /// Trims, prefixes with `/` and cleans. An empty text is the root.
    ///
    /// # Errors
    /// `InvalidPath` for a NUL byte or more than 4,095 bytes.
    pub fn parse(text: &str) -> BridgeResult<Self> {
        let trimmed = text.trim();
        if trimmed.contains('\0') {
            return Err(BridgeError::InvalidPath("a path cannot hold a NUL byte".to_owned()));
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in trimmed.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                name => parts.push(name),
            }
        }
        let text = format!("/{}", parts.join("/"));
        if text.len() > LONGEST_PATH_BYTES {
            return Err(BridgeError::InvalidPath(format!(
                "a path of {} bytes is too long",
                text.len()
            )));
        }
        Ok(Self {
            text,
            names_directory: trimmed.ends_with('/'),
        })
    }

    /// As [`Self::parse`], but there must be a text.
    ///
    /// # Errors
    /// `InvalidPath` "path is required" as well.
    pub fn parse_given(text: Option<&str>) -> BridgeResult<Self> {
        match text.map(str::trim) {
            None | Some("") => Err(BridgeError::InvalidPath("path is required".to_owned())),
            Some(text) => Self::parse(text),
        }
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its last name; that of the root is `/`.
    pub fn name(&self) -> &str {
        match self.text.rsplit_once('/') {
            Some((_, name)) if !name.is_empty() => name,
            _ => "/",
        }
    }

    /// It is `/`.
    pub fn is_root(&self) -> bool {
        self.text == "/"
    }

    /// It was written with a slash at its end.
    pub fn names_directory(&self) -> bool {
        self.names_directory
    }

    /// A name below it. Only the last part of `name` counts, as some browsers send whole paths.
    ///
    /// # Errors
    /// `InvalidPath` when no name is left.
    pub fn join(&self, name: &str) -> BridgeResult<Self> {
        let last = name.rsplit(['/', '\\']).next().unwrap_or("").trim();
        if last.is_empty() || last == "." || last == ".." {
            return Err(BridgeError::InvalidPath("a file without a name".to_owned()));
        }
        Self::parse(&format!("{}/{last}", self.text))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.text.clone().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_trimmed_prefixed_and_cleaned() {
        for (given, clean) in [
            ("", "/"),
            ("/", "/"),
            (" data/x ", "/data/x"),
            ("/data//./x/", "/data/x"),
            ("/../../etc", "/etc"),
            ("/a/../b/./c/..", "/b"),
        ] {
            assert_eq!(WorkspacePath::parse(given).unwrap().as_str(), clean, "{given:?}");
        }
        assert!(WorkspacePath::parse("/data/").unwrap().names_directory());
        assert!(WorkspacePath::parse("a\0b").is_err());
        assert!(WorkspacePath::parse(&"x/".repeat(3000)).is_err());
    }

    #[test]
    fn the_name_of_the_root_is_a_slash() {
        assert_eq!(WorkspacePath::parse("/").unwrap().name(), "/");
        assert_eq!(WorkspacePath::parse("/a/b").unwrap().name(), "b");
    }

    #[test]
    fn an_uploaded_name_never_leads_elsewhere() {
        let directory = WorkspacePath::parse("/data/").unwrap();
        assert_eq!(directory.join("../../etc/passwd").unwrap().as_str(), "/data/passwd");
        assert_eq!(
            directory.join("C:\\fakepath\\a b.txt").unwrap().as_str(),
            "/data/a b.txt"
        );
        for bad in ["", "..", "x/..", "/"] {
            assert!(directory.join(bad).is_err(), "{bad:?}");
        }
    }
}
