//! The commented file that `skep config default` prints: compiled in, and checked against the keys.

/// A file with every key at its default, commented out, each with what it does.
pub fn default_file() -> &'static str {
    include_str!("default.toml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KEYS, Settings};

    /// Every line `# key = value` of the file, with the comment sign taken away.
    fn uncommented() -> String {
        default_file()
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest
                        .split_once(" = ")
                        .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_')) =>
                {
                    rest
                }
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_default_file_names_every_key_with_its_default() {
        let directory = tempfile_path("default");
        std::fs::write(&directory, uncommented()).unwrap();
        let from_file = Settings::read(Some(&directory), &[]).unwrap();
        let table: toml::Table = uncommented().parse().unwrap();
        let defaults = Settings::read(Some(std::path::Path::new("/dev/null")), &[]).unwrap();
        std::fs::remove_file(&directory).unwrap();
        for key in KEYS {
            let section = table.get(key.section).and_then(toml::Value::as_table);
            assert!(
                section.is_some_and(|section| section.contains_key(key.name)),
                "{}.{} is not in the file",
                key.section,
                key.name
            );
            assert_eq!(
                from_file.get(key.section, key.name).map(|setting| &setting.value),
                defaults.get(key.section, key.name).map(|setting| &setting.value),
                "{}.{}",
                key.section,
                key.name
            );
        }
    }

    fn tempfile_path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("skep-config-{name}-{}.toml", uuid::Uuid::new_v4()))
    }

    #[test]
    fn the_default_file_changes_nothing_as_it_is() {
        assert!(default_file().parse::<toml::Table>().is_ok());
        assert!(
            default_file()
                .lines()
                .all(|line| line.is_empty() || line.starts_with('#') || line.starts_with('['))
        );
    }
}
