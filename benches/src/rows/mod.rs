//! What is measured, in groups.

mod commands;
mod counts;
mod data;
mod files;
mod images;
mod server;
mod terminal;
mod versions;
mod workspaces;

use futures::future::LocalBoxFuture;
use futures::{StreamExt, TryStreamExt};

use crate::Result;
use crate::samples::Row;
use crate::stage::Stage;

type Measure = for<'a> fn(&'a Stage) -> LocalBoxFuture<'a, Result<Vec<Row>>>;

/// A group's name on the command line, and how it is measured.
pub(crate) const ROWS: &[(&str, Measure)] = &[
    ("create", |stage| Box::pin(workspaces::create(stage))),
    ("exec", |stage| Box::pin(commands::measure(stage))),
    ("files", |stage| Box::pin(files::measure(stage))),
    ("terminal", |stage| Box::pin(terminal::measure(stage))),
    ("versions", |stage| Box::pin(versions::measure(stage))),
    ("data", |stage| Box::pin(data::measure(stage))),
    ("pull", |stage| Box::pin(images::measure(stage))),
    ("hundred", |stage| Box::pin(server::hundred(stage))),
    ("counts", |stage| Box::pin(counts::measure(stage))),
];

/// Things done at a time where many are.
const AT_ONCE: usize = 8;

/// All, so many at a time.
async fn all<'a, T, F>(of: &'a [String], one: impl Fn(&'a String) -> F) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>>,
{
    futures::stream::iter(of)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
