//! Sorting more records than fit in memory: runs that are sorted in memory go to files without a name, and are merged.
//! In a run a record says only how it differs from the one before, as names of one directory begin alike.
//!
//! Runs are merged with those of their own size alone: each record is written once more each time there are 32 times as
//! many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Runs of one level that are merged into one of the next: each is an open file.
const MOST_RUNS: usize = 32;

/// Takes records in any order.
pub(crate) struct Sorter {
    spill: PathBuf,
    most_bytes: usize,
    bytes: Vec<u8>,
    places: Vec<(usize, usize)>,
    /// Those that were sorted in memory, those that were merged of them, and so on.
    levels: Vec<Vec<File>>,
}

impl Sorter {
    /// Holds about `most_bytes` in memory; what is more goes to files in `spill`, which is not touched before.
    pub(crate) fn new(spill: &Path, most_bytes: usize) -> Self {
        Self {
            spill: spill.to_path_buf(),
            most_bytes,
            bytes: Vec::new(),
            places: Vec::new(),
            levels: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        let held = self.bytes.len() + self.places.len() * size_of::<(usize, usize)>();
        if held + record.len() > self.most_bytes && !self.places.is_empty() {
            self.spill()?;
        }
        self.places.push((self.bytes.len(), record.len()));
        self.bytes.extend_from_slice(record);
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places
            .sort_unstable_by(|a, b| bytes[a.0..a.0 + a.1].cmp(&bytes[b.0..b.0 + b.1]));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut run = RunWriter::new(&self.spill)?;
        for &(start, length) in &self.places {
            run.push(&self.bytes[start..start + length])?;
        }
        self.places.clear();
        self.bytes.clear();
        self.keep(run.finish()?)
    }

    fn keep(&mut self, mut run: File) -> io::Result<()> {
        for level in &mut self.levels {
            level.push(run);
            if level.len() < MOST_RUNS {
                return Ok(());
            }
            run = merged(std::mem::take(level), &self.spill)?;
        }
        self.levels.push(vec![run]);
        Ok(())
    }

    /// All records, the smallest first.
    pub(crate) fn finish(mut self) -> io::Result<Sorted> {
        if self.levels.is_empty() {
            self.sort();
            self.places.reverse();
            return Ok(Sorted::Memory {
                bytes: self.bytes,
                places: self.places,
            });
        }
        if !self.places.is_empty() {
            self.spill()?;
        }
        Ok(Sorted::Runs(Merge::new(self.levels.into_iter().flatten().collect())?))
    }
}

fn merged(runs: Vec<File>, spill: &Path) -> io::Result<File> {
    let mut merge = Merge::new(runs)?;
    let mut run = RunWriter::new(spill)?;
    while let Some(record) = merge.next()? {
        run.push(&record)?;
    }
    run.finish()
}

/// Records in their order.
pub(crate) enum Sorted {
    Memory {
        bytes: Vec<u8>,
        places: Vec<(usize, usize)>,
    },
    Runs(Merge),
}

impl Sorted {
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Memory { bytes, places } => Ok(places
                .pop()
                .map(|(start, length)| bytes[start..start + length].to_vec())),
            Self::Runs(merge) => merge.next(),
        }
    }
}

pub(crate) struct Merge {
    runs: Vec<RunReader>,
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Merge {
    fn new(files: Vec<File>) -> io::Result<Self> {
        let mut merge = Self {
            runs: Vec::new(),
            heads: BinaryHeap::new(),
        };
        for (at, file) in files.into_iter().enumerate() {
            merge.runs.push(RunReader {
                file: BufReader::new(file),
                last: Vec::new(),
            });
            merge.refill(at)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, run: usize) -> io::Result<()> {
        if let Some(record) = self.runs[run].next()? {
            self.heads.push(Reverse((record, run)));
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(Reverse((record, run))) = self.heads.pop() else {
            return Ok(None);
        };
        self.refill(run)?;
        Ok(Some(record))
    }
}

struct RunWriter {
    file: BufWriter<File>,
    last: Vec<u8>,
}

impl RunWriter {
    fn new(spill: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::with_capacity(64 * 1024, tempfile::tempfile_in(spill)?),
            last: Vec::new(),
        })
    }

    fn push(&mut self, record: &[u8]) -> io::Result<()> {
        let alike = record.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        let length = u32::try_from(record.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let alike = u32::try_from(alike).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&alike.to_le_bytes())?;
        self.file.write_all(&record[alike as usize..])?;
        self.last.clear();
        self.last.extend_from_slice(record);
        Ok(())
    }

    fn finish(self) -> io::Result<File> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(file)
    }
}

struct RunReader {
    file: BufReader<File>,
    last: Vec<u8>,
}

impl RunReader {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            // A run is ours and whole: its end lies between two records.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let mut alike = [0; 4];
        self.file.read_exact(&mut alike)?;
        self.last.truncate(u32::from_le_bytes(alike) as usize);
        let alike = self.last.len();
        self.last.resize(u32::from_le_bytes(length) as usize, 0);
        self.file.read_exact(&mut self.last[alike..])?;
        Ok(Some(self.last.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_in_order_however_little_memory_there_is() {
        let spill = tempfile::tempdir().expect("a directory");
        let mut records: Vec<Vec<u8>> = (0_u32..1500)
            .map(|number| {
                let mixed = number.wrapping_mul(2_654_435_761) % 3000;
                format!("{}{mixed}", "deep/".repeat(mixed as usize % 7)).into_bytes()
            })
            .collect();
        for most_bytes in [1, 700, 10_000, 10_000_000] {
            let mut sorter = Sorter::new(spill.path(), most_bytes);
            for record in &records {
                sorter.push(record).expect("taken");
            }
            let mut sorted = sorter.finish().expect("sorted");
            let mut found = Vec::new();
            while let Some(record) = sorted.next().expect("a record") {
                found.push(record);
            }
            records.sort();
            assert_eq!(found, records, "{most_bytes}");
        }
        let left = std::fs::read_dir(spill.path()).expect("listed").count();
        assert_eq!(left, 0, "the files have no name");
    }

    #[test]
    fn only_runs_of_one_size_are_merged() {
        let spill = tempfile::tempdir().expect("a directory");
        // Each but the last record is a run of its own.
        let mut sorter = Sorter::new(spill.path(), 1);
        for number in 0_u32..=1024 + 3 * 32 + 5 {
            sorter.push(&number.to_be_bytes()).expect("taken");
        }
        let runs: Vec<_> = sorter.levels.iter().map(Vec::len).collect();
        assert_eq!(runs, [5, 3, 1]);
    }
}
