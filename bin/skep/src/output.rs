//! What is printed on standard output: a table for people, the server's JSON, or bare names.

use std::io::{IsTerminal, Write};

use serde_json::Value;
use skep_names::steers_a_terminal;
use unicode_width::UnicodeWidthStr;

use crate::arguments::OutputForm;
use crate::failure::{Failure, Result};

/// One column of a table: its title, and how to read it from the server's JSON.
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) read: fn(&Value) -> String,
}

/// Prints a list in the form that was asked for. `name` is the field that `-o name` prints.
pub(crate) fn print_list(form: OutputForm, items: &[Value], name: &str, columns: &[Column]) -> Result<()> {
    match form {
        OutputForm::Json => print_json(&Value::Array(items.to_vec())),
        OutputForm::Name => {
            let names: Vec<String> = items.iter().map(|item| text(item, name)).collect();
            print_text(
                &names
                    .iter()
                    .map(|name| format!("{}\n", printable(name)))
                    .collect::<String>(),
            )
        }
        OutputForm::Table => print_text(&table(items, columns, colours_are_wanted())),
    }
}

/// Prints one thing: as JSON, its name, or one field a line.
pub(crate) fn print_one(form: OutputForm, item: &Value, name: &str) -> Result<()> {
    match form {
        OutputForm::Json => print_json(item),
        OutputForm::Name => print_text(&format!("{}\n", printable(&text(item, name)))),
        OutputForm::Table => {
            let mut lines = Vec::new();
            fields("", item, &mut lines);
            let width = lines.iter().map(|(key, _)| key.width()).max().unwrap_or(0);
            print_text(
                &lines
                    .iter()
                    .map(|(key, value)| format!("{key:width$}  {value}\n"))
                    .collect::<String>(),
            )
        }
    }
}

/// What was changed: as JSON, or the one name of it.
pub(crate) fn print_changed(form: OutputForm, item: &Value, name: &str) -> Result<()> {
    match form {
        OutputForm::Json => print_json(item),
        OutputForm::Table | OutputForm::Name => print_text(&format!("{}\n", printable(&text(item, name)))),
    }
}

/// The same where a person who sees no failure needs no word.
pub(crate) fn print_for_programs(form: OutputForm, item: &Value, name: &str) -> Result<()> {
    match form {
        OutputForm::Table => Ok(()),
        OutputForm::Json | OutputForm::Name => print_changed(form, item, name),
    }
}

/// JSON as the server sent it, made readable.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    print_text(&json_text(value))
}

/// With letters that could steer a terminal as JSON's own escapes, which stand for the same.
fn json_text(value: &Value) -> String {
    let mut text = String::new();
    for letter in format!("{value:#}\n").chars() {
        match letter {
            '\n' => text.push(letter),
            // None of them is beyond the 16 bits of an escape.
            letter if steers_a_terminal(letter) => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => text.push(letter),
        }
    }
    text
}

/// Text on standard output. A reader that went away (`skep ls | head -1`) is not a failure.
pub(crate) fn print_text(text: &str) -> Result<()> {
    match std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .and_then(|()| std::io::stdout().flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::local("cannot print", error)),
        _ => Ok(()),
    }
}

/// A line for a person who reads along. Whoever stopped reading (`skep down | head -1`) does not end the work.
pub(crate) fn tell(line: std::fmt::Arguments<'_>) {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) | Err(_) => {}
    }
}

/// A line of what went wrong and ended nothing, on standard error. Names and reasons in it are tenants'.
pub(crate) fn warn(line: std::fmt::Arguments<'_>) {
    match writeln!(std::io::stderr(), "skep: {}", printable_lines(&line.to_string())) {
        Ok(()) | Err(_) => {}
    }
}

/// A field as text; absent and null are empty. `a.b` reads below.
pub(crate) fn text(item: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(item, |value, part| value.get(part));
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Bytes for people.
pub(crate) fn bytes(item: &Value, field: &str) -> String {
    item.get(field)
        .and_then(Value::as_u64)
        .map_or_else(String::new, |count| indicatif::BinaryBytes(count).to_string())
}

/// A time for people: to the second.
pub(crate) fn time(item: &Value, field: &str) -> String {
    let text = text(item, field);
    match text.get(..19) {
        Some(seconds) if text.starts_with(|digit: char| digit.is_ascii_digit()) && !text.starts_with("0001") => {
            seconds.replace('T', " ")
        }
        _ => String::new(),
    }
}

fn colours_are_wanted() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What comes from a workspace or from other users must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if steers_a_terminal(letter) { '\u{fffd}' } else { letter })
        .collect()
}

/// The same for a text of several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

fn table(items: &[Value], columns: &[Column], colours: bool) -> String {
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| columns.iter().map(|column| printable(&(column.read)(item))).collect())
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            rows.iter()
                .map(|row| row[at].width())
                .max()
                .unwrap_or(0)
                .max(column.title.width())
        })
        .collect();
    let mut printed = String::new();
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    add_row(&mut printed, &titles, &widths, false);
    for row in &rows {
        add_row(&mut printed, row, &widths, colours);
    }
    printed
}

fn add_row(printed: &mut String, cells: &[String], widths: &[usize], colours: bool) {
    for (at, cell) in cells.iter().enumerate() {
        match colour_of(cell).filter(|_| colours) {
            Some(colour) => printed.push_str(&format!("\u{1b}[{colour}m{cell}\u{1b}[0m")),
            None => printed.push_str(cell),
        }
        if at + 1 < cells.len() {
            printed.push_str(&" ".repeat(widths[at] - cell.width() + 3));
        }
    }
    while printed.ends_with(' ') {
        printed.pop();
    }
    printed.push('\n');
}

/// States only, by their words: green is well, yellow moves, red needs a person.
fn colour_of(cell: &str) -> Option<u8> {
    match cell {
        "running" | "ready" | "succeeded" | "ok" => Some(32),
        "creating" | "deleting" | "queued" | "stopped" | "warn" => Some(33),
        "error" | "failed" | "missing" | "cancelled" => Some(31),
        _ => None,
    }
}

fn fields(prefix: &str, item: &Value, lines: &mut Vec<(String, String)>) {
    let Value::Object(map) = item else {
        let shown = match item {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        lines.push((prefix.to_owned(), printable(&shown)));
        return;
    };
    for (key, value) in map {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        fields(&name, value, lines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: &[Column] = &[
        Column {
            title: "NAME",
            read: |item| text(item, "name"),
        },
        Column {
            title: "STATUS",
            read: |item| text(item, "container.status"),
        },
    ];

    #[test]
    fn columns_line_up_also_with_wide_letters() {
        let items = [
            json!({"name": "蜂巣", "container": {"status": "running"}}),
            json!({"name": "plain", "container": null}),
        ];
        assert_eq!(
            table(&items, COLUMNS, false),
            "NAME    STATUS\n蜂巣    running\nplain\n"
        );
    }

    #[test]
    fn colours_are_for_states_and_only_when_wanted() {
        let items = [json!({"name": "a", "container": {"status": "running"}})];
        assert!(!table(&items, COLUMNS, false).contains('\u{1b}'));
        assert!(table(&items, COLUMNS, true).contains("\u{1b}[32mrunning\u{1b}[0m"));
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let items = [json!({"name": "\u{1b}[2Jgone"})];
        assert!(!table(&items, COLUMNS, false).contains('\u{1b}'));
    }

    #[test]
    fn neither_can_json_which_stays_what_it_is() {
        let item = json!({"name": "\u{9b}31m \u{7f} \u{1b}[2J\n\t \u{202e}grüße"});
        let text = json_text(&item);
        assert!(
            !text.chars().any(|letter| letter != '\n' && steers_a_terminal(letter)),
            "{text:?}"
        );
        assert!(
            text.contains("\\u009b31m \\u007f \\u001b[2J") && text.contains("\\u202egrüße"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), item);
    }

    #[test]
    fn letters_that_turn_a_line_around_are_not_printed() {
        assert_eq!(printable("a\u{202e}b\u{2028}c\u{9b}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
    }

    #[test]
    fn a_failure_cannot_either_and_keeps_its_lines() {
        assert_eq!(
            printable_lines("a \u{1b}]52;c;eA==\u{7}\nb\r"),
            "a \u{fffd}]52;c;eA==\u{fffd}\nb\u{fffd}"
        );
    }

    #[test]
    fn the_time_of_something_that_never_was_is_empty() {
        assert_eq!(time(&json!({"at": "0001-01-01T00:00:00Z"}), "at"), "");
        assert_eq!(
            time(&json!({"at": "2026-01-02T03:04:05.678Z"}), "at"),
            "2026-01-02 03:04:05"
        );
    }
}
