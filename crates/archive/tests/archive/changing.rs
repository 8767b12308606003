//! Files that do not hold still, and pipes that nobody writes to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use skep_archive::{ArchiveError, Changing, PackOptions, Trust, pack};

use super::tree::{applied, describe, pack_options, special};

/// An output that does something to the tree each time that bytes of content pass by.
struct Meddling<F> {
    archive: Vec<u8>,
    meddle: F,
}

impl<F: FnMut()> Write for Meddling<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.archive.extend_from_slice(data);
        if data.len() > 64 * 1024 {
            (self.meddle)();
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn packed_meanwhile(root: &Path, changing: Changing, meddle: impl FnMut()) -> (Vec<u8>, Result<u64, ArchiveError>) {
    let spill = tempfile::tempdir().expect("a directory");
    let options = PackOptions {
        changing,
        ..pack_options(spill.path())
    };
    let mut output = Meddling {
        archive: Vec::new(),
        meddle,
    };
    let report = pack(File::open(root).expect("open").as_fd(), &options, &mut output);
    (output.archive, report.map(|report| report.changed))
}

fn large(root: &Path) -> PathBuf {
    let path = root.join("large");
    fs::write(&path, vec![b'a'; 1 << 20]).expect("a file");
    path
}

#[test]
fn a_file_that_changes_once_is_read_again_and_is_whole() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let path = large(from.path());
    fs::hard_link(&path, from.path().join("same")).expect("a link");
    let mut left = 1;
    let (archive, changed) = packed_meanwhile(from.path(), Changing::Counted, || {
        if left > 0 {
            left -= 1;
            fs::write(&path, vec![b'b'; 1 << 20]).expect("changed");
        }
    });
    assert_eq!(changed.expect("packed"), 0);
    applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    assert_eq!(fs::read(to.path().join("large")).expect("there"), vec![b'b'; 1 << 20]);
    assert_eq!(describe(to.path())[&b"same"[..]].same_as, b"large");
}

#[test]
fn a_file_whose_name_another_takes_meanwhile_goes_in_under_all_its_names() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let path = large(from.path());
    for name in ["same", "too"] {
        fs::hard_link(&path, from.path().join(name)).expect("a link");
    }
    let next = from.path().join("0-next");
    fs::write(&next, vec![b'c'; 1 << 20]).expect("a file");
    let mut pieces = 0;
    let (archive, changed) = packed_meanwhile(from.path(), Changing::Counted, || {
        pieces += 1;
        // Of the other one there are as many.
        if pieces == 6 {
            fs::rename(&next, &path).expect("renamed");
        }
    });
    changed.expect("packed");
    applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    for name in ["large", "same", "too"] {
        let content = fs::read(to.path().join(name)).expect("there");
        assert!(content == vec![b'a'; 1 << 20], "{name} has another file's content");
    }
}

#[test]
fn a_file_that_never_holds_is_counted_or_refused() {
    for changing in [Changing::Counted, Changing::Refused] {
        let [from, to] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let path = large(from.path());
        let grown = File::options().append(true).open(&path).expect("open");
        let (archive, changed) =
            packed_meanwhile(from.path(), changing, || (&grown).write_all(b"more").expect("grown"));
        match (changing, changed) {
            (Changing::Counted, Ok(changed)) => {
                assert_eq!(changed, 1);
                applied(to.path(), &archive, Trust::Ours).expect("unpacked");
                assert!(fs::metadata(to.path().join("large")).expect("there").len() > 1 << 20);
            }
            (Changing::Refused, Err(ArchiveError::Changed { path, tries })) => {
                assert_eq!((path.as_slice(), tries), (&b"large"[..], 3));
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_leaves_an_archive_that_can_be_read() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let path = large(from.path());
    fs::write(from.path().join("next"), b"next").expect("a file");
    let mut size = 1 << 20;
    let (archive, changed) = packed_meanwhile(from.path(), Changing::Counted, || {
        size /= 2;
        File::options()
            .write(true)
            .open(&path)
            .expect("open")
            .set_len(size)
            .expect("cut");
    });
    assert!(changed.is_ok(), "{changed:?}");
    applied(to.path(), &archive, Trust::Ours).expect("unpacked");
    assert_eq!(fs::read(to.path().join("next")).expect("there"), b"next");
}

#[test]
fn links_that_are_swapped_meanwhile_lead_nowhere_outside() {
    let [from, outside] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    fs::write(outside.path().join("canary"), b"CANARY").expect("a file");
    large(from.path());
    let at = |name: &str| from.path().join(name);
    for name in ["m-directory", "n-directory", "o-moved"] {
        fs::create_dir(at(name)).expect("a directory");
        fs::write(at(name).join("canary"), b"inside").expect("a file");
    }
    fs::write(at("p-file"), b"inside").expect("a file");
    let mut left = 1;
    let (archive, changed) = packed_meanwhile(from.path(), Changing::Counted, || {
        if left == 0 {
            return;
        }
        left -= 1;
        for name in ["m-directory", "n-directory"] {
            fs::rename(at(name), at(&format!("{name}-away"))).expect("moved");
            symlink(outside.path(), at(name)).expect("a link");
        }
        fs::remove_file(at("p-file")).expect("removed");
        symlink(outside.path().join("canary"), at("p-file")).expect("a link");
    });
    changed.expect("packed");
    assert!(!archive.windows(6).any(|window| window == b"CANARY"));
}

#[test]
fn a_pipe_that_takes_the_place_of_a_file_holds_nothing_up() {
    let from = tempfile::tempdir().expect("a directory");
    let path = large(from.path());
    special(&from.path().join("pipe"), FileType::Fifo);
    let (_, changed) = packed_meanwhile(from.path(), Changing::Counted, || {
        if path.is_file() {
            // Modified and then replaced: the second reading meets the pipe.
            File::options()
                .write(true)
                .open(&path)
                .expect("open")
                .write_all_at(b"x", 0)
                .expect("changed");
            fs::remove_file(&path).expect("removed");
            special(&path, FileType::Fifo);
        }
    });
    changed.expect("packed");
}
