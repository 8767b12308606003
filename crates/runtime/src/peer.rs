//! Who listens at the other end of a socket, where a user id does not tell.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::PidfdFlags;

use crate::{cgroup, system_calls};

/// Whether the process that called `listen` at the other end of a connected Unix socket lives in a control group
/// (`/skep/workspace-…`), on hosts with cgroups of version 1, 2 or both.
///
/// Before Linux 6.5 the process is found by its number alone: one that has ended may then be taken for another one
/// with its number. Since 6.5 the kernel names the very process.
///
/// # Errors
/// When the kernel's files cannot be read. A process that has ended is in no group.
pub fn listener_is_in_cgroup(socket: impl AsFd, group: &str) -> io::Result<bool> {
    let Some(process) = listener(socket)? else {
        return Ok(false);
    };
    let Some(pid) = number_of(&process)? else {
        return Ok(false);
    };
    let is_member = cgroup::processes(group).contains(&pid);
    // Its number may have gone to another process while the group was read.
    Ok(is_member && number_of(&process)? == Some(pid))
}

fn listener(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match system_calls::peer_process(&socket) {
        Ok(process) => return Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
        Err(error) => return ended_or(error),
    }
    let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_or_else(|error| ended_or(error.into()), |fd| Ok(Some(fd)))
}

fn ended_or(error: io::Error) -> io::Result<Option<OwnedFd>> {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::EINVAL | libc::ENODATA) => Ok(None),
        _ => Err(error),
    }
}

/// A process by its descriptor: `None` when it has ended, or is in no process namespace that we see.
fn number_of(process: &OwnedFd) -> io::Result<Option<i32>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let number = number.and_then(|number| number.trim().parse().ok());
    Ok(number.filter(|number| *number > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    /// A group of this test's own, in the hierarchy that is looked at.
    struct Group {
        name: String,
        directory: PathBuf,
    }

    impl Group {
        fn make() -> Self {
            let name = format!("/skep-peer-{}", uuid::Uuid::new_v4());
            let root = Path::new("/sys/fs/cgroup");
            let hierarchy = if root.join("cgroup.controllers").exists() {
                root.to_owned()
            } else {
                root.join("pids")
            };
            let directory = hierarchy.join(name.trim_start_matches('/'));
            std::fs::create_dir(&directory).expect("this test needs root");
            Self { name, directory }
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            if let Err(error) = std::fs::remove_dir(&self.directory) {
                eprintln!("{} is left: {error}", self.directory.display());
            }
        }
    }

    struct Listener(Child);

    impl Listener {
        /// Another process that listens; once it has said so.
        fn start(socket: &Path) -> Self {
            let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 9) or die $!; \
                          $| = 1; print qq(ready\n); sleep 600";
            let mut command = Command::new("perl");
            command.args(["-e", script]).arg(socket).stdout(Stdio::piped());
            let mut child = command.spawn().expect("perl is part of every Debian");
            let mut ready = [0; 6];
            std::io::Read::read_exact(child.stdout.as_mut().expect("its output"), &mut ready).expect("it listens");
            Self(child)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            self.0.kill().expect("it can be killed");
            self.0.wait().expect("it can be waited for");
        }
    }

    #[test]
    fn only_a_listener_of_the_group_is_in_it() {
        let (place, group) = (tempfile::tempdir().expect("a directory"), Group::make());
        let socket = place.path().join("socket");
        let child = Listener::start(&socket);
        let stream = UnixStream::connect(&socket).expect("it listens");
        assert!(
            !listener_is_in_cgroup(&stream, &group.name).expect("looked at"),
            "it is elsewhere"
        );
        std::fs::write(group.directory.join("cgroup.procs"), child.0.id().to_string()).expect("moved");
        assert!(listener_is_in_cgroup(&stream, &group.name).expect("looked at"));
        assert!(!listener_is_in_cgroup(&stream, "/skep-no-such-group").expect("looked at"));
        drop(child);
        assert!(
            !listener_is_in_cgroup(&stream, &group.name).expect("looked at"),
            "it has ended"
        );
    }

    #[test]
    fn this_very_process_is_in_no_group_of_a_workspace() {
        let (place, group) = (tempfile::tempdir().expect("a directory"), Group::make());
        let socket = place.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("bound");
        let stream = UnixStream::connect(&socket).expect("connected");
        assert!(!listener_is_in_cgroup(&stream, &group.name).expect("looked at"));
    }
}
