//! What the files of a bot's backups are called. Pure.

use std::fmt;

use skep_names::BotId;

/// One file of a bot's backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// `<bot>.tar.gz`: what a create puts back.
    Current,
    /// `<bot>.<n>.tar.gz`: an older one, 1 the newest of them.
    Generation(u32),
    /// `<bot>.tar.gz.corrupt`, `<bot>.<n>.tar.gz.corrupt`: it did not verify.
    SetAside(u32),
}

const ENDING: &str = ".tar.gz";
const CORRUPT: &str = ".tar.gz.corrupt";

impl Slot {
    /// Its file name.
    pub(crate) fn file_name(self, bot: &BotId) -> String {
        match self {
            Self::Current => format!("{bot}{ENDING}"),
            Self::Generation(number) => format!("{bot}.{number}{ENDING}"),
            Self::SetAside(1) => format!("{bot}{CORRUPT}"),
            Self::SetAside(number) => format!("{bot}.{number}{CORRUPT}"),
        }
    }

    /// Whose backup a file is, and which; `None` for a file that is none.
    pub(crate) fn parse(file_name: &str) -> Option<(BotId, Self)> {
        let (stem, set_aside) = match file_name.strip_suffix(CORRUPT) {
            Some(stem) => (stem, true),
            None => (file_name.strip_suffix(ENDING)?, false),
        };
        let (bot, number) = match stem.split_once('.') {
            Some((bot, number)) => (bot, Some(number.parse::<u32>().ok().filter(|number| *number > 0)?)),
            None => (stem, None),
        };
        let slot = match (set_aside, number) {
            (false, None) => Self::Current,
            (false, Some(number)) => Self::Generation(number),
            (true, number) => Self::SetAside(number.unwrap_or(1)),
        };
        let bot: BotId = bot.parse().ok()?;
        // `01`, `+1` and the like are other names of nothing.
        (slot.file_name(&bot) == file_name).then_some((bot, slot))
    }
}

/// The file an archive is written to before it is one, another each time: a backup that was given up may still hold
/// its own when the next one begins.
pub(crate) fn partial(bot: &BotId) -> String {
    format!(".{bot}.{}{PARTIAL}", uuid::Uuid::now_v7())
}

const PARTIAL: &str = ".partial";

const GIVEN: &str = ".given";

/// The mark of a bot that is given a backup before it is there: the same archive.
pub(crate) fn given(bot: &BotId) -> String {
    format!(".{bot}{GIVEN}")
}

/// Whose mark a file is.
pub(crate) fn parse_given(file_name: &str) -> Option<BotId> {
    file_name.strip_prefix('.')?.strip_suffix(GIVEN)?.parse().ok()
}

/// Whether a file is what a crash left of an archive that was being written.
pub(crate) fn is_partial(file_name: &str) -> bool {
    file_name.starts_with('.') && file_name.ends_with(PARTIAL)
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => formatter.write_str("current"),
            Self::Generation(number) => write!(formatter, "generation {number}"),
            Self::SetAside(number) => write!(formatter, "set aside {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let bot: BotId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        for (slot, name) in [
            (Slot::Current, format!("{bot}.tar.gz")),
            (Slot::Generation(1), format!("{bot}.1.tar.gz")),
            (Slot::Generation(12), format!("{bot}.12.tar.gz")),
            (Slot::SetAside(1), format!("{bot}.tar.gz.corrupt")),
            (Slot::SetAside(2), format!("{bot}.2.tar.gz.corrupt")),
        ] {
            assert_eq!(slot.file_name(&bot), name);
            assert_eq!(Slot::parse(&name), Some((bot.clone(), slot)));
        }
        for other in [
            "x.tar.gz".to_owned(),
            format!("{bot}.0.tar.gz"),
            format!("{bot}.01.tar.gz"),
            format!("{bot}.1.2.tar.gz"),
            format!("{bot}.tar"),
            format!("../{bot}.tar.gz"),
            partial(&bot),
            given(&bot),
        ] {
            assert_eq!(Slot::parse(&other), None, "{other}");
        }
        assert_eq!(parse_given(&given(&bot)), Some(bot.clone()));
        assert_eq!(parse_given(&partial(&bot)), None);
        assert_ne!(partial(&bot), partial(&bot));
        assert!(is_partial(&partial(&bot)) && !is_partial(&format!("{bot}.tar.gz")));
    }
}
