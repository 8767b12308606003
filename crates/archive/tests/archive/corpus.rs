//! What the fuzzer found worth keeping, tried again.

use std::fs;
use std::path::Path;

use super::any_bytes::hold_what_is_promised;

#[test]
fn whatever_the_fuzzer_kept_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/any_bytes");
    let mut tried = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus") {
        hold_what_is_promised(&fs::read(entry.expect("an entry").path()).expect("a file"));
        tried += 1;
    }
    assert!(tried > 20, "only {tried} files: is this the corpus?");
}
