//! The brake on guessing passwords. Counts live in memory: a restart forgives, and that is cheap
//! to nobody but the owner of the server.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Failures that a pair of name and address has in a window.
const FAILURES: usize = 10;
/// Failures that an address has in a window, for whatever names, each with a line of its own in the audit trail.
const OF_AN_ADDRESS: usize = 100;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// What a login waits for whose name others guess at: slowed, not locked out.
const SLOWED: Duration = Duration::from_secs(1);
/// Pairs, and addresses, that are remembered; the stalest go first.
const PAIRS: usize = 20_000;

/// Whether a login may be tried now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At once.
    Go,
    /// After this time.
    Slowed(Duration),
    /// Not before this time is over.
    Refused(Duration),
}

/// A name by its digest: a stranger chooses how long the name is, and 20,000 of them would fill the memory.
type NameDigest = [u8; 32];

/// Stands for all names that failed from an address. It is the digest of none that can be found.
const ANY_NAME: NameDigest = [0; 32];

/// When a pair of name and address failed, or an address with any name.
type Failures = HashMap<(NameDigest, IpAddr), Vec<Instant>>;

/// Failures by name and address.
#[derive(Default)]
pub struct LoginThrottle {
    failures: Mutex<Failures>,
}

impl LoginThrottle {
    /// What a login for `name` from `from` may do now.
    pub fn ask(&self, name: &str, from: IpAddr) -> Verdict {
        self.ask_at(name, from, Instant::now())
    }

    /// Counts a failure.
    pub fn failed(&self, name: &str, from: IpAddr) {
        self.failed_at(name, from, Instant::now());
    }

    /// Whether so many logins failed from an address, for whatever names, that more of them are not worth a line each.
    pub fn is_flooding(&self, from: IpAddr) -> bool {
        self.is_flooding_at(from, Instant::now())
    }

    /// Forgets the failures of a pair.
    pub fn succeeded(&self, name: &str, from: IpAddr) {
        self.map().remove(&(digest(name), from));
    }

    fn map(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_at(&self, name: &str, from: IpAddr, now: Instant) -> Verdict {
        let name = digest(name);
        let map = self.map();
        let recent = |times: &[Instant]| recent(times, now);
        if let Some(times) = map.get(&(name, from))
            && recent(times) >= FAILURES
        {
            let first = times[times.len() - FAILURES];
            return Verdict::Refused(WINDOW.saturating_sub(now.duration_since(first)));
        }
        let elsewhere: usize = map
            .iter()
            .filter(|((other, address), _)| *other == name && *address != from)
            .map(|(_, times)| recent(times))
            .sum();
        if elsewhere >= FAILURES {
            Verdict::Slowed(SLOWED)
        } else {
            Verdict::Go
        }
    }

    fn is_flooding_at(&self, from: IpAddr, now: Instant) -> bool {
        let map = self.map();
        let failed = map.get(&key(ANY_NAME, from));
        failed.is_some_and(|times| recent(times, now) >= OF_AN_ADDRESS)
    }

    fn failed_at(&self, name: &str, from: IpAddr, now: Instant) {
        let mut map = self.map();
        map.retain(|_, times| times.last().is_some_and(|at| now.duration_since(*at) < WINDOW));
        for name in [digest(name), ANY_NAME] {
            if map.len() >= PAIRS
                && let Some(stalest) = map
                    .iter()
                    .min_by_key(|(_, times)| times.last().copied())
                    .map(|(key, _)| *key)
            {
                map.remove(&stalest);
            }
            let times = map.entry(key(name, from)).or_default();
            times.retain(|at| now.duration_since(*at) < WINDOW);
            times.push(now);
        }
    }
}

fn recent(times: &[Instant], now: Instant) -> usize {
    times.iter().filter(|at| now.duration_since(**at) < WINDOW).count()
}

/// Whoever has an address of version 6 has all of its /64: they count as one where any name does.
fn key(name: NameDigest, from: IpAddr) -> (NameDigest, IpAddr) {
    match from {
        IpAddr::V6(address) if name == ANY_NAME => {
            let network = address.to_bits() >> 64 << 64;
            (name, IpAddr::V6(network.into()))
        }
        from => (name, from),
    }
}

/// Of the name in whatever case of letters, as the store compares it.
fn digest(name: &str) -> NameDigest {
    Sha256::digest(name.to_lowercase()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn ten_failures_refuse_the_pair_and_slow_the_name() {
        let throttle = LoginThrottle::default();
        let now = Instant::now();
        for _ in 0..9 {
            throttle.failed_at("ada", HERE, now);
        }
        assert_eq!(throttle.ask_at("ADA", HERE, now), Verdict::Go);
        throttle.failed_at("Ada", HERE, now);
        assert_eq!(throttle.ask_at("ada", HERE, now), Verdict::Refused(WINDOW));
        assert_eq!(throttle.ask_at("ada", THERE, now), Verdict::Slowed(SLOWED));
        assert_eq!(throttle.ask_at("bob", HERE, now), Verdict::Go);
        assert_eq!(throttle.ask_at("ada", HERE, now + WINDOW), Verdict::Go);
    }

    #[test]
    fn a_success_resets_the_count() {
        let throttle = LoginThrottle::default();
        for _ in 0..10 {
            throttle.failed("ada", HERE);
        }
        throttle.succeeded("ada", HERE);
        assert_eq!(throttle.ask("ada", HERE), Verdict::Go);
    }

    #[test]
    fn an_address_that_fails_a_hundred_times_in_a_minute_is_flooding_and_not_refused() {
        let now = Instant::now();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (one, same, other) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"),
        ] {
            let throttle = LoginThrottle::default();
            for number in 0..OF_AN_ADDRESS {
                assert!(!throttle.is_flooding_at(address(same), now), "{number}");
                throttle.failed_at(&number.to_string(), address(one), now);
                throttle.succeeded("bob", address(one));
            }
            assert!(throttle.is_flooding_at(address(same), now));
            assert_eq!(throttle.ask_at("ada", address(same), now), Verdict::Go);
            assert!(!throttle.is_flooding_at(address(other), now));
            assert!(!throttle.is_flooding_at(address(same), now + WINDOW));
        }
    }

    #[test]
    fn what_is_kept_of_a_name_is_short_and_forgotten_with_its_window() {
        let throttle = LoginThrottle::default();
        let now = Instant::now();
        for number in 0..200 {
            throttle.failed_at(&format!("{number}{}", "n".repeat(100_000)), HERE, now);
        }
        // A key holds nothing on the heap, so its size is all there is of it.
        let keys: usize = throttle.map().keys().map(std::mem::size_of_val).sum();
        assert!(keys <= 200 * 64, "{keys} bytes of names");
        throttle.failed_at("ada", HERE, now + WINDOW);
        assert_eq!(throttle.map().len(), 2, "what no longer counts is kept");
    }
}
