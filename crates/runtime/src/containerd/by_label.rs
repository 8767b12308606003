//! Containers that are a bot's by their label alone, under another name than ours: others made them, and there are
//! few. They are known from one list of all, and from containerd's events since, so that looking for the container of a
//! bot that has none does not cost a list of all each time.

use std::collections::{HashMap, HashSet};

use containerd_client::services::v1::Container;
use skep_names::{BotId, container_id_for};

use super::ContainerdRuntime;
use super::container::{bot_of, last_change};
use super::since::Since;
use crate::Result;

/// Which containers are whose, of those that bear another name than ours.
#[derive(Default)]
pub(super) struct ByLabel {
    /// `None`: not asked yet, or what was known counts no more.
    known: tokio::sync::Mutex<Option<HashMap<String, BotId>>>,
    /// What happened since it was asked.
    pub(super) since: Since,
}

impl ContainerdRuntime {
    /// The latest container that is the bot's by its label, or by a name of the reference system.
    pub(super) async fn container_by_label(&self, bot: &BotId) -> Result<Option<Container>> {
        // Without the events nothing that was known counts.
        if !self.echoes.all_read(&self.client).await {
            return self.container_by_label_of_all(bot).await;
        }
        let mut found = Vec::new();
        for id in self.known_by_label(bot).await? {
            found.extend(
                self.container(&id)
                    .await?
                    .filter(|container| self.is_of(bot, container)),
            );
        }
        found.sort_by_key(last_change);
        Ok(found.pop())
    }

    async fn known_by_label(&self, bot: &BotId) -> Result<Vec<String>> {
        // Held while containerd is asked: nobody looks at what is known before what changed is in it.
        let mut known = self.by_label.known.lock().await;
        let since = self.by_label.since.take();
        let current = match known.take() {
            Some(known) if !since.anything => self.look_again(known, since.changed).await,
            _ => self.look_at_all().await,
        };
        // A question that failed, or was given up, has taken what changed with it: the next one asks for all.
        let known = known.insert(current?);
        let its = known.iter().filter(|(_, of)| *of == bot);
        Ok(its.map(|(id, _)| id.clone()).collect())
    }

    async fn look_again(
        &self,
        mut known: HashMap<String, BotId>,
        changed: HashSet<String>,
    ) -> Result<HashMap<String, BotId>> {
        for id in changed {
            match self.container(&id).await?.as_ref().and_then(by_label_alone) {
                Some(bot) => drop(known.insert(id, bot)),
                None => drop(known.remove(&id)),
            }
        }
        Ok(known)
    }

    async fn look_at_all(&self) -> Result<HashMap<String, BotId>> {
        let all = self.containers(Vec::new()).await?;
        let found = all
            .into_iter()
            .filter_map(|container| Some((by_label_alone(&container)?, container.id)));
        Ok(found.map(|(bot, id)| (id, bot)).collect())
    }
}

/// Whose it is, where its name is not the one that we give.
fn by_label_alone(container: &Container) -> Option<BotId> {
    bot_of(container).filter(|bot| container_id_for(bot) != container.id)
}
