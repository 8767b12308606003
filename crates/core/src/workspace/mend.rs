//! What has to be done about a workspace that is not as it should be. Pure.

use skep_runtime::TaskState;
use skep_store::{ContainerStatus, Desired};

/// What is wanted and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) desired: Desired,
    pub(crate) recorded: ContainerStatus,
    /// `None`: there is no container.
    pub(crate) task: Option<TaskState>,
    /// The container there is, if any, is the one of the record.
    pub(crate) is_the_recorded: bool,
    pub(crate) has_layer: bool,
    /// Data of the bot is kept anywhere outside of its layer; asked only when that is gone.
    pub(crate) has_data_elsewhere: bool,
    /// The back-off of a workspace that keeps dying allows a start.
    pub(crate) may_try: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mend {
    /// It is as it should be.
    Nothing,
    /// It runs; the record says otherwise, or names another container.
    RecordRunning,
    /// It is stopped; the record says otherwise, or names another container.
    RecordStopped,
    /// Bring it up: put a container back on its layer if need be, start it, wait for its bridge.
    Start,
    /// End it.
    Stop,
    /// Put a container back on its layer, and leave it stopped.
    PutBack,
    /// Its layer is gone and no data is anywhere: make it anew.
    Rebuild,
    /// Its layer is gone; only a person can say what becomes of what is kept.
    LeaveMissing,
    /// Not yet.
    Wait,
}

/// Decides.
pub(crate) fn mend(seen: &Seen) -> Mend {
    match (seen.task, seen.desired) {
        (None, _) if !seen.has_layer && seen.has_data_elsewhere => Mend::LeaveMissing,
        (None, Desired::Running) if !seen.may_try => Mend::Wait,
        (None, Desired::Running) if seen.has_layer => Mend::Start,
        (None, Desired::Stopped) if seen.has_layer => Mend::PutBack,
        (None, _) => Mend::Rebuild,
        (Some(TaskState::Running), Desired::Running) => match seen.recorded {
            ContainerStatus::Running if seen.is_the_recorded => Mend::Nothing,
            _ => Mend::RecordRunning,
        },
        (Some(TaskState::Running), Desired::Stopped) => Mend::Stop,
        (Some(TaskState::Dead), Desired::Stopped) => Mend::Stop,
        (Some(TaskState::None), Desired::Stopped) => match seen.recorded {
            ContainerStatus::Stopped | ContainerStatus::Created if seen.is_the_recorded => Mend::Nothing,
            _ => Mend::RecordStopped,
        },
        (Some(TaskState::Dead | TaskState::None), Desired::Running) if !seen.may_try => Mend::Wait,
        (Some(TaskState::Dead | TaskState::None), Desired::Running) => Mend::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(desired: Desired, task: Option<TaskState>) -> Seen {
        Seen {
            desired,
            recorded: ContainerStatus::Running,
            task,
            is_the_recorded: true,
            has_layer: true,
            has_data_elsewhere: false,
            may_try: true,
        }
    }

    #[test]
    fn the_table_of_mends() {
        use Desired::{Running, Stopped};
        for (desired, task, expected) in [
            (Running, Some(TaskState::Running), Mend::Nothing),
            (Running, Some(TaskState::Dead), Mend::Start),
            (Running, Some(TaskState::None), Mend::Start),
            (Running, None, Mend::Start),
            (Stopped, Some(TaskState::Running), Mend::Stop),
            (Stopped, Some(TaskState::Dead), Mend::Stop),
            (Stopped, Some(TaskState::None), Mend::RecordStopped),
            (Stopped, None, Mend::PutBack),
        ] {
            assert_eq!(mend(&seen(desired, task)), expected, "{desired:?} {task:?}");
        }
    }

    #[test]
    fn a_layer_that_is_gone_is_never_replaced_while_a_backup_is_kept() {
        for desired in [Desired::Running, Desired::Stopped] {
            let gone = Seen {
                has_layer: false,
                ..seen(desired, None)
            };
            assert_eq!(mend(&gone), Mend::Rebuild);
            let kept = Seen {
                has_data_elsewhere: true,
                ..gone
            };
            assert_eq!(mend(&kept), Mend::LeaveMissing);
        }
    }

    #[test]
    fn a_record_that_names_another_container_is_never_as_it_should_be() {
        for (desired, task, recorded, expected) in [
            (
                Desired::Running,
                TaskState::Running,
                ContainerStatus::Running,
                Mend::RecordRunning,
            ),
            (
                Desired::Stopped,
                TaskState::None,
                ContainerStatus::Stopped,
                Mend::RecordStopped,
            ),
        ] {
            let renamed = Seen {
                is_the_recorded: false,
                recorded,
                ..seen(desired, Some(task))
            };
            assert_eq!(mend(&renamed), expected);
        }
    }

    #[test]
    fn one_that_keeps_dying_is_waited_with() {
        for task in [None, Some(TaskState::Dead), Some(TaskState::None)] {
            let waiting = Seen {
                may_try: false,
                ..seen(Desired::Running, task)
            };
            assert_eq!(mend(&waiting), Mend::Wait);
        }
    }
}
