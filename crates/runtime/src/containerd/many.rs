//! What there is of many workspaces: what is known of them already, and a question for the rest.

use std::collections::HashMap;

use containerd_client::services::v1::Container;
use futures::StreamExt;
use skep_names::{BotId, container_id_for};

use super::ContainerdRuntime;
use super::container::{bot_of, last_change};
use super::picture::{Asking, Seen};
use crate::{Instance, Result, RuntimeError, TaskState, cgroup};

/// So many are asked about one by one; containerd's list costs more than that, it tells the specifications of all.
const ONE_BY_ONE: usize = 16;
/// Questions at a time.
const AT_A_TIME: usize = 8;

impl ContainerdRuntime {
    /// All instances of this data root, with their tasks.
    pub(super) async fn list_instances(&self) -> Result<Vec<Instance>> {
        let asking = self.picture.asking();
        let containers = self.containers(Vec::new()).await?.into_iter();
        let ours: Vec<(BotId, Container)> = containers
            .filter(|container| self.is_ours(&container.labels))
            .filter_map(|container| Some((bot_of(&container)?, container)))
            .collect();
        let tasks = self.tasks_of(&asking, &ours).await?;
        let mut instances = Vec::with_capacity(ours.len());
        for (bot, container) in ours {
            let task = tasks.get(&container.id).copied().unwrap_or(TaskState::None);
            instances.push(self.instance(bot, &container, task).await);
        }
        Ok(instances)
    }

    /// For its list of tasks containerd asks the shim of each: it is not asked for those of which its events and the
    /// kernel tell alike.
    async fn tasks_of(
        &self,
        asking: &Asking<'_>,
        containers: &[(BotId, Container)],
    ) -> Result<HashMap<String, TaskState>> {
        let mut tasks = self.tasks_by_events_and_kernel(containers).await?;
        let unknown: Vec<_> = containers
            .iter()
            .filter(|(_, one)| !tasks.contains_key(&one.id))
            .collect();
        let answers = match unknown.len() > ONE_BY_ONE {
            true => self.tasks().await?,
            false => match self.tasks_one_by_one(&unknown).await {
                Ok(answers) => answers,
                // One that does not answer is left out of a list of all; nothing is learned of it.
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a task does not tell its state"
                    );
                    tasks.extend(self.tasks().await?);
                    return Ok(tasks);
                }
            },
        };
        // What one is told to be that did not answer in time, the kernel knows better.
        let told = unknown.iter().map(|(bot, container)| {
            let task = answers.get(&container.id).copied().unwrap_or(TaskState::None);
            (bot, container.id.as_str(), task)
        });
        let alike = self.as_the_kernel_tells(told).await?;
        for (bot, container) in unknown {
            // Another name may be that of one of several.
            if let Some(task) = alike
                .get(&container.id)
                .filter(|_| container.id == container_id_for(bot))
            {
                asking.learned(bot.clone(), Seen::new(Some(container.clone()), *task));
            }
        }
        tasks.extend(answers);
        Ok(tasks)
    }

    async fn tasks_one_by_one(&self, containers: &[&(BotId, Container)]) -> Result<HashMap<String, TaskState>> {
        let questions = containers.iter().map(|(_, container)| async {
            let task = self.task_state(&container.id).await?;
            Ok((container.id.clone(), task))
        });
        // Collected first: a stream of what borrows from an iterator cannot be sent to another thread.
        let questions: Vec<_> = questions.collect();
        let answers = futures::stream::iter(questions).buffer_unordered(AT_A_TIME);
        let answers: Vec<Result<_>> = answers.collect().await;
        answers.into_iter().collect()
    }

    async fn tasks_by_events_and_kernel(
        &self,
        containers: &[(BotId, Container)],
    ) -> Result<HashMap<String, TaskState>> {
        if !self.echoes.all_read(&self.client).await {
            return Ok(HashMap::new());
        }
        let bots: Vec<BotId> = containers.iter().map(|(bot, _)| bot.clone()).collect();
        let (seen, _) = self.picture.look(&bots);
        let told = containers.iter().filter_map(|(bot, container)| {
            let seen = seen.get(bot)?;
            let is_it = seen.container.as_ref().is_some_and(|seen| seen.id == container.id);
            is_it.then_some((bot, container.id.as_str(), seen.task))
        });
        self.as_the_kernel_tells(told).await
    }

    /// Those of these containers that have processes if their task runs, and none if it does not.
    async fn as_the_kernel_tells<'a>(
        &self,
        told: impl Iterator<Item = (&'a BotId, &'a str, TaskState)>,
    ) -> Result<HashMap<String, TaskState>> {
        let told = told.map(|(bot, id, task)| {
            let recorded = self.records.get(bot).filter(|running| running.container_id == id);
            let group = recorded.map_or_else(|| self.cgroup_of(id), |running| running.cgroup);
            (id.to_owned(), task, group)
        });
        let told: Vec<_> = told.collect();
        let asking_the_kernel = tokio::task::spawn_blocking(move || {
            let runs = |group: &str| cgroup::group(group).has_processes();
            let alike = told
                .into_iter()
                .filter(|(_, task, group)| (*task == TaskState::Running) == runs(group));
            alike.map(|(id, task, _)| (id, task)).collect()
        });
        asking_the_kernel
            .await
            .map_err(|panicked| RuntimeError::other("reading which workspaces have processes", panicked))
    }

    pub(super) async fn instances_of(&self, bots: &[BotId]) -> Result<HashMap<BotId, Instance>> {
        // Without the events nothing that was known counts: all are asked about.
        let (mut seen, unknown) = match self.echoes.all_read(&self.client).await {
            true => self.picture.look(bots),
            false => (HashMap::new(), bots.to_vec()),
        };
        seen.extend(self.ask_about(unknown).await?);
        let mut instances = HashMap::with_capacity(seen.len());
        for (bot, seen) in seen {
            if let Some(container) = seen.container {
                let instance = self.instance(bot.clone(), &container, seen.task).await;
                instances.insert(bot, instance);
            }
        }
        Ok(instances)
    }

    async fn ask_about(&self, bots: Vec<BotId>) -> Result<Vec<(BotId, Seen)>> {
        let asking = self.picture.asking();
        if bots.len() > ONE_BY_ONE {
            return self.ask_for_all(&asking, bots).await;
        }
        let answers = futures::stream::iter(bots).map(|bot| async {
            let container = self.find_container(&bot).await?;
            let task = match &container {
                Some(container) => self.task_state(&container.id).await?,
                None => TaskState::None,
            };
            Ok((bot, Seen::new(container, task)))
        });
        let answers: Vec<Result<(BotId, Seen)>> = answers.buffer_unordered(AT_A_TIME).collect().await;
        let answers: Vec<(BotId, Seen)> = answers.into_iter().collect::<Result<_>>()?;
        for (bot, seen) in &answers {
            asking.learned(bot.clone(), seen.clone());
        }
        Ok(answers)
    }

    async fn ask_for_all(&self, asking: &Asking<'_>, bots: Vec<BotId>) -> Result<Vec<(BotId, Seen)>> {
        let (containers, tasks) = tokio::try_join!(self.containers(Vec::new()), self.tasks())?;
        let mut of_bots = self.by_bot(containers);
        let mut answers = Vec::with_capacity(bots.len());
        for bot in bots {
            let container = of_bots.remove(&bot);
            let task = container.as_ref().and_then(|container| tasks.get(&container.id));
            let seen = Seen::new(container.clone(), task.copied().unwrap_or(TaskState::None));
            asking.learned(bot.clone(), seen.clone());
            answers.push((bot, seen));
        }
        Ok(answers)
    }

    /// The one that [`ContainerdRuntime::find_container`] finds: by our name, else the latest.
    fn by_bot(&self, mut containers: Vec<Container>) -> HashMap<BotId, Container> {
        containers.sort_by_key(last_change);
        let mut by_bot: HashMap<BotId, Container> = HashMap::with_capacity(containers.len());
        for container in containers {
            let Some(bot) = bot_of(&container).filter(|_| self.is_ours(&container.labels)) else {
                continue;
            };
            let has_our_name = |bot: &BotId, container: &Container| container.id == container_id_for(bot);
            if by_bot.get(&bot).is_none_or(|other| !has_our_name(&bot, other)) {
                by_bot.insert(bot, container);
            }
        }
        by_bot
    }
}
