//! Limits: what may be asked for, and how they reach a workspace that runs.

use skep_runtime::{Limits, TaskState};
use skep_store::LimitsColumn;

use super::work::Work;
use crate::error::{Error, Result};
use crate::operations::{LimitsReport, Outcome};

/// Less memory than this does not start a bridge.
const LEAST_MEMORY: u64 = 16 << 20;
/// Fewer processes than this do not start a bridge with a shell.
const LEAST_PIDS: u64 = 16;
/// The kernel takes no smaller share of a core.
const LEAST_MILLICORES: u64 = 10;

/// What would only fail later is refused now.
pub(crate) fn check(limits: &LimitsColumn) -> Result<()> {
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
    pub(crate) async fn change_limits(&self, limits: LimitsColumn) -> Result<Outcome> {
        self.step("wanted", async {
            let row = self.row().await?.ok_or(Error::ContainerNotFound)?;
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
        assert!(check(&LimitsColumn::default()).is_ok());
        for limits in [
            LimitsColumn {
                memory_bytes: 1,
                ..LimitsColumn::default()
            },
            LimitsColumn {
                pids: 1,
                ..LimitsColumn::default()
            },
            LimitsColumn {
                cpu_millicores: 1,
                ..LimitsColumn::default()
            },
            LimitsColumn {
                storage_bytes: u64::MAX,
                ..LimitsColumn::default()
            },
        ] {
            assert!(check(&limits).is_err(), "{limits:?} was accepted");
        }
    }
}
