//! The system calls of this program that have no safe wrapper. Nothing here decides anything.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Takes a descriptor that this process was started with. To be called once for each number, before any other
/// descriptor is opened.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks; a number that is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller is its first and only owner in this program.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(descriptor)
}

/// Closes whatever else the server was started with and did not mean to hand on. To be called before any descriptor
/// is opened.
pub(crate) fn close_all_from(first: RawFd) -> io::Result<()> {
    let first = first.try_into().map_err(io::Error::other)?;
    // SAFETY: nothing in this program owns a descriptor of these numbers yet.
    match unsafe { libc::close_range(first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mounts, network, IPC and names of its own for this process; its next child is the first of its own processes.
pub(crate) fn enter_new_namespaces() -> io::Result<()> {
    let all =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWPID;
    // SAFETY: this program has one thread, so there is none whose descriptors or directory could be surprised.
    unsafe { rustix::thread::unshare_unsafe(all) }.map_err(Into::into)
}

/// `None` in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this program has one thread, so the child may do whatever its parent could.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid))
}
