//! Blocks of user ids, one for each running workspace, unique on the host.
//!
//! A claim is the file `/run/skep/ids/<n>`; it names the data root and the bot it belongs to. It appears
//! by `link`, whole and at once, so that two servers can never hold the same number, and it outlives the
//! server as workspaces do: a lock held by a process could not.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_names::{BotId, IDS_PER_BOT};

use super::{HostPaths, Result, Tried, make_directory, remove_file};
use crate::failpoint::CLAIM_DRAFTED;

/// Below systemd's own range of containers (0x7000_0000), above what hosts give to people.
const FIRST_ID: u32 = 0x1000_0000;
/// So many blocks fit below 0x7000_0000.
const BLOCKS: u32 = 24_576;

/// The ids of one workspace: 65,536 from [`IdBlock::base`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct IdBlock(u32);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    data_root: String,
    bot: BotId,
}

impl IdBlock {
    /// The host's id of the workspace's root.
    pub(crate) fn base(self) -> u32 {
        FIRST_ID + self.0 * IDS_PER_BOT
    }

    fn file(self, paths: &HostPaths) -> PathBuf {
        directory(paths).join(self.0.to_string())
    }

    /// Takes a block that nobody has: the same as the last time when it is free, so that the container's
    /// record need not be written anew at each start.
    pub(crate) fn claim(paths: &HostPaths, data_root_id: &str, bot: &BotId) -> Result<Self> {
        let directory = directory(paths);
        make_directory(&directory, 0o755)?;
        let claim = Claim {
            data_root: data_root_id.to_owned(),
            bot: bot.clone(),
        };
        let draft = draft_of(paths, data_root_id, bot);
        let text = serde_json::to_vec(&claim).map_err(io::Error::from);
        text.and_then(|text| std::fs::write(&draft, text))
            .tried(|| format!("writing {}", draft.display()))?;
        let passed = CLAIM_DRAFTED.pass().tried(|| format!("claiming ids for bot {bot}"));
        let claimed = passed.and_then(|()| first_free(paths, &claim, &draft));
        remove_file(&draft)?;
        claimed
    }

    /// Gives the block back, if it is this bot's.
    pub(crate) fn release(self, paths: &HostPaths, data_root_id: &str, bot: &BotId) -> Result<()> {
        let file = self.file(paths);
        match read_claim(&file)? {
            Some(claim) if claim.data_root == data_root_id && claim.bot == *bot => remove_file(&file),
            _ => Ok(()),
        }
    }

    /// Removes what a crash in the middle of [`IdBlock::claim`] left. Repeatable.
    pub(crate) fn remove_draft(paths: &HostPaths, data_root_id: &str, bot: &BotId) -> Result<()> {
        remove_file(&draft_of(paths, data_root_id, bot))
    }

    /// The bots of this data root whose claim was cut short.
    pub(crate) fn drafted_by(paths: &HostPaths, data_root_id: &str) -> Result<Vec<BotId>> {
        let prefix = format!(".{data_root_id}-");
        let names = names_in(&directory(paths))?;
        let bots = names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok());
        Ok(bots.collect())
    }

    /// All blocks this data root holds.
    pub(crate) fn claimed_by(paths: &HostPaths, data_root_id: &str) -> Result<BTreeMap<BotId, Vec<Self>>> {
        let mut claims: BTreeMap<BotId, Vec<Self>> = BTreeMap::new();
        for name in names_in(&directory(paths))? {
            let Ok(number) = name.parse() else {
                continue;
            };
            let claim = read_claim(&Self(number).file(paths))?;
            if let Some(claim) = claim.filter(|claim| claim.data_root == data_root_id) {
                claims.entry(claim.bot).or_default().push(Self(number));
            }
        }
        Ok(claims)
    }
}

fn directory(paths: &HostPaths) -> PathBuf {
    paths.run_root.join("ids")
}

fn draft_of(paths: &HostPaths, data_root_id: &str, bot: &BotId) -> PathBuf {
    directory(paths).join(format!(".{data_root_id}-{bot}"))
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).tried(|| format!("listing {}", directory.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.tried(|| format!("listing {}", directory.display()))?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

fn first_free(paths: &HostPaths, claim: &Claim, draft: &Path) -> Result<IdBlock> {
    let taken = subordinate_ranges();
    let first = preferred_number(&claim.bot);
    for step in 0..BLOCKS {
        let block = IdBlock((first + step) % BLOCKS);
        let meets = |range: &std::ops::Range<u64>| {
            range.start < u64::from(block.base()) + u64::from(IDS_PER_BOT) && u64::from(block.base()) < range.end
        };
        if taken.iter().any(meets) {
            continue;
        }
        let file = block.file(paths);
        match std::fs::hard_link(draft, &file) {
            Ok(()) => return Ok(block),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if read_claim(&file)?.as_ref() == Some(claim) {
                    return Ok(block);
                }
            }
            Err(error) => return Err(error).tried(|| format!("claiming {}", file.display())),
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse)).tried(|| "finding a free block of user ids".into())
}

/// `None` for a claim that went, or that is not of our form and so not ours.
fn read_claim(file: &Path) -> Result<Option<Claim>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).tried(|| format!("reading {}", file.display())),
    }
}

/// FNV-1a of the id: spreads bots over the blocks, the same on every start.
fn preferred_number(bot: &BotId) -> u32 {
    let hash = bot.as_str().bytes().fold(0x811c_9dc5u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % BLOCKS
}

/// What `/etc/subuid` and `/etc/subgid` give to people of this host. Absent files give nothing.
fn subordinate_ranges() -> Vec<std::ops::Range<u64>> {
    let files = ["/etc/subuid", "/etc/subgid"];
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| parse_ranges(&text)).collect()
}

fn parse_ranges(text: &str) -> Vec<std::ops::Range<u64>> {
    let range = |line: &str| {
        let mut words = line.trim().split(':').skip(1);
        let start: u64 = words.next()?.parse().ok()?;
        let count: u64 = words.next()?.parse().ok()?;
        Some(start..start.saturating_add(count))
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(directory: &Path) -> HostPaths {
        HostPaths {
            run_root: directory.to_owned(),
            run_dir: directory.join("a"),
            data_root: directory.join("data"),
        }
    }

    #[test]
    fn a_bot_gets_its_block_again_and_another_bot_another() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let (one, two) = (BotId::random(), BotId::random());
        let first = IdBlock::claim(&paths, "root-a", &one).unwrap();
        assert_eq!(IdBlock::claim(&paths, "root-a", &one).unwrap(), first);
        assert_ne!(IdBlock::claim(&paths, "root-a", &two).unwrap(), first);
        first.release(&paths, "root-a", &one).unwrap();
        assert_eq!(IdBlock::claim(&paths, "root-a", &one).unwrap(), first);
    }

    #[test]
    fn two_data_roots_never_share_a_block() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let bot = BotId::random();
        let first = IdBlock::claim(&paths, "root-a", &bot).unwrap();
        let second = IdBlock::claim(&paths, "root-b", &bot).unwrap();
        assert_ne!(first, second);
        first.release(&paths, "root-b", &bot).unwrap();
        let held = IdBlock::claimed_by(&paths, "root-a").unwrap();
        assert_eq!(held.get(&bot), Some(&vec![first]), "another data root released it");
    }

    #[test]
    fn blocks_stay_below_the_range_of_systemd() {
        assert_eq!(IdBlock(0).base(), 0x1000_0000);
        assert!(u64::from(IdBlock(BLOCKS - 1).base()) + u64::from(IDS_PER_BOT) <= 0x7000_0000);
    }

    #[test]
    fn ranges_of_people_are_read() {
        assert_eq!(parse_ranges("ann:100000:65536\n# x\n\nbob:y:1"), vec![100_000..165_536]);
    }
}
