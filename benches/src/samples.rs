//! Times that were measured, and the rows of the table.

use std::fmt;
use std::time::{Duration, Instant};

/// What was measured for one thing, in milliseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    /// Times what is done, and passes on what comes of it.
    pub(crate) async fn time<T>(&mut self, done: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = done.await;
        self.add(begun.elapsed());
        result
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// So many of a hundred took at most this.
    pub(crate) fn percentile(&self, of_a_hundred: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() * of_a_hundred / 100]
    }

    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// `median (least–most)`.
impl fmt::Display for Samples {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} ({}–{})",
            short(self.median()),
            short(self.least()),
            short(self.most())
        )
    }
}

/// As many digits as tell something.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// What is wanted of a ratio or of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Told for comparison.
    None,
}

impl Goal {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
            Self::None => true,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(out, "≤ {}", short(*limit)),
            Self::AtLeast(limit) => write!(out, "≥ {}", short(*limit)),
            Self::None => Ok(()),
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: String,
    beside: String,
    by_hand: String,
    figure: f64,
    goal: Goal,
}

impl Row {
    /// Times of ours beside times of the same done otherwise; the figure is their ratio.
    pub(crate) fn times(
        what: impl Into<String>,
        ours: &Samples,
        (beside, by_hand): (&str, &Samples),
        goal: Goal,
    ) -> Self {
        Self {
            what: what.into(),
            unit: "ms",
            ours: ours.to_string(),
            beside: beside.into(),
            by_hand: by_hand.to_string(),
            figure: ours.median() / by_hand.median(),
            goal,
        }
    }

    /// Two plain numbers, for example of bytes per second; the figure is their ratio.
    pub(crate) fn numbers(
        what: impl Into<String>,
        unit: &'static str,
        ours: f64,
        (beside, by_hand): (&str, f64),
        goal: Goal,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            ours: short(ours),
            beside: beside.into(),
            by_hand: short(by_hand),
            figure: ours / by_hand,
            goal,
        }
    }

    /// A number that is compared with its goal alone.
    pub(crate) fn alone(what: impl Into<String>, unit: &'static str, ours: f64, goal: Goal) -> Self {
        Self {
            what: what.into(),
            unit,
            ours: short(ours),
            beside: String::new(),
            by_hand: String::new(),
            figure: ours,
            goal,
        }
    }

    pub(crate) fn is_met(&self) -> bool {
        self.goal.is_met(self.figure)
    }
}

/// A row of Markdown.
impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            unit,
            ours,
            beside,
            by_hand,
            goal,
            ..
        } = self;
        let figure = if by_hand.is_empty() {
            String::new()
        } else {
            short(self.figure)
        };
        let missed = if self.is_met() { "" } else { " **missed**" };
        write!(
            out,
            "| {what} | {unit} | {ours} | {beside} | {by_hand} | {figure} | {goal}{missed} |"
        )
    }
}

/// The head of the table.
pub(crate) const HEAD: &str = "| what | unit | Skep | beside | by hand | ratio | goal |\n|---|---|---|---|---|---|---|";
