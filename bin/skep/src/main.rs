//! `skep`: the server, what starts it on one machine, and the command line client, in one file.
//!
//! The client half knows HTTP and the wire types alone, and treats a server of this host like any
//! other, once it has read where that is. `machine` is the half that touches this host: `up`, `down`, `serve`, `doctor`.

mod arguments;
mod client;
mod commands;
mod failure;
mod image_build;
mod machine;
mod output;
mod progress;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One TLS stack; without a provider the first https:// request would panic.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("skep: a TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("skep: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(commands::run(arguments));
    // A read of standard input cannot be cancelled: do not wait for a key that nobody presses.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
