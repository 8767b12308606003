//! Layers of workspaces: what a backend does that can keep a state of one and go back to it.
//!
//! A workspace writes into its **present** layer, which is active. Committed layers below it never change again;
//! versions are such layers. Which of several active layers is the present one must be told the same way after a
//! crash at any point, so that is decided here, for every backend: see [`present_of`].
//!
//! Every name is the caller's, begins with `workspace-<bot>-` and is derived from what does not change when the
//! caller repeats itself (the id of an operation): a repeat finds what the first try made.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use skep_names::{BotId, ImageReference, container_id_for};

use crate::{Result, RuntimeError};

/// Label: counts up each time a layer becomes the newest state of its workspace. The clock says nothing here.
pub const LABEL_SEQUENCE: &str = "skep.sequence";
/// Label: made beside the present layer, and nobody's state until the workspace is put onto it.
pub const LABEL_STAGED: &str = "skep.staged";
/// Label: nobody needs the state that this layer is. It goes as soon as nothing stands on it.
pub const LABEL_RELEASED: &str = "skep.released";
/// The value of those two.
pub const LABEL_SET: &str = "true";

/// Whether a layer can still be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// It can: a workspace may run on it.
    Active,
    /// It never changes again: others may stand on it.
    Committed,
}

/// One layer as its backend keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    /// Unique in its backend.
    pub name: String,
    /// The one it stands on.
    pub parent: Option<String>,
    /// Whether it can be written.
    pub kind: LayerKind,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed, its labels included.
    pub updated_at: DateTime<Utc>,
    /// All it has, those of others too.
    pub labels: BTreeMap<String, String>,
}

impl LayerRecord {
    /// 0: it never was the newest state, or it is from a time before they were counted.
    pub fn sequence(&self) -> u64 {
        let text = self.labels.get(LABEL_SEQUENCE);
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Whether it waits beside the present one.
    pub fn is_staged(&self) -> bool {
        self.has(LABEL_STAGED)
    }

    /// Whether nobody needs its state.
    pub fn is_released(&self) -> bool {
        self.has(LABEL_RELEASED)
    }

    fn has(&self, label: &str) -> bool {
        self.labels.get(label).is_some_and(|value| value == LABEL_SET)
    }
}

/// The layers of one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTree {
    /// Where they are kept.
    pub snapshotter: String,
    /// From the present layer down through its parents, those of the image included. Ends early at a parent that
    /// is missing or that came before. Empty when the present layer itself is missing.
    pub line: Vec<LayerRecord>,
    /// The bot's other layers, by name.
    pub side: Vec<LayerRecord>,
}

/// How a layer is mounted, the one thing to be mounted being the whole file system as the workspace sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMount {
    /// `overlay` or `bind`.
    pub kind: String,
    /// For `bind` the directory.
    pub source: String,
    /// For `overlay` `lowerdir=…`, `upperdir=…`, `workdir=…` and what else the backend wants.
    pub options: Vec<String>,
}

/// What a backend can do with layers. Every verb may be repeated, and a call that is cut off at any point leaves
/// every byte in place: a repeat, or a start, goes on from there.
///
/// No verb stops anything: whoever commits or puts a workspace onto another layer stops it first. All verbs are for
/// workspaces of ours; a legacy container is `Unsupported`.
///
/// To change a workspace's data from outside, all or nothing: stop it, [`stage_change`](Self::stage_change), write
/// into what that returned, then [`adopt_change`](Self::adopt_change) or [`discard_change`](Self::discard_change).
#[async_trait]
pub trait Layers: Send + Sync {
    /// All layers of a workspace.
    ///
    /// # Errors
    /// `NotFound` without a container.
    async fn list(&self, bot: &BotId) -> Result<LayerTree>;

    /// The active layer that is the bot's, with or without a container; made anew on the newest state where a
    /// crash left only committed ones. What else a change that was cut off held is let go of. `None`: the bot has no
    /// layer.
    async fn present(&self, bot: &BotId) -> Result<Option<String>>;

    /// Whether nothing was written since the present layer was made on the one below it. Cheap, whatever the size.
    /// `false` also where that one is the image.
    ///
    /// # Errors
    /// `NotFound` without a container.
    async fn is_unchanged(&self, bot: &BotId) -> Result<bool>;

    /// Commits the present layer as `name`, makes a new and empty one on it and puts the container onto that.
    /// When `name` exists, nothing is committed again.
    ///
    /// # Errors
    /// `NotFound` without a container.
    async fn commit(&self, bot: &BotId, name: &str) -> Result<()>;

    /// Makes the active layer `name` on the committed layer `on` of this bot, beside the present one. It is
    /// nobody's state until [`swap`](Self::swap); one that exists is left as it is.
    ///
    /// # Errors
    /// `NotFound` when there is no such layer `on`.
    async fn stage(&self, bot: &BotId, name: &str, on: &str) -> Result<()>;

    /// Puts the container onto a staged layer, in one step, and removes the layer it was on, which must be
    /// unchanged: commit first what is to be kept.
    ///
    /// # Errors
    /// `Rejected` when the present layer holds what no commit has; nothing is changed then. `NotFound` without a
    /// container or without such a layer.
    async fn swap(&self, bot: &BotId, name: &str) -> Result<()>;

    /// Removes a staged layer with all that was written into it. None is a success.
    ///
    /// # Errors
    /// `Rejected` for a layer that is not staged.
    async fn discard(&self, bot: &BotId, name: &str) -> Result<()>;

    /// Nobody needs this committed state any more: it is removed with all below it that is not needed either, as
    /// soon as nothing stands on it. None is a success.
    ///
    /// # Errors
    /// `Rejected` for an active layer.
    async fn release(&self, bot: &BotId, name: &str) -> Result<()>;

    /// Makes the active layer `name` on an image, beside all that the bot has; it is staged, as [`stage`](Self::stage)
    /// makes one, and returned as it is mounted. One that exists is left as it is.
    ///
    /// # Errors
    /// `ImageNotFound`.
    async fn stage_fresh(&self, bot: &BotId, name: &str, image: &ImageReference) -> Result<LayerMount>;

    /// Makes a staged layer the newest state of a bot that has no container: the next one is put on it. Nothing is
    /// removed.
    ///
    /// # Errors
    /// `Rejected` with a container, which decides by itself; `NotFound` without such a layer.
    async fn make_newest(&self, bot: &BotId, name: &str) -> Result<()>;

    /// How an active layer is mounted, for access from outside while no workspace runs on it.
    ///
    /// # Errors
    /// `NotFound` when there is no such active layer of this bot.
    async fn mount_of(&self, bot: &BotId, name: &str) -> Result<LayerMount>;

    /// Bytes that one layer holds by itself, as its backend counts them.
    ///
    /// # Errors
    /// `NotFound` when there is no such layer.
    async fn bytes(&self, bot: &BotId, name: &str) -> Result<u64>;

    /// Makes the line from the committed layer `top` down shorter: layers that were released are merged into the one
    /// above each, and what stands on them is made anew. Returns which layer took the place of which (old, new), the
    /// highest one included; empty when nothing could be merged. The old ones stay, and so does the container; the
    /// caller puts it onto the result, then releases the old ones. Work of the length of the line and the number of
    /// files in it, not of their bytes; done while the workspace runs.
    async fn shorten(&self, bot: &BotId, operation: &str, top: &str) -> Result<Vec<(String, String)>>;

    /// Makes `copy`, which is the committed layer `name` on another committed layer `on` that means the same as what
    /// it stands on: the last step of a merge, when the present layer was committed above the line meanwhile.
    async fn rebase(&self, bot: &BotId, name: &str, (on, copy): (&str, &str)) -> Result<()>;

    /// The first half of a change from outside: keeps the present state below and makes a fresh layer on it to
    /// write the change into. The workspace must be stopped; should it be started now, it runs on its old state.
    async fn stage_change(&self, bot: &BotId, operation: &str) -> Result<LayerMount> {
        let (base, change) = (base_of_change(bot, operation), name_of_change(bot, operation));
        if !self.is_present(bot, &change).await? {
            self.commit(bot, &base).await?;
            self.stage(bot, &change, &base).await?;
            // Nobody asked for this state; it lasts as long as something stands on it.
            self.release(bot, &base).await?;
        }
        self.mount_of(bot, &change).await
    }

    /// The change is written whole and on the disk: it is the workspace's state from now on.
    async fn adopt_change(&self, bot: &BotId, operation: &str) -> Result<()> {
        let change = name_of_change(bot, operation);
        match self.swap(bot, &change).await {
            // The workspace is on it already, so the answer must be a success: what is left of the swap is done now.
            Err(error) if self.is_present(bot, &change).await? => {
                tracing::warn!(%bot, %error, "a swap of layers that failed half-way is brought to its end");
                self.swap(bot, &change).await
            }
            swapped => swapped,
        }
    }

    /// Whether the workspace is on the change: [`adopt_change`](Self::adopt_change) was called, and may have been cut
    /// off after that.
    async fn is_adopted(&self, bot: &BotId, operation: &str) -> Result<bool> {
        self.is_present(bot, &name_of_change(bot, operation)).await
    }

    /// The change is given up; the workspace's state is as it was before it was staged.
    async fn discard_change(&self, bot: &BotId, operation: &str) -> Result<()> {
        self.discard(bot, &name_of_change(bot, operation)).await
    }

    /// Whether the bot's present layer is that one.
    async fn is_present(&self, bot: &BotId, name: &str) -> Result<bool> {
        Ok(self.present(bot).await?.as_deref() == Some(name))
    }
}

fn base_of_change(bot: &BotId, operation: &str) -> String {
    format!("{}-{operation}-base", container_id_for(bot))
}

fn name_of_change(bot: &BotId, operation: &str) -> String {
    format!("{}-{operation}-change", container_id_for(bot))
}

/// Refuses a name that is not the bot's to give.
///
/// # Errors
/// `Rejected`.
pub fn check_layer_name(bot: &BotId, name: &str) -> Result<()> {
    let own = name.strip_prefix(&container_id_for(bot)).is_some_and(|rest| {
        rest.starts_with('-') && rest.len() > 1 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    match own {
        true => Ok(()),
        false => Err(RuntimeError::Rejected {
            reason: format!("{name:?} is no name for a layer of bot {bot}"),
        }),
    }
}

/// The active layer that a commit makes on what it committed.
pub fn active_on(committed: &str) -> String {
    format!("{committed}-active")
}

/// Which of a bot's layers is its newest state, when no container says so. An active one is gone on with; on a
/// committed one, which a crash between commit and prepare leaves, a new active one is made.
///
/// A staged layer never is. Among counted ones the last counts; without any (the reference system's, and those of
/// the first releases), an active one of the plain name, then the newest active one, then the newest.
pub fn present_of<'a>(bot: &BotId, layers: &'a [LayerRecord]) -> Option<&'a LayerRecord> {
    let plain = container_id_for(bot);
    layers.iter().filter(|layer| !layer.is_staged()).max_by_key(|layer| {
        let active = layer.kind == LayerKind::Active;
        (
            layer.sequence(),
            active,
            active && layer.name == plain,
            layer.created_at,
            &layer.name,
        )
    })
}

/// The count that the next state of a bot gets.
pub fn next_sequence(layers: &[LayerRecord]) -> u64 {
    layers.iter().map(LayerRecord::sequence).max().unwrap_or(0) + 1
}

/// The layers that can be removed now, in this order: released ones with nothing on them that stays. Never the
/// newest state.
pub fn collectable(bot: &BotId, layers: &[LayerRecord]) -> Vec<String> {
    let present = present_of(bot, layers).map(|layer| layer.name.as_str());
    let mut left: Vec<&LayerRecord> = layers.iter().collect();
    let mut gone = Vec::new();
    loop {
        let parents: BTreeSet<&str> = left.iter().filter_map(|layer| layer.parent.as_deref()).collect();
        let removable = |layer: &&LayerRecord| {
            let name = layer.name.as_str();
            layer.kind == LayerKind::Committed
                && layer.is_released()
                && !parents.contains(name)
                && present != Some(name)
        };
        let (now, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(removable);
        if now.is_empty() {
            return gone;
        }
        gone.extend(now.into_iter().map(|layer| layer.name.clone()));
        left = rest;
    }
}

/// Layers to be made one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The layers, the lowest first.
    pub layers: Vec<String>,
    /// What they become.
    pub name: String,
    /// What that stands on.
    pub on: String,
    /// Nobody needs the state of the highest of them either.
    pub released: bool,
}

impl Merge {
    /// The highest of them: the state that the result is.
    pub fn top(&self) -> &str {
        self.layers.last().map_or("", String::as_str)
    }
}

/// How a line of layers is made shorter, from the lowest released one up; `records` are the bot's. The lowest of
/// the bot's own must stand on something, which an image's layers see to.
pub fn plan_of_merges(bot: &BotId, operation: &str, (top, records): (&str, &[LayerRecord])) -> Vec<Merge> {
    let mut line = Vec::new();
    let mut next = Some(top);
    while let Some(layer) = next.and_then(|name| records.iter().find(|layer| layer.name == name)) {
        next = layer.parent.as_deref();
        line.push(layer);
    }
    line.reverse();
    let lowest = line.iter().position(|layer| layer.is_released());
    let mut above = line.split_off(lowest.unwrap_or(line.len())).into_iter().peekable();
    let Some(mut on) = above.peek().and_then(|lowest| lowest.parent.clone()) else {
        return Vec::new();
    };
    let mut merges: Vec<Merge> = Vec::new();
    let mut layers = Vec::new();
    while let Some(layer) = above.next() {
        layers.push(layer.name.clone());
        if layer.is_released() && above.peek().is_some() {
            continue;
        }
        let name = format!("{}-{operation}-merged-{}", container_id_for(bot), merges.len());
        merges.push(Merge {
            layers: std::mem::take(&mut layers),
            on: std::mem::replace(&mut on, name.clone()),
            name,
            released: layer.is_released(),
        });
    }
    merges
}

/// From `present` down through its parents, and what is beside that line. Parents are looked up in `all`.
pub fn arrange(snapshotter: &str, present: &str, all: Vec<LayerRecord>) -> LayerTree {
    let mut by_name: BTreeMap<String, LayerRecord> = all.into_iter().map(|layer| (layer.name.clone(), layer)).collect();
    let mut line = Vec::new();
    let mut next = Some(present.to_owned());
    // Taken out as it is met: a cycle ends where it began.
    while let Some(layer) = next.and_then(|name| by_name.remove(&name)) {
        next = layer.parent.clone();
        line.push(layer);
    }
    LayerTree {
        snapshotter: snapshotter.to_owned(),
        line,
        side: by_name.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bot() -> BotId {
        "11111111-2222-4333-8444-555555555555".parse().unwrap()
    }

    fn layer(name: &str, kind: LayerKind, sequence: u64) -> LayerRecord {
        let mut labels = BTreeMap::new();
        if sequence > 0 {
            labels.insert(LABEL_SEQUENCE.to_owned(), sequence.to_string());
        }
        LayerRecord {
            name: name.to_owned(),
            parent: None,
            kind,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            labels,
        }
    }

    fn on(mut layer: LayerRecord, parent: &str) -> LayerRecord {
        layer.parent = Some(parent.to_owned());
        layer
    }

    fn with(mut layer: LayerRecord, label: &str) -> LayerRecord {
        layer.labels.insert(label.to_owned(), LABEL_SET.to_owned());
        layer
    }

    fn chosen(layers: &[LayerRecord]) -> Option<&str> {
        present_of(&bot(), layers).map(|layer| layer.name.as_str())
    }

    #[test]
    fn the_last_count_is_the_newest_state() {
        use LayerKind::{Active, Committed};
        let plain = container_id_for(&bot());
        assert_eq!(chosen(&[]), None);
        // After a commit that was cut off before its new layer, the commit itself.
        assert_eq!(chosen(&[layer("a", Active, 1), layer("c", Committed, 2)]), Some("c"));
        assert_eq!(
            chosen(&[
                layer("a", Active, 3),
                layer("c", Committed, 2),
                layer(&plain, Active, 0)
            ]),
            Some("a")
        );
        // What waits beside it is no state, however new.
        let staged = with(layer("s", Active, 9), LABEL_STAGED);
        assert_eq!(chosen(&[staged.clone(), layer("a", Active, 1)]), Some("a"));
        assert_eq!(chosen(&[staged]), None);
    }

    #[test]
    fn without_counts_the_plain_name_wins_then_the_newest_active_one() {
        use LayerKind::{Active, Committed};
        let plain = container_id_for(&bot());
        let newer = LayerRecord {
            created_at: DateTime::UNIX_EPOCH + chrono::TimeDelta::days(1),
            ..layer("workspace-other", Active, 0)
        };
        let committed = LayerRecord {
            created_at: DateTime::UNIX_EPOCH + chrono::TimeDelta::days(2),
            ..layer("workspace-c", Committed, 0)
        };
        let older = layer("workspace-older", Active, 0);
        let all = [
            older.clone(),
            newer.clone(),
            layer(&plain, Active, 0),
            committed.clone(),
        ];
        assert_eq!(chosen(&all), Some(plain.as_str()));
        assert_eq!(chosen(&[newer, older, committed.clone()]), Some("workspace-other"));
        assert_eq!(chosen(&[committed]), Some("workspace-c"));
    }

    #[test]
    fn a_released_layer_goes_when_nothing_stands_on_it() {
        use LayerKind::{Active, Committed};
        let released = |name: &str, parent: &str| with(on(layer(name, Committed, 1), parent), LABEL_RELEASED);
        let kept = |name: &str, parent: &str| on(layer(name, Committed, 1), parent);
        let active = |parent: &str| on(layer("top", Active, 9), parent);
        assert_eq!(
            collectable(&bot(), &[released("a", "image"), active("a")]),
            Vec::<String>::new()
        );
        assert_eq!(
            collectable(&bot(), &[released("a", "image"), kept("b", "a"), active("image")]),
            Vec::<String>::new()
        );
        assert_eq!(
            collectable(
                &bot(),
                &[
                    released("a", "image"),
                    released("b", "a"),
                    kept("c", "image"),
                    active("c")
                ]
            ),
            ["b", "a"]
        );
    }

    #[test]
    fn released_layers_are_merged_into_the_one_above_and_all_above_is_made_anew() {
        use LayerKind::Committed;
        let kept = |name: &str, parent: &str| on(layer(name, Committed, 1), parent);
        let released = |name: &str, parent: &str| with(kept(name, parent), LABEL_RELEASED);
        let plan = |layers: &[LayerRecord], top: &str| {
            let merges = plan_of_merges(&bot(), "op", (top, layers));
            let short = |name: &str| name.rsplit('-').next().unwrap_or_default().to_owned();
            let shown = |one: &Merge| format!("{}={}on{}", short(&one.name), one.layers.join("+"), short(&one.on));
            merges.iter().map(shown).collect::<Vec<_>>()
        };
        assert!(plan(&[kept("a", "image"), kept("b", "a")], "b").is_empty());
        let line = [
            kept("a", "image"),
            released("b", "a"),
            released("c", "b"),
            kept("d", "c"),
            kept("e", "d"),
            released("f", "e"),
        ];
        assert_eq!(plan(&line, "f"), ["0=b+c+dona", "1=eon0", "2=fon1"]);
        assert_eq!(plan(&line, "c"), ["0=b+cona"]);
        assert!(plan(&line, "a").is_empty());
    }

    #[test]
    fn a_line_ends_at_a_missing_parent_and_at_a_cycle() {
        use LayerKind::{Active, Committed};
        let tree = arrange(
            "s",
            "top",
            vec![
                on(layer("top", Active, 2), "c"),
                on(layer("c", Committed, 1), "gone"),
                layer("x", Committed, 0),
            ],
        );
        let names = |layers: &[LayerRecord]| layers.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&tree.line), names(&tree.side)),
            (vec!["top".into(), "c".into()], vec!["x".into()])
        );
        let cycle = arrange(
            "s",
            "a",
            vec![on(layer("a", Active, 1), "b"), on(layer("b", Committed, 1), "a")],
        );
        assert_eq!(names(&cycle.line), ["a", "b"]);
        assert!(arrange("s", "missing", vec![layer("x", Active, 0)]).line.is_empty());
    }

    #[test]
    fn a_name_is_the_bots_and_plain() {
        let good = format!("{}-1-active", container_id_for(&bot()));
        assert!(check_layer_name(&bot(), &good).is_ok());
        let id = container_id_for(&bot());
        for bad in [
            id.clone(),
            format!("{id}-"),
            format!("{id}x"),
            format!("{id}-/../x"),
            "workspace-x".to_owned(),
        ] {
            assert!(check_layer_name(&bot(), &bad).is_err(), "{bad}");
        }
    }
}
