//! One file for each group of commands; each parses nothing and prints through `output`.

mod accounts;
mod backups;
mod bots;
mod copy;
mod data;
mod exec;
mod files;
mod gpus;
pub(crate) mod images;
mod logs;
mod metrics;
mod operations;
mod place;
mod ports;
mod snapshots;
mod unpack;
pub(crate) mod workspaces;

use clap::CommandFactory;

use crate::arguments::{Arguments, Command, Shared};
use crate::client::{Client, Endpoint};
use crate::failure::Result;
use crate::machine;

/// Does what was typed.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { shared, command } = arguments;
    match command {
        Command::Up(up) => machine::up::run(up).await,
        Command::Down(file) => machine::down::run(file).await,
        Command::Serve(file) => machine::serve::run(file).await,
        Command::Doctor(file) => machine::doctor::run(file, shared.output).await,
        Command::Config(command) => machine::configuration::run(command, shared.output).await,
        Command::Login(login) => accounts::login(&shared, login).await,
        Command::Completion { shell } => {
            // Into memory first: the generator panics when its reader goes away.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "skep", &mut script);
            crate::output::print_text(&String::from_utf8_lossy(&script))
        }
        command => run_against_server(&shared, command).await,
    }
}

async fn run_against_server(shared: &Shared, command: Command) -> Result<()> {
    // An archive can be made where no server is.
    if let Command::Images(crate::arguments::ImagesCommand::Build(build)) = &command
        && build.to_file.is_some()
    {
        return images::build_to_file(shared.output, build.clone()).await;
    }
    let client = Client::new(Endpoint::find(shared)?)?;
    let form = shared.output;
    match command {
        Command::Bots(command) => bots::run(&client, form, command).await,
        Command::Create(create) => workspaces::create(&client, form, create).await,
        Command::Ls(list) => workspaces::list(&client, form, list).await,
        Command::Inspect(named) => workspaces::inspect(&client, form, named).await,
        Command::Start(named) => workspaces::start(&client, form, named).await,
        Command::Stop(stop) => workspaces::stop(&client, form, stop).await,
        Command::Restart(named) => workspaces::restart(&client, form, named).await,
        Command::Rm(remove) => workspaces::remove(&client, form, remove).await,
        Command::Exec(exec) => exec::run(&client, form, exec).await,
        Command::Shell(shell) => exec::shell(&client, shell).await,
        Command::PortForward(forward) => ports::run(&client, &forward).await,
        Command::Cp(copy) => copy::run(&client, form, copy).await,
        Command::Export(export) => data::export(&client, form, export).await,
        Command::Import(import) => data::import(&client, form, import).await,
        Command::Files(command) => files::run(&client, form, command).await,
        Command::Restore(restore) => backups::restore(&client, form, &restore).await,
        Command::Backups(command) => backups::run(&client, form, command).await,
        Command::Images(command) => images::run(&client, form, command).await,
        Command::Gpus => gpus::list(&client, form).await,
        Command::Ops(command) => operations::run(&client, form, command).await,
        Command::Snapshot(command) => snapshots::run(&client, form, command).await,
        Command::Metrics(metrics) => metrics::run(&client, form, metrics).await,
        Command::Logs(logs) => logs::run(&client, logs).await,
        Command::Users(command) => accounts::users(&client, form, command).await,
        Command::Keys(command) => accounts::keys(&client, form, command).await,
        Command::Up(_)
        | Command::Down(_)
        | Command::Serve(_)
        | Command::Doctor(_)
        | Command::Config(_)
        | Command::Login(_)
        | Command::Completion { .. } => unreachable!("done by `run`"),
    }
}
