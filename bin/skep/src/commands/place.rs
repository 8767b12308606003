//! A side of a copy: a path here, `NAME:/path` in a workspace, or `-`.

use crate::failure::{Failure, Result};

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path on this machine.
    Here(String),
    /// A path in a workspace, absolute.
    Inside {
        /// What the bot is called.
        bot: String,
        /// Absolute path.
        path: String,
    },
    /// A tar stream on standard input or output.
    Stream,
}

impl Place {
    /// Reads what was typed. What begins with `/` or `.`, or has a `/` before the colon, is here.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Failure::Usage("an empty path is nowhere".into()));
        }
        match text.split_once(':') {
            Some((bot, path)) if !bot.is_empty() && !bot.contains('/') && !text.starts_with('.') => Ok(Self::Inside {
                bot: bot.to_owned(),
                path: absolute(path),
            }),
            _ => Ok(Self::Here(text.to_owned())),
        }
    }

    /// The same where only a workspace makes sense; a name alone means its `/data`.
    pub(crate) fn parse_inside(text: &str) -> Result<(String, String)> {
        match Self::parse(text)? {
            Self::Inside { bot, path } => Ok((bot, path)),
            Self::Here(name) if !name.contains('/') => Ok((name, "/data".to_owned())),
            _ => Err(Failure::Usage(format!("{text:?} is not NAME:/path"))),
        }
    }
}

/// Relative paths are below `/data`, as everywhere in a workspace.
fn absolute(path: &str) -> String {
    match path {
        "" => "/data".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/data/{path}"),
    }
}

/// The last part of a path; `None` for the root.
pub(crate) fn base_name(path: &str) -> Option<&str> {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(bot: &str, path: &str) -> Place {
        Place::Inside {
            bot: bot.into(),
            path: path.into(),
        }
    }

    #[test]
    fn places_are_told_apart() {
        assert_eq!(Place::parse("demo:/etc/motd").unwrap(), inside("demo", "/etc/motd"));
        assert_eq!(Place::parse("demo:notes").unwrap(), inside("demo", "/data/notes"));
        assert_eq!(Place::parse("demo:").unwrap(), inside("demo", "/data"));
        assert_eq!(Place::parse("-").unwrap(), Place::Stream);
        for here in ["/a:b", "./a:b", "../x:y", "dir/a:b", "plain"] {
            assert_eq!(Place::parse(here).unwrap(), Place::Here(here.into()));
        }
        assert!(Place::parse("").is_err());
    }

    #[test]
    fn the_last_part_of_a_path_is_found() {
        assert_eq!(base_name("/a/b/"), Some("b"));
        assert_eq!(base_name("/a"), Some("a"));
        assert_eq!(base_name("/"), None);
    }
}
