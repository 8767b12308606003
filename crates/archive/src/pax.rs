//! PAX records: what a header has no room for, as `length key=value` lines before it.

use crate::error::Reason;

/// Adds a record. The length counts its own digits.
pub(crate) fn add(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// The names of all attributes of a file fit into 64 KiB, and none is shorter than `user.x` with its NUL.
const MOST_RECORDS: usize = 10_000;

/// Key and value.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// The records of a header, in their order.
pub(crate) fn parse(mut data: &[u8]) -> Result<Vec<Record<'_>>, Reason> {
    const BAD: Reason = Reason::Malformed("PAX records");
    let mut records = Vec::new();
    while !data.is_empty() {
        let space = data.iter().take(20).position(|&byte| byte == b' ').ok_or(BAD)?;
        let length = decimal(&data[..space]).ok_or(BAD)? as usize;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
        if equals == 0 || records.len() == MOST_RECORDS {
            return Err(BAD);
        }
        records.push((&record[..equals], &record[equals + 1..]));
        data = &data[length..];
    }
    Ok(records)
}

/// The name of an attribute as part of a key, where a `=` would end it.
pub(crate) fn escaped(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            _ => key.push(byte),
        }
    }
    key
}

/// What [`escaped`] made, and GNU tar.
pub(crate) fn unescaped(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    while let Some((&byte, rest)) = key.split_first() {
        let (byte, rest) = match (byte, rest) {
            (b'%', [b'3', b'D', rest @ ..]) => (b'=', rest),
            (b'%', [b'2', b'5', rest @ ..]) => (b'%', rest),
            (byte, rest) => (byte, rest),
        };
        name.push(byte);
        key = rest;
    }
    name
}

pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Seconds and nanoseconds after them, as in `-1.5`, which is 2 seconds before and half a second after.
pub(crate) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanos = 0;
    for at in 0..9 {
        nanos = nanos * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    }
    Some(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// What [`time`] reads.
pub(crate) fn time_text(seconds: i64, nanos: u32) -> String {
    if seconds >= 0 || nanos == 0 {
        return match nanos {
            0 => seconds.to_string(),
            _ => format!("{seconds}.{nanos:09}"),
        };
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_length_are_read_again() {
        for length in [0, 1, 2, 3, 80, 90, 91, 92, 93, 980, 990, 991, 992, 9_980, 9_990, 70_000] {
            let mut data = Vec::new();
            let value = vec![b'\n'; length];
            add(&mut data, b"key", &value);
            add(&mut data, &escaped(b"user.%3D=%"), b"=");
            let records = parse(&data).expect("records");
            assert_eq!(records[0], (&b"key"[..], &value[..]), "{length}");
            assert_eq!(records[1], (&b"user.%253D%3D%25"[..], &b"="[..]));
            assert_eq!(unescaped(records[1].0), b"user.%3D=%");
        }
    }

    #[test]
    fn broken_records_are_refused() {
        for data in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"6 ab\n",
            b"x a=b\n",
            b"0 a=b\n",
            b"6 a=b",
            b"\0\0\0",
            b"6 a=bb\n\n",
            b"4 =\n",
            b"6 =ab\n",
        ] {
            assert!(parse(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn there_are_only_so_many_records() {
        let records = |count: usize| b"5 a=\n".repeat(count);
        assert_eq!(
            parse(&records(MOST_RECORDS)).map(|records| records.len()),
            Ok(MOST_RECORDS)
        );
        assert!(parse(&records(MOST_RECORDS + 1)).is_err());
    }

    #[test]
    fn times_before_and_after_1970_are_read_again() {
        for (time_of, text) in [
            ((0, 0), "0"),
            ((1, 5), "1.000000005"),
            ((-1, 0), "-1"),
            ((-1, 500_000_000), "-0.500000000"),
            ((-2, 999_999_999), "-1.000000001"),
            ((i64::from(i32::MIN), 1), "-2147483647.999999999"),
        ] {
            assert_eq!(time_text(time_of.0, time_of.1), text);
            assert_eq!(time(text.as_bytes()), Some(time_of), "{text}");
        }
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"1e5"), None);
    }
}
