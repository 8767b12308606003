//! Single values: reading a duration, a size, a list, from TOML and from the environment.

use std::time::Duration;

use crate::config::keys::{Key, Kind};

/// Any duration over this cannot be meant, and would overflow a time.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A value that fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, secret or one of several; empty is "not set".
    Text(String),
    /// True or false.
    Flag(bool),
    /// A number, or bytes.
    Number(u64),
    /// A duration.
    Duration(Duration),
    /// Texts.
    List(Vec<String>),
}

impl Value {
    /// As `config show` prints it.
    pub fn shown(&self, kind: Kind) -> String {
        match self {
            Value::Text(text) if kind == Kind::Secret && !text.is_empty() => "\"***\"".to_owned(),
            Value::Text(text) => format!("{text:?}"),
            Value::Flag(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Duration(duration) => format!("\"{}\"", humantime::format_duration(*duration)),
            Value::List(items) => format!("{items:?}"),
        }
    }
}

/// Reads a text as the key's kind, as the environment and the defaults give it.
///
/// # Errors
/// What is expected in its place.
pub(crate) fn from_text(key: &Key, text: &str) -> Result<Value, String> {
    match key.kind {
        Kind::Text | Kind::Secret => Ok(Value::Text(text.to_owned())),
        Kind::OneOf(choices) => choice(choices, text),
        Kind::Flag => text.parse().map(Value::Flag).map_err(|_| "true or false".to_owned()),
        Kind::Number => text
            .parse()
            .map(Value::Number)
            .map_err(|_| "a whole number from 0".to_owned()),
        Kind::Duration => duration(text).map(Value::Duration),
        Kind::Size => size(text).map(Value::Number),
        Kind::List => Ok(Value::List(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect(),
        )),
    }
}

/// Reads a TOML value as the key's kind.
///
/// # Errors
/// What is expected in its place.
pub(crate) fn from_toml(key: &Key, value: &toml::Value) -> Result<Value, String> {
    match (key.kind, value) {
        (Kind::Flag, toml::Value::Boolean(flag)) => Ok(Value::Flag(*flag)),
        (Kind::Number | Kind::Size, toml::Value::Integer(number)) => u64::try_from(*number)
            .map(Value::Number)
            .map_err(|_| "a whole number from 0".to_owned()),
        (Kind::Size | Kind::Duration | Kind::Text | Kind::Secret | Kind::OneOf(_), toml::Value::String(text)) => {
            from_text(key, text)
        }
        (Kind::List, toml::Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| "a list of texts".to_owned())
            })
            .collect::<Result<_, _>>()
            .map(Value::List),
        (kind, _) => Err(expected(kind)),
    }
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Text | Kind::Secret => "a text".to_owned(),
        Kind::OneOf(choices) => format!("one of {}", choices.join(", ")),
        Kind::Flag => "true or false".to_owned(),
        Kind::Number => "a whole number from 0".to_owned(),
        Kind::Duration => "a duration such as \"90s\" or \"24h\"".to_owned(),
        Kind::Size => "bytes, or a size such as \"2GiB\"".to_owned(),
        Kind::List => "a list of texts".to_owned(),
    }
}

fn choice(choices: &'static [&'static str], text: &str) -> Result<Value, String> {
    if choices.contains(&text) {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(expected(Kind::OneOf(choices)))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| expected(Kind::Duration))
}

fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" | "Ki" => 1 << 10,
        "MiB" | "M" | "Mi" => 1 << 20,
        "GiB" | "G" | "Gi" => 1 << 30,
        "TiB" | "T" | "Ti" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(expected(Kind::Size)),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| expected(Kind::Size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::KEYS;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("2GiB", 2 << 30),
            ("1 MB", 1_000_000),
            ("3K", 3072),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "2 parsec", "99999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_default_fits_its_key() {
        for key in KEYS {
            assert!(from_text(key, key.default).is_ok(), "{}.{}", key.section, key.name);
        }
    }
}
