//! What workspaces use: counted by the kernel, read without a question to containerd; what their layers hold,
//! which containerd counts; and what is free where those are.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::snapshots::UsageRequest;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skep_names::BotId;
use tokio::time::Instant;
use tonic::Code;

use super::client::failed;
use super::layer::bot_of_layer;
use super::{ContainerdRuntime, not_running};
use crate::{Result, RuntimeError, StorageHeld, Usage, cgroup, counters, free_space, nameless};

/// containerd walks through every file of an active layer, to count and to commit it: one with millions of them takes
/// minutes.
pub(super) const COUNT_LIMIT: Duration = Duration::from_secs(600);

/// How often layers that are replaced meanwhile are listed anew.
const COUNT_TRIES: u32 = 3;
/// Of so few the layers are asked for one by one.
const ONE_BY_ONE: usize = 4;
/// A count can take long: what was made since the list is to be in the next ones.
const LISTED_FOR: Duration = Duration::from_secs(5);

/// The names of layers, as they were listed then.
struct Listed {
    at: Instant,
    names: HashMap<BotId, Vec<String>>,
}

impl ContainerdRuntime {
    /// The counters of a workspace that runs.
    pub(super) async fn counted(&self, bot: &BotId) -> Result<Usage> {
        let running = self.records.get(bot).ok_or_else(|| not_running(bot))?;
        let attachment = self.network.attachment(bot)?;
        let interface = attachment.and_then(|attachment| attachment.host_interface);
        // The kernel may have to add up over all processors first: not on a thread that others wait for.
        let reading = tokio::task::spawn_blocking(move || {
            let usage = cgroup::group(&running.cgroup).usage();
            usage.pids.is_some_and(|pids| pids > 0).then(|| Usage {
                network: interface.as_deref().and_then(counters::network),
                started_at: Some(running.started_at),
                ..usage
            })
        });
        match reading.await {
            Ok(read) => read.ok_or_else(|| not_running(bot)),
            Err(panicked) => Err(RuntimeError::other(
                format!("reading the counters of workspace {bot}"),
                panicked,
            )),
        }
    }

    /// All layers of a bot, as the snapshotter counts them.
    pub(super) async fn measured_layers(&self, bot: &BotId) -> Result<StorageHeld> {
        let container = self.find_container(bot).await?;
        let own = container.map(|container| container.snapshotter);
        let snapshotter = own.filter(|own| !own.is_empty());
        let snapshotter = snapshotter.unwrap_or_else(|| self.config.snapshotter.clone());
        for _ in 0..COUNT_TRIES {
            let records = self.records_of(bot, &snapshotter).await?;
            if records.is_empty() {
                return Err(RuntimeError::NotFound {
                    what: format!("a layer of bot {bot}"),
                });
            }
            let names: Vec<String> = records.into_iter().map(|record| record.name).collect();
            if let Some(held) = self.count(&names, &snapshotter).await? {
                return Ok(held);
            }
        }
        Err(RuntimeError::other(
            format!("counting the layers of bot {bot}"),
            "they were replaced all the while",
        ))
    }

    /// Of each of these bots, one after the other. The layers of many are listed once, and again after a while.
    pub(super) fn measured_layers_of<'a>(&'a self, bots: &'a [BotId]) -> BoxStream<'a, Result<StorageHeld>> {
        let state = (bots, None::<Listed>);
        let counts = stream::unfold(state, move |(bots, mut listed)| async move {
            let (bot, rest) = bots.split_first()?;
            let is_old = listed.as_ref().is_none_or(|listed| listed.at.elapsed() > LISTED_FOR);
            if is_old {
                listed = match bots.len() > ONE_BY_ONE {
                    true => Some(self.list_layers(bots).await),
                    false => None,
                };
            }
            let names = listed.as_mut().and_then(|listed| listed.names.remove(bot));
            let counted = match names {
                Some(names) => self.count(&names, &self.config.snapshotter).await,
                None => Ok(None),
            };
            let held = match counted.transpose() {
                Some(held) => held,
                None => self.measured_layers(bot).await,
            };
            Some((held, (rest, listed)))
        });
        counts.boxed()
    }

    /// The layers of those of these bots that are known to have theirs where all are listed. Whoever is not among them
    /// is asked about by itself, and has his own error.
    async fn list_layers(&self, bots: &[BotId]) -> Listed {
        let at = Instant::now();
        let mut names = HashMap::new();
        if self.echoes.all_read(&self.client).await
            && let Ok(infos) = self.list_layers_of_all_bots().await
        {
            let (seen, _) = self.picture.look(bots);
            let is_there = |bot: &BotId| {
                let container = seen.get(bot).and_then(|seen| seen.container.as_ref());
                container.is_some_and(|container| container.snapshotter == self.config.snapshotter)
            };
            for info in infos.into_iter().filter(|info| self.is_ours(&info.labels)) {
                if let Some(bot) = bot_of_layer(&info).filter(is_there) {
                    names.entry(bot).or_insert_with(Vec::new).push(info.name);
                }
            }
        }
        Listed { at, names }
    }

    /// `None`: one of them is gone since it was listed, and others may have come.
    async fn count(&self, layers: &[String], snapshotter: &str) -> Result<Option<StorageHeld>> {
        let mut held = StorageHeld::default();
        for layer in layers {
            let message = UsageRequest {
                snapshotter: snapshotter.to_owned(),
                key: layer.clone(),
            };
            let request = self.client.request_within(message, COUNT_LIMIT);
            match self.client.snapshots().usage(request).await {
                Ok(answer) => {
                    let layer = answer.into_inner();
                    held.bytes = held.bytes.saturating_add(u64::try_from(layer.size).unwrap_or(0));
                    held.files = held.files.saturating_add(u64::try_from(layer.inodes).unwrap_or(0));
                }
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed(format!("the size of layer {layer}"), status)),
            }
        }
        Ok(Some(held))
    }

    /// What is free where the snapshotter keeps its layers. containerd is asked for the place once.
    pub(super) async fn free_for_layers(&self) -> Result<u64> {
        let root = self
            .layers_root
            .get_or_try_init(|| self.snapshotter_root())
            .await?
            .clone();
        let operation = format!("asking for the free space of {}", root.display());
        let asked = tokio::task::spawn_blocking(move || free_space(&root)).await;
        let free = asked.map_err(|panicked| RuntimeError::other(operation.clone(), panicked))?;
        free.map_err(|error| RuntimeError::other(operation, error))
    }

    /// What the processes of a workspace have written. Each count has its gap, so the larger one counts: processes
    /// are told of what they write at once, and forgotten when nobody waits for them; disks are told late, and under
    /// version 1 only of what does not pass the page cache.
    pub(super) async fn written(&self, bot: &BotId) -> Result<u64> {
        let running = self.records.get(bot).ok_or_else(|| not_running(bot))?;
        let reading = tokio::task::spawn_blocking(move || {
            let by_processes = counters::written_by(&cgroup::processes(&running.cgroup));
            let to_disks = cgroup::group(&running.cgroup).io().map_or(0, |io| io.written);
            by_processes.max(to_disks)
        });
        let operation = format!("reading what workspace {bot} has written");
        reading
            .await
            .map_err(|panicked| RuntimeError::other(operation, panicked))
    }

    /// What a workspace holds open that no count of its layers finds.
    pub(super) async fn nameless(&self, bot: &BotId) -> Result<u64> {
        let running = self.records.get(bot).ok_or_else(|| not_running(bot))?;
        let reading = tokio::task::spawn_blocking(move || nameless::bytes_of(&cgroup::processes(&running.cgroup)));
        let operation = format!("reading what workspace {bot} holds open");
        reading
            .await
            .map_err(|panicked| RuntimeError::other(operation, panicked))
    }

    /// How often each was refused a process. Together: a thread for each would cost more than what it reads.
    pub(super) async fn refused(&self, bots: &[BotId]) -> Result<HashMap<BotId, u64>> {
        let of_group = |bot: &BotId| Some((bot.clone(), self.records.get(bot)?.cgroup));
        let groups: Vec<(BotId, String)> = bots.iter().filter_map(of_group).collect();
        let reading = tokio::task::spawn_blocking(move || {
            let names = groups.iter().map(|(_, group)| group.as_str());
            let refused = cgroup::group("/").refused_processes_of(names);
            let counted = groups.iter().zip(refused);
            counted
                .map(|((bot, _), refused)| (bot.clone(), refused.unwrap_or(0)))
                .collect()
        });
        reading
            .await
            .map_err(|panicked| RuntimeError::other("reading how often workspaces were refused a process", panicked))
    }
}
