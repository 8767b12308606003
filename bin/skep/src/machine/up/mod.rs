//! `skep up`: from nothing to a workspace that answers, in the foreground until Ctrl-C.

mod base_image;
mod demo;

use std::time::Instant;

use skep_runtime::containerd::daemon::Daemon;
use skep_server::config::{Config, Origin, Settings};

use super::running::{self, Running, Signals};
use super::{backend, configuration};
use crate::arguments::UpArguments;
use crate::failure::{Failure, Result};
use crate::output::{tell, warn};

pub(crate) async fn run(up: UpArguments) -> Result<()> {
    let started = Instant::now();
    let (settings, mut config) = configuration::read(&up.file)?;
    if is_default(&settings, "log", "level") {
        // A person reads along: only what is wrong.
        config.log.level = "warn".into();
    }
    configuration::start_logging(&config.log)?;
    let mut signals = Signals::new()?;
    running::raise_open_files()?;
    let data_root = running::claim(&config, "skep up")?;
    let which = backend::which(&config, data_root.path(), &data_root.id().to_string(), true);
    // Kept until the end: it reaps a containerd that ends before us.
    let _daemon = start_daemon(&which).await?;
    let running = running::start(config.clone(), data_root, &which).await?;
    let prepared = tokio::select! {
        prepared = base_image::ensure(&config, &running) => prepared,
        () = signals.next() => Err(interrupted()),
    };
    let running = match prepared {
        Ok(base_image::Outcome::There) => running,
        Ok(base_image::Outcome::BuiltHere) => restart(running, config, &which).await?,
        Err(failure) => return give_up(running, &mut signals, failure).await,
    };
    tokio::select! {
        shown = show_demo(&up, &running) => shown,
        () = signals.next() => return give_up(running, &mut signals, interrupted()).await,
    }
    tell(format_args!("\nReady after {:.1} s.", started.elapsed().as_secs_f64()));
    running.tell_sign_in();
    tell_what_next(&running, up.no_demo);
    running.until_told().await?;
    tell(format_args!(
        "
The server has ended; workspaces run on. `skep down` stops them."
    ));
    Ok(())
}

fn is_default(settings: &Settings, section: &'static str, name: &'static str) -> bool {
    settings
        .get(section, name)
        .is_none_or(|setting| setting.origin == Origin::Default)
}

fn interrupted() -> Failure {
    Failure::Failed("interrupted; what was begun is taken up by the next `skep up`".into())
}

/// Ends the server in order, at once on a second signal, and passes on why. A password that was shown to nobody would be
/// lost.
async fn give_up(running: Running, signals: &mut Signals, failure: Failure) -> Result<()> {
    running.tell_sign_in();
    tokio::select! {
        () = running.end() => {}
        () = signals.next() => {}
    }
    Err(failure)
}

async fn start_daemon(which: &backend::Which) -> Result<Option<Daemon>> {
    let daemon = backend::start_daemon(which).await?;
    match &daemon {
        Some(daemon) if daemon.already_running => {
            tell(format_args!("containerd of ours runs already (process {})", daemon.pid))
        }
        Some(daemon) => tell(format_args!("containerd of ours is started (process {})", daemon.pid)),
        None => tell(format_args!(
            "containerd at {} is used, as configured",
            which.socket().display()
        )),
    }
    Ok(daemon)
}

/// What is wrong with one workspace, which its people may have changed as they liked, keeps no server from the others.
async fn show_demo(up: &UpArguments, running: &Running) {
    if up.no_demo {
        return;
    }
    let shown = async { demo::show(&running.client()?).await };
    if let Err(failure) = shown.await {
        warn(format_args!("the first workspace cannot be shown: {failure}"));
    }
}

/// A new default image counts from a start on; workspaces are not touched by it.
async fn restart(running: Running, config: Config, which: &backend::Which) -> Result<Running> {
    running.end().await;
    let data_root = running::claim(&config, "skep up")?;
    running::start(config, data_root, which).await
}

/// As this program was called: it may not be in the `PATH`.
fn own_name() -> String {
    std::env::args().next().unwrap_or_else(|| "skep".to_owned())
}

fn tell_what_next(running: &Running, no_demo: bool) {
    tell(format_args!(
        "
  server     {server}      API: {server}/api/docs
  data root  {root}
  admin key  {key} (the command line on this host uses it by itself)

Try in another terminal:
  {skep} ls                              the workspaces
  {skep} shell {demo}                      a shell in one
  {skep} exec {demo} -- apt-get update     a command
  {skep} cp README.md {demo}:/data/        a file into it
  {skep} create my-bot                   another one

Ctrl-C ends the server and leaves workspaces running; `{skep} down` stops everything, deleting nothing.",
        skep = own_name(),
        demo = if no_demo { "NAME" } else { "demo" },
        server = running.address(),
        root = running.server.data_root().path().display(),
        key = running.server.admin_key().display(),
    ));
}
