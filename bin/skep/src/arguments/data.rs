//! `skep export`, `skep import` and `skep restore`: all of a workspace's data, out and in.

use clap::{Args, ValueEnum};

use super::Named;

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Workspace: an id, the beginning of one, or a display name
    pub(crate) name: String,
    /// Where to, - for standard output; by default ID-data.tar.gz here
    pub(crate) file: Option<String>,
    /// Compression; by default that of the file's name, else tar.gz
    #[arg(long, value_enum)]
    pub(crate) format: Option<ExportFormat>,
    /// Fail when a file changes each time it is read
    #[arg(long)]
    pub(crate) strict: bool,
    /// All as it is at one moment: the workspace stands still while it is read
    #[arg(long)]
    pub(crate) consistent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    #[value(name = "tar.gz")]
    TarGz,
    #[value(name = "tar.zst")]
    TarZst,
    #[value(name = "tar")]
    Tar,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// A .tar.gz, .tar.zst or .tar; - is standard input
    pub(crate) file: String,
    /// Remove what is in /data and not in the archive
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    pub(crate) named: Named,
    /// A backup by its name [default: the current one, which goes when its data is back]
    pub(crate) backup: Option<String>,
    /// Remove what is in /data and not in the backup
    #[arg(long)]
    pub(crate) replace: bool,
}
