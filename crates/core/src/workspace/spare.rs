//! What the server itself writes on the host (images, archives that come in, backups, data that is put back or taken
//! out of one moment) leaves the host's reserve alone: it is refused, or given up, a step before that is touched. There
//! is no process that `disk_watch` could stop for it, and a neighbour would be stopped in its place.

use std::io;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use skep_runtime::free_space;
use skep_runtime::layer_access::ArchiveStream;
use tokio::time::Instant;

use super::reserve::step_of;
use crate::backups::file_error;
use crate::error::{Error, Result};
use crate::skep::Skep;

/// Between two looks at what is free: a disk of a gigabyte a second takes a tenth of one meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const ONLY_THE_RESERVE: &str = "what is free on the host is its reserve (limits.reserve_bytes)";

/// What is free for something that is being written: looked at now and then, not at each piece.
#[derive(Clone)]
pub(crate) struct Spare {
    skep: Skep,
    looked_at: Option<Instant>,
}

impl Spare {
    /// Before each piece.
    ///
    /// # Errors
    /// [`Error::DiskFull`] while little more than the reserve is free; [`Error::RuntimeUnavailable`].
    pub(crate) async fn look(&mut self) -> Result<()> {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        self.skep.require_spare().await?;
        self.looked_at = Some(Instant::now());
        Ok(())
    }
}

impl Skep {
    /// Not looked at yet.
    pub(crate) fn spare(&self) -> Spare {
        Spare {
            skep: self.clone(),
            looked_at: None,
        }
    }

    /// Refuses to write while little more than the reserve is free, where the layers are or below the data root. What
    /// is written until the next look comes off the step above it.
    pub(crate) async fn require_spare(&self) -> Result<()> {
        let reserve = self.settings().reserve_bytes;
        if reserve == 0 {
            return Ok(());
        }
        let free = self
            .runtime()
            .free_bytes()
            .await?
            .min(self.free_below_data_root().await?);
        match free < reserve.saturating_add(step_of(reserve)) {
            true => Err(Error::DiskFull(format!("no space left: {ONLY_THE_RESERVE}"))),
            false => Ok(()),
        }
    }

    async fn free_below_data_root(&self) -> Result<u64> {
        const OPERATION: &str = "asking for the free space of the data root";
        let root = self.settings().data_root.clone();
        let asked = tokio::task::spawn_blocking(move || free_space(&root)).await;
        let free = asked.map_err(|panicked| Error::internal(OPERATION, panicked))?;
        free.map_err(|error| file_error(OPERATION, error))
    }

    /// Does what writes to the disk, and gives it up before it takes the reserve.
    pub(crate) async fn while_spare<T>(&self, writing: impl Future<Output = Result<T>>) -> Result<T> {
        self.require_spare().await?;
        let taken = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if let Err(error) = self.require_spare().await {
                    return error;
                }
            }
        };
        tokio::select! {
            done = writing => done,
            error = taken => Err(error),
        }
    }

    /// An archive on its way to the disk, broken off before it takes the reserve.
    pub(crate) fn sparing(&self, archive: ArchiveStream) -> ArchiveStream {
        let spare = self.spare();
        let looked_at = futures::stream::try_unfold((archive, spare), |(mut archive, mut spare)| async move {
            let Some(chunk) = archive.try_next().await? else {
                return Ok(None);
            };
            spare.look().await.map_err(as_io)?;
            Ok(Some((chunk, (archive, spare))))
        });
        looked_at.boxed()
    }
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::DiskFull(_) => io::Error::new(io::ErrorKind::StorageFull, ONLY_THE_RESERVE),
        other => io::Error::other(other),
    }
}
