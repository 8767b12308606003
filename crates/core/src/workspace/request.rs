//! What can be asked of a workspace, as its caller says it and as the journal keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skep_runtime::layer_access::ApplyMode;
use skep_store::LimitsColumn;

use super::state::DISK_FULL;
use crate::operations::OperationKind;

/// The body of a create; everything may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateRequest {
    /// A reference in any form.
    pub image: Option<String>,
    pub snapshotter: Option<String>,
    /// CDI devices as given; present and empty: none.
    pub gpu_devices: Option<Vec<String>>,
    /// Whether preserved data is put back; not said: yes.
    pub restore_data: Option<bool>,
    pub limits: Option<AskedLimits>,
    /// For every process of the workspace. Values are never logged.
    pub env: BTreeMap<String, String>,
}

/// Limits as they are asked for; what is not said stays as it is, zero is the configured default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedLimits {
    /// Thousandths of a core.
    pub cpu_millicores: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub storage_bytes: Option<u64>,
}

impl AskedLimits {
    /// The limits of a workspace that has `kept`, when this is done.
    pub(crate) fn onto(self, kept: LimitsColumn) -> LimitsColumn {
        LimitsColumn {
            cpu_millicores: self.cpu_millicores.unwrap_or(kept.cpu_millicores),
            memory_bytes: self.memory_bytes.unwrap_or(kept.memory_bytes),
            pids: self.pids.unwrap_or(kept.pids),
            storage_bytes: self.storage_bytes.unwrap_or(kept.storage_bytes),
        }
    }
}

/// What becomes of the data when a workspace is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeleteData {
    /// It goes too.
    #[default]
    Remove,
    /// It is backed up first.
    Preserve,
}

/// What is put back into a workspace that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// A backup by its file's name, which is kept then. `None`: what a create would put back.
    pub name: Option<String>,
    /// The digest of that one, in hex: what came before it in the lane may have given its name to another.
    pub sha256: Option<String>,
    pub mode: RestoreMode,
}

/// An archive of a client's that was received and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportPlan {
    /// Its file in the spool, which goes when the operation ends.
    pub(crate) archive: String,
    pub(crate) mode: RestoreMode,
    /// Files, directories and links that it has, each name once; 0 where an older release did not note it.
    #[serde(default)]
    pub(crate) entries: u64,
    /// Sizes of the files together, holes included; noted with `entries`.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// Entries that lose setuid or setgid.
    pub(crate) cleared: u64,
}

/// What becomes of what is in `/data` and not in the archive that is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// It stays.
    #[default]
    Merge,
    /// It goes.
    Replace,
}

impl From<RestoreMode> for ApplyMode {
    fn from(mode: RestoreMode) -> Self {
        match mode {
            RestoreMode::Merge => Self::Merge,
            RestoreMode::Replace => Self::Replace,
        }
    }
}

/// A create whose image and devices are decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CreatePlan {
    /// Full name.
    pub(crate) image: String,
    pub(crate) snapshotter: Option<String>,
    pub(crate) cdi_devices: Vec<String>,
    /// The caller named devices: they are remembered in the bot's metadata.
    pub(crate) devices_given: bool,
    /// The caller named the image.
    #[serde(default)]
    pub(crate) image_given: bool,
    #[serde(default)]
    pub(crate) basis: Basis,
    pub(crate) limits: Option<AskedLimits>,
    pub(crate) env: BTreeMap<String, String>,
    /// It is the first set-up of a new bot, whose status becomes `ready` at its end.
    pub(crate) of_new_bot: bool,
    /// What becomes of preserved data, when the create makes a layer.
    #[serde(default)]
    pub(crate) preserved: PreservedData,
}

/// What a create was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Basis {
    /// There was no workspace: all of it is the requester's own choice, and he may have it.
    #[default]
    Nothing,
    /// There was one, or one was being made: image, devices and environment are that one's, and nobody asked whether
    /// this requester may have them.
    WhatIsThere,
}

/// What a create does with data of the bot that is kept outside of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PreservedData {
    /// It is put back.
    #[default]
    PutBack,
    /// It stays where it is.
    KeepAside,
}

impl From<Option<bool>> for PreservedData {
    fn from(restore_data: Option<bool>) -> Self {
        match restore_data {
            Some(true) | None => Self::PutBack,
            Some(false) => Self::KeepAside,
        }
    }
}

/// Why a workspace is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopCause {
    /// Somebody asked for it.
    #[default]
    Asked,
    /// The server does it, to keep the host from filling up.
    DiskFull,
}

impl StopCause {
    /// That of a recorded reason.
    pub(crate) fn of(reason: Option<&str>) -> Self {
        match reason {
            Some(DISK_FULL) => Self::DiskFull,
            _ => Self::Asked,
        }
    }

    /// As it is recorded.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Asked => None,
            Self::DiskFull => Some(DISK_FULL),
        }
    }
}

/// A version to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotPlan {
    /// Empty: none.
    pub(crate) display_name: String,
    pub(crate) source: String,
}

impl SnapshotPlan {
    /// Of what a rollback leaves.
    pub(crate) fn of_rollback() -> Self {
        Self {
            display_name: String::new(),
            source: crate::versions::SOURCE_ROLLBACK.to_owned(),
        }
    }
}

/// One operation as the journal keeps it: enough to do it, and to do it again after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Request {
    Create(CreatePlan),
    Start,
    Stop {
        grace: Option<Duration>,
        #[serde(default)]
        cause: StopCause,
    },
    Restart {
        grace: Option<Duration>,
    },
    Delete {
        #[serde(default)]
        data: DeleteData,
        /// What is a workspace when its turn comes stays: only what an operation left that failed half-way is removed.
        #[serde(default)]
        only_remains: bool,
    },
    Restore(RestoreRequest),
    Import(ImportPlan),
    Limits {
        limits: AskedLimits,
    },
    Recover,
    DeleteBot {
        #[serde(default)]
        data: DeleteData,
    },
    Snapshot(SnapshotPlan),
    SnapshotDelete {
        version: u64,
    },
    Rollback {
        version: u64,
    },
}

impl Request {
    /// It overtakes and cancels what runs and waits, and is itself neither overtaken nor cancelled: a removal, and a
    /// stop that the whole host waits for.
    pub(crate) fn overtakes(&self) -> bool {
        let keeps_the_host = matches!(
            self,
            Self::Stop {
                cause: StopCause::DiskFull,
                ..
            }
        );
        keeps_the_host || self.kind().removes()
    }

    pub(crate) fn kind(&self) -> OperationKind {
        match self {
            Self::Create(_) => OperationKind::Create,
            Self::Start => OperationKind::Start,
            Self::Stop { .. } => OperationKind::Stop,
            Self::Restart { .. } => OperationKind::Restart,
            Self::Delete { .. } => OperationKind::Delete,
            Self::Restore(_) => OperationKind::Restore,
            Self::Import(_) => OperationKind::Import,
            Self::Limits { .. } => OperationKind::Limits,
            Self::Recover => OperationKind::Recover,
            Self::DeleteBot { .. } => OperationKind::DeleteBot,
            Self::Snapshot(_) => OperationKind::Snapshot,
            Self::SnapshotDelete { .. } => OperationKind::SnapshotDelete,
            Self::Rollback { .. } => OperationKind::Rollback,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_import_that_an_older_release_journaled_can_be_read() {
        let old = json!({"kind": "import", "archive": "name", "mode": "replace", "cleared": 2});
        let expected = Request::Import(ImportPlan {
            archive: "name".to_owned(),
            mode: RestoreMode::Replace,
            entries: 0,
            bytes: 0,
            cleared: 2,
        });
        assert_eq!(serde_json::from_value::<Request>(old).unwrap(), expected);
    }
}
