//! `make bench`: Skep and the same done by hand, side by side in one run, as a table of Markdown.
//!
//! Times are medians with the least and the most, of machines that differ: only the ratios tell something, and they
//! are of one run. Needs root and what `scripts/install test` installs. `make bench ROWS="exec pull"` measures some.

mod bridge;
mod by_hand;
mod process;
mod rows;
mod samples;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use rows::ROWS;
use samples::{HEAD, Row};
use stage::Stage;

/// For by-hand work and requests that cannot go on without it.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: skep-bench PROGRAM [ROWS...], of: {}", names().join(" "));
        return ExitCode::from(2);
    };
    let wanted: Vec<String> = arguments.collect();
    if let Some(unknown) = wanted.iter().find(|name| !names().contains(&name.as_str())) {
        eprintln!("there are no rows {unknown}, only: {}", names().join(" "));
        return ExitCode::from(2);
    }
    match measure(PathBuf::from(program), &wanted).await {
        Ok(rows) if rows.iter().all(Row::is_met) => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("some goals were missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the benchmark ended early: {error}");
            ExitCode::FAILURE
        }
    }
}

fn names() -> Vec<&'static str> {
    ROWS.iter().map(|(name, _)| *name).collect()
}

async fn measure(program: PathBuf, wanted: &[String]) -> Result<Vec<Row>> {
    let stage = Stage::start(program).await?;
    println!("{}\n\n{HEAD}", machine());
    let mut rows = Vec::new();
    for (name, measure) in ROWS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        for row in measure(&stage).await? {
            println!("{row}");
            rows.push(row);
        }
    }
    Ok(rows)
}

fn machine() -> String {
    let kernel = rustix::system::uname();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Linux {}, {processors} processors, {} MiB of memory",
        kernel.release().to_string_lossy(),
        rustix::system::sysinfo().totalram / (1 << 20)
    )
}
