//! The one system call of these tests that has no safe wrapper.
#![allow(unsafe_code)]

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Puts the calling thread, and those it will start, into namespaces of their own.
pub(crate) fn leave_namespaces(flags: UnshareFlags) -> std::io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: only the descriptor table would be unsafe to leave, and it is not left.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}
