//! The surface of each generation is frozen in `schema/`: bridges of every release still run in old workspaces.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use skep_bridge_protocol::GENERATION;

const SURFACE: &str = include_str!(concat!(env!("OUT_DIR"), "/surface.txt"));

fn frozen(generation: u32) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schema/{generation}.txt"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_surface_is_the_one_of_this_generation() {
    let (frozen, now) = (frozen(GENERATION), SURFACE);
    let (frozen, now): (BTreeSet<&str>, BTreeSet<&str>) = (frozen.lines().collect(), now.lines().collect());
    let gone: Vec<_> = frozen.difference(&now).collect();
    let new: Vec<_> = now.difference(&frozen).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "the surface changed: raise GENERATION and freeze schema/<generation>.txt\ngone: {gone:#?}\nnew: {new:#?}"
    );
}

#[test]
fn nothing_of_an_earlier_generation_is_gone() {
    let now: BTreeSet<&str> = SURFACE.lines().collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let files: Vec<_> = fs::read_dir(&directory)
        .expect("the frozen surfaces")
        .map(|file| file.expect("a file"))
        .collect();
    assert_eq!(files.len(), GENERATION as usize, "one frozen surface per generation");
    for file in files {
        let earlier = fs::read_to_string(file.path()).expect("a frozen surface");
        let gone: Vec<_> = earlier.lines().filter(|line| !now.contains(line)).collect();
        assert!(
            gone.is_empty(),
            "{:?} promised what is no longer there: {gone:#?}",
            file.file_name()
        );
    }
}

#[test]
fn the_references_service_is_whole() {
    for line in [
        "rpc bridgepb.ContainerService.Exec stream .bridgepb.ExecInput -> stream .bridgepb.ExecOutput",
        "rpc bridgepb.ContainerService.WriteRaw stream .bridgepb.WriteRawChunk -> .bridgepb.WriteRawResponse",
        "rpc bridgepb.ContainerService.ReadRaw .bridgepb.ReadRawRequest -> stream .bridgepb.DataChunk",
        "field bridgepb.ExecInput 5 stdin_data Optional Bytes",
        "field bridgepb.ExecOutput 3 exit_code Optional Int32",
        "field bridgepb.ListDirRequest 5 collapse_threshold Optional Int32",
        "field bridgepb.FileEntry 6 summary Optional String",
        "value bridgepb.ExecOutput.Stream 2 EXIT",
    ] {
        assert!(SURFACE.lines().any(|present| present == line), "missing: {line}");
    }
}
