//! What there is of many workspaces: what is known of them already, and a question for the rest.

use std::collections::HashMap;

use containerd_client::services::v1::Container;
use futures::StreamExt;
use skep_names::{BotId, container_id_for};

use super::ContainerdRuntime;
use super::container::{bot_of, last_change};
use super::picture::{Asking, Seen};
use crate::{Instance, Result, TaskState};

/// So many are asked about one by one; containerd's list costs more than that, it tells the specifications of all.
const ONE_BY_ONE: usize = 16;
/// Questions at a time.
const AT_A_TIME: usize = 8;

impl ContainerdRuntime {
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
