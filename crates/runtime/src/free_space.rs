//! What is free on a file system of the host.

use std::io;
use std::path::Path;

use rustix::fs::StatVfs;

/// Bytes that are free where `place` is, as `df` shows them: what a file system keeps for root is nobody's to fill.
/// Where inodes run out sooner than bytes, the share of them that is free, in bytes of the whole: nothing can be made on a
/// file system without any, however many bytes are left.
///
/// # Errors
/// When `place` cannot be reached.
pub fn free_space(place: &Path) -> io::Result<u64> {
    Ok(free_of(&rustix::fs::statvfs(place)?))
}

fn free_of(told: &StatVfs) -> u64 {
    let bytes = told.f_bavail.saturating_mul(told.f_frsize);
    if told.f_files == 0 {
        // It makes inodes for as long as there are bytes.
        return bytes;
    }
    let whole = u128::from(told.f_blocks) * u128::from(told.f_frsize);
    let by_inodes = whole * u128::from(told.f_favail) / u128::from(told.f_files);
    bytes.min(u64::try_from(by_inodes).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Unmounted also when a test fails.
    struct Mounted(tempfile::TempDir);

    impl Mounted {
        fn with(options: &str) -> Self {
            let place = tempfile::tempdir().expect("a directory");
            let mounting = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "small"])
                .arg(place.path())
                .status();
            assert!(mounting.expect("mount is there").success(), "{options}");
            Self(place)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
            if !unmounted.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("it is still mounted: {unmounted:?}");
            }
        }
    }

    #[test]
    fn a_disk_without_inodes_is_full_whatever_bytes_it_has() {
        let disk = Mounted::with("size=64m,nr_inodes=101");
        let free = || free_space(disk.0.path()).expect("it is mounted");
        assert!(free() > 60 << 20, "{} bytes", free());
        for number in 0..90 {
            std::fs::write(disk.0.path().join(number.to_string()), "").expect("an inode is left");
        }
        assert!((1..7 << 20).contains(&free()), "{} bytes", free());
        for number in 90..100 {
            std::fs::write(disk.0.path().join(number.to_string()), "").expect("an inode is left");
        }
        assert_eq!(free(), 0);
    }

    #[test]
    fn a_disk_that_does_not_count_inodes_is_as_free_as_its_bytes() {
        let disk = Mounted::with("size=64m,nr_inodes=0");
        std::fs::write(disk.0.path().join("half"), vec![1; 32 << 20]).expect("it fits");
        assert_eq!(free_space(disk.0.path()).expect("it is mounted"), 32 << 20);
    }
}
