//! Limits: what may be asked for, and how they reach a workspace that runs.

use skep_runtime::{Limits, TaskState};
use skep_store::{ContainerRow, LimitsColumn};

use super::request::AskedLimits;
use super::work::Work;
use crate::error::{Error, Result};
use crate::operations::{LimitsReport, Outcome};

/// Note: the limits that were wanted before this operation.
const LIMITS_BEFORE: &str = "limits_before";
/// Less memory than this does not start a bridge.
const LEAST_MEMORY: u64 = 16 << 20;
/// Fewer processes than this do not start a bridge with a shell.
const LEAST_PIDS: u64 = 16;
/// The kernel takes no smaller share of a core.
const LEAST_MILLICORES: u64 = 10;

/// What would only fail later is refused now.
pub(crate) fn check(asked: &AskedLimits) -> Result<()> {
    // What is not said was checked when it was.
    let limits = asked.onto(LimitsColumn::default());
    let too_small = |name: &str, value: u64, least: u64| {
        if value != 0 && value < least {
            return Err(Error::InvalidArgument(format!("{name} must be 0 or at least {least}")));
        }
        // Signed 64 bits is what cgroups and the store take.
        if i64::try_from(value).is_err() {
            return Err(Error::InvalidArgument(format!("{name} is too large")));
        }
        Ok(())
    };
    too_small("cpu_millicores", limits.cpu_millicores, LEAST_MILLICORES)?;
    too_small("memory_bytes", limits.memory_bytes, LEAST_MEMORY)?;
    too_small("pids", limits.pids, LEAST_PIDS)?;
    // Any size can be over its limit, also at once: that ends nothing.
    too_small("storage_bytes", limits.storage_bytes, 0)
}

/// As the runtime takes them.
pub(crate) fn to_runtime(limits: &LimitsColumn) -> Limits {
    Limits {
        cpu_millicores: limits.cpu_millicores,
        memory_bytes: limits.memory_bytes,
        pids: limits.pids,
        storage_bytes: limits.storage_bytes,
    }
}

/// As the store keeps them.
pub(crate) fn to_column(limits: &Limits) -> LimitsColumn {
    LimitsColumn {
        cpu_millicores: limits.cpu_millicores,
        memory_bytes: limits.memory_bytes,
        pids: limits.pids,
        storage_bytes: limits.storage_bytes,
    }
}

/// What is in force: what the backend applied, and the limit of storage, which holds also while nothing runs.
pub(crate) fn in_force(applied: LimitsColumn, effective: &Limits) -> LimitsColumn {
    LimitsColumn {
        storage_bytes: effective.storage_bytes,
        ..applied
    }
}

impl Work {
    /// The work of `limits`: wanted first, then applied.
    pub(crate) async fn change_limits(&self, asked: AskedLimits) -> Result<Outcome> {
        let row = self.row_or_adopted().await?;
        self.note_limits(&row)?;
        let limits = asked.onto(row.limits_wanted);
        self.step("wanted", async {
            Ok(self
                .store()
                .set_container_limits(self.bot(), &limits, row.limits_applied.as_ref())
                .await?)
        })
        .await?;
        let applied = self.step("apply", self.apply_limits(&limits)).await?;
        self.skep().show_storage(self.bot()).await?;
        let effective = self.skep().settings().effective_limits(&to_runtime(&limits));
        Ok(Outcome::Limits(LimitsReport {
            wanted: to_column(&effective),
            applied: applied.map(|applied| in_force(applied, &effective)),
        }))
    }

    /// Wanted first, then applied; what is not asked for stays.
    pub(super) async fn set_limits(&self, asked: AskedLimits) -> Result<()> {
        let row = self.row().await?.ok_or(Error::ContainerNotFound)?;
        let limits = asked.onto(row.limits_wanted);
        self.store()
            .set_container_limits(self.bot(), &limits, row.limits_applied.as_ref())
            .await?;
        self.apply_limits(&limits).await.map(drop)
    }

    /// Notes what was wanted before, for a failure or a cancel. The first try's look counts.
    pub(super) fn note_limits(&self, row: &ContainerRow) -> Result<()> {
        if self.noted(LIMITS_BEFORE).is_none() {
            let before = serde_json::to_value(row.limits_wanted);
            let before = before.map_err(|error| Error::internal("writing a note", error))?;
            self.note(LIMITS_BEFORE, before);
        }
        Ok(())
    }

    /// What failed or was cancelled leaves the limits as they were. They are wanted so also when they cannot be applied:
    /// then they are at the next start.
    pub(super) async fn put_limits_back(&self) -> Result<()> {
        let noted = self.noted(LIMITS_BEFORE);
        let Some(before) = noted.and_then(|noted| serde_json::from_value::<LimitsColumn>(noted).ok()) else {
            return Ok(());
        };
        let Some(row) = self.row().await? else {
            return Ok(());
        };
        self.store()
            .set_container_limits(self.bot(), &before, row.limits_applied.as_ref())
            .await?;
        self.apply_limits(&before).await.map(drop)
    }

    /// Applies limits to a task that runs. Returned is what it has, or had when it last ran.
    pub(crate) async fn apply_limits(&self, wanted: &LimitsColumn) -> Result<Option<LimitsColumn>> {
        let instance = self.runtime().inspect(self.bot()).await?;
        if instance.is_none_or(|instance| instance.task != TaskState::Running) {
            return Ok(self.row().await?.and_then(|row| row.limits_applied));
        }
        let effective = self.skep().settings().effective_limits(&to_runtime(wanted));
        self.runtime().apply_limits(self.bot(), &effective).await?;
        let applied = to_column(&self.runtime().limits_in_force(&effective));
        self.store()
            .set_container_limits(self.bot(), wanted, Some(&applied))
            .await?;
        Ok(Some(applied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_start_nothing_are_refused() {
        assert!(check(&AskedLimits::default()).is_ok());
        for limits in [
            AskedLimits {
                memory_bytes: Some(1),
                ..AskedLimits::default()
            },
            AskedLimits {
                pids: Some(1),
                ..AskedLimits::default()
            },
            AskedLimits {
                cpu_millicores: Some(1),
                ..AskedLimits::default()
            },
            AskedLimits {
                storage_bytes: Some(u64::MAX),
                ..AskedLimits::default()
            },
        ] {
            assert!(check(&limits).is_err(), "{limits:?} was accepted");
        }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        let kept = LimitsColumn {
            cpu_millicores: 1500,
            memory_bytes: 64 << 20,
            pids: 100,
            storage_bytes: 7,
        };
        assert_eq!(AskedLimits::default().onto(kept), kept);
        let asked = AskedLimits {
            pids: Some(0),
            ..AskedLimits::default()
        };
        assert_eq!(asked.onto(kept), LimitsColumn { pids: 0, ..kept });
    }
}
