//! A hash table in a file without a name, so that a million of keys take no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) type Key = (u64, u64);

const SLOT_BYTES: u64 = 24;
const FIRST_SLOTS: u64 = 1024;

/// A number for each key.
pub(crate) struct Table {
    spill: PathBuf,
    /// Both halves of the key, the number plus one (0: an empty slot), 8 bytes each.
    slots: File,
    slot_count: u64,
    used: u64,
}

impl Table {
    /// With its file in `spill`.
    pub(crate) fn new(spill: &Path) -> io::Result<Self> {
        Ok(Self {
            spill: spill.to_path_buf(),
            slots: empty_slots(spill, FIRST_SLOTS)?,
            slot_count: FIRST_SLOTS,
            used: 0,
        })
    }

    pub(crate) fn get(&self, key: Key) -> io::Result<Option<u64>> {
        Ok(find(&self.slots, self.slot_count, key)?.1)
    }

    /// In the place of the one that it had; less than `u64::MAX`.
    pub(crate) fn set(&mut self, key: Key, number: u64) -> io::Result<()> {
        if self.used * 3 > self.slot_count * 2 {
            self.grow()?;
        }
        let (slot, before) = find(&self.slots, self.slot_count, key)?;
        self.used += u64::from(before.is_none());
        write_slot(&self.slots, slot, key, number)
    }

    fn grow(&mut self) -> io::Result<()> {
        let slot_count = self.slot_count * 4;
        let slots = empty_slots(&self.spill, slot_count)?;
        for slot in 0..self.slot_count {
            let (key, number) = read_slot(&self.slots, slot)?;
            if let Some(number) = number {
                let (slot, _) = find(&slots, slot_count, key)?;
                write_slot(&slots, slot, key, number)?;
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

/// The slot of this key, with its number; or the one it would go to.
fn find(slots: &File, count: u64, key: Key) -> io::Result<(u64, Option<u64>)> {
    let mixed = (key.1 ^ key.0.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut slot = (mixed >> 20) % count;
    loop {
        match read_slot(slots, slot)? {
            (_, None) => return Ok((slot, None)),
            (found, number) if found == key => return Ok((slot, number)),
            _ => slot = (slot + 1) % count,
        }
    }
}

fn read_slot(slots: &File, slot: u64) -> io::Result<(Key, Option<u64>)> {
    let mut bytes = [0; SLOT_BYTES as usize];
    slots.read_exact_at(&mut bytes, slot * SLOT_BYTES)?;
    let [second, first, number] = [0, 8, 16].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    Ok(((first, second), number.checked_sub(1)))
}

fn write_slot(slots: &File, slot: u64, key: Key, number: u64) -> io::Result<()> {
    let bytes = [key.1, key.0, number + 1].map(u64::to_le_bytes).concat();
    slots.write_all_at(&bytes, slot * SLOT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_the_number_that_it_was_given_last() {
        let spill = tempfile::tempdir().expect("a directory");
        let mut table = Table::new(spill.path()).expect("a table");
        let key = |number: u64| (number % 3, number * 1_000_003);
        for round in 0..2 {
            for number in 0_u64..5000 {
                let before = table.get(key(number)).expect("asked");
                assert_eq!(before, (round == 1).then_some(number), "{number}");
                table.set(key(number), number + round).expect("noted");
            }
        }
        assert_eq!(table.used, 5000);
        assert_eq!(table.get(key(7)).expect("asked"), Some(8));
    }
}
