//! What every backend must do, written once: the same cases on the fake runtime and on real ones.
//!
//! A backend's test file implements [`Subject`] and calls [`conformance_suite!`](crate::conformance_suite). Each
//! case gets a subject of its own, works over the trait and the bridge alone, and ends with the subject as it began.

mod data;
mod devices;
mod inside;
mod layers;
mod lifecycle;
mod logs;
mod outside;
mod walls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_bridge_protocol::bridgepb::ExecInput;
use skep_bridge_protocol::bridgepb::exec_output::Stream;
use skep_core::bridge::BridgePool;
use skep_names::{BotId, ImageReference};
use skep_runtime::{CreateOutcome, Limits, Runtime, Started};
use tokio::time::Instant;

pub use data::*;
pub use devices::*;
pub use inside::*;
pub use layers::*;
pub use lifecycle::*;
pub use logs::*;
pub use outside::*;
pub use walls::*;

/// How long anything may take before a case fails.
pub const CASE_LIMIT: Duration = Duration::from_secs(120);

/// Limits that no case reaches by accident.
pub const CASE_LIMITS: Limits = Limits {
    cpu_millicores: 2000,
    memory_bytes: 512 << 20,
    pids: 256,
    storage_bytes: 0,
};

/// A backend under test.
pub trait Subject: Send + Sync {
    /// It.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// A stored image with a shell and the usual small tools.
    fn image(&self) -> ImageReference;
    /// Where the host keeps a bot's writable layer.
    fn layer_on_disk(&self, bot: &BotId) -> PathBuf;
    /// Removes the container's record and leaves its layers, as the daemon's own tools could.
    fn lose_container(&self, bot: &BotId);
    /// Everything on the host that belongs to workspaces of this subject, one line each, sorted: containers,
    /// layers, mounts, namespaces, claims, directories, processes.
    fn traces(&self) -> Vec<String>;
    /// Where it looks for specifications of devices.
    fn cdi_directory(&self) -> PathBuf;
    /// Whether it keeps workspaces from the host and from each other; the fake one does not.
    fn isolates(&self) -> bool;
}

/// A workspace of one case.
pub struct Workspace<'a> {
    subject: &'a dyn Subject,
    pool: BridgePool,
    /// Whose it is.
    pub bot: BotId,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResult {
    /// 0–255, or 128 + signal.
    pub exit_code: i32,
    /// All it wrote to its output.
    pub stdout: String,
    /// All it wrote to its error output.
    pub stderr: String,
}

impl<'a> Workspace<'a> {
    /// A bot that has nothing yet.
    pub fn new(subject: &'a dyn Subject) -> Self {
        Self {
            subject,
            pool: BridgePool::new(subject.runtime()),
            bot: BotId::random(),
        }
    }

    /// One that runs and answers.
    pub async fn running(subject: &'a dyn Subject) -> Self {
        let workspace = Self::new(subject);
        workspace.create().await;
        workspace.start().await;
        workspace
    }

    /// # Panics
    /// When it cannot be made.
    pub async fn create(&self) -> CreateOutcome {
        let spec = crate::containerd_rig::instance_spec(&self.bot, &self.subject.image());
        self.subject.runtime().create(&spec).await.expect("create a workspace")
    }

    /// # Panics
    /// When it does not start or does not answer.
    pub async fn start(&self) -> Started {
        let started = self.subject.runtime().start(&self.bot, &CASE_LIMITS).await;
        let started = started.expect("start a workspace");
        self.pool.evict(&self.bot);
        let answering = self
            .pool
            .wait_until_answering(&self.bot, Instant::now() + CASE_LIMIT)
            .await;
        answering.map(drop).expect("the bridge answers");
        started
    }

    /// # Panics
    /// When it does not stop.
    pub async fn stop(&self) {
        self.pool.evict(&self.bot);
        let stopped = self.subject.runtime().stop(&self.bot, Duration::from_secs(10)).await;
        stopped.expect("stop a workspace");
    }

    /// # Panics
    /// When it cannot be removed.
    pub async fn remove(&self) {
        self.pool.evict(&self.bot);
        self.subject
            .runtime()
            .remove(&self.bot)
            .await
            .expect("remove a workspace");
    }

    /// Runs a shell command inside.
    ///
    /// # Panics
    /// When it cannot be run; a command that fails is a result.
    pub async fn sh(&self, command: &str) -> CommandResult {
        let running = tokio::time::timeout(CASE_LIMIT, self.run(command)).await;
        running.unwrap_or_else(|_| panic!("{command:?} did not end within {CASE_LIMIT:?}"))
    }

    /// The output of a command that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn output(&self, command: &str) -> String {
        let result = self.sh(command).await;
        assert_eq!(result.exit_code, 0, "{command:?}: {result:?}");
        result.stdout.trim().to_owned()
    }

    async fn run(&self, command: &str) -> CommandResult {
        let bridge = self.pool.bridge(&self.bot).await.expect("reach the bridge");
        let input = ExecInput {
            command: command.to_owned(),
            work_dir: "/".to_owned(),
            ..Default::default()
        };
        let outputs = bridge.reference().exec(futures::stream::iter([input])).await;
        let mut outputs = outputs.expect("run a command").into_inner();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut ended = None;
        while let Some(output) = outputs.message().await.expect("a command's output") {
            match output.stream() {
                Stream::Stdout => stdout.extend(output.data),
                Stream::Stderr => stderr.extend(output.data),
                Stream::Exit => ended = Some(output.exit_code),
            }
        }
        CommandResult {
            exit_code: ended.expect("the end of a command"),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

/// Makes one test of each case: `conformance_suite!(MySubject::start().await)`.
#[macro_export]
macro_rules! conformance_suite {
    ($subject:expr) => {
        $crate::conformance_cases!(
            $subject;
            a_second_create_keeps_every_byte,
            a_layer_without_a_container_is_used_again,
            a_stop_and_a_start_keep_every_byte,
            a_committed_state_can_be_gone_back_to,
            a_layer_that_holds_something_is_never_left,
            a_change_from_outside_is_all_or_nothing,
            a_released_state_goes_when_nothing_stands_on_it,
            a_lost_container_comes_back_on_its_newest_state,
            a_fresh_layer_is_made_the_newest_beside_the_others,
            data_is_carried_from_one_workspace_to_another,
            data_that_is_no_directory_is_refused,
            an_archive_that_is_not_whole_is_told,
            a_workspace_that_is_read_at_one_moment_stands_still,
            a_long_line_is_made_shorter,
            what_is_written_after_a_rebase_is_the_newest_state,
            verbs_may_be_repeated,
            what_is_missing_is_told_as_missing,
            a_list_tells_the_truth,
            what_was_given_to_its_processes_is_told,
            many_are_told_as_each_is,
            process_one_that_dies_is_told_and_started_again,
            a_stubborn_process_is_killed_after_the_grace,
            a_stop_ends_every_process,
            eight_starts_at_once_are_one,
            a_removed_workspace_leaves_nothing,
            an_image_that_is_not_there_is_told_and_leaves_nothing,
            a_log_outlives_each_run_and_goes_with_its_workspace,
            a_tenants_tricks_with_its_log_lead_nowhere,
            a_full_socket_directory_stops_nothing,
            a_signal_from_inside_does_not_end_a_workspace,
            the_environment_asked_for_is_there,
            root_inside_owns_what_it_writes,
            two_bots_have_different_ids,
            nothing_more_than_promised_is_allowed,
            refused_system_calls_answer_as_promised,
            file_systems_and_devices_are_as_promised,
            limits_are_in_force,
            a_limit_of_memory_below_what_is_in_use_is_refused,
            a_device_asked_for_is_there_and_no_other,
            a_device_is_kept_over_starts_and_states,
            a_device_that_is_gone_keeps_a_workspace_from_starting,
            devices_that_cannot_be_given_are_told
        );
    };
}

/// One test of each named case; see [`conformance_suite!`](crate::conformance_suite).
#[macro_export]
macro_rules! conformance_cases {
    ($subject:expr; $($case:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let subject = $subject;
                let before = $crate::conformance::Subject::traces(&subject);
                $crate::conformance::$case(&subject).await;
                let after = $crate::conformance::Subject::traces(&subject);
                assert_eq!(before, after, "the case left something behind");
            }
        )+
    };
}
