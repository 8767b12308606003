//! The environment of a workspace's process 1.

use std::collections::BTreeMap;

use skep_names::{ENV_SOCKET_PATH, SOCKET_PATH_INSIDE};

/// What every workspace has unless its image or its owner says otherwise.
const DEFAULTS: [(&str, &str); 1] = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")];

/// What an image cannot change: data lies in `/data`, whatever the image's author thought of.
const FIXED_BEFORE_OWNER: [(&str, &str); 4] = [
    ("HOME", "/data"),
    ("XDG_CONFIG_HOME", "/data/.config"),
    ("XDG_DATA_HOME", "/data/.local/share"),
    ("XDG_CACHE_HOME", "/data/.cache"),
];

/// Begins the names that the bridge is set up by: where it listens and whom it answers is not an image's to say.
const BRIDGE_PREFIX: &str = "BRIDGE_";

/// Most entries and bytes taken from an image: a stranger wrote it.
const IMAGE_ENTRIES: usize = 256;
const IMAGE_ENTRY_BYTES: usize = 32 * 1024;

/// An image's own entries that are of the form `NAME=value`, but for those that the bridge would obey.
pub(crate) fn image_environment(entries: &[String]) -> BTreeMap<String, String> {
    let split = |entry: &String| {
        let (name, value) = entry.split_once('=')?;
        (is_name(name) && !name.starts_with(BRIDGE_PREFIX) && !value.contains('\0') && entry.len() <= IMAGE_ENTRY_BYTES)
            .then(|| (name.to_owned(), value.to_owned()))
    };
    entries.iter().filter_map(split).take(IMAGE_ENTRIES).collect()
}

/// Defaults, then the image's, then what an image cannot change, then the server's, then the owner's; sorted by name.
pub(crate) fn environment(
    image: &BTreeMap<String, String>,
    server: &BTreeMap<String, String>,
    owner: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::from(DEFAULTS);
    all.extend(image.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.extend(FIXED_BEFORE_OWNER);
    all.extend(server.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let owner = owner
        .iter()
        .filter(|(name, value)| is_name(name) && !value.contains('\0'));
    all.extend(owner.map(|(name, value)| (name.as_str(), value.as_str())));
    // The host looks for the bridge there and nowhere else.
    all.insert(ENV_SOCKET_PATH, SOCKET_PATH_INSIDE);
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn the_owner_wins_over_the_image_and_nobody_over_the_socket() {
        let image = map(&[("PATH", "/image"), ("HOME", "/root"), ("A", "image")]);
        let owner = map(&[("A", "owner"), (ENV_SOCKET_PATH, "/elsewhere")]);
        let environment = environment(&image, &BTreeMap::new(), &owner);
        for expected in [
            "A=owner",
            "PATH=/image",
            "HOME=/data",
            "BRIDGE_SOCKET_PATH=/run/memoh/bridge.sock",
        ] {
            assert!(
                environment.iter().any(|entry| entry == expected),
                "{expected} is missing"
            );
        }
        assert_eq!(environment.iter().filter(|entry| entry.starts_with("A=")).count(), 1);
    }

    #[test]
    fn an_image_does_not_set_up_the_bridge() {
        let entries = [
            "BRIDGE_TCP_ADDR=0.0.0.0:9090",
            "BRIDGE_ALLOW_SAME_PID_NAMESPACE=1",
            "BRIDGE_SOCKET_PATH=/tmp/elsewhere.sock",
            "BRIDGES=2",
        ]
        .map(str::to_owned);
        assert_eq!(image_environment(&entries), map(&[("BRIDGES", "2")]));
    }

    #[test]
    fn malformed_entries_of_an_image_are_left_out() {
        let entries = ["=x", "no-equals", "GOOD=1", "NUL=a\0b"].map(str::to_owned);
        assert_eq!(image_environment(&entries), map(&[("GOOD", "1")]));
    }
}
