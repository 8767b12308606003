//! This side's terminal: raw mode and its undoing, its size, typing without showing.

use std::io::{IsTerminal, Read};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Failure, Result};
use crate::output::warn;

/// What a shell tells of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Puts the terminal back as it was, however we leave.
pub(crate) struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0) {
            warn(format_args!(
                "the terminal could not be put back ({error}); type `reset`"
            ));
        }
    }
}

/// Every key goes through as it is, until the guard is dropped.
///
/// # Errors
/// Standard input is not a terminal.
pub(crate) fn raw() -> Result<Restore> {
    let failed = |error: rustix::io::Errno| Failure::local("cannot set up the terminal", error);
    let before = tcgetattr(std::io::stdin()).map_err(failed)?;
    let mut changed = before.clone();
    changed.make_raw();
    tcsetattr(std::io::stdin(), OptionalActions::Now, &changed).map_err(failed)?;
    Ok(Restore(before))
}

/// Asks for a line that is not shown while it is typed. Ctrl-C comes as the end of the line: as a signal it would end us
/// before the terminal is put back.
///
/// # Errors
/// Standard input is not a terminal; exit code 130 for Ctrl-C.
pub(crate) fn read_hidden(prompt: &str) -> Result<String> {
    let failed = |error: std::io::Error| Failure::local("cannot read from the terminal", error);
    let before = tcgetattr(std::io::stdin()).map_err(|error| failed(error.into()))?;
    // 0: there is no such key.
    let interrupt = before.special_codes[SpecialCodeIndex::VINTR];
    let mut changed = before.clone();
    changed.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    changed.special_codes[SpecialCodeIndex::VEOL] = interrupt;
    tcsetattr(std::io::stdin(), OptionalActions::Flush, &changed).map_err(|error| failed(error.into()))?;
    let restore = Restore(before);
    eprint!("{prompt}");
    let line = read_to_end_of_line(interrupt);
    drop(restore);
    eprintln!();
    let line = line.map_err(failed)?.ok_or(Failure::CommandEnded(INTERRUPTED))?;
    String::from_utf8(line).map_err(|_| Failure::Usage("what was typed is not UTF-8".into()))
}

/// `None`: the key that interrupts ended it.
fn read_to_end_of_line(interrupt: u8) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    for byte in std::io::stdin().lock().bytes() {
        match byte? {
            b'\n' => break,
            byte if byte == interrupt && interrupt != 0 => return Ok(None),
            byte => line.push(byte),
        }
    }
    Ok(Some(line))
}

/// Whether somebody types.
pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Columns and rows of the terminal; 80 by 24 where there is none.
pub(crate) fn size() -> (u16, u16) {
    match tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.min(1000), size.ws_row.min(1000)),
        _ => (80, 24),
    }
}
