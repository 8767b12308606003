//! `skep metrics`: one line a sample, as a table that grows with `--watch`.

use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::Value;

use crate::arguments::{MetricsArguments, OutputForm};
use crate::client::{Client, EventReader, find_bot};
use crate::failure::{Failure, Result};
use crate::output::{self, print_text, text};

/// Title, width, and how to read it.
type Field = (&'static str, usize, fn(&Value) -> String);

const FIELDS: &[Field] = &[
    ("TIME", 19, |sample| output::time(sample, "sampled_at")),
    ("CPU", 8, |sample| percent(sample, "/metrics/cpu/usage_percent")),
    ("MEMORY", 11, |sample| bytes(sample, "/metrics/memory/usage_bytes")),
    ("OF", 11, limit),
    ("PIDS", 6, |sample| text(sample, "metrics.pids")),
    ("STORAGE", 11, |sample| bytes(sample, "/metrics/storage/used_bytes")),
    ("RECEIVED", 11, |sample| bytes(sample, "/metrics/network/rx_bytes")),
    ("SENT", 11, |sample| bytes(sample, "/metrics/network/tx_bytes")),
    ("READ", 11, |sample| bytes(sample, "/metrics/io/read_bytes")),
    ("WRITTEN", 11, |sample| bytes(sample, "/metrics/io/write_bytes")),
];

pub(crate) async fn run(client: &Client, form: OutputForm, metrics: MetricsArguments) -> Result<()> {
    let bot = find_bot(client, &metrics.named.name).await?;
    let path = format!("/bots/{}/container/metrics", bot.id);
    if !metrics.watch {
        let sample = client.get(&path).await?;
        if form != OutputForm::Json {
            print_text(&titles())?;
        }
        return print(form, &sample);
    }
    let request = client
        .request(Method::GET, &format!("{path}/stream"))
        .query(&[("interval", humantime::format_duration(metrics.interval).to_string())])
        .header(ACCEPT, "text/event-stream");
    let mut events = EventReader::new(client.send(request).await?.bytes_stream());
    if form != OutputForm::Json {
        print_text(&titles())?;
    }
    while let Some(sample) = events.next().await? {
        print(form, &sample)?;
    }
    // It has no end of its own: the bot was deleted, or the server went down.
    Err(Failure::CutOff("sending metrics"))
}

/// One line for each sample, in JSON too.
fn print(form: OutputForm, sample: &Value) -> Result<()> {
    match form {
        OutputForm::Json => print_text(&format!("{sample}\n")),
        OutputForm::Table | OutputForm::Name => print_text(&line(sample)),
    }
}

fn titles() -> String {
    row(FIELDS.iter().map(|(title, width, _)| ((*title).to_owned(), *width)))
}

fn line(sample: &Value) -> String {
    let is = |field: &str| sample.pointer(field).and_then(Value::as_bool) == Some(true);
    if !is("/status/exists") {
        return "no workspace\n".to_owned();
    }
    let cells = FIELDS
        .iter()
        .map(|(_, width, read)| (output::printable(&read(sample)), *width));
    match is("/status/task_running") {
        true => row(cells),
        false => {
            let storage = bytes(sample, "/metrics/storage/used_bytes");
            match storage.is_empty() {
                true => "stopped\n".to_owned(),
                false => format!("stopped; storage {storage}\n"),
            }
        }
    }
}

fn row(cells: impl Iterator<Item = (String, usize)>) -> String {
    let padded: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", padded.join(" ").trim_end())
}

fn percent(sample: &Value, pointer: &str) -> String {
    let value = sample.pointer(pointer).and_then(Value::as_f64);
    value.map_or_else(String::new, |value| format!("{value:.1}%"))
}

fn bytes(sample: &Value, pointer: &str) -> String {
    let value = sample.pointer(pointer).and_then(Value::as_u64);
    value.map_or_else(String::new, |value| indicatif::BinaryBytes(value).to_string())
}

fn limit(sample: &Value) -> String {
    match sample.pointer("/metrics/memory/limit_bytes").and_then(Value::as_u64) {
        Some(0) => "no limit".to_owned(),
        _ => bytes(sample, "/metrics/memory/limit_bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_sample_is_a_line_below_its_titles() {
        let sample = json!({
            "status": {"exists": true, "task_running": true},
            "sampled_at": "2026-01-01T00:00:05.123Z",
            "metrics": {"cpu": {"usage_percent": 12.34}, "memory": {"usage_bytes": 1048576, "limit_bytes": 0}, "pids": 3}
        });
        let line = line(&sample);
        assert!(line.starts_with("2026-01-01 00:00:05 12.3%"), "{line}");
        let at = titles().find("PIDS").expect("the title");
        assert!(line[at..].starts_with('3'), "{line}");
        assert!(line.contains("1.00 MiB") && line.contains("no limit"), "{line}");
    }

    #[test]
    fn what_does_not_run_or_is_not_there_is_told_so() {
        let stopped = json!({"status": {"exists": true, "task_running": false},
            "metrics": {"storage": {"used_bytes": 1024}}});
        assert_eq!(line(&stopped), "stopped; storage 1.00 KiB\n");
        let none = json!({"status": {"exists": false, "task_running": false}, "metrics": {}});
        assert_eq!(line(&none), "no workspace\n");
    }
}
