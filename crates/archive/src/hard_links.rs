//! Which file of more than one name went into an archive under which of them: a hash table in two files without a
//! name, so that a million of them take no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Device and inode.
pub(crate) type Identity = (u64, u64);

const SLOT_BYTES: u64 = 24;
const FIRST_SLOTS: u64 = 1024;

/// Made at the first file that has more than one name.
pub(crate) struct HardLinks {
    spill: PathBuf,
    table: Option<Table>,
}

struct Table {
    /// Inode, device, place of the name plus one (0: an empty slot), 8 bytes each.
    slots: File,
    slot_count: u64,
    used: u64,
    /// Each with its length in 4 bytes before it.
    names: File,
    names_end: u64,
}

impl HardLinks {
    pub(crate) fn new(spill: &Path) -> Self {
        Self {
            spill: spill.to_path_buf(),
            table: None,
        }
    }

    /// The name under which the file went in; `None`: it has not yet, and does now as `name`.
    pub(crate) fn seen(&mut self, identity: Identity, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(Table {
                slots: empty_slots(&self.spill, FIRST_SLOTS)?,
                slot_count: FIRST_SLOTS,
                used: 0,
                names: tempfile::tempfile_in(&self.spill)?,
                names_end: 0,
            }),
        };
        if table.used * 3 > table.slot_count * 2 {
            table.grow(&self.spill)?;
        }
        let (slot, place) = find(&table.slots, table.slot_count, identity)?;
        if let Some(place) = place {
            return table.name(place).map(Some);
        }
        let place = table.names_end;
        let length = u32::try_from(name.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        table
            .names
            .write_all_at(&[&length.to_le_bytes()[..], name].concat(), place)?;
        table.names_end += 4 + u64::from(length);
        table.used += 1;
        write_slot(&table.slots, slot, identity, place)?;
        Ok(None)
    }
}

impl Table {
    fn name(&self, place: u64) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.names.read_exact_at(&mut length, place)?;
        let mut name = vec![0; u32::from_le_bytes(length) as usize];
        self.names.read_exact_at(&mut name, place + 4)?;
        Ok(name)
    }

    fn grow(&mut self, spill: &Path) -> io::Result<()> {
        let slot_count = self.slot_count * 4;
        let slots = empty_slots(spill, slot_count)?;
        for slot in 0..self.slot_count {
            let (identity, place) = read_slot(&self.slots, slot)?;
            if let Some(place) = place {
                let (slot, _) = find(&slots, slot_count, identity)?;
                write_slot(&slots, slot, identity, place)?;
            }
        }
        (self.slots, self.slot_count) = (slots, slot_count);
        Ok(())
    }
}

fn empty_slots(spill: &Path, count: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(spill)?;
    file.set_len(count * SLOT_BYTES)?;
    Ok(file)
}

/// The slot of this file, with the place of its name; or the one it would go to.
fn find(slots: &File, count: u64, identity: Identity) -> io::Result<(u64, Option<u64>)> {
    let mixed = (identity.1 ^ identity.0.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut slot = (mixed >> 20) % count;
    loop {
        match read_slot(slots, slot)? {
            (_, None) => return Ok((slot, None)),
            (found, place) if found == identity => return Ok((slot, place)),
            _ => slot = (slot + 1) % count,
        }
    }
}

fn read_slot(slots: &File, slot: u64) -> io::Result<(Identity, Option<u64>)> {
    let mut bytes = [0; SLOT_BYTES as usize];
    slots.read_exact_at(&mut bytes, slot * SLOT_BYTES)?;
    let [inode, device, place] = [0, 8, 16].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    Ok(((device, inode), place.checked_sub(1)))
}

fn write_slot(slots: &File, slot: u64, identity: Identity, place: u64) -> io::Result<()> {
    let bytes = [identity.1, identity.0, place + 1].map(u64::to_le_bytes).concat();
    slots.write_all_at(&bytes, slot * SLOT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_found_again_under_its_first_name() {
        let spill = tempfile::tempdir().expect("a directory");
        let mut links = HardLinks::new(spill.path());
        for round in 0..2 {
            for inode in 0_u64..5000 {
                let identity = (inode % 3, inode * 1_000_003);
                let seen = links.seen(identity, format!("name/{inode}").as_bytes()).expect("asked");
                let expected = (round == 1).then(|| format!("name/{inode}").into_bytes());
                assert_eq!(seen, expected, "{inode}");
            }
        }
    }
}
