//! What the workspace of the trials and each of its versions hold, file by file, read through a mount of their layers
//! as a container reads them, beside what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use skep_testkit::containerd_view::Layer;

use crate::held::bot_of_layer;
use crate::runner::Failure;
use crate::stage::Stage;
use crate::written::{Written, digest_of};

/// Files by their names, each with its digest.
type Files = BTreeMap<String, String>;

/// What is not needed any more is gone in this time.
const COLLECTED_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What must be held. Of all files that trials wrote for the bot, no other may be there.
#[derive(Debug)]
pub(crate) struct Expected {
    /// The workspace holds one of these.
    pub(crate) presents: Vec<Vec<Written>>,
    /// So does each version that was not there before.
    pub(crate) new_versions: Vec<Vec<Written>>,
    /// One of these must be the first of those.
    pub(crate) has_new_version: bool,
    /// Every version of before is there.
    pub(crate) keeps_versions: bool,
    /// What is kept outside of layers counts too.
    pub(crate) counts_preserved: bool,
    /// Files outside of the data directory may be there or not.
    pub(crate) only_data: bool,
}

impl Stage {
    /// Whether what is held is what is expected.
    ///
    /// # Errors
    /// What is lost, and what came back from another time.
    pub(crate) async fn compare_contents(&self, expected: &Expected) -> Result<(), Failure> {
        // Of a delete that failed half-way containerd may collect a layer between two looks at it.
        let deadline = Instant::now() + COLLECTED_WITHIN;
        loop {
            match self.compare_layers(expected).await {
                Err(Differs::Gone(_)) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Err(Differs::Gone(layer)) => {
                    return Err(lost_version(format!("layer {layer} is listed and not there")));
                }
                Err(Differs::Held(failure)) => return Err(failure),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn compare_layers(&self, expected: &Expected) -> Result<(), Differs> {
        let Some(subject) = &self.subject else { return Ok(()) };
        let layers = self.view().layers().await;
        let of_subject = |layer: &&Layer| bot_of_layer(&layer.name) == Some(&subject.bot);
        let lists = expected.presents.iter().chain(&expected.new_versions);
        let names: BTreeSet<&str> = lists
            .chain(self.versions.values())
            .flatten()
            .filter(|written| !expected.only_data || written.is_in_data())
            .map(|written| written.name.as_str())
            .collect();

        let active = layers.iter().filter(of_subject).find(|layer| layer.kind == "Active");
        let mut present = match active {
            Some(active) => self.files_of(active, &names).await?,
            None => Files::new(),
        };
        if expected.counts_preserved {
            let preserved = self.preserved().into_iter();
            present.extend(preserved.filter(|(name, _)| names.contains(name.as_str())));
        }
        must_be_one_of(&expected.presents, &present, &names, "the workspace")?;

        let listed = self.database().versions().await.into_iter();
        let listed: BTreeMap<i64, String> = listed
            .filter(|(bot, ..)| *bot == subject.bot)
            .map(|(_, number, layer)| (number, layer))
            .collect();
        if let Some(number) = self.versions.keys().find(|number| !listed.contains_key(number))
            && expected.keeps_versions
        {
            return Err(lost_version(format!("version {number} is gone")).into());
        }
        let mut has_new_version = false;
        for (number, name) in listed {
            let Some(layer) = layers.iter().find(|layer| layer.name == name) else {
                return Err(lost_version(format!("version {number} is without its layer")).into());
            };
            let files = self.files_of(layer, &names).await?;
            let what = format!("version {number}");
            match self.versions.get(&number) {
                Some(kept) => must_be_one_of(std::slice::from_ref(kept), &files, &names, &what),
                None => must_be_one_of(&expected.new_versions, &files, &names, &what),
            }
            .map_err(|failure| Failure {
                lost_versions: 1,
                ..failure
            })?;
            let first = expected.new_versions.first();
            has_new_version |=
                !self.versions.contains_key(&number) && first.is_some_and(|first| is_held(first, &files, &names));
        }
        match has_new_version || !expected.has_new_version {
            true => Ok(()),
            false => Err(lost_version("no new version holds what was there before".to_owned()).into()),
        }
    }

    /// Those of a layer and all it stands on that have these names.
    async fn files_of(&self, layer: &Layer, names: &BTreeSet<&str>) -> Result<Files, Differs> {
        let directories = self.view().directories(layer).await;
        let mounted = directories.and_then(|directories| Mounted::of(&directories));
        let mounted = mounted.ok_or_else(|| Differs::Gone(layer.name.clone()))?;
        let read = |name: &&str| std::fs::read(mounted.0.path().join("root").join(name)).ok();
        let files = names.iter().filter_map(|name| Some((name, read(name)?)));
        Ok(files
            .map(|(name, bytes)| ((*name).to_owned(), digest_of(&bytes)))
            .collect())
    }
}

enum Differs {
    Held(Failure),
    /// A layer that was listed.
    Gone(String),
}

impl From<Failure> for Differs {
    fn from(failure: Failure) -> Self {
        Self::Held(failure)
    }
}

fn lost_version(why: String) -> Failure {
    Failure {
        lost_versions: 1,
        ..Failure::from(why)
    }
}

fn is_held(contents: &[Written], files: &Files, names: &BTreeSet<&str>) -> bool {
    names.iter().all(|name| wanted(contents, name) == files.get(*name))
}

fn wanted<'a>(contents: &'a [Written], name: &str) -> Option<&'a String> {
    let found = contents.iter().find(|written| written.name == name);
    found.map(|written| &written.digest)
}

fn must_be_one_of(allowed: &[Vec<Written>], files: &Files, names: &BTreeSet<&str>, what: &str) -> Result<(), Failure> {
    if allowed.iter().any(|contents| is_held(contents, files, names)) {
        return Ok(());
    }
    let lost = |contents: &Vec<Written>| -> u64 {
        let counts = |written: &&Written| names.contains(written.name.as_str());
        let is_lost = |written: &&Written| files.get(&written.name) != Some(&written.digest);
        let lost = contents.iter().filter(counts).filter(is_lost);
        lost.map(|written| written.size).sum()
    };
    Err(Failure {
        lost_bytes: allowed.iter().map(lost).min().unwrap_or_default(),
        ..Failure::from(format!(
            "{what} holds {:?}, and it should be one of {:?}",
            files.keys(),
            allowed
                .iter()
                .map(|contents| contents.iter().map(|written| &written.name).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        ))
    })
}

/// Layers mounted over each other below a directory of their own; gone when this is dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None`: one of them is not there.
    fn of(directories: &[PathBuf]) -> Option<Self> {
        let place = tempfile::tempdir().expect("a directory can be made");
        // The kernel wants two at least.
        let empty = place.path().join("empty");
        let root = place.path().join("root");
        for directory in [&empty, &root] {
            std::fs::create_dir(directory).expect("a directory can be made");
        }
        let lower: Vec<String> = directories
            .iter()
            .chain([&empty])
            .map(|directory| directory.display().to_string())
            .collect();
        // The uppermost may be mounted for a container, which an index would refuse.
        let options = CString::new(format!("index=off,lowerdir={}", lower.join(":"))).expect("no zero in it");
        match mount("overlay", &root, "overlay", MountFlags::RDONLY, options.as_c_str()) {
            Err(Errno::NOENT) => None,
            mounted => {
                mounted.expect("layers can be mounted");
                Some(Self(place))
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = unmount(self.0.path().join("root"), UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}
