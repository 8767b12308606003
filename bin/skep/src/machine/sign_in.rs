//! How to sign in for the first time, told to a person and never to a log: a log is kept, a password is not to be.

use std::io::{IsTerminal, Write};
use std::path::Path;

use skep_server::auth::{FirstAdmin, unread_first_password};

/// Who reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// A person at a terminal: a password is shown, and its file goes.
    Person,
    /// A file or a journal, as under systemd: the password's file is named.
    Log,
}

impl Reader {
    pub(super) fn of(out: &impl IsTerminal) -> Self {
        match out.is_terminal() {
            true => Self::Person,
            false => Self::Log,
        }
    }
}

/// Tells it to whoever reads along.
pub(super) fn tell(first: &FirstAdmin, reader: Reader, out: &mut impl Write) {
    let told = writeln!(out, "{}", sentence(first, reader)).and_then(|()| out.flush());
    if let (FirstAdmin::Generated(made), Reader::Person, Ok(())) = (first, reader, told)
        && let Err(error) = made.was_read()
    {
        eprintln!("skep: {} could not be removed: {error}", made.file.display());
    }
}

/// A start that came to nothing may have made the first user.
pub(super) fn tell_of_unread(data_root: &Path) {
    if let Some(file) = unread_first_password(data_root) {
        eprintln!("skep: the first user is made; {} has his password", file.display());
    }
}

fn sentence(first: &FirstAdmin, reader: Reader) -> String {
    match first {
        FirstAdmin::Generated(made) => {
            let username = &made.username;
            let other = format!("`skep users password {username}` sets another");
            match reader {
                Reader::Person => format!(
                    "Sign in as {username} with the password {}\n(shown this once; {other})",
                    made.password
                ),
                Reader::Log => format!(
                    "Sign in as {username} with the password in {}\n(delete it when it is read; {other})",
                    made.file.display()
                ),
            }
        }
        FirstAdmin::Configured { username } => format!("Sign in as {username} with the configured password."),
        FirstAdmin::NotNeeded => "Sign in with a user of yours; `skep users ls` lists them.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use skep_server::auth::FirstPassword;

    use super::*;

    #[test]
    fn a_password_is_shown_to_a_person_once_and_to_a_log_never() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("first-password");
        std::fs::write(&file, "admin hunter2").unwrap();
        let first = FirstAdmin::Generated(FirstPassword {
            username: "admin".into(),
            password: "hunter2".into(),
            file: file.clone(),
        });
        let said = |reader| {
            let mut out = Vec::new();
            tell(&first, reader, &mut out);
            String::from_utf8(out).unwrap()
        };
        let logged = said(Reader::Log);
        assert!(
            !logged.contains("hunter2") && logged.contains(&file.display().to_string()),
            "{logged}"
        );
        assert!(file.exists());
        assert!(said(Reader::Person).contains("hunter2"));
        assert!(!file.exists());
    }

    #[test]
    fn a_password_that_could_not_be_shown_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("first-password");
        std::fs::write(&file, "admin hunter2").unwrap();
        let first = FirstAdmin::Generated(FirstPassword {
            username: "admin".into(),
            password: "hunter2".into(),
            file: file.clone(),
        });
        // No room in it.
        tell(&first, Reader::Person, &mut [0_u8; 4].as_mut_slice());
        assert!(file.exists());
    }
}
