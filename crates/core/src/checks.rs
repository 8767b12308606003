//! The checks of a bot: real probes, each with a word and a sentence.

use bytes::Bytes;
use skep_names::{BotId, DATA_DIRECTORY_INSIDE};
use skep_runtime::TaskState;
use skep_store::{BotStatus, ContainerRow, Desired, FaultRow};
use tokio::time::timeout;

use crate::bridge::{BridgeError, BridgeResult, SMALL_WITHIN};
use crate::error::{Error, Result};
use crate::files::{self, Depth, FileWriter, NewFile, RoomyBridge, WorkspacePath};
use crate::skep::Skep;

macro_rules! check_types {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $title:literal;)*) => {
        /// What a check looks at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CheckType { $($(#[$doc])* $variant,)* }

        impl CheckType {
            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(CheckType::$variant => $text,)* }
            }

            /// The key of its title in a client's own texts.
            pub fn title_key(self) -> &'static str {
                match self { $(CheckType::$variant => $title,)* }
            }
        }
    };
}

check_types! {
    /// The last set-up of the workspace went well.
    ContainerInit = "container.init", "bots.checks.container_init";
    /// The store knows a container.
    ContainerRecord = "container.record", "bots.checks.container_record";
    /// Its task is as it should be.
    ContainerTask = "container.task", "bots.checks.container_task";
    /// A file below `/data` can be written and read.
    ContainerDataPath = "container.data_path", "bots.checks.container_data_path";
    /// A removal that was asked for went well.
    BotDelete = "bot.delete", "bots.checks.bot_delete";
}

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckStatus {
    Ok,
    Warn,
    Error,
    Unknown,
}

impl CheckStatus {
    /// `ok`, `warn`, `error` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }
}

/// All checks of a bot in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckState {
    /// None is `warn` or `error`. All of them are never `unknown`: whether a removal failed is always known.
    Ok,
    /// One is.
    Issue,
}

impl CheckState {
    /// `ok` or `issue`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Issue => "issue",
        }
    }

    /// The state that checks add up to of which so many are `warn` or `error`.
    pub(crate) fn of(issues: u32) -> Self {
        match issues {
            0 => Self::Ok,
            1.. => Self::Issue,
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckItem {
    pub check_type: CheckType,
    pub status: CheckStatus,
    /// A few words.
    pub summary: String,
    /// The cause, when there is one.
    pub detail: Option<String>,
}

impl CheckItem {
    fn new(check_type: CheckType, status: CheckStatus, summary: &str) -> Self {
        Self {
            check_type,
            status,
            summary: summary.to_owned(),
            detail: None,
        }
    }

    fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

fn of_fault(check_type: CheckType, faults: &[FaultRow], fine: (CheckStatus, &str), failed: &str) -> CheckItem {
    match faults.iter().find(|fault| fault.check_type == check_type.as_str()) {
        Some(fault) => CheckItem::new(check_type, CheckStatus::Error, failed).because(fault.message.clone()),
        None => CheckItem::new(check_type, fine.0, fine.1),
    }
}

/// A workspace that was set up and of which something is to be told is no failure.
fn of_set_up(faults: &[FaultRow], fine: (CheckStatus, &str)) -> CheckItem {
    let item = of_fault(
        CheckType::ContainerInit,
        faults,
        fine,
        "the workspace could not be set up",
    );
    match (item.status, fine.0) {
        (CheckStatus::Error, CheckStatus::Ok) => CheckItem {
            status: CheckStatus::Warn,
            summary: "the workspace was set up, but not all went well".to_owned(),
            ..item
        },
        _ => item,
    }
}

const NO_WORKSPACE: &str = "the bot has no workspace";

fn of_record(row: Option<&ContainerRow>, task: &Result<Option<TaskState>>) -> CheckItem {
    let item = |status, summary| CheckItem::new(CheckType::ContainerRecord, status, summary);
    match (row, task) {
        (Some(row), _) => item(CheckStatus::Ok, "the container is recorded").because(row.container_id.clone()),
        (None, Ok(Some(_))) => item(CheckStatus::Warn, "a container is there that is not recorded"),
        (None, Ok(None)) => item(CheckStatus::Unknown, NO_WORKSPACE),
        (None, Err(error)) => item(CheckStatus::Unknown, "no container is recorded").because(error.to_string()),
    }
}

/// What is kept of one that runs is what is wrong with its network.
fn of_task(row: Option<&ContainerRow>, task: &Result<Option<TaskState>>, faults: &[FaultRow]) -> CheckItem {
    let item = |status, summary| CheckItem::new(CheckType::ContainerTask, status, summary);
    let task = match task {
        Ok(task) => *task,
        Err(error) => return item(CheckStatus::Unknown, "the runtime does not answer").because(error.to_string()),
    };
    let Some(row) = row else {
        return match task {
            None => item(CheckStatus::Unknown, NO_WORKSPACE),
            Some(TaskState::Running) => item(CheckStatus::Ok, "running"),
            Some(TaskState::Dead | TaskState::None) => item(CheckStatus::Ok, "stopped"),
        };
    };
    match (task, row.desired) {
        (None, _) => item(CheckStatus::Error, "the container is gone"),
        (Some(TaskState::Running), Desired::Running) => of_fault(
            CheckType::ContainerTask,
            faults,
            (CheckStatus::Ok, "running"),
            "running, but its network does not work any more: stop and start it",
        ),
        (Some(TaskState::Running), Desired::Stopped) => item(CheckStatus::Warn, "running, but should be stopped"),
        (Some(_), Desired::Stopped) => match &row.reason {
            None => item(CheckStatus::Ok, "stopped"),
            Some(reason) => item(CheckStatus::Warn, "stopped when nobody asked for it").because(reason.clone()),
        },
        (Some(_), Desired::Running) => item(CheckStatus::Error, "not running, but should be")
            .because(row.reason.clone().unwrap_or_else(|| "it ended".to_owned())),
    }
}

impl Skep {
    /// All checks of a bot, probed now. A runtime or bridge that does not answer makes a check `unknown` or
    /// `error`, never this call fail.
    ///
    /// # Errors
    /// [`Error::BotNotFound`], [`Error::StoreUnavailable`].
    pub async fn checks(&self, bot: &BotId) -> Result<Vec<CheckItem>> {
        let looked = self.observations().moment();
        let bot_row = self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        let row = self.store().container(bot).await?;
        let faults = self.store().faults(bot).await?;
        let instance = self.runtime().inspect(bot).await;
        let task = instance.map(|found| found.map(|one| one.task)).map_err(Error::from);
        let init = match (&row, bot_row.status) {
            (Some(_), _) => (CheckStatus::Ok, "the workspace was set up"),
            (None, BotStatus::Creating) => (CheckStatus::Unknown, "the workspace is being set up"),
            (None, _) => (CheckStatus::Unknown, NO_WORKSPACE),
        };
        let data_path = self.check_data_path(bot, row.as_ref(), &task).await;
        let is_broken = data_path.status == CheckStatus::Error;
        self.observations().data_path(bot, looked, is_broken);
        let mut checks = vec![
            of_set_up(&faults, init),
            of_record(row.as_ref(), &task),
            of_task(row.as_ref(), &task, &faults),
            data_path,
        ];
        let removal = (CheckStatus::Ok, "no removal has failed");
        checks.push(of_fault(
            CheckType::BotDelete,
            &faults,
            removal,
            "the bot could not be removed",
        ));
        Ok(checks)
    }

    /// Writes a small file below `/data`, reads it back and removes it, over the bridge.
    async fn probe_data_path(&self, bot: &BotId) -> Result<()> {
        // Also of one over its limit of storage: the file goes at once.
        let bridge = RoomyBridge::endless(self.bridges().bridge(bot).await?);
        let mark = uuid::Uuid::new_v4().to_string();
        let path = WorkspacePath::parse(&format!("{DATA_DIRECTORY_INSIDE}/.skep-check-{mark}"))?;
        let file = NewFile {
            mode: 0o600,
            ..NewFile::default()
        };
        let written = async {
            let mut writer = FileWriter::begin(&bridge, &path, file).await?;
            writer.write(Bytes::from(mark.clone())).await?;
            writer.finish().await
        };
        let written = soon("the writing of a file", written).await;
        let read = async { files::read(&bridge, &path, 0, 0).await?.collect(mark.len()).await };
        let read = match written {
            Ok(_) => soon("the reading of a file", read).await,
            Err(error) => Err(error),
        };
        // It goes also when it could not be read, or was written too late.
        let removed = files::remove(&bridge, &path, Depth::EmptyOnly);
        let removed = soon("the removal of a file", removed).await;
        let read = read?;
        removed?;
        match read.as_slice() == mark.as_bytes() {
            true => Ok(()),
            false => Err(Error::BridgeUnavailable(
                "the file that was read is not the one written".to_owned(),
            )),
        }
    }

    /// A runtime that is away does not keep a bridge from answering. A task that does not run is told by its own
    /// check.
    async fn check_data_path(
        &self,
        bot: &BotId,
        row: Option<&ContainerRow>,
        task: &Result<Option<TaskState>>,
    ) -> CheckItem {
        let item = |status, summary| CheckItem::new(CheckType::ContainerDataPath, status, summary);
        match (row, task) {
            (_, Ok(Some(TaskState::Running))) => {}
            (None, _) => return item(CheckStatus::Unknown, NO_WORKSPACE),
            (Some(row), _) if row.desired == Desired::Stopped => {
                return item(CheckStatus::Unknown, "the workspace is stopped");
            }
            (Some(_), Ok(_)) => return item(CheckStatus::Unknown, "the workspace does not run"),
            (Some(_), Err(_)) => {}
        }
        match self.probe_data_path(bot).await {
            Ok(()) => item(CheckStatus::Ok, "a file was written and read"),
            Err(error) => item(CheckStatus::Error, "no file could be written and read").because(error.to_string()),
        }
    }
}

/// What is so small takes no longer than this, whatever a bridge says meanwhile.
async fn soon<T>(what: &str, step: impl Future<Output = BridgeResult<T>>) -> BridgeResult<T> {
    match timeout(SMALL_WITHIN, step).await {
        Ok(done) => done,
        Err(_) => Err(BridgeError::late(what)),
    }
}
