//! The names of all bots' layers, so that looking for those of one bot does not make containerd walk through the layers
//! of all.
//!
//! They are known from one list of all, and from containerd's events since: a name that an event tells is asked about
//! before the next answer. What a layer is, and whether it is there at all, containerd is always asked. A name that is
//! gone although no event told so means that the names are not to be relied upon: then all are listed. So they are where
//! there are few.

use std::collections::{BTreeMap, HashSet};

use containerd_client::services::v1::snapshots::Info;
use futures::future::try_join_all;
use skep_names::{BotId, LABEL_BOT, WORKSPACE_PREFIX, container_id_for};

use super::ContainerdRuntime;
use super::since::Since;
use crate::Result;

/// A question about one layer takes containerd as long as a list of so many. Those of images are listed too, and are not
/// counted.
const LISTED_MEANWHILE: usize = 8;

/// By name; the bot that its label names, where it has one.
type Names = BTreeMap<String, Option<String>>;

/// Which layers there are of any bot, in the configured snapshotter.
#[derive(Default)]
pub(super) struct LayerNames {
    /// `None`: not asked yet, or what was known counts no more.
    known: tokio::sync::Mutex<Option<Names>>,
    /// What happened since it was asked.
    pub(super) since: Since,
}

impl ContainerdRuntime {
    /// All layers that are the bot's by label or by name, whoever made them.
    pub(super) async fn layers_of(&self, bot: &BotId, snapshotter: &str) -> Result<Vec<Info>> {
        match self.layers_by_name(bot, snapshotter).await? {
            Some(infos) => Ok(infos),
            None => self.snapshots(snapshotter, filters_of(bot)).await,
        }
    }

    /// Of all bots, asked for at once. The reference system's layers have no labels of ours.
    pub(super) async fn layers_of_all_bots(&self) -> Result<Vec<Info>> {
        let mut known = self.layer_names.known.lock().await;
        *known = None;
        // What happens from here on is asked about again.
        drop(self.layer_names.since.take());
        let infos = self.list_layers_of_all_bots().await?;
        *known = Some(infos.iter().filter_map(name_of).collect());
        Ok(infos)
    }

    /// `None`: by the names nothing can be said.
    async fn layers_by_name(&self, bot: &BotId, snapshotter: &str) -> Result<Option<Vec<Info>>> {
        let is_known = snapshotter == self.config.snapshotter && !self.is_listed_sooner(bot).await;
        // Without the events nothing that was known counts.
        if !is_known || !self.echoes.all_read(&self.client).await {
            return Ok(None);
        }
        let names = self.names_of_layers(bot).await?;
        let infos = try_join_all(names.iter().map(|name| self.snapshot(snapshotter, name))).await?;
        let Some(infos) = infos.into_iter().collect::<Option<Vec<Info>>>() else {
            self.layer_names.since.forget();
            return Ok(None);
        };
        let is_its =
            |info: &Info| label_of(info) == Some(bot.as_str()) || info.name.starts_with(&container_id_for(bot));
        Ok(Some(infos.into_iter().filter(is_its).collect()))
    }

    /// By what was known last: there are so few others that to list them takes less than a question about each of its own.
    async fn is_listed_sooner(&self, bot: &BotId) -> bool {
        let known = self.layer_names.known.lock().await;
        let known = known.as_ref();
        known.is_some_and(|known| names_of(bot, known).count() * LISTED_MEANWHILE > known.len())
    }

    async fn names_of_layers(&self, bot: &BotId) -> Result<Vec<String>> {
        // Held while containerd is asked: nobody looks at what is known before what changed is in it.
        let mut known = self.layer_names.known.lock().await;
        let happened = self.layer_names.since.take();
        let current = match known.take() {
            Some(known) if !happened.anything => self.look_at_changed(known, happened.changed).await,
            _ => {
                let infos = self.list_layers_of_all_bots().await;
                infos.map(|infos| infos.iter().filter_map(name_of).collect())
            }
        };
        // A question that failed, or was given up, has taken what changed with it: the next one asks for all.
        let known = known.insert(current?);
        Ok(names_of(bot, known).cloned().collect())
    }

    async fn look_at_changed(&self, mut known: Names, changed: HashSet<String>) -> Result<Names> {
        for name in changed {
            let info = self.snapshot(&self.config.snapshotter, &name).await?;
            match info.as_ref().and_then(name_of) {
                Some((name, label)) => drop(known.insert(name, label)),
                None => drop(known.remove(&name)),
            }
        }
        Ok(known)
    }

    pub(super) async fn list_layers_of_all_bots(&self) -> Result<Vec<Info>> {
        let filters = vec![
            format!("labels.\"{LABEL_BOT}\""),
            format!("name~=\"^{WORKSPACE_PREFIX}\""),
        ];
        self.snapshots(&self.config.snapshotter, filters).await
    }
}

/// By label, and by name.
fn filters_of(bot: &BotId) -> Vec<String> {
    vec![
        format!("labels.\"{LABEL_BOT}\"==\"{bot}\""),
        format!("name~=\"^{}\"", container_id_for(bot)),
    ]
}

/// The same among those that are known.
fn names_of<'a>(bot: &'a BotId, known: &'a Names) -> impl Iterator<Item = &'a String> {
    let own = container_id_for(bot);
    let its = known
        .iter()
        .filter(move |(name, label)| label.as_deref() == Some(bot.as_str()) || name.starts_with(&own));
    its.map(|(name, _)| name)
}

fn label_of(info: &Info) -> Option<&str> {
    info.labels.get(LABEL_BOT).map(String::as_str)
}

/// Where it can be some bot's.
fn name_of(info: &Info) -> Option<(String, Option<String>)> {
    let label = label_of(info).map(str::to_owned);
    let can_be = label.is_some() || info.name.starts_with(WORKSPACE_PREFIX);
    can_be.then(|| (info.name.clone(), label))
}
