//! Versions of a workspace: asked for, listed with their lineage, renamed. The work is `workspace/versions.rs`.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use skep_names::BotId;
use skep_runtime::{LayerKind, LayerRecord, LayerTree, Layers, Runtime, RuntimeError};
use skep_store::VersionRow;

use crate::error::{Error, Result};
use crate::operations::OperationHandle;
use crate::requester::Requester;
use crate::skep::Skep;
use crate::workspace::{Request, SnapshotPlan, Uninterrupted};

/// The source of a version that a caller made without naming one.
pub const SOURCE_MANUAL: &str = "manual";
/// The source of one that was taken before a command.
pub const SOURCE_PRE_EXEC: &str = "pre_exec";
/// The source of one that a rollback took of what it left.
pub const SOURCE_ROLLBACK: &str = "rollback";
/// The source that is told of a layer that is no version.
const SOURCE_IMAGE_LAYER: &str = "image_layer";
/// How often layers are looked at that are being changed.
const LOOKS: u32 = 8;
/// The longest display name, in bytes.
const LONGEST_NAME: usize = 255;

/// How many versions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionLimits {
    /// Of a caller's own making; then no more are taken.
    pub max: u64,
    /// With source `pre_exec`; the oldest are dropped.
    pub keep_automatic: u64,
    /// With source `rollback`; the oldest are dropped.
    pub keep_rollback: u64,
    /// A line of so many layers is made shorter by merging those that no version needs.
    pub merge_over: u64,
}

impl Default for VersionLimits {
    /// The contract's.
    fn default() -> Self {
        Self {
            max: 64,
            keep_automatic: 16,
            keep_rollback: 8,
            merge_over: 100,
        }
    }
}

/// The layers of a workspace as they are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotList {
    pub snapshotter: String,
    /// By creation, then by name.
    pub snapshots: Vec<SnapshotItem>,
}

/// One layer as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotItem {
    pub snapshotter: String,
    /// Its display name, else `Version <n>`, else the runtime's name.
    pub name: String,
    pub display_name: Option<String>,
    pub runtime_snapshot_name: String,
    pub parent: Option<String>,
    pub kind: LayerKind,
    /// Of a version, when it was taken.
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub labels: BTreeMap<String, String>,
    pub source: String,
    /// It is a version.
    pub managed: bool,
    pub version: Option<u64>,
}

/// What is shown of a version without a display name.
pub fn shown_name(display_name: &str, version: u64) -> String {
    match display_name.is_empty() {
        true => format!("Version {version}"),
        false => display_name.to_owned(),
    }
}

/// What a backend can do with layers.
///
/// # Errors
/// [`Error::Unsupported`] where it cannot.
pub(crate) fn layers_of(runtime: &dyn Runtime) -> Result<&dyn Layers> {
    runtime.layers().ok_or_else(|| {
        let backend = runtime.capabilities().backend;
        Error::Unsupported(format!("snapshots currently not supported on {backend} backend"))
    })
}

/// As [`layers_of`], where only the answer counts.
pub(crate) fn required_layers(runtime: &dyn Runtime) -> Result<()> {
    layers_of(runtime).map(|_| ())
}

impl Skep {
    /// Begins to keep the present state of a workspace as a version. A blank source is `manual`.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::Unsupported`], [`Error::InvalidArgument`] for a name that is too long.
    pub async fn take_snapshot(
        &self,
        bot: &BotId,
        (display_name, source): (&str, &str),
        requester: &Requester,
    ) -> Result<OperationHandle> {
        let source = match source.trim() {
            "" => SOURCE_MANUAL.to_owned(),
            given => given.to_owned(),
        };
        let plan = SnapshotPlan {
            display_name: checked_name(display_name)?,
            source,
        };
        required_layers(&**self.runtime())?;
        self.require_versioned(bot).await?;
        self.submit(bot, Request::Snapshot(plan), requester).await
    }

    /// Begins to go back to a version; the present state is saved first.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::VersionNotFound`], [`Error::Unsupported`].
    pub async fn roll_back(&self, bot: &BotId, version: u64, requester: &Requester) -> Result<OperationHandle> {
        required_layers(&**self.runtime())?;
        self.require_version(bot, version).await?;
        self.submit(bot, Request::Rollback { version }, requester).await
    }

    /// Begins to forget a version. Its space comes back when nothing stands on it.
    ///
    /// # Errors
    /// As [`Skep::roll_back`].
    pub async fn delete_version(&self, bot: &BotId, version: u64, requester: &Requester) -> Result<OperationHandle> {
        required_layers(&**self.runtime())?;
        self.require_version(bot, version).await?;
        self.submit(bot, Request::SnapshotDelete { version }, requester).await
    }

    /// Gives a version another display name; an empty one takes it away.
    ///
    /// # Errors
    /// As [`Skep::roll_back`]; [`Error::InvalidArgument`].
    pub async fn rename_version(&self, bot: &BotId, version: u64, name: &str) -> Result<VersionRow> {
        required_layers(&**self.runtime())?;
        let name = checked_name(name)?;
        let container = self.require_versioned(bot).await?;
        let renamed = self.store().rename_version(&container, version, &name).await?;
        renamed.ok_or(Error::VersionNotFound(version))
    }

    /// The layers of a workspace: its line, then versions beside that.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`]; [`Error::InvalidArgument`] for another snapshotter than the container's;
    /// [`Error::LayersNotFound`]; [`Error::Unsupported`].
    pub async fn snapshots(&self, bot: &BotId, snapshotter: Option<&str>) -> Result<SnapshotList> {
        let layers = layers_of(&**self.runtime())?;
        let container = self.require_versioned(bot).await?;
        let tree = whole_tree(layers, bot).await?;
        if snapshotter.is_some_and(|asked| asked != tree.snapshotter) {
            return Err(Error::InvalidArgument(
                "snapshotter does not match container snapshotter".to_owned(),
            ));
        }
        if tree.line.is_empty() {
            return Err(Error::LayersNotFound);
        }
        let versions = self.store().versions(&container).await?;
        let versions: HashMap<&str, &VersionRow> = versions
            .iter()
            .map(|version| (version.runtime_snapshot_name.as_str(), version))
            .collect();
        let managed = |layer: &LayerRecord| versions.contains_key(layer.name.as_str());
        let shown = tree.line.into_iter().chain(tree.side.into_iter().filter(managed));
        let mut snapshots: Vec<SnapshotItem> = shown
            .map(|layer| {
                let version = versions.get(layer.name.as_str()).copied();
                item(&tree.snapshotter, layer, version)
            })
            .collect();
        snapshots.sort_by(|one, other| (one.created_at, &one.name).cmp(&(other.created_at, &other.name)));
        Ok(SnapshotList {
            snapshotter: tree.snapshotter,
            snapshots,
        })
    }

    /// The processes of a workspace, until they are ended by an operation that brings it back by itself. One that ended
    /// since then did not end by itself.
    pub fn uninterrupted(&self, bot: &BotId) -> Uninterrupted {
        self.interruptions().watch(bot)
    }

    /// The id of the container that versions belong to.
    async fn require_versioned(&self, bot: &BotId) -> Result<String> {
        self.store().bot(bot).await?.ok_or(Error::BotNotFound)?;
        Ok(self.workspace_row(bot).await?.container_id)
    }

    async fn require_version(&self, bot: &BotId, version: u64) -> Result<()> {
        let container = self.require_versioned(bot).await?;
        let found = self.store().version(&container, version).await?;
        found.map(|_| ()).ok_or(Error::VersionNotFound(version))
    }
}

/// The layers, looked at again when they were just being changed; an empty line is one that is missing.
async fn whole_tree(layers: &dyn Layers, bot: &BotId) -> Result<LayerTree> {
    let mut looks = 0;
    loop {
        let tree = layers.list(bot).await.map_err(|error| match error {
            RuntimeError::NotFound { .. } => Error::ContainerNotFound,
            error => error.into(),
        })?;
        looks += 1;
        if looks == LOOKS || !tree.line.is_empty() {
            return Ok(tree);
        }
        // Between the commit of the present and the layer above it, mostly: this waits for whoever changes them, and
        // brings to its end what a crash cut off.
        match layers.present(bot).await {
            Ok(_) => {}
            Err(RuntimeError::NotFound { .. }) => return Ok(tree),
            Err(error) => return Err(error.into()),
        }
    }
}

fn item(snapshotter: &str, layer: LayerRecord, version: Option<&VersionRow>) -> SnapshotItem {
    let display_name = version
        .map(|version| version.display_name.clone())
        .filter(|name| !name.is_empty());
    SnapshotItem {
        snapshotter: snapshotter.to_owned(),
        name: match version {
            Some(version) => shown_name(&version.display_name, version.version),
            None => layer.name.clone(),
        },
        display_name,
        runtime_snapshot_name: layer.name,
        parent: layer.parent,
        kind: layer.kind,
        // A merge makes its layer anew.
        created_at: version.map_or(layer.created_at, |version| version.created_at),
        updated_at: layer.updated_at,
        labels: layer.labels,
        source: version.map_or_else(|| SOURCE_IMAGE_LAYER.to_owned(), |version| version.source.clone()),
        managed: version.is_some(),
        version: version.map(|version| version.version),
    }
}

fn checked_name(name: &str) -> Result<String> {
    let name = name.trim();
    if name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(Error::InvalidArgument(format!(
            "snapshot_name is one line of at most {LONGEST_NAME} bytes"
        )));
    }
    Ok(name.to_owned())
}
