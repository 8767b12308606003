//! The leases of pulls and imports, and what becomes of those whose server died.

use skep_names::ImageReference;

use super::daemon::{FoundLease, Lease};
use super::store::Inner;
use crate::{Result, RuntimeError};

/// Names of our leases begin so.
const LEASE_PREFIX: &str = "skep-image-";

/// What is carried on after a crash is so within this time.
const TAKEN_UP_WITHIN_SECONDS: i64 = 60;

/// A lease of a name of its own, for the pull of an image or for something else.
pub(super) async fn new_lease(inner: &Inner, pulled: Option<&ImageReference>) -> Result<Lease> {
    inner.swept.get_or_try_init(|| drop_leases_of_before(inner)).await?;
    let id = format!("{LEASE_PREFIX}{}", uuid::Uuid::new_v4().simple());
    // Known as one that is in use before it can be found.
    inner.live_leases().insert(id.clone());
    let made = inner.daemon.create_lease(id.clone(), &inner.data_root_id, pulled).await;
    if made.is_err() {
        inner.live_leases().remove(&id);
    }
    made
}

/// Lets go of what was made. After a failure it is collected before this returns. Should the lease
/// stay, it ends by itself within a day.
pub(super) async fn end_lease(inner: &Inner, lease: &Lease, succeeded: bool) {
    inner.live_leases().remove(&lease.id);
    if let Err(error) = inner.daemon.delete_lease(lease, !succeeded).await {
        tracing::warn!(lease = lease.id, %error, "a lease is left; it ends within a day");
    }
}

/// Lets go of what pulls of a server that died made and no pull has taken up since: a layer half unpacked helps
/// nobody. Left alone while this server pulls, and, unless the image is there, for a minute, so that what is carried
/// on finds it.
pub(super) async fn drop_abandoned_leases(inner: &Inner) -> Result<()> {
    if is_working(inner) {
        return Ok(());
    }
    let now = chrono::Utc::now().timestamp();
    for found in abandoned(inner).await? {
        let is_old = now - found.made >= TAKEN_UP_WITHIN_SECONDS;
        if is_old || is_pulled(inner, found.image.as_deref()).await? {
            collect(inner, &found.lease).await?;
        }
    }
    Ok(())
}

/// A pull or an import of this server is under way. What failed pulls keep waits for the next one, and holds nobody up.
fn is_working(inner: &Inner) -> bool {
    inner.live_leases().iter().any(|id| !inner.interrupted.holds(id))
}

/// An image is pulled: what earlier pulls of it made before their server died, nobody will take up any more.
pub(super) async fn drop_abandoned_leases_of(inner: &Inner, pulled: &ImageReference) {
    let dropped = async {
        for found in abandoned(inner).await? {
            if found.image.as_deref() == Some(pulled.as_str()) {
                collect(inner, &found.lease).await?;
            }
        }
        Ok::<_, RuntimeError>(())
    };
    if let Err(error) = dropped.await {
        tracing::warn!(image = %pulled, %error, "what an interrupted pull left stays until the next sweep");
    }
}

async fn abandoned(inner: &Inner) -> Result<Vec<FoundLease>> {
    let mut found = inner.daemon.leases_of_data_root(&inner.data_root_id).await?;
    let live = inner.live_leases();
    // Changes of layers have leases of their own.
    found.retain(|found| found.lease.id.starts_with(LEASE_PREFIX) && !live.contains(&found.lease.id));
    Ok(found)
}

async fn is_pulled(inner: &Inner, image: Option<&str>) -> Result<bool> {
    match image {
        Some(image) => Ok(inner.daemon.get_image(image).await?.is_some()),
        None => Ok(false),
    }
}

async fn collect(inner: &Inner, lease: &Lease) -> Result<()> {
    tracing::info!(lease = lease.id, "collecting what an interrupted pull left");
    inner.daemon.delete_lease(lease, true).await
}

/// Collects what pulls of before the last boot held and never named. Layers of theirs may not have reached
/// the disk before the power went, and a stack that is there is taken for whole.
async fn drop_leases_of_before(inner: &Inner) -> Result<()> {
    let booted = booted_at().map_err(|error| RuntimeError::other("read the time of the last boot", error))?;
    for found in inner.daemon.leases_of(LEASE_PREFIX).await? {
        if found.made < booted {
            collect(inner, &found.lease).await?;
        }
    }
    Ok(())
}

/// In seconds since 1970, by the clock as it is now.
fn booted_at() -> std::io::Result<i64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok())
        .ok_or_else(|| std::io::Error::other("/proc/stat has no btime"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_boot_was_before_now() {
        let booted = booted_at().unwrap();
        assert!(
            (1_000_000_000..=chrono::Utc::now().timestamp()).contains(&booted),
            "{booted}"
        );
    }
}
