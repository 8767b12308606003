//! `skep export`: all of a workspace's data as one file.

use std::path::Path;

use reqwest::Method;
use serde_json::json;

use super::copy;
use crate::arguments::{ExportArguments, ExportFormat, OutputForm};
use crate::client::{Client, find_bot};
use crate::failure::Result;
use crate::output::{print_one, print_text};
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
