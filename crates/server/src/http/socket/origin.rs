//! Which pages may open a socket: a browser sends a socket's credentials from any page.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};

/// No origin (not a browser), our own, or one of those that are allowed (`*`: all).
pub(super) fn is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if allowed
        .iter()
        .any(|one| one == "*" || one.trim_end_matches('/').eq_ignore_ascii_case(origin))
    {
        return true;
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    host.zip(authority)
        .is_some_and(|(host, authority)| host.eq_ignore_ascii_case(authority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn foreign_pages_are_refused() {
        let allowed = vec!["https://app.example.com".to_owned()];
        for (origin, good) in [
            (Some("http://127.0.0.1:8080"), true),
            (Some("https://app.example.com"), true),
            (Some("https://evil.example.com"), false),
            (Some("http://127.0.0.1:9999"), false),
            (Some("null"), false),
            (None, true),
        ] {
            let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("127.0.0.1:8080"))]);
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_allowed(&headers, &allowed), good, "{origin:?}");
        }
    }
}
