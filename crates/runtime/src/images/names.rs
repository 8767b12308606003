//! Names of images in containerd, which keeps whatever a tool called them.

use skep_names::ImageReference;

/// The full reference that a stored name stands for; `None` for names that are none, such as the bare
/// digests that Kubernetes keeps.
pub(super) fn normalised(name: &str) -> Option<ImageReference> {
    if name.starts_with("sha256:") {
        return None;
    }
    name.parse().ok()
}

/// The names under which containerd may keep an image: the full one first, then the short ones.
pub(super) fn spellings(reference: &ImageReference) -> Vec<String> {
    let full = reference.as_str();
    let mut names = vec![full.to_owned()];
    for prefix in ["docker.io/library/", "docker.io/"] {
        let Some(short) = full.strip_prefix(prefix) else {
            continue;
        };
        // A short form that would be read as another image is none.
        if normalised(short).as_ref() == Some(reference) {
            names.push(short.to_owned());
        }
    }
    let untagged: Vec<String> = names
        .iter()
        .filter_map(|name| name.strip_suffix(":latest"))
        .map(str::to_owned)
        .collect();
    names.extend(untagged);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_means_the_same_image() {
        for (full, expected) in [
            (
                "debian:bookworm",
                vec![
                    "docker.io/library/debian:bookworm",
                    "debian:bookworm",
                    "library/debian:bookworm",
                ],
            ),
            (
                "me/tool",
                vec![
                    "docker.io/me/tool:latest",
                    "me/tool:latest",
                    "docker.io/me/tool",
                    "me/tool",
                ],
            ),
            ("ghcr.io/a/b:1", vec!["ghcr.io/a/b:1"]),
        ] {
            let reference: ImageReference = full.parse().unwrap();
            let names = spellings(&reference);
            assert_eq!(names, expected);
            for name in names {
                assert_eq!(normalised(&name).as_ref(), Some(&reference), "{name}");
            }
        }
        assert_eq!(normalised(&format!("sha256:{}", "0".repeat(64))), None);
    }
}
