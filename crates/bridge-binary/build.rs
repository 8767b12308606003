//! Builds the static programs this crate carries, by a cargo of its own.
//!
//! Why not an ordinary dependency: the programs run in any image, so they are linked statically, which needs
//! flags that must not reach the rest of the build (proc macros cannot be linked so). The nested cargo has a target
//! directory of its own, so it never waits for the lock that the outer one holds.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 3] = ["skep-bridge", "skep-crun", "skep-layer"];
const PROFILE: &str = "bridge";

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = workspace_root()?;
    for watched in [
        "Cargo.toml",
        "Cargo.lock",
        "bin/skep-bridge/Cargo.toml",
        "bin/skep-bridge/src",
        "bin/skep-crun/Cargo.toml",
        "bin/skep-crun/src",
        "bin/skep-layer/Cargo.toml",
        "bin/skep-layer/src",
        "crates/archive/Cargo.toml",
        "crates/archive/src",
        "crates/layer-protocol/Cargo.toml",
        "crates/layer-protocol/src",
        "crates/bridge-protocol/Cargo.toml",
        "crates/bridge-protocol/build.rs",
        "crates/bridge-protocol/proto",
        "crates/bridge-protocol/src",
    ] {
        println!("cargo:rerun-if-changed={}", workspace.join(watched).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let target = env::var("TARGET")?;
    let nested_target_dir = outer_target_dir(&out_dir).join("static");
    build_programs(&workspace, &target, &nested_target_dir)?;
    for program in PROGRAMS {
        let built = nested_target_dir.join(&target).join(PROFILE).join(program);
        fs::copy(&built, out_dir.join(program)).map_err(|error| format!("copy {}: {error}", built.display()))?;
    }
    Ok(())
}

fn workspace_root() -> Result<PathBuf, Box<dyn Error>> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest_dir
        .ancestors()
        .nth(2)
        .ok_or("this crate lies in <workspace>/crates/bridge-binary")?;
    Ok(root.to_path_buf())
}

/// The outer target directory, four above OUT_DIR (`<target>/<profile>/build/<package>/out`): the nested one below it
/// stays the same when the hash in OUT_DIR changes, so a rebuild is incremental, and `cargo clean` removes it too.
fn outer_target_dir(out_dir: &Path) -> PathBuf {
    out_dir.ancestors().nth(4).unwrap_or(out_dir).to_path_buf()
}

fn build_programs(workspace: &Path, target: &str, target_dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("cargo names itself in CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(belongs_to_the_outer_build) {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // The outer cargo has already settled Cargo.lock: the nested one must never write it.
    cargo.args([
        "build",
        "--locked",
        "--quiet",
        "--profile",
        PROFILE,
        "--target",
        target,
        "--target-dir",
    ]);
    cargo.arg(target_dir);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the static build of {} failed: {status}", PROGRAMS.join(", ")).into());
    }
    Ok(())
}

/// What the outer cargo tells its build scripts would mislead the nested one (clippy's wrapper, the outer flags,
/// profile overrides). Where cargo finds its home, its registries and the network stays.
fn belongs_to_the_outer_build(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TARGET_",
    ];
    const DROPPED: [&str; 12] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTFLAGS",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "MAKEFLAGS",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "NUM_JOBS",
    ];
    if name == "CARGO_TARGET_DIR" || name.ends_with("_RUSTFLAGS") {
        return true;
    }
    if KEPT.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    name.starts_with("CARGO") || name.starts_with("__CARGO") || name.starts_with("DEP_") || DROPPED.contains(&name)
}
