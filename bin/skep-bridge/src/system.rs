//! The system calls that need `unsafe`, each small enough to be checked by eye.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use tokio::io::unix::AsyncFd;

static OPEN_FILES_OF_OTHERS: OnceLock<Rlimit> = OnceLock::new();

/// What the child does between fork and exec. Everything is made before the fork: the child must not allocate.
pub(crate) struct ChildSetup {
    pub(crate) terminal: bool,
    pub(crate) identity: Option<Identity>,
    pub(crate) work_dir: CString,
    /// Where the child goes when its user may not enter `work_dir`.
    pub(crate) home: Option<CString>,
}

pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// Makes `command` begin in a session and group of its own, with no signal blocked, as the given user.
pub(crate) fn prepare_child(command: &mut Command, setup: ChildSetup) {
    let open_files = OPEN_FILES_OF_OTHERS.get().copied();
    // SAFETY: the closure makes only async-signal-safe system calls on memory that was made before the fork.
    unsafe {
        command.pre_exec(move || {
            unblock_all_signals()?;
            if let Some(limit) = open_files {
                rustix::process::setrlimit(Resource::Nofile, limit)?;
            }
            rustix::process::setsid()?;
            if setup.terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            if let Some(identity) = &setup.identity {
                rustix::thread::set_thread_groups(&identity.groups)?;
                rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
                rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)?;
            }
            enter(&setup)
        });
    }
}

fn enter(setup: &ChildSetup) -> io::Result<()> {
    match (rustix::process::chdir(setup.work_dir.as_c_str()), &setup.home) {
        (Err(Errno::ACCESS), Some(home)) => Ok(rustix::process::chdir(home.as_c_str())?),
        (result, _) => Ok(result?),
    }
}

/// The bridge has some descriptors for each process and transfer: it takes as many as it may have. What it starts has
/// as many as it itself began with.
pub(crate) fn raise_open_files() -> io::Result<()> {
    let given = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: given.maximum,
        maximum: given.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised)?;
    OPEN_FILES_OF_OTHERS.get_or_init(|| given);
    Ok(())
}

fn unblock_all_signals() -> io::Result<()> {
    set_signal_mask(libc::SIG_SETMASK, &[])
}

/// Blocks the signals that [`wait_for_signal`] takes, in this thread and in all that it starts later.
pub(crate) fn block_signals(signals: &[Signal]) -> io::Result<()> {
    set_signal_mask(libc::SIG_BLOCK, signals)
}

fn set_signal_mask(how: libc::c_int, signals: &[Signal]) -> io::Result<()> {
    let set = signal_set(signals);
    // SAFETY: `set` is initialised, and the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A signal and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) signal: i32,
    /// Sent by a process of the namespace that this process sees, by its number there.
    pub(crate) sender: Option<i32>,
}

/// Keeps the namespace's other processes from tracing this one and from reading its memory, descriptors and
/// environment through `/proc`. What it starts can be traced again: an exec resets this.
pub(crate) fn forbid_tracing() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        rustix::process::DumpableBehavior::NotDumpable,
    )?)
}

/// Sleeps until one of the (blocked) signals is pending, and takes it.
pub(crate) fn wait_for_signal(signals: &[Signal]) -> io::Result<Taken> {
    let set = signal_set(signals);
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: both pointers are to live locals.
    let signal = unsafe { libc::sigwaitinfo(&set, info.as_mut_ptr()) };
    if signal < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes are a valid siginfo, and the call has filled it in. The sender's pid is at its place for what
    // `kill` and its like sent; for anything else only whether it is zero is used.
    let (code, pid) = unsafe {
        let info = info.assume_init();
        (info.si_code, info.si_pid())
    };
    // The kernel itself, or a process outside of this namespace, whose number here is 0. A code below zero is written
    // by whoever sends it, and with it the number: the host's `kill` never has one.
    let from_outside = code == libc::SI_KERNEL || (code == libc::SI_USER && pid == 0);
    Ok(Taken {
        signal,
        sender: (!from_outside).then_some(pid),
    })
}

fn signal_set(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset gets valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
        }
        set.assume_init()
    }
}

/// `kill(2)` with any number that a caller names, real-time signals and 0 included; `pid` may be negative (a group)
/// or -1 (everybody but this process).
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill has no memory arguments.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Now, in the clock ticks that `/proc` tells the beginning of processes in: hundredths of a second for every program.
pub(crate) fn ticks_since_boot() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec of this frame. It cannot fail with a clock that every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec.cast_unsigned() * 100 + now.tv_nsec.cast_unsigned() / 10_000_000
}

/// Hands a descriptor to the event loop.
pub(crate) fn watch_descriptor(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor, always the same one, until it is dropped; and AsyncFd hands out no
    // mutable reference here by which it could be exchanged.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}
