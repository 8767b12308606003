//! Files that processes hold open and that have no name any more: no count of a layer finds them, and their space comes
//! back with the end of those who hold them.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of one workspace, so many descriptors and mappings are looked at: a tenant can have millions.
const MOST_LOOKED_AT: usize = 16 << 10;
const BLOCK: u64 = 512;
/// `tmpfs`, `hugetlbfs`.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x9584_58F6];

/// Bytes that such files of these processes take on their disks, each file once. What ends meanwhile has none.
pub(crate) fn bytes_of(pids: &[i32]) -> u64 {
    let mut seen = HashSet::new();
    let places = pids
        .iter()
        .flat_map(|pid| ["fd", "map_files"].map(|kind| format!("/proc/{pid}/{kind}")));
    let held = places.flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten());
    let bytes = held
        .take(MOST_LOOKED_AT)
        .filter_map(|entry| bytes_without_name(&entry.path(), &mut seen));
    bytes.fold(0, u64::saturating_add)
}

/// The kernel answers for the open file itself: no path of the tenant's is walked.
fn bytes_without_name(link: &Path, seen: &mut HashSet<(u64, u64)>) -> Option<u64> {
    let file = std::fs::metadata(link).ok()?;
    let is_one = file.is_file() && file.nlink() == 0 && seen.insert((file.dev(), file.ino()));
    // Shared memory is such files too, and on no disk.
    (is_one && !is_in_memory(link)?).then(|| file.blocks().saturating_mul(BLOCK))
}

fn is_in_memory(link: &Path) -> Option<bool> {
    let kind = rustix::fs::statfs(link).ok()?.f_type;
    Some(IN_MEMORY.into_iter().any(|one| i128::from(kind) == i128::from(one)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_file_without_a_name_counts_once_and_one_that_has_one_does_not() {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let place = directory.path().join("file");
        std::fs::write(&place, vec![1; 1 << 20]).expect("a file");
        let open = || Stdio::from(std::fs::File::open(&place).expect("it is there"));
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::empty()).expect("memory");
        rustix::io::write(&memory, &[1; 1 << 16]).expect("it takes it");
        let mut holder = Command::new("sleep")
            .arg("1000")
            .stdin(open())
            .stdout(memory)
            .stderr(open())
            .spawn()
            .expect("sleep is there");
        let pid = i32::try_from(holder.id()).expect("a pid");
        let named = bytes_of(&[pid]);
        std::fs::remove_file(&place).expect("it is there");
        let nameless = bytes_of(&[pid, pid]);
        holder.kill().expect("it runs");
        holder.wait().expect("it ends");
        assert_eq!(named, 0);
        assert!((1 << 20..2 << 20).contains(&nameless), "{nameless} bytes");
        assert_eq!(bytes_of(&[pid]), 0);
    }
}
