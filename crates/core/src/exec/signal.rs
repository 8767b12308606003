//! Names and numbers of signals.

/// Linux, as numbered on every architecture we run on.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The number of a signal by its name, with or without `SIG`, or by its number (1–64) as text.
pub fn signal_number(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// The name of a signal, as `SIGTERM`; a real-time one as `SIG40`.
pub(super) fn signal_name(number: u32) -> String {
    let known = SIGNALS.iter().find(|(_, known)| u32::try_from(*known) == Ok(number));
    known.map_or_else(|| format!("SIG{number}"), |(name, _)| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_to_each_other() {
        for (name, number) in SIGNALS {
            assert_eq!(
                signal_number(&signal_name(u32::try_from(number).unwrap())),
                Some(number)
            );
            assert_eq!(signal_number(&name.to_lowercase()), Some(number));
        }
        assert_eq!((signal_number("9"), signal_number("SIG40")), (Some(9), Some(40)));
        for bad in ["", "SIG", "0", "65", "-9", "NOPE"] {
            assert_eq!(signal_number(bad), None, "{bad:?}");
        }
    }
}
