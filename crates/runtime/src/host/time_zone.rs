//! The time zone of workspaces: a value for the variable `TZ`, never a mount.

use std::path::{Component, Path, PathBuf};

/// The zone for a host whose root directory is `root` (`/`): the server's own `TZ`, else `/etc/timezone`,
/// else where the link `/etc/localtime` leads. `None` when none of them says, which means UTC.
///
/// # Errors
/// A file that is there and cannot be read.
pub fn time_zone(root: &Path, own_tz: Option<&str>) -> std::io::Result<Option<String>> {
    if let Some(zone) = own_tz.and_then(zone_name) {
        return Ok(Some(zone));
    }
    let text = match std::fs::read_to_string(root.join("etc/timezone")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let named = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    if let Some(zone) = named.and_then(zone_name) {
        return Ok(Some(zone));
    }
    match std::fs::read_link(root.join("etc/localtime")) {
        Ok(target) => Ok(below_zoneinfo(&target).as_deref().and_then(zone_name)),
        // A copy in place of a link (EINVAL) does not say which zone it is.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What `TZ` can hold in a workspace: a name (`Europe/Berlin`) or a POSIX rule (`CET-1CEST,M3.5.0,M10.5.0/3`).
/// A path on the host becomes the name of its zone, since the host's files are not in the workspace.
fn zone_name(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix(':').unwrap_or(text);
    let name = if text.starts_with('/') {
        below_zoneinfo(Path::new(text))?
    } else {
        text.to_owned()
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+-,.:<>".contains(&byte);
    let climbs = name.split('/').any(|part| part == "..");
    (!name.is_empty() && name.len() <= 255 && !climbs && name.bytes().all(allowed)).then_some(name)
}

/// The part of a path below the last directory `zoneinfo`.
fn below_zoneinfo(path: &Path) -> Option<String> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let at = parts.iter().rposition(|part| part.as_os_str() == "zoneinfo")?;
    let rest: PathBuf = parts[at + 1..].iter().collect();
    rest.to_str().filter(|rest| !rest.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        root
    }

    #[test]
    fn tz_wins_over_the_files() {
        let root = host();
        std::fs::write(root.path().join("etc/timezone"), "Asia/Tokyo\n").unwrap();
        let zone = |own| time_zone(root.path(), own).unwrap();
        assert_eq!(zone(Some("Europe/Berlin")), Some("Europe/Berlin".into()));
        assert_eq!(zone(Some(":Europe/Berlin")), Some("Europe/Berlin".into()));
        assert_eq!(
            zone(Some("/usr/share/zoneinfo/Europe/Paris")),
            Some("Europe/Paris".into())
        );
        assert_eq!(
            zone(Some("CET-1CEST,M3.5.0,M10.5.0/3")),
            Some("CET-1CEST,M3.5.0,M10.5.0/3".into())
        );
    }

    #[test]
    fn a_tz_that_means_nothing_in_a_workspace_is_passed_over() {
        let root = host();
        std::fs::write(root.path().join("etc/timezone"), "Asia/Tokyo\n").unwrap();
        for own in ["", " ", "/etc/localtime", "../../etc/shadow", "a\nb", "a b"] {
            assert_eq!(
                time_zone(root.path(), Some(own)).unwrap(),
                Some("Asia/Tokyo".into()),
                "{own:?}"
            );
        }
    }

    #[test]
    fn the_timezone_file_wins_over_the_link() {
        let root = host();
        std::fs::write(root.path().join("etc/timezone"), "# set by hand\n\nAsia/Tokyo\n").unwrap();
        symlink("/usr/share/zoneinfo/Europe/Berlin", root.path().join("etc/localtime")).unwrap();
        assert_eq!(time_zone(root.path(), None).unwrap(), Some("Asia/Tokyo".into()));
    }

    #[test]
    fn the_link_says_the_zone() {
        for (target, zone) in [
            ("/usr/share/zoneinfo/Europe/Berlin", Some("Europe/Berlin")),
            (
                "../usr/share/zoneinfo/America/Argentina/Salta",
                Some("America/Argentina/Salta"),
            ),
            ("/etc/elsewhere", None),
        ] {
            let root = host();
            symlink(target, root.path().join("etc/localtime")).unwrap();
            assert_eq!(time_zone(root.path(), None).unwrap().as_deref(), zone, "{target}");
        }
    }

    #[test]
    fn a_host_that_says_nothing_has_no_zone() {
        let root = host();
        assert_eq!(time_zone(root.path(), None).unwrap(), None);
        std::fs::write(root.path().join("etc/localtime"), b"TZif2").unwrap();
        assert_eq!(time_zone(root.path(), None).unwrap(), None);
    }
}
