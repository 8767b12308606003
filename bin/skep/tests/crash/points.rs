//! Which points there are, and which of them are tried.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::report::{Report, say};
use crate::runner;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::stage::Stage;

/// Without being told otherwise, one point in so many is tried, in one way.
const PART: u64 = 5;
/// The second of two crashes is at one of the first so many points that the next server passes.
const SECOND_WITHIN: u64 = 16;
/// Between the two crashes in the name of a trial.
const THEN: &str = "-then-";
/// A point that is passed more often in one operation is tried so often.
const OCCURRENCES: usize = 3;
/// After so many trials it is said how many are left.
const TOLD_EVERY: usize = 250;

/// What an armed point does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Ends the server on the spot.
    Abort,
    /// Ends the server on the spot, and the next one at the so manieth point that it passes, whatever it is doing.
    AbortThen(usize),
    /// Lets the step fail.
    Error,
    /// Kills containerd there, starts it a little later and has it collect what nothing refers to.
    Containerd,
}

impl Exit {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Abort | Self::AbortThen(_) => "abort",
            Self::Error => "error",
            Self::Containerd => "hold",
        }
    }

    pub(crate) fn ends_the_server(self) -> bool {
        matches!(self, Self::Abort | Self::AbortThen(_))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort | Self::Error => out.write_str(self.word()),
            Self::Containerd => out.write_str("containerd"),
            Self::AbortThen(then) => write!(out, "abort{THEN}{then}"),
        }
    }
}

/// One scenario stopped at one point.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) scenario: &'static Scenario,
    pub(crate) point: String,
    /// The how manieth time it is passed, from 1.
    pub(crate) occurrence: usize,
    pub(crate) exit: Exit,
    /// Which of the ways this is in which its point can be tried, from 0, and how many there are.
    way: (u64, u64),
}

impl Trial {
    /// Where it is, without what happens there.
    fn place(&self) -> String {
        format!("{}/{}#{}", self.scenario.name, self.point, self.occurrence)
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.place(), self.exit)
    }
}

pub(crate) fn how_to_repeat(trial: &str) -> String {
    format!("CRASH_POINT='{trial}' cargo test --workspace --test crash")
}

/// Which trials are made: `CRASH_POINTS=all`, `CRASH_POINTS=each`, `CRASH_POINT=<trial, the beginning of one, or /<the end
/// of some>>`, or a part by `SEED`.
pub(crate) enum Choice {
    /// Every point in every way.
    All,
    /// The server aborted at every point, and each point in one other way besides.
    Each(u64),
    Beginning(String),
    Ending(String),
    Part(u64),
}

impl Choice {
    pub(crate) fn of_environment() -> Self {
        if let Ok(trial) = std::env::var("CRASH_POINT") {
            return match trial.starts_with('/') {
                true => Self::Ending(trial),
                false => Self::Beginning(trial),
            };
        }
        let points = std::env::var("CRASH_POINTS").ok();
        if points.as_deref() == Some("all") {
            return Self::All;
        }
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .expect("the clock is after 1970")
                .as_secs(),
        };
        match points.as_deref() {
            None => Self::Part(seed),
            Some("each") => Self::Each(seed),
            Some(other) => panic!("CRASH_POINTS={other:?}: \"all\" and \"each\" are known"),
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::All => "crash: all points in all ways".to_owned(),
            Self::Each(seed) => format!("crash: abort at all points, and one other way of each, chosen by SEED={seed}"),
            Self::Beginning(trial) => format!("crash: what begins with {trial:?}"),
            Self::Ending(trial) => format!("crash: what ends with {trial:?}"),
            Self::Part(seed) => format!("crash: one point in {PART}, in one way, chosen by SEED={seed}"),
        }
    }

    /// Whether only one scenario need be looked at.
    pub(crate) fn is_one_scenario(&self) -> bool {
        matches!(self, Self::Beginning(trial) if trial.contains('/'))
    }

    fn needs(&self, scenario: &Scenario) -> bool {
        match self {
            Self::Beginning(trial) if self.is_one_scenario() => trial.split('/').next() == Some(scenario.name),
            _ => true,
        }
    }

    pub(crate) fn takes(&self, trial: &Trial) -> bool {
        match self {
            Self::All => true,
            Self::Beginning(beginning) => trial.to_string().starts_with(beginning),
            Self::Ending(ending) => trial.to_string().ends_with(ending),
            Self::Part(seed) => {
                let number = number_of(*seed, &trial.place());
                let (way, ways) = trial.way;
                number.is_multiple_of(PART) && number / PART % ways == way
            }
            Self::Each(seed) => {
                let (way, ways) = trial.way;
                way == 0 || 1 + number_of(*seed, &trial.place()) % (ways - 1) == way
            }
        }
    }

    /// Where the second crash is after one at this point: as the name of a trial says that is repeated, else by seed.
    fn second_crash(&self, point: &str) -> Exit {
        let named = match self {
            Self::Beginning(trial) => trial.split_once(THEN).and_then(|(_, then)| then.parse().ok()),
            Self::All | Self::Each(_) | Self::Ending(_) | Self::Part(_) => None,
        };
        let seed = match self {
            Self::Part(seed) | Self::Each(seed) => *seed,
            Self::All | Self::Beginning(_) | Self::Ending(_) => 0,
        };
        Exit::AbortThen(named.unwrap_or_else(|| {
            let chosen = 1 + number_of(seed, point) % SECOND_WITHIN;
            usize::try_from(chosen).expect("it is small")
        }))
    }
}

/// The same for the same seed and name, whatever else there is.
fn number_of(seed: u64, name: &str) -> u64 {
    let hash = Sha256::digest(format!("{seed} {name}"));
    hash.iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Runs every scenario once, undisturbed, and reads from the program's own record where it can be stopped.
pub(crate) async fn record_all(choice: &Choice, report: &Report) -> Vec<Trial> {
    let mut stage = Stage::start().await;
    let mut trials = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| choice.needs(scenario)) {
        let passed = runner::undisturbed(&mut stage, scenario)
            .await
            .unwrap_or_else(|failure| panic!("{} fails undisturbed:\n{}", scenario.name, failure.why));
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for line in &passed {
            let (point, can_fail) = match line.split_once(' ') {
                Some((point, _abort_only)) => (point, None),
                None => (line.as_str(), Some(Exit::Error)),
            };
            let is_tried = |beginning: &&str| point.starts_with(beginning);
            if !scenario.points.is_empty() && !scenario.points.iter().any(is_tried) {
                continue;
            }
            let occurrence = seen.entry(point).or_default();
            *occurrence += 1;
            if *occurrence > OCCURRENCES {
                continue;
            }
            report.found_points(1);
            let second = choice.second_crash(&format!("{}/{point}#{occurrence}", scenario.name));
            let of_containerd = (*occurrence == 1 && is_beside_containerd(point)).then_some(Exit::Containerd);
            let exits: Vec<Exit> = [Exit::Abort, second]
                .into_iter()
                .chain(can_fail)
                .chain(of_containerd)
                .collect();
            let ways = exits.len() as u64;
            trials.extend(exits.into_iter().zip(0..).map(|(exit, way)| Trial {
                scenario,
                point: point.to_owned(),
                occurrence: *occurrence,
                exit,
                way: (way, ways),
            }));
        }
    }
    trials
}

/// Between two others containerd is not asked, so that its end there is its end at the next that is not named here.
fn is_beside_containerd(point: &str) -> bool {
    !["host.", "network.", "operation.", "bot.", "pull."]
        .iter()
        .any(|beginning| point.starts_with(beginning))
}

/// What is still to be tried.
pub(crate) struct Queue(Mutex<VecDeque<Trial>>);

impl Queue {
    pub(crate) fn new(trials: Vec<Trial>) -> Self {
        Self(Mutex::new(trials.into()))
    }

    pub(crate) fn next(&self) -> Option<Trial> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !left.is_empty() && left.len().is_multiple_of(TOLD_EVERY) {
            say(&format!("crash: {} trials to go", left.len()));
        }
        left.pop_front()
    }
}
