//! What a deserialiser says, as a sentence for a person: which field, and what it must be. Its own words name types of
//! a programming language and places in a text that the caller may never have seen.

/// A body that is an object but not the one a route takes. `field` is the path to where it went wrong, `.` for the
/// body itself.
pub(super) fn of_body(field: &str, error: &serde_json::Error) -> String {
    if error.is_syntax() || error.is_eof() {
        let (line, column) = (error.line(), error.column());
        return format!("the request body is not valid JSON at line {line}, column {column}");
    }
    sentence(field, &error.to_string())
}

/// A query string or a part of the path, refused with `said`, which may begin with the field's name.
pub(super) fn of_text(said: &str) -> String {
    let said = said.split_once("query string: ").map_or(said, |(_, rest)| rest);
    match said.split_once(": ") {
        Some((field, what)) if !field.contains(' ') => sentence(field, what),
        _ => sentence(".", said),
    }
}

fn sentence(field: &str, said: &str) -> String {
    let name = if matches!(field, "." | "?" | "") {
        "the request"
    } else {
        field
    };
    for (begins, what) in [
        ("missing field ", "is required"),
        ("duplicate field ", "is given twice"),
        ("unknown field ", "is not known"),
    ] {
        if let Some(inner) = said.strip_prefix(begins).and_then(quoted) {
            return format!("{} {what}", below(field, inner));
        }
    }
    let must_be = |what: &str| format!("{name} must be {what}");
    if let Some((_, expected)) = said.split_once(", expected ") {
        let expected = expected.split(" at line ").next().unwrap_or(expected);
        if said.starts_with("unknown variant ") {
            return must_be(&choices(expected));
        }
        return must_be(&kind(expected));
    }
    if said.contains("`true` or `false`") {
        return must_be("true or false");
    }
    let of_numbers = ["digit", "number", "integer"];
    if of_numbers.iter().any(|word| said.contains(word)) {
        return must_be("a whole number in its range");
    }
    format!("{name} is not what this route takes")
}

/// What stands between the first pair of backticks.
fn quoted(text: &str) -> Option<&str> {
    let (inner, _) = text.strip_prefix('`')?.split_once('`')?;
    Some(inner)
}

fn below(field: &str, inner: &str) -> String {
    match field {
        "." | "?" | "" => inner.to_owned(),
        // The path may name the missing field itself.
        field if field == inner || field.ends_with(&format!(".{inner}")) => field.to_owned(),
        field => format!("{field}.{inner}"),
    }
}

/// `one of `a`, `b`` or `` `a` or `b` ``.
fn choices(expected: &str) -> String {
    let words: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    match words.as_slice() {
        [one] => format!("{one:?}"),
        words => format!("one of {}", words.join(", ")),
    }
}

/// A type, in the words of JSON.
fn kind(expected: &str) -> String {
    let word = expected.split(' ').next().unwrap_or(expected);
    let plain = match word {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more, in its range",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number in its range",
        "f32" | "f64" => "a number",
        _ if expected.contains("RFC 3339") || expected.contains("date") => "a time as 2030-01-31T12:00:00Z",
        _ if expected.contains("boolean") => "true or false",
        _ if expected.contains("string") => "a text",
        _ if expected.contains("sequence") || expected.contains("array") => "a list",
        _ if expected.contains("map") || expected.contains("struct") => "an object",
        _ => "of another type",
    };
    plain.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(rename = "count")]
        _count: u64,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)] // Only what it refuses is looked at.
    struct Body {
        name: String,
        colour: Option<Colour>,
        inner: Option<Inner>,
        names: Option<Vec<String>>,
        switch: Option<bool>,
        env: Option<BTreeMap<String, String>>,
        at: Option<chrono::DateTime<chrono::Utc>>,
    }

    fn told(body: &str) -> String {
        let mut json = serde_json::Deserializer::from_str(body);
        let error = serde_path_to_error::deserialize::<_, Body>(&mut json).unwrap_err();
        of_body(&error.path().to_string(), error.inner())
    }

    #[test]
    fn a_body_is_refused_by_its_field_in_plain_words() {
        for (body, expected) in [
            ("{", "the request body is not valid JSON at line 1, column 1"),
            ("{}", "name is required"),
            (r#"{"name":1}"#, "name must be a text"),
            (r#"{"name":null}"#, "name must be a text"),
            (r#"{"name":"a","name":"b"}"#, "name is given twice"),
            (r#"{"name":"a","colour":"blue"}"#, "colour must be one of red, green"),
            (
                r#"{"name":"a","inner":{"count":-1}}"#,
                "inner.count must be a whole number of 0 or more, in its range",
            ),
            (r#"{"name":"a","inner":{}}"#, "inner.count is required"),
            (r#"{"name":"a","inner":3}"#, "inner must be an object"),
            (r#"{"name":"a","names":["x",2]}"#, "names[1] must be a text"),
            (r#"{"name":"a","names":"x"}"#, "names must be a list"),
            (r#"{"name":"a","switch":"yes"}"#, "switch must be true or false"),
            (r#"{"name":"a","env":{"A":7}}"#, "env.A must be a text"),
            (r#"{"name":"a","at":5}"#, "at must be a time as 2030-01-31T12:00:00Z"),
        ] {
            assert_eq!(told(body), expected, "{body}");
        }
    }

    #[test]
    fn a_query_string_is_refused_by_its_part_in_plain_words() {
        for (said, expected) in [
            (
                "Failed to deserialize query string: limit: invalid digit found in string",
                "limit must be a whole number in its range",
            ),
            (
                "Failed to deserialize query string: start: provided string was not `true` or `false`",
                "start must be true or false",
            ),
            (
                "Failed to deserialize query string: missing field `path`",
                "path is required",
            ),
            (
                "Failed to deserialize query string: format: unknown variant `x`, expected `tar` or `zip`",
                "format must be one of tar, zip",
            ),
            ("something else", "the request is not what this route takes"),
        ] {
            assert_eq!(of_text(said), expected, "{said}");
        }
    }
}
