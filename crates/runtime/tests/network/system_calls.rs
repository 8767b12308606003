//! The system calls of these tests that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Puts the calling thread, and those it will start, into namespaces of their own.
pub(crate) fn leave_namespaces(flags: UnshareFlags) -> std::io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: only the descriptor table would be unsafe to leave, and it is not left.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}

/// Lets a socket send and receive through this interface alone.
pub(crate) fn bind_to_device(socket: &UdpSocket, device: &CStr) -> io::Result<()> {
    set_option(socket, libc::SO_BINDTODEVICE, device.to_bytes_with_nul())
}

/// Lets a socket send to what is on the link alone.
pub(crate) fn do_not_route(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SO_DONTROUTE, &1i32.to_ne_bytes())
}

fn set_option(socket: &UdpSocket, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads as many bytes of a value that outlives the call as it is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
