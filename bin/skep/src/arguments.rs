//! What can be typed: the whole surface of the command line, and nothing that does not work yet.

mod data;
mod ports;
mod snapshots;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use data::{ExportArguments, ExportFormat, ImportArguments, RestoreArguments};
pub(crate) use ports::{PortForwardArguments, PortPair};
pub(crate) use snapshots::SnapshotCommand;

/// Persistent, isolated Linux workspaces for bots.
#[derive(Debug, Parser)]
#[command(name = "skep", version, propagate_version = true, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shared {
    /// The server's address, for example http://127.0.0.1:8080
    #[arg(long, global = true, env = "SKEP_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// A token or an API key
    #[arg(
        long,
        global = true,
        env = "SKEP_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// The form of what is printed
    #[arg(short, long, global = true, value_enum, default_value_t = OutputForm::Table)]
    pub(crate) output: OutputForm,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// For people.
    Table,
    /// For programs: the server's own JSON.
    Json,
    /// Only names or ids, one a line.
    Name,
}

/// Where the server's configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigurationFile {
    /// The configuration file [default: skep.toml here, else /etc/skep/skep.toml, else none]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything on this machine: containerd, the server, a first workspace
    Up(UpArguments),
    /// Stop workspaces, server and our containerd on this machine; deletes nothing
    Down(ConfigurationFile),
    /// Run the server alone, in the foreground
    Serve(ConfigurationFile),
    /// Look at this machine and say what is missing
    Doctor(ConfigurationFile),
    /// Show or check the server's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Sign in and keep the token
    Login(LoginArguments),
    /// The bots
    #[command(subcommand)]
    Bots(BotsCommand),
    /// Make a bot with its workspace
    Create(CreateArguments),
    /// List the workspaces
    Ls(ListArguments),
    /// Everything about one workspace
    Inspect(Named),
    /// Start a workspace
    Start(Named),
    /// Stop a workspace; it stays stopped
    Stop(StopArguments),
    /// Stop and start a workspace
    Restart(Named),
    /// Delete a workspace with all its files; `bots rm` deletes the bot with it
    Rm(RemoveArguments),
    /// Run a command in a workspace
    Exec(ExecArguments),
    /// Open a shell in a workspace
    Shell(ShellArguments),
    /// Listen here and connect to ports of a workspace's loopback, until Ctrl-C
    PortForward(PortForwardArguments),
    /// Copy files in or out: NAME:/path on one side; - is a tar stream
    Cp(CopyArguments),
    /// Save all of a workspace's data as one archive, while it runs
    Export(ExportArguments),
    /// Put an archive into a workspace's data, all or nothing
    Import(ImportArguments),
    /// Files of a workspace
    #[command(subcommand)]
    Files(FilesCommand),
    /// Put preserved data back into a workspace, all or nothing
    Restore(RestoreArguments),
    /// Data that was kept when its workspace was deleted
    #[command(subcommand)]
    Backups(BackupsCommand),
    /// Images that are stored
    #[command(subcommand)]
    Images(ImagesCommand),
    /// List the GPUs and other devices that workspaces can be given
    Gpus,
    /// Operations: what was done to a workspace, and how it went
    #[command(subcommand)]
    Ops(OperationsCommand),
    /// Versions of a workspace: keep one, go back to one
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// What a workspace uses: processors, memory, storage, network
    Metrics(MetricsArguments),
    /// The log of a workspace
    Logs(LogsArguments),
    /// Accounts (administrators)
    #[command(subcommand)]
    Users(UsersCommand),
    /// API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    pub(crate) file: ConfigurationFile,
    /// Do not make the bot `demo`
    #[arg(long)]
    pub(crate) no_demo: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print what is in force and where each value comes from
    Show(ConfigurationFile),
    /// Say whether the configuration is valid
    Check(ConfigurationFile),
    /// Print a file with every key at its default, each with what it does
    Default,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArguments {
    /// User name or email [default: asked for]
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// A bot or its workspace.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// An id, the beginning of one, or a display name
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BotsCommand {
    /// List the bots
    Ls(ListArguments),
    /// Make a bot; its workspace is set up in the background
    Create {
        /// Display name
        name: String,
        /// Make no workspace
        #[arg(long)]
        no_workspace: bool,
        /// Begin with the data of this backup, of any bot that you had
        #[arg(long, value_name = "BACKUP")]
        restore_backup: Option<String>,
    },
    /// Delete a bot, its workspace and everything of it
    Rm(RemoveArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Those of all users (administrators)
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// Display name of the new bot; or the id of one that is there, to make its workspace
    pub(crate) name: String,
    /// Image [default: the server's]
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// A GPU or other device of `skep gpus`, for example nvidia.com/gpu=0; several by commas, or by naming it again
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub(crate) gpu: Vec<String>,
    /// Processors, for example 1.5
    #[arg(long, value_parser = parse_cpus)]
    pub(crate) cpus: Option<u64>,
    /// Memory, for example 512MiB or 2GiB
    #[arg(long, value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// Environment of every process, KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) env: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// How long its processes may take to end, 0s to 300s
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Keep a backup of its data first; without a whole one nothing is deleted
    #[arg(long)]
    pub(crate) preserve_data: bool,
}

/// Backups are kept when data is preserved; the current one is put back by the next create.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupsCommand {
    /// List the backups of a bot; without a name those of all bots, also of deleted ones (administrators)
    Ls {
        /// Name or id
        name: Option<String>,
    },
    /// Download a backup, a .tar.gz; to standard output unless --to says where
    Get {
        #[command(flatten)]
        of: BackupOf,
        /// A file that is not there yet
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Delete a backup, for good
    Rm {
        #[command(flatten)]
        of: BackupOf,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BackupOf {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Its name, as `backups ls` shows it, or its digest
    pub(crate) backup: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArguments {
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Environment, KEY=VALUE, or KEY to pass ours on
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory [default: /data]
    #[arg(short, long, value_name = "DIRECTORY")]
    pub(crate) workdir: Option<String>,
    /// User name or id [default: root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Let it run and print its id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// End it after this time [default: never]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) named: Named,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Open the shell of this name, or a new one that lives on for ten minutes when this window is closed
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// Where from: a path, NAME:/path, or - for a tar stream
    pub(crate) source: String,
    /// Where to: a path, NAME:/path, or - for a tar stream
    pub(crate) destination: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// List a directory
    Ls {
        #[command(flatten)]
        at: At,
    },
    /// Print a file
    Cat {
        #[command(flatten)]
        at: At,
    },
    /// Delete a file or a directory
    Rm {
        #[command(flatten)]
        at: At,
        /// With everything below it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Make a directory and its parents
    Mkdir {
        #[command(flatten)]
        at: At,
    },
    /// Rename, replacing what is there
    Mv {
        #[command(flatten)]
        at: At,
        /// The new path
        to: String,
    },
}

/// A path in a workspace, `NAME:/path`; without a path, /data.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// NAME:/path
    #[arg(value_name = "NAME:/PATH")]
    pub(crate) at: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List the stored images
    Ls,
    /// Fetch an image from its registry
    Pull {
        /// For example debian:bookworm-slim
        image: String,
    },
    /// Store an image from an OCI or docker archive
    Import {
        /// The archive; - is standard input
        file: PathBuf,
        /// Its name [default: what the archive says]
        #[arg(long)]
        name: Option<String>,
    },
    /// Make a base image from the distribution's packages, without a registry (root, needs debootstrap)
    Build(BuildArguments),
    /// Remove an image that nothing uses
    Rm {
        /// The image
        image: String,
    },
    /// Remove all images that nothing uses
    Prune,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BuildArguments {
    /// Distribution and release
    #[arg(long, default_value = "debian:bookworm")]
    pub(crate) from: String,
    /// Name of the image [default: skep.local/ and the release]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// More packages, separated by commas or blanks
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    pub(crate) packages: Vec<String>,
    /// Where packages come from [default: where this host's apt has them from]
    #[arg(long, value_name = "URL")]
    pub(crate) mirror: Option<String>,
    /// Write the OCI archive to this file instead of sending it to the server
    #[arg(long, value_name = "FILE")]
    pub(crate) to_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationsCommand {
    /// The operations of a bot, newest first
    Ls(Named),
    /// Follow one operation to its end
    Watch {
        /// The operation's id
        operation: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Go on, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Between two lines, 1s to 60s
    #[arg(long, default_value = "2s", requires = "watch", value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Go on as it grows
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UsersCommand {
    /// List the accounts
    Ls,
    /// Make an account; the password is asked for, or read from standard input
    Create {
        /// User name
        username: String,
        /// admin or member
        #[arg(long, default_value = "member", value_parser = ["admin", "member"])]
        role: String,
        /// Email
        #[arg(long)]
        email: Option<String>,
    },
    /// Set a password; it is asked for, or read from standard input
    Password {
        /// User name or id
        user: String,
    },
    /// Let an account sign in again
    Enable {
        /// User name or id
        user: String,
    },
    /// Keep an account from signing in
    Disable {
        /// User name or id
        user: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List your API keys
    Ls,
    /// Make an API key; it is shown once
    Create {
        /// What it is for
        name: String,
        /// read, operate or manage
        #[arg(long, default_value = "operate", value_parser = ["read", "operate", "manage"])]
        scope: String,
        /// Only for these bots
        #[arg(long, value_name = "NAME")]
        bot: Vec<String>,
        /// Valid for this long [default: for ever]
        #[arg(long, value_parser = humantime::parse_duration)]
        expires_in: Option<Duration>,
    },
    /// Take an API key back
    Rm {
        /// The key's id
        id: String,
    },
}

/// Processors as people write them, in thousandths.
fn parse_cpus(text: &str) -> Result<u64, String> {
    let cpus: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if !(0.001..=4096.0).contains(&cpus) {
        return Err(format!("{text} processors cannot be had"));
    }
    Ok((cpus * 1000.0).round() as u64)
}

/// Bytes as people write them: `512MiB`, `2g`, `1048576`. One letter alone means the binary unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.trim().parse().map_err(|_| format!("{text:?} is not a size"))?;
    let factor: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        unit => return Err(format!("{unit:?} is not a unit of size")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_and_processors_are_read_as_people_write_them() {
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        assert!(parse_size("many").is_err());
        assert!(parse_size("5 parsecs").is_err());
        assert_eq!(parse_cpus("1.5"), Ok(1500));
        assert!(parse_cpus("0").is_err());
        assert!(parse_cpus("NaN").is_err());
    }

    #[test]
    fn the_command_of_exec_keeps_its_own_options() {
        let parsed = Arguments::try_parse_from(["skep", "exec", "-it", "demo", "--", "ls", "-l", "--all"]).unwrap();
        let Command::Exec(exec) = parsed.command else {
            panic!("not an exec")
        };
        assert!(exec.interactive && exec.tty);
        assert_eq!(exec.command, ["ls", "-l", "--all"]);
    }
}
