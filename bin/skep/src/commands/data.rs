//! `skep export` and `skep import`: all of a workspace's data as one file.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::copy;
use crate::arguments::{ExportArguments, ExportFormat, ImportArguments, OutputForm};
use crate::client::{Client, find_bot, watched};
use crate::failure::{Failure, Result};
use crate::output::{print_json, print_one, print_text};
use crate::progress::transfer_bar;

const ESTIMATE: &str = "x-export-bytes-estimate";

pub(crate) async fn export(client: &Client, form: OutputForm, export: ExportArguments) -> Result<()> {
    let id = find_bot(client, &export.name).await?.id;
    let format = export.format.unwrap_or_else(|| format_of(export.file.as_deref()));
    let file = match export.file {
        Some(file) => file,
        None => format!("{id}-data.{}", format.ending()),
    };
    let mut query = vec![("format", format.ending())];
    if export.strict {
        query.push(("strict", "true"));
    }
    if export.consistent {
        query.push(("consistent", "true"));
    }
    let request = client
        .request(Method::POST, &format!("/bots/{id}/container/data/export"))
        .query(&query);
    let answer = client.send(request).await?;
    let estimate = answer
        .headers()
        .get(ESTIMATE)
        .and_then(|bytes| bytes.to_str().ok()?.parse().ok());
    // How much a compressed archive will be, nobody knows before it is there.
    let total = estimate.filter(|_| format == ExportFormat::Tar);
    let bar = transfer_bar(form, total, "exporting");
    if file == "-" {
        copy::to_stdout(answer, &bar, "sending an archive").await?;
        bar.finish_and_clear();
        return Ok(());
    }
    let bytes = copy::save(answer, Path::new(&file), &bar, "sending an archive").await?;
    bar.finish_and_clear();
    match form {
        OutputForm::Table => print_text(&format!("{file}: {}\n", indicatif::BinaryBytes(bytes))),
        OutputForm::Json | OutputForm::Name => print_one(form, &json!({"file": file, "bytes": bytes}), "file"),
    }
}

pub(crate) async fn import(client: &Client, form: OutputForm, import: ImportArguments) -> Result<()> {
    let id = find_bot(client, &import.named.name).await?.id;
    let mode = if import.replace { "replace" } else { "merge" };
    let request = client
        .request(Method::POST, &format!("/bots/{id}/container/data/import"))
        .query(&[("mode", mode)])
        .header("content-type", "application/octet-stream");
    let (request, bar) = if import.file == "-" {
        let bar = transfer_bar(form, None, "importing");
        (request.body(copy::counted(tokio::io::stdin(), &bar)), bar)
    } else {
        let failed = |error| Failure::local(format!("cannot read {}", import.file), error);
        let file = tokio::fs::File::open(&import.file).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len();
        let bar = transfer_bar(form, Some(length), "importing");
        let request = request.header("content-length", length);
        (request.body(copy::counted(file, &bar)), bar)
    };
    let answer = watched(client, form, (&id, "import"), client.json(request)).await;
    bar.finish_and_clear();
    let answer = answer?;
    match form {
        OutputForm::Json => print_json(&answer),
        OutputForm::Name => print_text(&format!("{id}\n")),
        OutputForm::Table => print_text(&report(&answer)),
    }
}

/// What was imported, and what of it is otherwise than in the archive.
fn report(answer: &Value) -> String {
    let count = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
    let size = indicatif::BinaryBytes(count("bytes"));
    let mut text = format!("{} entries, {size}\n", count("entries"));
    for (field, what) in [
        ("skipped", "devices, pipes and sockets were left out"),
        ("remapped", "entries have an owner of their own now, 65534"),
        ("cleared", "entries lost setuid or setgid"),
    ] {
        match count(field) {
            0 => {}
            many => text.push_str(&format!("{many} {what}\n")),
        }
    }
    text
}

/// By the ending of the file's name.
fn format_of(file: Option<&str>) -> ExportFormat {
    match file {
        Some(file) if file.ends_with(".tar") => ExportFormat::Tar,
        Some(file) if file.ends_with(".tar.zst") || file.ends_with(".tzst") => ExportFormat::TarZst,
        _ => ExportFormat::TarGz,
    }
}

impl ExportFormat {
    fn ending(self) -> &'static str {
        match self {
            Self::TarGz => "tar.gz",
            Self::TarZst => "tar.zst",
            Self::Tar => "tar",
        }
    }
}
