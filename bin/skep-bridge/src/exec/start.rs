//! How a process is started: its user, directory, environment, and what its three first descriptors are.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::sync::oneshot;
use tonic::Status;

use super::users::{self, User};
use crate::failure::not_started;
use crate::reaper::{Ended, Reaper};
use crate::system::{self, ChildSetup};

/// What to start. Paths are absolute.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) work_dir: PathBuf,
    /// Over the workspace's own environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Columns and rows of a terminal; none for pipes.
    pub(crate) terminal: Option<(u16, u16)>,
    /// Empty: the bridge's own user.
    pub(crate) user: String,
    /// False: `/dev/null`.
    pub(crate) stdin: bool,
}

pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) ended: oneshot::Receiver<Ended>,
    pub(crate) ends: Ends,
}

/// The bridge's ends of what the process reads and writes; none of them blocks.
pub(crate) enum Ends {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        master: OwnedFd,
    },
}

/// Starts `program`. Blocks until its exec has worked or failed.
///
/// # Errors
/// FailedPrecondition with the reason `exec_not_started` for everything that cannot be started.
pub(crate) fn start(
    program: &Program,
    environment: &[(OsString, OsString)],
    reaper: &Reaper,
) -> Result<Started, Status> {
    let name = program.argv.first().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Status::invalid_argument("command is required"))?;
    let user = match program.user.as_str() {
        "" => None,
        wanted => Some(users::find(wanted).map_err(|why| not_started(name, why))?),
    };
    check_work_dir(program)?;
    let mut command = Command::new(OsStr::from_bytes(name));
    command.args(program.argv[1..].iter().map(|argument| OsStr::from_bytes(argument)));
    set_environment(&mut command, program, environment, user.as_ref());
    let terminal = program.terminal.is_some();
    let ends = connect(&mut command, program, user.as_ref()).map_err(|error| not_started(name, told(&error)))?;
    let setup = child_setup(program, user, terminal).map_err(|error| not_started(name, told(&error)))?;
    system::prepare_child(&mut command, setup);
    let spawned = reaper.spawn(&mut command);
    // The child's ends live in `command`: until they are closed here, no end of output would be seen.
    drop(command);
    let (pid, ended) = spawned.map_err(|error| not_started(name, told(&error)))?;
    Ok(Started { pid, ended, ends })
}

fn told(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn check_work_dir(program: &Program) -> Result<(), Status> {
    let shown = program.work_dir.as_os_str().as_bytes();
    match fs::metadata(&program.work_dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(not_started(shown, "the working directory is not a directory")),
        Err(error) => Err(not_started(shown, format!("the working directory: {}", told(&error)))),
    }
}

fn set_environment(command: &mut Command, program: &Program, base: &[(OsString, OsString)], user: Option<&User>) {
    command.env_clear().envs(base.iter().map(|(name, value)| (name, value)));
    if let Some(user) = user.filter(|user| !user.identity.uid.is_root()) {
        // /data belongs to root: another user's own files are below their own home.
        command.env("HOME", &user.home);
        for (name, below) in [("CONFIG", ".config"), ("DATA", ".local/share"), ("CACHE", ".cache")] {
            command.env(format!("XDG_{name}_HOME"), user.home.join(below));
        }
    }
    if let Some(name) = user.and_then(|user| user.name.as_ref()) {
        command.env("USER", name).env("LOGNAME", name);
    }
    if program.terminal.is_some() {
        command.env("TERM", "xterm-256color");
    }
    command.envs(program.env.iter().map(|(name, value)| (name, value)));
}

fn child_setup(program: &Program, user: Option<User>, terminal: bool) -> io::Result<ChildSetup> {
    let work_dir = CString::new(program.work_dir.clone().into_os_string().into_vec())?;
    let (home, identity) = match user {
        Some(user) => (
            Some(CString::new(user.home.into_os_string().into_vec())?),
            Some(user.identity),
        ),
        None => (None, None),
    };
    Ok(ChildSetup {
        terminal,
        identity,
        work_dir,
        home,
    })
}

fn connect(command: &mut Command, program: &Program, user: Option<&User>) -> io::Result<Ends> {
    match program.terminal {
        Some(size) => connect_terminal(command, size, user),
        None => connect_pipes(command, program.stdin),
    }
}

fn connect_pipes(command: &mut Command, wants_stdin: bool) -> io::Result<Ends> {
    let (stdin_read, stdin_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout_read, stdout_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr_read, stderr_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    for end in [&stdin_write, &stdout_read, &stderr_read] {
        do_not_block(end)?;
    }
    let null = if wants_stdin {
        None
    } else {
        File::options().read(true).write(true).open("/dev/null").ok()
    };
    let stdin = match null {
        Some(null) => {
            command.stdin(null);
            None
        }
        None => {
            command.stdin(Stdio::from(stdin_read));
            // In an image without /dev/null a closed pipe says the same: end of input.
            wants_stdin.then_some(stdin_write)
        }
    };
    command
        .stdout(Stdio::from(stdout_write))
        .stderr(Stdio::from(stderr_write));
    Ok(Ends::Pipes {
        stdin,
        stdout: stdout_read,
        stderr: stderr_read,
    })
}

fn connect_terminal(command: &mut Command, (cols, rows): (u16, u16), user: Option<&User>) -> io::Result<Ends> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    set_size(&master, cols, rows)?;
    do_not_block(&master)?;
    if let Some(user) = user {
        rustix::fs::fchown(&slave, Some(user.identity.uid), None)?;
    }
    command
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave));
    Ok(Ends::Terminal { master })
}

pub(crate) fn set_size(terminal: impl AsFd, cols: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

fn do_not_block(end: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&end)?;
    Ok(rustix::fs::fcntl_setfl(&end, flags | OFlags::NONBLOCK)?)
}
