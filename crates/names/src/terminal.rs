//! Text that a stranger wrote, on its way to a person's terminal.

/// Whether a letter could steer a terminal, or make a line look like another: control characters, line ends and tabs
/// too, and those that turn the direction of writing or break lines.
pub fn steers_a_terminal(letter: char) -> bool {
    match letter {
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        '\u{2028}' | '\u{2029}' | '\u{61c}' => true,
        letter => letter.is_control(),
    }
}
