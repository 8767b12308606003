//! Text that a stranger wrote, made fit for an operator's terminal.

use skep_names::steers_a_terminal;

/// UTF-8, with control characters other than line ends and tabs as escapes; also those that turn the direction of
/// writing or break lines, by which a line could be made to look like another.
pub(super) fn harmless_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if !text.chars().any(is_harmful) {
        return text.into_owned();
    }
    let mut harmless = String::with_capacity(text.len() + text.len() / 8);
    for letter in text.chars() {
        if is_harmful(letter) {
            harmless.extend(letter.escape_unicode());
        } else {
            harmless.push(letter);
        }
    }
    harmless
}

fn is_harmful(letter: char) -> bool {
    !matches!(letter, '\n' | '\t') && steers_a_terminal(letter)
}

/// Cuts whole lines off the beginning until the text is no longer than that; of one long line its end is kept.
pub(super) fn cut_to_tail(text: &mut String, most_bytes: usize) {
    if text.len() <= most_bytes {
        return;
    }
    let mut from = text.len() - most_bytes;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let begins_line = text.as_bytes()[from - 1] == b'\n';
    if !begins_line && let Some(end) = text[from..].find('\n').filter(|end| from + end + 1 < text.len()) {
        from += end + 1;
    }
    text.drain(..from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered() {
        let hostile = b"a\x1b[2J\x1b]0;title\x07b\r\x7fc\xc2\x9b31md\te\n\xff\xfe\xe2\x80\xaef";
        let text = harmless_text(hostile);
        assert_eq!(
            text,
            "a\\u{1b}[2J\\u{1b}]0;title\\u{7}b\\u{d}\\u{7f}c\\u{9b}31md\te\n\u{fffd}\u{fffd}\\u{202e}f"
        );
        assert_eq!(harmless_text(text.as_bytes()), text, "what is harmless stays as it is");
    }

    #[test]
    fn ordinary_text_of_any_language_stays() {
        let text = "2026-01-02T03:04:05.678Z skep-bridge: grüße, 你好, עולם\n";
        assert_eq!(harmless_text(text.as_bytes()), text);
    }

    #[test]
    fn a_tail_begins_with_a_whole_line() {
        let cut = |text: &str, most| {
            let mut text = text.to_owned();
            cut_to_tail(&mut text, most);
            text
        };
        assert_eq!(cut("one\ntwo\nthree\n", 100), "one\ntwo\nthree\n");
        assert_eq!(cut("one\ntwo\nthree\n", 10), "two\nthree\n");
        assert_eq!(cut("one\ntwo\nthree\n", 9), "three\n");
        assert_eq!(cut("äääää", 3), "ä");
        assert_eq!(cut("long line\n", 5), "line\n");
    }
}
