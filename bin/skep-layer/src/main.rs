//! Reads or writes `/data` of a layer that belongs to a hostile tenant, on the host, for the server.
//!
//! Whatever lies in the layer, nothing outside of it can be reached: the work is done by a child in namespaces of its
//! own (mounts, processes, network, IPC, names), whose root file system holds the layer and nothing else, with the
//! few capabilities over files that it needs, under limits. This process only watches it: it ends the child when its
//! time is over or the server is gone.
//!
//! One [`Job`] in, one [`Report`] out; see `skep-layer-protocol`. Nothing here decides what is packed or refused in
//! an archive: that is `skep-archive`.

mod data;
mod enclosure;
mod failure;
mod system_calls;
mod watch;
mod work;

use std::io::Write;
use std::process::ExitCode;

use skep_layer_protocol::{Job, Report};

use crate::failure::{Failure, Result, Tried};

fn main() -> ExitCode {
    let told = match read_job().and_then(|job| watch::have_done(&job)) {
        Ok(told) => told,
        Err(failure) => tell(&failure.report()),
    };
    match told {
        Told::Done => ExitCode::SUCCESS,
        Told::Failed => ExitCode::FAILURE,
    }
}

/// What the one report said, as the exit code repeats it.
enum Told {
    Done,
    Failed,
}

/// Writes the report, the only thing that ever goes to standard error.
fn tell(report: &Report) -> Told {
    // On a line of its own: what the language's runtime has to say of a death comes before it.
    let written = serde_json::to_string(report)
        .map_err(std::io::Error::from)
        .and_then(|text| std::io::stderr().write_all(format!("\n{text}\n").as_bytes()));
    match (written, report) {
        (Ok(()), Report::Packed(_) | Report::Estimated { .. } | Report::Applied(_)) => Told::Done,
        (_, Report::Failed { .. }) | (Err(_), _) => Told::Failed,
    }
}

fn read_job() -> Result<Job> {
    let mut arguments = std::env::args_os().skip(1);
    let (job, more) = (arguments.next(), arguments.next());
    match (job, more) {
        (Some(job), None) => serde_json::from_slice(job.as_encoded_bytes())
            .map_err(std::io::Error::from)
            .tried("reading the job"),
        _ => Err(Failure::usage("the one argument is a job as JSON")),
    }
}
