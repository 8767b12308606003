//! `/data` of a workspace without a task, for reading and writing from outside; see [`crate::layer_access`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use skep_layer_protocol::{DataPlace as PlaceInMount, Mount, Task};
use skep_names::{BotId, is_legacy};

use containerd_client::types::Mount as Mounted;

use super::ContainerdRuntime;
use super::host::on_host_failed;
use super::turns::Turn;
use crate::freezer;
use crate::isolation::{self, Layers};
use crate::layer_access::{
    Applied, Apply, ArchiveStream, DataPlace, DataReader, Held, LayerAccess, MountedData, Pack, Worker,
};
use crate::{LayerMount, Result, RuntimeError, TaskState};

/// Runtimes whose processes are the host's own, and whose files are on its file system at once.
const FREEZABLE: &str = "io.containerd.runc.";

#[async_trait]
impl LayerAccess for ContainerdRuntime {
    async fn read_data(&self, place: &DataPlace, pack: Pack) -> Result<DataReader> {
        let mounted = self.mounted_data(place).await?;
        Ok(self.start_worker(mounted, Task::Pack(pack))?.into_reader())
    }

    async fn read_frozen(&self, bot: &BotId, pack: Pack, limit: Duration) -> Result<DataReader> {
        let begun = Instant::now();
        let turn = self.turns.take(bot).await;
        let container = self.required_container(bot).await?;
        if is_legacy(&container.id) || !self.config.runtime.starts_with(FREEZABLE) {
            return Err(RuntimeError::Unsupported {
                backend: "containerd",
                what: "freezing a workspace of this kind".to_owned(),
            });
        }
        if self.task_state(&container.id).await? != TaskState::Running {
            return Err(RuntimeError::Rejected {
                reason: "the workspace does not run".to_owned(),
            });
        }
        let mount = the_one_mount(bot, &self.present_mounts(bot, &container).await?)?;
        let group = self.cgroup_of(&container.id);
        let frozen = self.on_host(&turn, move |_, _| {
            freezer::freeze(&group, limit.saturating_sub(begun.elapsed()))
        });
        let frozen = frozen.await?;
        // The layer is the workspace's own and mounted there: what only reads has no upper directory, and shares none.
        let mounted = of_layer(bot, &mount, Held::new(turn).frozen(frozen))?;
        Ok(self.start_worker(mounted, Task::Pack(pack))?.into_reader())
    }

    async fn estimate_data(&self, place: &DataPlace) -> Result<u64> {
        let mounted = self.mounted_data(place).await?;
        self.start_worker(mounted, Task::Estimate)?.estimate().await
    }

    async fn write_data(&self, place: &DataPlace, archive: ArchiveStream, apply: Apply) -> Result<Applied> {
        let mounted = self.mounted_data(place).await?;
        self.start_worker(mounted, Task::Apply(apply))?.feed(archive).await
    }
}

impl ContainerdRuntime {
    fn start_worker(&self, mounted: MountedData, task: Task) -> Result<Worker> {
        // Its namespace is a copy of ours: a layer that containerd mounts elsewhere would be an empty directory.
        self.same_mounts_as_daemon()?;
        self.config.layer_program.start(mounted, task)
    }

    async fn mounted_data(&self, place: &DataPlace) -> Result<MountedData> {
        match place {
            DataPlace::Workspace(bot) => {
                let turn = self.turns.take(bot).await;
                self.data_of_workspace(turn, bot).await
            }
            DataPlace::Mounted { bot, mount } => {
                let turn = self.turns.take(bot).await;
                of_layer_of_no_task(bot, mount, Held::new(turn))
            }
            DataPlace::Directory(path) => Ok(of_directory(path, Held::nothing())),
        }
    }

    async fn data_of_workspace(&self, turn: Arc<Turn>, bot: &BotId) -> Result<MountedData> {
        let container = self.find_container(bot).await?;
        let id = container
            .as_ref()
            .map_or_else(|| self.record_id(bot), |one| one.id.clone());
        if self.task_state(&id).await? == TaskState::Running {
            return Err(RuntimeError::Rejected {
                reason: "the workspace runs".to_owned(),
            });
        }
        // A dead task's shim has its root mounted still.
        self.clear_dead(&id, self.task_state(&id).await?).await?;
        self.release_host(&turn, bot).await?;
        let mounts = match container {
            Some(container) if is_legacy(&container.id) => {
                let directory = self.config.data_root.join("bots").join(bot.as_str());
                return Ok(of_directory(&directory, Held::new(turn)));
            }
            Some(container) => self.present_mounts(bot, &container).await?,
            None => {
                let layer = self.layer_of(bot, &self.config.snapshotter).await?;
                let layer = layer.ok_or_else(|| RuntimeError::NotFound {
                    what: format!("a layer of bot {bot}"),
                })?;
                self.layer_mounts(&layer.snapshotter, &layer.key).await?
            }
        };
        of_layer_of_no_task(bot, &the_one_mount(bot, &mounts)?, Held::new(turn))
    }
}

fn the_one_mount(bot: &BotId, mounts: &[Mounted]) -> Result<LayerMount> {
    let [mount] = mounts else {
        return Err(RuntimeError::other(
            format!("mounting the layer of workspace {bot}"),
            format!("it has {} mounts", mounts.len()),
        ));
    };
    Ok(LayerMount {
        kind: mount.r#type.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    })
}

fn of_directory(directory: &Path, held: Held) -> MountedData {
    MountedData {
        mount: Mount::Bind {
            path: directory.to_owned(),
        },
        data: PlaceInMount::Root,
        held,
    }
}

fn of_layer_of_no_task(bot: &BotId, mount: &LayerMount, held: Held) -> Result<MountedData> {
    isolation::refuse_second_mount(&parsed(bot, mount)?).map_err(on_host_failed)?;
    of_layer(bot, mount, held)
}

fn parsed(bot: &BotId, mount: &LayerMount) -> Result<Layers> {
    Layers::parse(&mount.kind, &mount.source, &mount.options)
        .map_err(|error| RuntimeError::other(format!("mounting the layer of workspace {bot}"), error))
}

fn of_layer(bot: &BotId, mount: &LayerMount, held: Held) -> Result<MountedData> {
    let layers = parsed(bot, mount)?;
    Ok(MountedData {
        mount: layers.for_host_access(),
        data: PlaceInMount::Below,
        held,
    })
}
