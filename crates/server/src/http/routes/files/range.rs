//! Which part of a file a request wants, and whether it has it already (RFC 9110).

use axum::http::HeaderMap;
use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// So many bytes from an offset on.
    Some {
        /// First byte.
        offset: u64,
        /// At least 1.
        length: u64,
    },
    /// The range begins behind the end.
    Outside,
}

/// The caller has this very file.
pub(super) fn is_known(headers: &HeaderMap, etag: Option<&str>) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || Some(tag.strip_prefix("W/").unwrap_or(tag)) == etag)
        })
}

/// One range is served; several, another unit and what does not parse are the whole, as the RFC allows.
pub(super) fn part_of(headers: &HeaderMap, size: u64, etag: Option<&str>) -> Part {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if header(IF_RANGE).is_some_and(|tag| Some(tag) != etag) {
        return Part::Whole;
    }
    // There is no byte that a range could begin at, and the whole is what was asked for.
    header(RANGE)
        .filter(|_| size > 0)
        .and_then(|range| parse(range, size))
        .unwrap_or(Part::Whole)
}

fn parse(range: &str, size: u64) -> Option<Part> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())?
    };
    let part = match (first.trim(), last.trim()) {
        ("", "") => return None,
        ("", suffix) => {
            let length = number(suffix)?.min(size);
            let offset = size - length;
            Part::Some { offset, length }
        }
        (first, last) => {
            let offset = number(first)?;
            let last = if last.is_empty() { u64::MAX } else { number(last)? };
            if last < offset {
                return None;
            }
            let length = last
                .saturating_sub(offset)
                .saturating_add(1)
                .min(size.saturating_sub(offset));
            Part::Some { offset, length }
        }
    };
    match part {
        Part::Some { length: 0, .. } => Some(Part::Outside),
        part => Some(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn part(range: &'static str, size: u64) -> Part {
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(range))]);
        part_of(&headers, size, Some("\"t\""))
    }

    #[test]
    fn one_range_is_served_and_the_rest_is_the_whole() {
        let some = |offset, length| Part::Some { offset, length };
        for (range, size, wanted) in [
            ("bytes=0-0", 10, some(0, 1)),
            ("bytes=2-5", 10, some(2, 4)),
            ("bytes=5-", 10, some(5, 5)),
            ("bytes=5-999", 10, some(5, 5)),
            ("bytes=-3", 10, some(7, 3)),
            ("bytes=-99", 10, some(0, 10)),
            ("bytes=10-", 10, Part::Outside),
            ("bytes=-0", 10, Part::Outside),
            ("bytes=0-", 0, Part::Whole),
            ("bytes=18446744073709551615-", 10, Part::Outside),
            ("bytes=5-2", 10, Part::Whole),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("lines=1-2", 10, Part::Whole),
        ] {
            assert_eq!(part(range, size), wanted, "{range} of {size}");
        }
    }

    #[test]
    fn a_range_of_another_file_is_the_whole() {
        let mut headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=1-2"))]);
        headers.insert(IF_RANGE, HeaderValue::from_static("\"other\""));
        assert_eq!(part_of(&headers, 10, Some("\"t\"")), Part::Whole);
    }

    #[test]
    fn a_known_tag_is_found_in_any_list() {
        for (value, known) in [("\"t\"", true), ("\"a\", W/\"t\"", true), ("*", true), ("\"a\"", false)] {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(value))]);
            assert_eq!(is_known(&headers, Some("\"t\"")), known, "{value}");
        }
    }
}
