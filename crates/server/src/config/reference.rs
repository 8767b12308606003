//! The reference system's file: what of it is taken over, and what is refused.
//!
//! A file with a `[postgres]` section is taken as one of the reference's. Only in such a file are
//! unknown sections and keys passed over, with one warning; in ours each is an error.

use toml::Table;

/// Keys of the reference's `[postgres]` section.
const DEFAULT_PORT: i64 = 5432;

/// Whether this is a file of the reference system.
pub(crate) fn is_reference(file: &Table) -> bool {
    file.get("postgres").is_some_and(toml::Value::is_table)
}

/// A `[mcp]` section of the old kind described workspaces, not MCP.
pub(crate) fn has_old_mcp(file: &Table) -> bool {
    file.get("mcp")
        .and_then(toml::Value::as_table)
        .is_some_and(|section| section.contains_key("image"))
}

/// The database address that a `[postgres]` section describes.
///
/// # Errors
/// The name of the key that is missing or of the wrong type.
pub(crate) fn database_url(file: &Table) -> Result<Option<String>, String> {
    let Some(section) = file.get("postgres").and_then(toml::Value::as_table) else {
        return Ok(None);
    };
    let text = |name: &str, default: &str| match section.get(name) {
        None => Ok(default.to_owned()),
        Some(toml::Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("postgres.{name} must be a text")),
    };
    let port = match section.get("port") {
        None => DEFAULT_PORT,
        Some(toml::Value::Integer(port)) if (1..=65_535).contains(port) => *port,
        Some(_) => return Err("postgres.port must be a port number".to_owned()),
    };
    let (user, password) = (encode(&text("user", "postgres")?), encode(&text("password", "")?));
    let (host, database) = (text("host", "127.0.0.1")?, encode(&text("database", "memoh")?));
    let sslmode = encode(&text("sslmode", "disable")?);
    let secret = if password.is_empty() {
        String::new()
    } else {
        format!(":{password}")
    };
    Ok(Some(format!(
        "postgres://{user}{secret}@{host}:{port}/{database}?sslmode={sslmode}"
    )))
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
