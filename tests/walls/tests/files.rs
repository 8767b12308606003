//! What no file of this repository may be or hold.

use std::fs;
use std::path::{Path, PathBuf};

/// A file that is longer wants to be two.
const LONGEST_FILE_LINES: usize = 600;

/// Names that say nothing: what lies in them belongs to a noun.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("this crate lies two directories deep")
        .to_owned()
}

/// All Rust files that are ours.
fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = ["bin", "crates", "tests"]
        .iter()
        .map(|part| repository().join(part))
        .collect();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of ours can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 30, "only {} files: is this the repository?", found.len());
    found
}

/// Lines of ours that hold one of these words, as `file:line`. The words are written in two parts, so
/// that this file does not find itself.
fn lines_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in rust_files() {
        let text = fs::read_to_string(&file).expect("a file of ours is text");
        for (at, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {}", file.display(), at + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_file_is_too_long() {
    let wrong: Vec<String> = rust_files()
        .iter()
        .map(|file| {
            (
                file,
                fs::read_to_string(file)
                    .expect("a file of ours is text")
                    .lines()
                    .count(),
            )
        })
        .filter(|(_, lines)| *lines > LONGEST_FILE_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(
        wrong.is_empty(),
        "split these (at most {LONGEST_FILE_LINES} lines):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let wrong: Vec<PathBuf> = rust_files()
        .into_iter()
        .filter(|file| {
            file.iter().any(|part| {
                let part = part.to_string_lossy();
                EMPTY_NAMES.contains(&part.trim_end_matches(".rs"))
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn no_test_is_left_out() {
    let wrong = lines_with(&[concat!("#[", "ignore"), concat!("#![", "ignore")]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_to_be_done() {
    let wrong = lines_with(&[
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("// TO", "DO"),
    ]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_licence_is_there() {
    let licence = fs::read_to_string(repository().join("LICENSE")).expect("there is a LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0"));
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut documents: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(|name| repository().join(name))
        .into();
    let docs = fs::read_dir(repository().join("docs")).expect("there is a docs folder");
    documents.extend(docs.map(|entry| entry.expect("an entry can be read").path()));
    let mut wrong = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document is text");
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(link, _)| link)
        {
            let file = link.split('#').next().unwrap_or_default();
            let beside = document.parent().expect("a document lies in a directory");
            if !file.is_empty() && !file.contains("://") && !beside.join(file).exists() {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_documents_show_the_configuration_and_the_error_codes_that_there_are() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).expect("a file of ours is text");
    let shown = read("docs/configuration.md");
    assert!(
        shown.contains(&read("crates/server/src/config/default.toml")),
        "docs/configuration.md is not default.toml"
    );
    let documented = read("docs/http-api.md");
    let codes = read("crates/api/src/error.rs");
    let codes = codes.split("codes! {\n").nth(1).expect("the list of codes is there");
    let missing: Vec<&str> = codes
        .lines()
        .take_while(|line| *line != "}")
        .filter_map(|line| line.split_once(" = \"")?.1.strip_suffix("\","))
        .filter(|code| !documented.contains(&format!("`{code}`")))
        .collect();
    assert!(missing.is_empty(), "docs/http-api.md does not tell of {missing:?}");
}
