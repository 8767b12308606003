//! Names of time zones: checked against this host's database, where it has one.

use std::path::Path;

use crate::http::error::{ApiError, ApiResult};

const DATABASE: &str = "/usr/share/zoneinfo";

/// A time zone of a request: absent stays, empty clears it.
///
/// # Errors
/// 400 for what is none.
pub fn checked(zone: Option<String>) -> ApiResult<Option<Option<String>>> {
    match zone {
        None => Ok(None),
        Some(zone) if zone.trim().is_empty() => Ok(Some(None)),
        Some(zone) => {
            let zone = zone.trim();
            if !is_well_formed(zone) || is_unknown_here(zone) {
                return Err(ApiError::invalid_argument(
                    "timezone must be an IANA time zone, such as Europe/London",
                ));
            }
            Ok(Some(Some(zone.to_owned())))
        }
    }
}

/// `UTC`, or `Area/Place` with at most three parts: no dots, so no way out of the database's directory.
fn is_well_formed(zone: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.len() <= 32
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    let parts: Vec<&str> = zone.split('/').collect();
    let single = ["UTC", "GMT", "UCT", "Zulu"].contains(&zone);
    (single || (2..=3).contains(&parts.len())) && parts.into_iter().all(part)
}

/// A host without the database cannot say no.
fn is_unknown_here(zone: &str) -> bool {
    let database = Path::new(DATABASE);
    database.join("Europe").is_dir() && !database.join(zone).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_zones_are_accepted() {
        for good in ["UTC", "Europe/London", "America/Argentina/Buenos_Aires"] {
            assert!(is_well_formed(good), "{good}");
        }
        for bad in ["Mars", "../etc/passwd", "Europe/../x", "a/b/c/d", "Europe/", "Etc/ x"] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }
}
