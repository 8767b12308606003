//! Who a process runs as, from `/etc/passwd` and `/etc/group` by a parser of our own: a static program has no NSS,
//! and the image's own libraries must not run inside the bridge.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};

use crate::files::open_regular;
use crate::system::Identity;

/// What is read of either list.
const LARGEST_BYTES: u64 = 8 * 1024 * 1024;

pub(crate) struct User {
    /// As in `/etc/passwd`; none for a number that is not listed.
    pub(crate) name: Option<String>,
    pub(crate) home: PathBuf,
    pub(crate) identity: Identity,
}

/// Finds `name`, `uid`, `name:group` or `uid:gid`. A number need not be listed; a name must be.
///
/// # Errors
/// Why there is no such user, as a text for the caller.
pub(crate) fn find(wanted: &str) -> Result<User, String> {
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    find_in(wanted, &passwd, &group)
}

fn read(path: &str) -> Result<String, String> {
    // What is no plain file is neither waited for nor read for ever.
    let read = open_regular(Path::new(path), None).and_then(|(file, _)| {
        let mut content = Vec::new();
        file.take(LARGEST_BYTES + 1).read_to_end(&mut content)?;
        Ok(content)
    });
    match read {
        Ok(content) if content.len() as u64 > LARGEST_BYTES => Err(format!("{path}: too large")),
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        // A scratch image has neither file: there numbers alone are known.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.is(user));
    let (uid, primary) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(format!("no user {user:?} in /etc/passwd")),
    };
    let gid = match wanted_group {
        Some(wanted) => find_group(wanted, group)?,
        None => primary,
    };
    let name = entry.as_ref().map(|entry| entry.name.to_owned());
    // A group that is named replaces the supplementary ones, as with other container tools.
    let groups = match (&name, wanted_group) {
        (Some(name), None) => groups_of(name, gid, group),
        _ => vec![Gid::from_raw(gid)],
    };
    let home = entry
        .as_ref()
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/");
    let identity = Identity {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups,
    };
    Ok(User {
        name,
        home: PathBuf::from(home),
        identity,
    })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(Self {
            name,
            uid,
            gid,
            home: fields.nth(1)?,
        })
    }

    /// A name wins over a number: a user may be called "1000".
    fn is(&self, wanted: &str) -> bool {
        self.name == wanted || number(wanted) == Some(self.uid)
    }
}

fn find_group(wanted: &str, group: &str) -> Result<u32, String> {
    let listed = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        (name == wanted).then_some(gid)
    });
    listed
        .or_else(|| number(wanted))
        .ok_or_else(|| format!("no group {wanted:?} in /etc/group"))
}

fn groups_of(name: &str, primary: u32, group: &str) -> Vec<Gid> {
    let mut gids = vec![primary];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members, ..] = fields.as_slice() else {
            continue;
        };
        if let Some(gid) = number(gid).filter(|_| members.split(',').any(|member| member == name))
            && !gids.contains(&gid)
        {
            gids.push(gid);
        }
    }
    gids.into_iter().map(Gid::from_raw).collect()
}

/// An id: the highest number means "unchanged" to the kernel and is nobody's.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\nvideo:x:44:ann\n";

    fn found(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let user = find_in(wanted, PASSWD, GROUP).unwrap_or_else(|why| panic!("{wanted}: {why}"));
        let groups = user.identity.groups.iter().map(|gid| gid.as_raw()).collect();
        (
            user.identity.uid.as_raw(),
            user.identity.gid.as_raw(),
            groups,
            user.home.display().to_string(),
        )
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        assert_eq!(found("ann"), (1000, 1000, vec![1000, 10, 44], "/home/ann".into()));
        assert_eq!(found("1000"), found("ann"));
        assert_eq!(found("ann:video"), (1000, 44, vec![44], "/home/ann".into()));
        assert_eq!(found("7:8"), (7, 8, vec![8], "/".into()));
        assert_eq!(found("root"), (0, 0, vec![0, 10], "/root".into()));
    }

    #[test]
    fn a_name_that_is_not_listed_is_an_error() {
        for wanted in ["bob", "ann:nogroup", "", "-1", "4294967295"] {
            assert!(find_in(wanted, PASSWD, GROUP).is_err(), "{wanted}");
        }
    }
}
