//! The kernel's list of mounts, as far as we need it.

use std::path::PathBuf;

use super::{Result, Tried};

/// The type of an overlay, or what it begins with.
const OVERLAY: &str = "overlay";

/// One overlay.
pub(super) struct Mount {
    /// Where it is.
    pub(super) place: PathBuf,
    /// What it was said to be of: what its mounter chose.
    pub(super) source: String,
    /// Its file system's own options, comma-separated.
    pub(super) options: String,
}

/// All overlays this process sees. Few of the mounts of a host with many workspaces are: the others are not taken apart.
pub(super) fn overlays() -> Result<Vec<Mount>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").tried(|| "reading the mount table".into())?;
    Ok(table.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    right.next().filter(|kind| kind.starts_with(OVERLAY))?;
    Some(Mount {
        place: PathBuf::from(unescape(left.split(' ').nth(4)?)),
        source: unescape(right.next()?),
        options: unescape(right.next()?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line =
            |kind| format!("36 35 0:58 / /mnt\\0402 rw,noatime master:1 - {kind} overlay-1-2 rw,upperdir=/up\\0401");
        let mount = parse(&line("overlay")).unwrap();
        assert_eq!(
            (mount.place, mount.source.as_str(), mount.options.as_str()),
            (PathBuf::from("/mnt 2"), "overlay-1-2", "rw,upperdir=/up 1")
        );
        assert!(parse(&line("ext4")).is_none());
    }
}
