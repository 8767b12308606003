//! `/data` of a fake workspace that does not run, by the same program as on a real backend.

use std::time::Duration;

use async_trait::async_trait;
use skep_names::BotId;
use skep_runtime::layer_access::{
    Applied, Apply, ArchiveStream, DataPlace, DataReader, Held, LayerAccess, LayerProgram, Mount, MountedData, Pack,
    PlaceInMount, Task, Worker,
};
use skep_runtime::{Result, RuntimeError, TaskState};

use super::FakeRuntime;
use super::faults::Verb;

#[async_trait]
impl LayerAccess for FakeRuntime {
    async fn read_data(&self, place: &DataPlace, pack: Pack) -> Result<DataReader> {
        self.faults().enter(Verb::ReadData).await?;
        Ok(self.worker(place, Task::Pack(pack)).await?.into_reader())
    }

    async fn read_frozen(&self, bot: &BotId, pack: Pack, _limit: Duration) -> Result<DataReader> {
        self.faults().enter(Verb::ReadData).await?;
        let alone = self.alone(bot).await;
        let process = self.lock().get(bot).and_then(|state| state.process.clone());
        let Some(process) = process.filter(|process| process.ended().is_none()) else {
            return Err(RuntimeError::Rejected {
                reason: "the workspace does not run".to_owned(),
            });
        };
        let frozen = process
            .freeze()
            .map_err(|error| RuntimeError::other("freezing a fake workspace", error))?;
        let mounted = MountedData {
            mount: Mount::Bind {
                path: self.layer_path(bot),
            },
            data: PlaceInMount::Below,
            held: Held::new(alone).frozen(frozen),
        };
        Ok(self.program().start(mounted, Task::Pack(pack))?.into_reader())
    }

    async fn estimate_data(&self, place: &DataPlace) -> Result<u64> {
        self.faults().enter(Verb::ReadData).await?;
        self.worker(place, Task::Estimate).await?.estimate().await
    }

    async fn write_data(&self, place: &DataPlace, archive: ArchiveStream, apply: Apply) -> Result<Applied> {
        self.faults().enter(Verb::WriteData).await?;
        self.worker(place, Task::Apply(apply)).await?.feed(archive).await
    }
}

impl FakeRuntime {
    async fn worker(&self, place: &DataPlace, task: Task) -> Result<Worker> {
        let bind = |path, data, held| MountedData {
            mount: Mount::Bind { path },
            data,
            held,
        };
        let mounted = match place {
            DataPlace::Directory(path) => bind(path.clone(), PlaceInMount::Root, Held::nothing()),
            DataPlace::Mounted { bot, mount } => bind(
                mount.source.clone().into(),
                PlaceInMount::Below,
                Held::new(self.alone(bot).await),
            ),
            DataPlace::Workspace(bot) => {
                let alone = self.alone(bot).await;
                if self.task_of(bot) == TaskState::Running {
                    return Err(RuntimeError::Rejected {
                        reason: "the workspace runs".to_owned(),
                    });
                }
                let layer = self.layer_path(bot);
                if !layer.is_dir() {
                    return Err(RuntimeError::NotFound {
                        what: format!("a layer of bot {bot}"),
                    });
                }
                bind(layer, PlaceInMount::Below, Held::new(alone))
            }
        };
        self.program().start(mounted, task)
    }

    fn program(&self) -> LayerProgram {
        LayerProgram {
            program: self.root().join("skep-layer"),
            scratch: self.root().join("layers"),
            spool: self.root().join("spool"),
        }
    }
}
