//! What can be typed after `skep snapshot`.

use clap::Subcommand;

use super::Named;

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep the present state of a workspace as a version; what runs in it ends
    Create {
        #[command(flatten)]
        named: Named,
        /// What it is called [default: Version <n>]
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
    },
    /// List the versions of a workspace
    Ls {
        #[command(flatten)]
        named: Named,
        /// Show every layer, those of the image too
        #[arg(long)]
        layers: bool,
    },
    /// Go back to a version; what is there now is saved as a version first
    Rollback {
        #[command(flatten)]
        named: Named,
        /// Its number
        #[arg(value_name = "VERSION")]
        number: u64,
    },
    /// Give a version another name
    Rename {
        #[command(flatten)]
        named: Named,
        /// Its number
        #[arg(value_name = "VERSION")]
        number: u64,
        /// Its new name; empty takes it away
        label: String,
    },
    /// Forget versions; the others stay restorable
    Rm {
        #[command(flatten)]
        named: Named,
        /// Their numbers
        #[arg(required = true, value_name = "VERSION")]
        numbers: Vec<u64>,
    },
}
