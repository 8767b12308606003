//! Devices as the Container Device Interface names them: root writes specification files below `/etc/cdi` and
//! `/var/run/cdi`, each of which says what a container needs to use a device. Read anew at each question, since
//! drivers write them anew.
//!
//! What a specification asks for is root's own word and is done as it stands, hooks included; what this version
//! cannot do, or what would hide a place of ours, is refused with its reason and never left out. The crate
//! `container-device-interface` is not used: it drops the errors of broken files, keeps devices that two files
//! claim, and makes nodes that a workspace's mapped root cannot open.

mod edits;
mod error;
mod name;
mod spec_file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use edits::set_variables;
pub use edits::{Edits, Hook, HookTime, Mount, Node, NodeKind};
pub use error::CdiError;
use spec_file::SpecFile;

/// The most files that one directory may have.
const MOST_FILES: usize = 1024;

/// A device that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// `vendor.com/class=name`.
    pub name: String,
    /// `vendor.com`.
    pub vendor: String,
    /// `class`.
    pub class: String,
}

/// A file that counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its name, without its directory.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

struct Place {
    file: Arc<SpecFile>,
    index: usize,
    priority: usize,
    /// Two files of the same directory name it: nobody can tell which one is meant.
    is_claimed_twice: bool,
}

/// What the files say now.
#[derive(Default)]
pub struct Registry {
    places: BTreeMap<String, Place>,
    broken: Vec<Broken>,
}

impl Registry {
    /// Reads all `.json` and `.yaml` files of these directories; a later one's word counts for more. A directory that
    /// is not there is empty, and what is wrong with one file is nothing to the others. Blocks.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (priority, directory) in directories.iter().enumerate() {
            match spec_files(directory) {
                Ok(files) => files.iter().for_each(|file| registry.add_file(file, priority)),
                Err(error) => registry.broken.push(Broken {
                    file: file_name(directory),
                    reason: error.to_string(),
                }),
            }
        }
        registry
    }

    fn add_file(&mut self, path: &Path, priority: usize) {
        match SpecFile::read(path) {
            Ok(file) => self.add_devices(&Arc::new(file), priority),
            Err(reason) => self.broken.push(Broken {
                file: file_name(path),
                reason,
            }),
        }
    }

    fn add_devices(&mut self, file: &Arc<SpecFile>, priority: usize) {
        for (index, device) in file.devices().iter().enumerate() {
            let name = file.full_name(device);
            let earlier = self.places.get(&name).filter(|place| place.priority == priority);
            let place = Place {
                is_claimed_twice: earlier.is_some(),
                file: Arc::clone(file),
                index,
                priority,
            };
            self.places.insert(name, place);
        }
    }

    /// All devices that can be asked for, by name.
    pub fn devices(&self) -> Vec<Device> {
        let usable = self.places.iter().filter(|(_, place)| !place.is_claimed_twice);
        usable
            .map(|(name, place)| Device {
                name: name.clone(),
                vendor: place.file.vendor().to_owned(),
                class: place.file.class().to_owned(),
            })
            .collect()
    }

    /// Files that count for nothing, with the reason.
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// What a workspace with these devices needs, checked against this host. Blocks.
    ///
    /// # Errors
    /// [`CdiError::Unknown`] with what there is; [`CdiError::Unusable`] with what is in the way.
    pub fn edits(&self, names: &[String]) -> Result<Edits, CdiError> {
        let unknown: Vec<String> = names
            .iter()
            .filter(|name| !self.places.contains_key(*name))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(self.unknown(unknown));
        }
        let mut edits = Edits::default();
        let mut begun = BTreeSet::new();
        for (name, place) in names.iter().filter_map(|name| self.places.get_key_value(name)) {
            let unusable = |reason: String| CdiError::Unusable {
                device: name.clone(),
                reason,
            };
            if place.is_claimed_twice {
                return Err(unusable("two files of the same directory name it".to_owned()));
            }
            // What a file says of all its devices is said once, before what it says of the first.
            if begun.insert(Arc::as_ptr(&place.file)) {
                edits.add(place.file.common_edits()).map_err(unusable)?;
            }
            if let Some(device) = place.file.devices().get(place.index) {
                edits.add(&device.container_edits).map_err(unusable)?;
            }
        }
        Ok(edits)
    }

    fn unknown(&self, names: Vec<String>) -> CdiError {
        CdiError::Unknown {
            names,
            known: self.devices().into_iter().map(|device| device.name).collect(),
            broken: self.broken.clone(),
        }
    }
}

/// In the order of their names.
fn spec_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if spec_file::is_named_like_one(&path) {
            files.push(path);
        }
        if files.len() > MOST_FILES {
            return Err(std::io::Error::other(format!("it has over {MOST_FILES} files")));
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
