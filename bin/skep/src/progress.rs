//! How far something is: bars with real totals on a terminal, a line for each step elsewhere.
//!
//! Everything here goes to standard error, so that what a command prints can be used by programs.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::arguments::OutputForm;
use crate::output::printable;

/// Shows the events of one operation or pull.
pub(crate) struct ProgressView {
    kind: Kind,
    last_step: String,
}

enum Kind {
    Quiet,
    Lines,
    Bars {
        all: MultiProgress,
        spinner: ProgressBar,
        layers: HashMap<String, ProgressBar>,
    },
}

impl ProgressView {
    /// Bars on a terminal, lines otherwise; nothing when programs read us.
    pub(crate) fn new(form: OutputForm) -> Self {
        let kind = match form {
            OutputForm::Table if std::io::stderr().is_terminal() => {
                let all = MultiProgress::new();
                let spinner = all.add(ProgressBar::new_spinner());
                spinner.enable_steady_tick(Duration::from_millis(100));
                Kind::Bars {
                    all,
                    spinner,
                    layers: HashMap::new(),
                }
            }
            OutputForm::Table => Kind::Lines,
            OutputForm::Json | OutputForm::Name => Kind::Quiet,
        };
        Self {
            kind,
            last_step: String::new(),
        }
    }

    /// Takes in one event of a stream.
    pub(crate) fn show(&mut self, event: &Value) {
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "pulling" => self.step(&format!("image {}", text("image"))),
            "pull_progress" => self.layers(event),
            "creating" => self.step("making the workspace"),
            "restoring" => self.step("putting preserved data back"),
            "step" => self.step(text("step")),
            "progress" => self.count(event),
            _ => {}
        }
    }

    /// A step of our own.
    pub(crate) fn step(&mut self, step: &str) {
        let step = printable(step);
        if step == self.last_step {
            return;
        }
        match &self.kind {
            Kind::Quiet => {}
            Kind::Lines => eprintln!("{step}"),
            Kind::Bars { spinner, .. } => spinner.set_message(step.clone()),
        }
        self.last_step = step;
    }

    /// It worked: the bars go away.
    pub(crate) fn finish(&mut self) {
        if let Kind::Bars { all, spinner, layers } = &mut self.kind {
            for bar in layers.values() {
                bar.finish_and_clear();
            }
            spinner.finish_and_clear();
            layers.clear();
            // Nothing is drawn any more; a terminal that is gone is no reason to fail.
            if let Err(error) = all.clear() {
                tracing::debug!(%error, "the progress bars could not be cleared");
            }
        }
    }

    /// It did not: the bars stay where they were.
    pub(crate) fn abandon(&mut self) {
        if let Kind::Bars { spinner, layers, .. } = &mut self.kind {
            for bar in layers.values() {
                bar.abandon();
            }
            spinner.finish_and_clear();
        }
    }

    fn layers(&mut self, event: &Value) {
        let Some(shown) = event.get("layers").and_then(Value::as_array) else {
            return;
        };
        let number = |layer: &Value, key: &str| layer.get(key).and_then(Value::as_u64).unwrap_or(0);
        if let Kind::Lines = self.kind {
            let total: u64 = shown.iter().map(|layer| number(layer, "total")).sum();
            let done: u64 = shown.iter().map(|layer| number(layer, "offset")).sum();
            // One line for each tenth: enough for a log, little enough to read.
            let tenth = done.saturating_mul(10).checked_div(total).unwrap_or(10) * 10;
            self.step(&format!("{tenth} % of {}", indicatif::BinaryBytes(total)));
            return;
        }
        let Kind::Bars { all, layers, .. } = &mut self.kind else {
            return;
        };
        for layer in shown {
            let text = |key: &str| layer.get(key).and_then(Value::as_str).unwrap_or_default();
            let bar = layers.entry(text("ref").to_owned()).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(number(layer, "total")).with_style(bytes_style()));
                bar.set_prefix(
                    text("ref")
                        .trim_start_matches("sha256:")
                        .chars()
                        .take(12)
                        .collect::<String>(),
                );
                bar
            });
            bar.set_position(number(layer, "offset"));
            bar.set_message(text("phase").to_owned());
        }
    }

    fn count(&mut self, event: &Value) {
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        let (done, total) = (number("done"), number("total"));
        if let Kind::Bars { all, layers, .. } = &mut self.kind {
            let bar = layers
                .entry(String::new())
                .or_insert_with(|| all.add(ProgressBar::new(total).with_style(bytes_style())));
            bar.set_length(total);
            bar.set_position(done);
        } else if let Some(tenth) = done.saturating_mul(10).checked_div(total) {
            self.step(&format!("{} %", tenth * 10));
        }
    }
}

/// The bar of one transfer of ours: with its total when that is known.
pub(crate) fn transfer_bar(form: OutputForm, total_bytes: Option<u64>, what: &str) -> ProgressBar {
    if form != OutputForm::Table || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match total_bytes {
        Some(total) => ProgressBar::new(total).with_style(bytes_style()),
        None => ProgressBar::new_spinner().with_style(spinner_style()),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_prefix(printable(what));
    bar
}

fn bytes_style() -> ProgressStyle {
    style("{prefix:12} {bar:30} {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {msg}")
}

fn spinner_style() -> ProgressStyle {
    style("{spinner} {prefix} {binary_bytes} {binary_bytes_per_sec}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well-formed")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_templates_are_well_formed() {
        bytes_style();
        spinner_style();
    }

    #[test]
    fn without_a_terminal_a_step_is_told_once() {
        let mut view = ProgressView {
            kind: Kind::Lines,
            last_step: String::new(),
        };
        view.show(&json!({"type": "pull_progress", "layers": [{"ref": "sha256:1", "offset": 5, "total": 10}]}));
        assert_eq!(view.last_step, "50 % of 10 B");
        view.show(&json!({"type": "creating"}));
        assert_eq!(view.last_step, "making the workspace");
    }
}
