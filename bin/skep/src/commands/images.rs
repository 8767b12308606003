//! `skep images`.

use std::path::Path;

use futures::TryStreamExt;
use indicatif::ProgressBar;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::arguments::{BuildArguments, ImagesCommand, OutputForm};
use crate::client::{Client, follow_to_the_end};
use crate::failure::{Failure, Result};
use crate::image_build::{self, Recipe};
use crate::output::{self, Column, text};
use crate::progress::{ProgressView, transfer_bar};

const COLUMNS: &[Column] = &[
    Column {
        title: "NAME",
        read: |image| text(image, "name"),
    },
    Column {
        title: "DIGEST",
        read: |image| text(image, "digest").chars().take(19).collect(),
    },
    Column {
        title: "SIZE",
        read: |image| output::bytes(image, "size_bytes"),
    },
    Column {
        title: "IN USE",
        read: |image| text(image, "in_use"),
    },
    Column {
        title: "STORED",
        read: |image| output::time(image, "created_at"),
    },
];

pub(crate) async fn run(client: &Client, form: OutputForm, command: ImagesCommand) -> Result<()> {
    match command {
        ImagesCommand::Ls => output::print_list(form, &client.all_items("/images").await?, "name", COLUMNS),
        ImagesCommand::Pull { image } => {
            pull(client, form, &image).await?;
            output::print_changed(form, &json!({"image": image, "pulled": true}), "image")
        }
        ImagesCommand::Import { file, name } => import_file(client, form, &file, name.as_deref()).await,
        ImagesCommand::Build(build) => {
            let imported = build_and_import(client, form, build).await?;
            print_stored(form, &imported)
        }
        ImagesCommand::Rm { image } => {
            // The reference is the rest of the path: its slashes stay.
            let path: Vec<String> = image.split('/').map(crate::client::encode).collect();
            client
                .json(client.request(Method::DELETE, &format!("/images/{}", path.join("/"))))
                .await?;
            output::print_changed(form, &json!({"image": image, "deleted": true}), "image")
        }
        ImagesCommand::Prune => {
            let pruned = client.post("/images/prune", &json!({})).await?;
            match form {
                OutputForm::Json => output::print_json(&pruned),
                _ => output::print_list(form, items_of(&pruned), "name", COLUMNS),
            }
        }
    }
}

fn items_of(answer: &Value) -> &[Value] {
    answer.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn print_stored(form: OutputForm, answer: &Value) -> Result<()> {
    match form {
        OutputForm::Json => output::print_json(answer),
        _ => output::print_list(form, items_of(answer), "name", COLUMNS),
    }
}

/// Fetches an image, with true totals, and returns `complete`.
pub(crate) async fn pull(client: &Client, form: OutputForm, image: &str) -> Result<Value> {
    let request = client
        .request(Method::POST, "/images/pull")
        .header(reqwest::header::ACCEPT, "text/event-stream")
        .json(&json!({"image": image}));
    let answer = client.send(request).await?;
    follow_to_the_end(answer, &mut ProgressView::new(form)).await
}

async fn import_file(client: &Client, form: OutputForm, file: &Path, name: Option<&str>) -> Result<()> {
    let stored = if file == Path::new("-") {
        let bar = transfer_bar(form, None, "sending");
        send_archive(client, tokio::io::stdin(), &bar, name).await?
    } else {
        send_file(client, form, file, name).await?
    };
    print_stored(form, &stored)
}

async fn send_file(client: &Client, form: OutputForm, file: &Path, name: Option<&str>) -> Result<Value> {
    let failed = |error| Failure::local(format!("cannot read {}", file.display()), error);
    let opened = tokio::fs::File::open(file).await.map_err(failed)?;
    let length = opened.metadata().await.map_err(failed)?.len();
    let bar = transfer_bar(form, Some(length), "sending");
    send_archive(client, opened, &bar, name).await
}

async fn send_archive(
    client: &Client,
    from: impl AsyncRead + Send + 'static,
    bar: &ProgressBar,
    name: Option<&str>,
) -> Result<Value> {
    let counting = bar.clone();
    let stream = ReaderStream::with_capacity(from, 256 << 10).inspect_ok(move |bytes| counting.inc(bytes.len() as u64));
    let request = client
        .request(Method::POST, "/images/import")
        .query(&name.map(|name| ("name", name)).into_iter().collect::<Vec<_>>())
        .header("content-type", "application/x-tar")
        .body(Body::wrap_stream(stream));
    let answer = client.json(request).await;
    bar.finish_and_clear();
    answer
}

/// Makes a base image on this host and stores it in the server.
pub(crate) async fn build_and_import(client: &Client, form: OutputForm, build: BuildArguments) -> Result<Value> {
    let recipe = Recipe::new(&build)?;
    let name = recipe.name.clone();
    let built = make(form, recipe).await?;
    send_file(client, form, built.archive(), Some(&name)).await
}

/// Makes a base image and writes its archive to a file: needs no server.
pub(crate) async fn build_to_file(form: OutputForm, build: BuildArguments) -> Result<()> {
    let Some(to) = build.to_file.clone() else {
        return Err(Failure::Usage("--to-file names no file".into()));
    };
    let recipe = Recipe::new(&build)?;
    let built = make(form, recipe).await?;
    tokio::fs::copy(built.archive(), &to)
        .await
        .map_err(|error| Failure::local(format!("cannot write {}", to.display()), error))?;
    output::print_changed(form, &json!({"file": to}), "file")
}

async fn make(form: OutputForm, recipe: Recipe) -> Result<image_build::Built> {
    let mut view = ProgressView::new(form);
    let (steps, mut told) = tokio::sync::mpsc::channel::<String>(64);
    let building = tokio::task::spawn_blocking(move || {
        image_build::build(&recipe, &mut |step| {
            // Nobody listens only when the command line is gone.
            if steps.blocking_send(step.to_owned()).is_err() {
                tracing::debug!(step, "nobody listens to the build any more");
            }
        })
    });
    while let Some(step) = told.recv().await {
        view.step(&step);
    }
    let built = building
        .await
        .map_err(|error| Failure::Failed(format!("the build was cut short: {error}")))?;
    match &built {
        Ok(_) => view.finish(),
        Err(_) => view.abandon(),
    }
    built
}
