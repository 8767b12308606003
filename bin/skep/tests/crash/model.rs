//! What must be held for one bot in each state, and nothing else.

use skep_names::{LEGACY_PREFIX, container_id_for};

use crate::held::Held;
use crate::stage::Made;

/// Where a bot and its workspace are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No trace of either.
    NoBot,
    /// A bot without a workspace.
    Bare,
    /// It runs.
    Running,
    /// It runs, and its image was pulled for it.
    RunningPulled,
    /// It runs, with other limits than the default.
    RunningLimited,
    /// It is stopped, as was asked.
    Stopped,
    /// It runs, and has a version at least.
    Versioned,
    /// It is stopped, and has a version at least.
    VersionedStopped,
    /// As [`State::Versioned`], on so many layers that the next snapshot merges some.
    LongLine,
    /// As [`State::Down`], with a version at least.
    DownVersioned,
    /// A start came to nothing: it is wanted running, it does not run, and it is said why.
    Down,
    /// A create came to nothing: no workspace, and a check says why.
    CreateFailed,
    /// The same, and the image that was pulled for it is there.
    CreateFailedPulled,
    /// A create failed after its workspace was recorded, and so is the workspace's now: kept, not running.
    DownAfterCreate,
    /// No workspace, and a backup of the last one's data.
    Preserved,
    /// The same after a create that came to nothing.
    PreservedAfterCreate,
    /// A create failed after its workspace was recorded and before its backup was released.
    DownAndPreserved,
    /// No workspace, and a directory that was a legacy container's `/data`.
    Legacy,
    /// The same after a create that came to nothing.
    LegacyAfterCreate,
    /// It runs with what was in the legacy directory, which says so.
    Migrated,
    /// As [`Self::DownAndPreserved`], of a legacy directory.
    DownAndLegacy,
    /// As [`Self::DownAfterCreate`], with the legacy directory renamed.
    DownAndMigrated,
    /// It was stopped, and somebody removed its container; its layer is there.
    Orphaned,
    /// The same, after a start that came to nothing before it put a container back.
    DownOrphaned,
    /// It runs, and a backup of an earlier workspace's data is kept aside.
    Restorable,
    /// The same, after a start that came to nothing.
    DownRestorable,
    /// No trace of the bot but a backup of its last workspace's data.
    GoneAndPreserved,
    /// Somebody removed container and layer of one that was stopped; a backup of an earlier workspace's data is there.
    Lost,
    /// The same after a create that came to nothing.
    LostAfterCreate,
    /// The same after a create that had begun to make it anew.
    ForgottenAfterCreate,
    /// It is stopped, and there is no record of it.
    Unrecorded,
    /// The same after a create that came to nothing.
    UnrecordedAfterCreate,
    /// As [`Self::Unrecorded`], and somebody removed its container; its layer is there.
    UnrecordedLayer,
    /// The same after a create that came to nothing.
    UnrecordedLayerAfterCreate,
    /// As [`Self::Stopped`], after a create that came to nothing before there was a record.
    StoppedAfterCreate,
    /// It runs, and its bot was to be removed and could not be.
    NotRemoved,
    /// The same of a bot without a workspace that has a legacy directory.
    LegacyNotRemoved,
    /// The same, and a backup of what is in the directory.
    LegacyKeptNotRemoved,
    /// The same, and the directory is gone.
    PreservedNotRemoved,
    /// A container from before the bridge had a socket runs, with its data in the legacy directory.
    RunningLegacy,
    /// No workspace: it was such a container, and its data is in a backup and in the directory that says so.
    PreservedLegacy,
}

impl State {
    /// There is a writable layer, so there are bytes.
    pub(crate) fn has_data(self) -> bool {
        self.has_container()
            || matches!(
                self,
                Self::Orphaned | Self::DownOrphaned | Self::UnrecordedLayer | Self::UnrecordedLayerAfterCreate
            )
    }

    /// In a layer or outside of one.
    pub(crate) fn has_bytes(self) -> bool {
        self.has_data() || self.is_preserved()
    }

    pub(crate) fn has_versions(self) -> bool {
        matches!(
            self,
            Self::Versioned | Self::VersionedStopped | Self::LongLine | Self::DownVersioned
        )
    }

    /// The server knows of a workspace.
    fn has_row(self) -> bool {
        match self {
            Self::Lost | Self::LostAfterCreate => true,
            other => other.has_data() && !other.is_unrecorded(),
        }
    }

    /// There is something of a workspace that the server does not know of.
    pub(crate) fn is_unrecorded(self) -> bool {
        matches!(
            self,
            Self::Unrecorded | Self::UnrecordedAfterCreate | Self::UnrecordedLayer | Self::UnrecordedLayerAfterCreate
        )
    }

    /// What its bridge said when it ran is kept, though there is no record of it.
    fn has_log_alone(self) -> bool {
        self.is_unrecorded() || self == Self::ForgottenAfterCreate
    }

    /// There is no row of the bot.
    pub(crate) fn has_no_bot(self) -> bool {
        matches!(self, Self::NoBot | Self::GoneAndPreserved)
    }

    fn has_container(self) -> bool {
        self.runs()
            || matches!(
                self,
                Self::Stopped
                    | Self::VersionedStopped
                    | Self::Down
                    | Self::DownVersioned
                    | Self::DownAfterCreate
                    | Self::DownAndPreserved
                    | Self::DownAndLegacy
                    | Self::DownAndMigrated
                    | Self::DownRestorable
                    | Self::Unrecorded
                    | Self::UnrecordedAfterCreate
                    | Self::StoppedAfterCreate
            )
    }

    pub(crate) fn runs(self) -> bool {
        matches!(
            self,
            Self::Running
                | Self::RunningPulled
                | Self::RunningLimited
                | Self::Versioned
                | Self::LongLine
                | Self::Migrated
                | Self::Restorable
                | Self::RunningLegacy
                | Self::NotRemoved
        )
    }

    /// The image that is pulled by a trial is there.
    pub(crate) fn has_pulled(self) -> bool {
        matches!(self, Self::RunningPulled | Self::CreateFailedPulled)
    }

    /// Its data is kept outside of a layer.
    pub(crate) fn is_preserved(self) -> bool {
        self.has_backup() || self.legacy_directory().is_some()
    }

    fn has_backup(self) -> bool {
        matches!(
            self,
            Self::Preserved
                | Self::PreservedAfterCreate
                | Self::DownAndPreserved
                | Self::Restorable
                | Self::DownRestorable
                | Self::GoneAndPreserved
                | Self::Lost
                | Self::LostAfterCreate
                | Self::ForgottenAfterCreate
                | Self::PreservedLegacy
                | Self::LegacyKeptNotRemoved
                | Self::PreservedNotRemoved
        )
    }

    /// What follows the bot's id in the name of its legacy directory.
    fn legacy_directory(self) -> Option<&'static str> {
        match self {
            Self::Legacy
            | Self::LegacyAfterCreate
            | Self::DownAndLegacy
            | Self::RunningLegacy
            | Self::LegacyNotRemoved
            | Self::LegacyKeptNotRemoved => Some(""),
            Self::Migrated | Self::DownAndMigrated | Self::PreservedLegacy => Some(".migrated"),
            _ => None,
        }
    }

    /// A create failed, and a check says so.
    fn has_fault(self) -> bool {
        matches!(
            self,
            Self::CreateFailed
                | Self::CreateFailedPulled
                | Self::DownAfterCreate
                | Self::PreservedAfterCreate
                | Self::DownAndPreserved
                | Self::LegacyAfterCreate
                | Self::DownAndLegacy
                | Self::DownAndMigrated
                | Self::LostAfterCreate
                | Self::ForgottenAfterCreate
                | Self::UnrecordedAfterCreate
                | Self::UnrecordedLayerAfterCreate
                | Self::StoppedAfterCreate
        )
    }

    /// A removal of the bot failed, and a check says so.
    fn is_not_removed(self) -> bool {
        matches!(
            self,
            Self::NotRemoved | Self::LegacyNotRemoved | Self::LegacyKeptNotRemoved | Self::PreservedNotRemoved
        )
    }
}

/// Adds what is held for a bot in a state. `name` is what the id of the bot was replaced by.
pub(crate) fn add(held: &mut Held, state: State, name: &str, made: &Made) {
    let Made { image, .. } = made;
    if state == State::NoBot {
        return;
    }
    if !state.has_no_bot() {
        held.add(format!("row of bot {name}: ready"));
    }
    if state.has_fault() {
        held.add(format!("fault of bot {name}: container.init"));
    }
    if state.is_not_removed() {
        held.add(format!("fault of bot {name}: bot.delete"));
    }
    if state.has_backup() {
        held.add(format!("file <data root>/backups/{name}.tar.gz"));
        held.add(format!("row of a backup of {name}: verified"));
    }
    if let Some(ending) = state.legacy_directory() {
        held.add(format!("file <data root>/bots/{name}{ending}"));
    }
    if state.has_row() {
        let (status, desired, reason) = match state {
            State::Stopped
            | State::StoppedAfterCreate
            | State::VersionedStopped
            | State::Orphaned
            | State::Lost
            | State::LostAfterCreate => ("stopped", "stopped", false),
            state if state.runs() => ("running", "running", false),
            _ => ("error", "running", true),
        };
        let limits = if state == State::RunningLimited { 200 } else { 0 };
        let short = image.rsplit('/').next().unwrap_or_default();
        held.add(format!(
            "row of workspace {name}: {status}, wanted {desired}, limits {limits}, reason {reason}, {short}"
        ));
    }
    let container = match state {
        State::RunningLegacy => format!("{LEGACY_PREFIX}{name}"),
        _ => format!("workspace-{name}"),
    };
    if state.has_container() {
        held.add(format!("container {container} {image} io.containerd.runc.v2"));
    }
    if state.has_data() {
        held.add(format!("active layer of {name}"));
    }
    if state.has_log_alone() {
        held.add(format!("file <data root>/logs/{name}.log"));
    }
    if state.has_versions() {
        held.add(format!("versions of {name}"));
    }
    if state.runs() {
        add_running(held, name, &container);
    }
    if state.runs() && state != State::RunningLegacy {
        add_user_namespace(held, name);
    }
}

fn add_running(held: &mut Held, name: &str, container: &str) {
    held.extend(
        [
            format!("task {container} RUNNING"),
            format!("mount <containerd>/run/state/io.containerd.runtime.v2.task/default/{container}/rootfs"),
            format!("mount /run/netns/skep-{name}"),
            format!("network namespace skep-{name}"),
            format!("file <run>/running/{name}"),
            format!("file <run>/cni/attachments/{name}.json"),
            "file <run>/cni/leases/skep/<address>".to_owned(),
            format!("port of the bridge of {name}"),
            format!("cgroup {container}"),
        ]
        .map(|line| line.clone()),
    );
}

/// What a legacy container has not.
fn add_user_namespace(held: &mut Held, name: &str) {
    held.extend([
        format!("mount <data root>/run/{name}"),
        format!("mount <run>/userns/{name}"),
        format!("file <data root>/run/{name}"),
        format!("file <run>/userns/{name}"),
        format!("claim of ids: {{\"data_root\":\"<data root>\",\"bot\":\"{name}\"}}"),
    ]);
}

/// The id of a container, for names that are real.
pub(crate) fn container_of(bot: &str) -> String {
    container_id_for(&bot.parse().expect("an id of ours"))
}
