//! The process that waits: it starts the worker in its own namespaces and ends it when its time is over, or when
//! the server that asked for the work is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions};
use skep_layer_protocol::{Job, LIFELINE, Limits};

use crate::failure::{Failure, Result, Tried};
use crate::{Told, system_calls, tell, work};

/// Why waiting came to its end.
enum Ending {
    Ended,
    TimeIsOver,
    ServerIsGone,
}

/// Has the job done by a child, and tells how it went. Only the worker's death is told here; else it told itself.
pub(crate) fn have_done(job: &Job) -> Result<Told> {
    let lifeline = system_calls::inherited(LIFELINE).tried("taking the server's lifeline")?;
    system_calls::close_all_from(LIFELINE + 1).tried("closing what is not ours")?;
    limit(&job.limits).tried("limiting what the work may take")?;
    rustix::thread::set_no_new_privs(true).tried("giving up new privileges")?;
    system_calls::enter_new_namespaces().tried("making namespaces")?;
    let (hold, held) = rustix::pipe::pipe().tried("making a pipe")?;
    let Some(child) = system_calls::fork().tried("starting the worker")? else {
        drop((held, lifeline));
        worker(job, hold)
    };
    drop(hold);
    let process = rustix::process::pidfd_open(child, PidfdFlags::empty()).tried("watching the worker")?;
    // The worker begins when this pipe is closed: by then it dies with this process.
    let ending = rustix::io::write(&held, b"!").map_err(io::Error::from);
    let ending = ending.and_then(|_| until_ended(&process, &lifeline, Duration::from_secs(job.limits.seconds)));
    if !matches!(ending, Ok(Ending::Ended)) {
        // It may have ended by itself just now: then there is nothing to kill.
        match rustix::process::pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).tried("ending the worker"),
        }
    }
    let status = reap(child).tried("waiting for the worker")?;
    match ending.tried("watching the worker")? {
        Ending::Ended => {}
        Ending::TimeIsOver => return Err(Failure::time(job.limits.seconds)),
        Ending::ServerIsGone => return Err(Failure::usage("the server is gone")),
    }
    match status.exit_status() {
        Some(0) => Ok(Told::Done),
        Some(1) => Ok(Told::Failed),
        _ => Err(Failure::died(&status)),
    }
}

/// The child's whole life; its report is all that is heard of it.
fn worker(job: &Job, hold: OwnedFd) -> ! {
    let done = begin(hold).and_then(|()| work::work(job));
    let told = match done {
        Ok(report) => tell(&report),
        Err(failure) => tell(&failure.report()),
    };
    std::process::exit(match told {
        Told::Done => 0,
        Told::Failed => 1,
    })
}

/// Dies with its parent from here on. A parent that died before that has closed the pipe without a word.
fn begin(hold: OwnedFd) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).tried("binding the worker to its parent")?;
    match rustix::io::read(&hold, &mut [0_u8; 1]).tried("waiting for the parent")? {
        0 => Err(Failure::usage("the parent is gone")),
        _ => Ok(()),
    }
}

fn limit(limits: &Limits) -> io::Result<()> {
    let both = |limit: u64| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    rustix::process::setrlimit(Resource::Core, both(0))?;
    rustix::process::setrlimit(Resource::As, both(limits.memory_bytes))?;
    rustix::process::setrlimit(Resource::Nofile, both(limits.open_files))?;
    Ok(())
}

fn until_ended(process: &OwnedFd, lifeline: &OwnedFd, limit: Duration) -> io::Result<Ending> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ending::TimeIsOver);
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).map_err(io::Error::other)?,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [
            PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(lifeline.as_fd(), PollFlags::IN),
        ];
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !watched[0].revents().is_empty() {
            return Ok(Ending::Ended);
        }
        if !watched[1].revents().is_empty() {
            return Ok(Ending::ServerIsGone);
        }
    }
}

fn reap(child: Pid) -> io::Result<rustix::process::WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
