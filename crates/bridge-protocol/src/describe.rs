//! Texts that both sides make of a file, so that they make them alike.

use crate::workspace::FileInfo;

/// The entity tag of a file, quotes included: it differs when another file took its place, its size or its time.
pub fn etag(info: &FileInfo) -> String {
    format!(
        "\"{:x}-{:x}-{:x}.{:x}\"",
        info.inode, info.size, info.modified_seconds, info.modified_nanos
    )
}

/// `st_mode` as the API shows it: `-rw-r--r--`, `drwxr-x---`, `Lrwxrwxrwx`, with a letter before the nine for each
/// other kind and bit (`dt`, `Dc`, `p`, `S`, `u`, `g`).
pub fn mode_text(st_mode: u32) -> String {
    let kind = match st_mode & 0o170_000 {
        0o040_000 => "d",
        0o120_000 => "L",
        0o060_000 => "D",
        0o020_000 => "Dc",
        0o010_000 => "p",
        0o140_000 => "S",
        0o100_000 => "",
        _ => "?",
    };
    let mut text = String::from(kind);
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')] {
        if st_mode & bit != 0 {
            text.push(letter);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (position, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if st_mode & (0o400 >> position) != 0 {
            letter
        } else {
            '-'
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_file_has_its_letters() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_750, "drwxr-x---"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o060_660, "Drw-rw----"),
            (0o010_644, "prw-r--r--"),
            (0o140_755, "Srwxr-xr-x"),
            (0o104_555, "ur-xr-xr-x"),
            (0o102_555, "gr-xr-xr-x"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn a_tag_changes_with_each_thing_that_tells_a_change() {
        let info = FileInfo {
            inode: 1,
            size: 2,
            modified_seconds: 3,
            modified_nanos: 4,
            ..FileInfo::default()
        };
        let tag = etag(&info);
        assert_eq!(tag, "\"1-2-3.4\"");
        for changed in [
            FileInfo {
                inode: 9,
                ..info.clone()
            },
            FileInfo {
                size: 9,
                ..info.clone()
            },
            FileInfo {
                modified_seconds: 9,
                ..info.clone()
            },
            FileInfo {
                modified_nanos: 9,
                ..info.clone()
            },
        ] {
            assert_ne!(etag(&changed), tag);
        }
    }
}
