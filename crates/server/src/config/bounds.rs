//! Values of the right kind that cannot work: refused before anything is started, each with its key and what would fit.

use std::time::Duration;

use skep_core::{LONGEST_FREEZE, LONGEST_GRACE};
use skep_runtime::network::{is_interface_name, is_table_name};
use tracing_subscriber::EnvFilter;

use crate::config::ConfigError;
use crate::config::settled::Reader;

/// Durations of nothing, and what would happen with them.
const NEVER_ZERO: &[(&str, &str, &str)] = &[
    ("auth", "jwt_expires_in", "nobody could sign in"),
    ("exec", "keep", "a bridge would keep its own default"),
    ("exec", "max_timeout", "no command could run"),
    ("export", "freeze_max", "no export of one moment could be made"),
    ("terminal", "idle_timeout", "every terminal would end at once"),
    (
        "terminal",
        "session_keep",
        "a session would end before its first window is there",
    ),
];

/// Numbers that are 1 at least, and why.
const AT_LEAST_ONE: &[(&str, &str, &str)] = &[
    (
        "backups",
        "keep",
        "what a delete keeps could push out what the same delete kept before",
    ),
    ("exec", "log_bytes", "a bridge would keep its own default"),
    ("import", "max_bytes", "nothing could be imported"),
    ("import", "max_entries", "nothing could be imported"),
    ("import", "max_ratio", "nothing long could be imported"),
    (
        "snapshots",
        "keep_automatic",
        "the version that a command was to have would be dropped at once",
    ),
    (
        "snapshots",
        "keep_rollback",
        "what a rollback saves would be dropped at once",
    ),
    ("snapshots", "merge_over", "there would be nothing to merge"),
];

/// Values of the right kind that are out of bounds.
pub(super) fn refuse_what_cannot_work(reader: &Reader<'_>) -> Result<(), ConfigError> {
    for (section, name, why) in NEVER_ZERO {
        if reader.duration(section, name).is_zero() {
            return Err(reader.refuse(section, name, format!("longer than 0: {why}")));
        }
    }
    for (section, name, why) in AT_LEAST_ONE {
        if reader.number(section, name) == 0 {
            return Err(reader.refuse(section, name, format!("1 or more: {why}")));
        }
    }
    if reader.duration("export", "freeze_max") > LONGEST_FREEZE {
        let most = LONGEST_FREEZE.as_secs();
        let expected = format!("{most}s or less: streams of a workspace that is frozen for longer break");
        return Err(reader.refuse("export", "freeze_max", expected));
    }
    if reader.duration("workspace", "reconcile_interval") < Duration::from_secs(1) {
        return Err(reader.refuse("workspace", "reconcile_interval", "1s or longer".to_owned()));
    }
    if reader.duration("workspace", "stop_grace") > LONGEST_GRACE {
        let expected = format!("{}s or less", LONGEST_GRACE.as_secs());
        return Err(reader.refuse("workspace", "stop_grace", expected));
    }
    if let Err(error) = EnvFilter::try_new(reader.text("log", "level")) {
        let expected = format!("a level such as info, or a filter such as info,skep_core=debug: {error}");
        return Err(reader.refuse("log", "level", expected));
    }
    refuse_names_that_cannot_be(reader)
}

fn refuse_names_that_cannot_be(reader: &Reader<'_>) -> Result<(), ConfigError> {
    if !is_interface_name(&reader.text("network", "bridge")) {
        let expected = "an interface's name: 15 letters, digits, `.`, `_`, `-` or `@` at most";
        return Err(reader.refuse("network", "bridge", expected));
    }
    if !is_table_name(&reader.text("network", "table")) {
        let expected = "a table's name: a letter, then letters, digits, `_` or `-`, 64 in all at most";
        return Err(reader.refuse("network", "table", expected));
    }
    Ok(())
}
