//! How a process and all that it started is ended: SIGTERM, two seconds, SIGKILL.

use std::fs;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::log;
use crate::system;

const GRACE: Duration = Duration::from_secs(2);
/// A terminal's processes must be gone within 2 s of its end, the killing included.
const TERMINAL_GRACE: Duration = Duration::from_millis(1500);

/// How long those are killed anew who fork while they are.
const KILL_AGAIN_FOR: Duration = Duration::from_millis(400);

/// Whom to end: a process group, or all groups of a session (an interactive shell makes one group per job).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Group(u32),
    Session(u32),
}

impl Target {
    /// Ends everybody, and returns when nobody is left (or SIGKILL has been sent to all who were).
    pub(crate) async fn end(self) {
        let grace = match self {
            Self::Group(_) => GRACE,
            Self::Session(_) => {
                // Interactive shells ignore SIGTERM, and obey SIGHUP.
                self.signal(Signal::HUP.as_raw());
                TERMINAL_GRACE
            }
        };
        self.signal(Signal::TERM.as_raw());
        // A stopped process takes its signals only when it goes on.
        self.signal(Signal::CONT.as_raw());
        if !self.gone_within(grace).await {
            self.kill_all().await;
        }
    }

    /// Again and again: what is forked while the others are looked through is nobody's yet.
    async fn kill_all(self) {
        let until = Instant::now() + KILL_AGAIN_FOR;
        while self.signal(Signal::KILL.as_raw()) && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nobody is left, at most as long as [`Target::end`] takes to kill whoever is.
    pub(crate) async fn gone(self) {
        if !self.gone_within(GRACE + Duration::from_millis(200)).await {
            log::tell!("{self:?} has processes that do not end");
        }
    }

    async fn gone_within(self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut pause = Duration::from_millis(2);
        while self.signal(0) {
            if Instant::now() >= until {
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        true
    }

    /// Sends `signal` (0: only asks) and tells whether anybody was there to get it.
    pub(crate) fn signal(self, signal: i32) -> bool {
        match self {
            Self::Group(group) => signal_group(group, signal),
            Self::Session(session) => {
                let mut anybody = false;
                // Each at once: one that forks in a circle is another process by the time all are looked through.
                each_process(|process| {
                    let is_one = process.session == session.cast_signed() && process.state != ZOMBIE;
                    anybody |= is_one && system::kill(process.pid, signal) != Err(Errno::SRCH);
                });
                anybody
            }
        }
    }
}

/// Who may still be in the group or the session of a process that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftBehind {
    pub(crate) target: Target,
    /// When it ended, in clock ticks since the boot.
    pub(crate) leader_ended: u64,
}

impl LeftBehind {
    /// As [`Target::end`], if there is anybody.
    pub(crate) async fn end(self) {
        if self.is_there() {
            self.target.end().await;
        }
    }

    /// Its number is free for others once nobody is left. But a process comes into a session by its birth alone: one that
    /// was born while the leader lived shows that the number still is this one's.
    fn is_there(self) -> bool {
        let (Target::Group(leader) | Target::Session(leader)) = self.target;
        let mut is_there = false;
        each_process(|process| {
            is_there |= process.session == leader.cast_signed()
                && process.state != ZOMBIE
                && process.began <= self.leader_ended;
        });
        is_there
    }
}

fn signal_group(group: u32, signal: i32) -> bool {
    system::kill(-group.cast_signed(), signal) != Err(Errno::SRCH)
}

/// There is nothing to end about one.
const ZOMBIE: u8 = b'Z';

pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) state: u8,
    pub(crate) session: i32,
    /// 0: none.
    pub(crate) terminal: i32,
    /// In clock ticks since the boot.
    pub(crate) began: u64,
}

/// Gives each process that `/proc` shows, as it is read. One that ends meanwhile is left out.
pub(crate) fn each_process(mut take: impl FnMut(Process)) {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => {
            log::tell!("read /proc: {error}");
            return;
        }
    };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read(format!("/proc/{pid}/stat")).ok();
        if let Some(process) = stat.and_then(|stat| parse_stat(pid, &stat)) {
            take(process);
        }
    }
}

/// `pid (name) state ppid pgrp session tty_nr … starttime …`; the name may hold anything, brackets and spaces too.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let fields: Vec<&[u8]> = stat[after_name..]
        .split(|&byte| byte == b' ')
        .filter(|field| !field.is_empty())
        .collect();
    let text = |index: usize| std::str::from_utf8(fields.get(index)?).ok();
    Some(Process {
        pid,
        state: *fields.first()?.first()?,
        session: text(3)?.parse().ok()?,
        terminal: text(4)?.parse().ok()?,
        began: text(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_is_read_over() {
        let stat = b"7 (a) S 1) R 1 7 42 34816 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 9876 4096 1";
        let process = parse_stat(7, stat).expect("parsed");
        assert_eq!((process.state, process.session, process.terminal), (b'R', 42, 34816));
        assert_eq!(process.began, 9876);
    }

    #[tokio::test]
    async fn a_session_that_began_after_the_leaders_end_is_anothers() {
        let before = system::ticks_since_boot();
        // So that it begins in a later tick.
        std::thread::sleep(Duration::from_millis(50));
        let mut other = std::process::Command::new("setsid")
            .args(["sleep", "100"])
            .spawn()
            .expect("setsid");
        let session = other.id();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !Target::Session(session).signal(0) {
            assert!(std::time::Instant::now() < deadline, "no session begins");
            std::thread::sleep(Duration::from_millis(5));
        }
        for target in [Target::Group(session), Target::Session(session)] {
            let earlier = LeftBehind {
                target,
                leader_ended: before,
            };
            assert!(!earlier.is_there(), "{target:?}");
            earlier.end().await;
            let now = LeftBehind {
                target,
                leader_ended: system::ticks_since_boot(),
            };
            assert!(now.is_there(), "{target:?} was ended");
        }
        other.kill().expect("killed");
        other.wait().expect("ended");
    }
}
