//! The system calls of this crate that have no safe wrapper. Nothing here decides anything.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use tokio::io::unix::AsyncFd;

/// Lets the command run in a session of its own, so that no terminal and no supervisor of ours ends it with us.
pub(crate) fn in_own_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe, touches no memory of ours and is all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
}

/// Lets the kernel end the command with us, whatever ends us: with the thread that starts it, to be exact.
pub(crate) fn end_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, works on plain numbers, and is all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into));
    }
}

/// Lets the command have this descriptor under a number of its own, and nobody else who is started meanwhile.
pub(crate) fn give_descriptor(command: &mut Command, descriptor: OwnedFd, number: i32) {
    // SAFETY: dup2 and fcntl are async-signal-safe, work on plain numbers, and are all that runs between fork and
    // exec. The descriptor is open for as long as the command is there.
    unsafe {
        command.pre_exec(move || {
            if descriptor.as_raw_fd() == number {
                // dup2 of a descriptor to itself would leave it to be closed.
                return rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).map_err(Into::into);
            }
            match libc::dup2(descriptor.as_raw_fd(), number) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
}

/// Lets the runtime wait for a descriptor that is not blocking.
pub(crate) fn waited_for(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names the same descriptor, for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register(descriptor) }.map_err(std::io::Error::other)
}

/// Gives the calling thread a mount table of its own. The thread is spoilt for anything else: let it end.
pub(crate) fn leave_the_mount_namespace() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes this call unsafe (descriptors of other threads); it is not passed.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Makes files below a detached mount appear with the ids of a user namespace.
pub(crate) fn map_mount_ids(tree: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    set_mount_attributes(
        &tree,
        libc::MOUNT_ATTR_IDMAP,
        u64::try_from(user_namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?,
    )
}

/// Sets `nosuid` and `nodev` on a detached mount.
pub(crate) fn forbid_devices_and_set_id(tree: impl AsFd) -> io::Result<()> {
    set_mount_attributes(&tree, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, 0)
}

fn set_mount_attributes(tree: &impl AsFd, set: u64, user_namespace: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace,
    };
    // SAFETY: the path is an empty C string, the structure outlives the call and its true size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the calling thread make and open files as this user and group.
///
/// Makes the whole process non-dumpable and drops the thread's capabilities over files; undoing both is the caller's.
pub(crate) fn act_on_files_as(id: u32) -> io::Result<()> {
    // SAFETY: both calls take plain numbers and change only the calling thread's credentials. They
    // report the previous value, never an error: the second pair reads what is in force.
    let (group, user) = unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
        (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX))
    };
    let wanted = i64::from(id);
    if i64::from(group) == wanted && i64::from(user) == wanted {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

/// Linux 6.5: the process at the other end of a socket, as a descriptor. The number is the generic one, which
/// x86_64, aarch64, riscv64, s390x and powerpc64 share.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process that called `listen` on the other end of a connected Unix socket.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; others when the process has been reaped.
pub(crate) fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut descriptor: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes one descriptor's number into a variable of the size that it is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut descriptor).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A child that only holds new namespaces open. Dropping it ends and reaps it.
pub(crate) struct NamespaceHolder {
    pid: Pid,
    // The child reads the other end and goes when this one is closed, also when we are killed.
    held: Option<OwnedFd>,
}

impl NamespaceHolder {
    /// Makes a child in new namespaces (`CLONE_NEW…`). Blocks the thread for about a millisecond.
    ///
    /// `owner`: the id a new user namespace belongs to on the host; else it is ours. The kernel counts whatever the
    /// namespace's users have together (inotify instances, queued signals, message queues) as the owner's, too.
    pub(crate) fn new(namespaces: libc::c_int, owner: Option<u32>) -> io::Result<Self> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (read, write) = pipe()?;
        let (outcome, told) = pipe()?;
        // SAFETY: clone without CLONE_VM and without a stack is fork: the child works on a copy of our
        // memory. It runs nothing but system calls on numbers and buffers of its own, then ends.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            hold(&read, &told, namespaces, owner);
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let holder = Self {
            pid: pid.ok_or_else(|| io::Error::other("clone answered no process"))?,
            held: Some(write),
        };
        drop(told);
        let mut errno = [0; size_of::<libc::c_int>()];
        std::io::Read::read_exact(&mut std::fs::File::from(outcome), &mut errno)?;
        match libc::c_int::from_ne_bytes(errno) {
            0 => Ok(holder),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
}

/// The child's whole life: make the namespaces, tell the outcome (an error's number, or 0), keep nothing open but the pipe,
/// wait until its other end is closed.
fn hold(read: &OwnedFd, told: &OwnedFd, namespaces: libc::c_int, owner: Option<u32>) -> ! {
    let mut byte = [0u8; 1];
    // SAFETY: only async-signal-safe calls on valid numbers and buffers that live here. Every other
    // descriptor is closed, or two children made at once would keep each other's pipes open for ever.
    unsafe {
        libc::dup2(read.as_raw_fd(), 0);
        libc::dup2(told.as_raw_fd(), 1);
        libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0);
        let made = owner.is_none_or(|owner| become_owner(owner)) && libc::unshare(namespaces) == 0;
        let errno = if made { 0 } else { *libc::__errno_location() };
        let errno = errno.to_ne_bytes();
        libc::write(1, errno.as_ptr().cast(), errno.len());
        libc::close(1);
        while libc::read(0, byte.as_mut_ptr().cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        libc::_exit(0)
    }
}

/// `SECBIT_NO_SETUID_FIXUP`: another user id changes no capabilities.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// Takes the id on, with all capabilities of before. For a process of one thread that serves nothing else.
///
/// # Safety
/// As after fork: it makes system calls alone.
unsafe fn become_owner(id: u32) -> bool {
    const UNCHANGED: libc::c_long = -1;
    // SAFETY: both calls take plain numbers. The system call itself is made, as the C library's function would look
    // for other threads.
    unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_setresuid, UNCHANGED, libc::c_long::from(id), UNCHANGED) == 0
    }
}

impl Drop for NamespaceHolder {
    fn drop(&mut self) {
        self.held = None;
        let reaped = || rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        while reaped().is_err_and(|error| error == rustix::io::Errno::INTR) {}
    }
}

/// Takes a write lease on a file: others that open it wait, or are refused, until it is given back or broken.
#[cfg(test)]
pub(crate) fn take_write_lease(file: impl AsFd) -> io::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: both calls take plain numbers and an open descriptor. The signal that tells of the lease's end is one that is
    // ignored by default.
    let taken = unsafe {
        libc::fcntl(descriptor, F_SETSIG, libc::SIGWINCH) == 0
            && libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK) == 0
    };
    if taken { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_is_to_end_with_us_is_killed_by_the_end_of_the_thread_that_started_it() {
        let started = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            end_with_us(&mut command);
            command.spawn().unwrap()
        });
        let ended = started.join().unwrap().wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn a_holder_that_cannot_make_its_namespaces_says_why() {
        let refused = NamespaceHolder::new(libc::CLONE_PARENT, None).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
