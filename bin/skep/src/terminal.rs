//! This side's terminal: raw mode and its undoing, its size, typing without showing.

use std::io::IsTerminal;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Failure, Result};
use crate::output::warn;

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

/// What is typed is not shown, until the guard is dropped. `None` where there is no terminal.
pub(crate) fn without_echo() -> Option<Restore> {
    let before = tcgetattr(std::io::stdin()).ok()?;
    let mut changed = before.clone();
    changed.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Flush, &changed).ok()?;
    Some(Restore(before))
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
