//! What is measured, in groups.

mod commands;
mod files;
mod images;
mod server;
mod workspaces;

use futures::future::LocalBoxFuture;

use crate::Result;
use crate::samples::Row;
use crate::stage::Stage;

type Measure = for<'a> fn(&'a Stage) -> LocalBoxFuture<'a, Result<Vec<Row>>>;

/// A group's name on the command line, and how it is measured.
pub(crate) const ROWS: &[(&str, Measure)] = &[
    ("create", |stage| Box::pin(workspaces::create(stage))),
    ("exec", |stage| Box::pin(commands::measure(stage))),
    ("files", |stage| Box::pin(files::measure(stage))),
    ("pull", |stage| Box::pin(images::measure(stage))),
    ("hundred", |stage| Box::pin(server::hundred(stage))),
];
