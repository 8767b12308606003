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

/// What [`mode_text`] made a text of; `None` for any other text.
pub fn mode_of_text(text: &str) -> Option<u32> {
    let (letters, permissions) = text.split_at_checked(text.len().checked_sub(9)?)?;
    let (mut mode, mut kind) = (0, String::new());
    for letter in letters.chars() {
        match letter {
            'u' => mode |= 0o4000,
            'g' => mode |= 0o2000,
            't' => mode |= 0o1000,
            other => kind.push(other),
        }
    }
    for (position, (given, letter)) in permissions.chars().zip("rwxrwxrwx".chars()).enumerate() {
        match given {
            '-' => {}
            given if given == letter => mode |= 0o400 >> position,
            _ => return None,
        }
    }
    let kind = match kind.as_str() {
        "" | "-" => 0o100_000,
        "d" => 0o040_000,
        "L" => 0o120_000,
        "D" => 0o060_000,
        "Dc" => 0o020_000,
        "p" => 0o010_000,
        "S" => 0o140_000,
        _ => return None,
    };
    let mode = kind | mode;
    (mode_text(mode) == text).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_mode_is_read_back_and_no_other() {
        for kind in [
            0o100_000, 0o040_000, 0o120_000, 0o060_000, 0o020_000, 0o010_000, 0o140_000,
        ] {
            for bits in [0, 0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o7000] {
                assert_eq!(mode_of_text(&mode_text(kind | bits)), Some(kind | bits));
            }
        }
        for other in [
            "",
            "-",
            "rw-r--r--",
            "-rw-r--r-",
            "-rw-r--r--x",
            "xrw-r--r--",
            "-wr-r--r--",
            "ddrwxr-xr-x",
            "ü--------",
        ] {
            assert_eq!(mode_of_text(other), None, "{other:?}");
        }
    }

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
