//! The system calls of this crate that have no safe wrapper. Nothing here decides anything.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::unix::AsyncFd;

/// Lets the command run in a session of its own, so that no terminal and no supervisor of ours ends it with us.
pub(crate) fn in_own_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe, touches no memory of ours and is all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
}

/// Lets the runtime wait for a descriptor that is not blocking.
pub(crate) fn waited_for(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names the same descriptor, for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register(descriptor) }.map_err(std::io::Error::other)
}
