//! Runs debootstrap, and takes out of its result what differs from one run to the next.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Recipe;
use super::apt::Mirror;
use crate::failure::{Failure, Result};

/// Fills `root`. Tells debootstrap's own steps.
pub(super) fn run(recipe: &Recipe, mirror: &Mirror, root: &Path, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let mut child = Command::new("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg(format!("--keyring={}", mirror.keyring.display()))
        .arg(&recipe.release)
        .arg(root)
        .arg(&mirror.address)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::local("cannot run debootstrap (the package `debootstrap` has it)", error))?;
    let errors = child.stderr.take();
    let reading = std::thread::spawn(move || last_lines(errors));
    let mut last = Vec::new();
    for line in child
        .stdout
        .take()
        .into_iter()
        .flat_map(|out| BufReader::new(out).lines())
        .map_while(|line| line.ok())
    {
        if let Some(step) = line.strip_prefix("I: ") {
            tell(in_short(step));
        }
        last.push(line);
        if last.len() > 5 {
            last.remove(0);
        }
    }
    let status = child
        .wait()
        .map_err(|error| Failure::local("cannot wait for debootstrap", error))?;
    if status.success() {
        return Ok(());
    }
    last.extend(reading.join().unwrap_or_default());
    Err(Failure::Failed(format!(
        "debootstrap failed ({status}): {}",
        last.join("; ")
    )))
}

/// debootstrap tells each package four times; a person wants to know what goes on.
fn in_short(step: &str) -> &str {
    match step.split_whitespace().next() {
        Some("Retrieving" | "Validating" | "Checking" | "Found" | "Resolving" | "Valid") => "fetching packages",
        Some("Extracting" | "Chosen") => "extracting packages",
        Some("Unpacking" | "Installing") => "unpacking packages",
        Some("Configuring") => "configuring packages",
        _ => step,
    }
}

fn last_lines(errors: Option<std::process::ChildStderr>) -> Vec<String> {
    let mut last = Vec::new();
    for line in errors
        .into_iter()
        .flat_map(|errors| BufReader::new(errors).lines())
        .map_while(|line| line.ok())
    {
        last.push(line);
        if last.len() > 5 {
            last.remove(0);
        }
    }
    last
}

/// Removes caches, logs and identities: an image is no machine.
pub(super) fn clean(root: &Path) -> Result<()> {
    for directory in [
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "var/log",
        "tmp",
        "var/tmp",
        "run",
    ] {
        empty(&root.join(directory))?;
    }
    for file in [
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/cache/ldconfig/aux-cache",
        "etc/machine-id",
        "etc/resolv.conf",
        "etc/hostname",
    ] {
        remove(&root.join(file))?;
    }
    let data = root.join("data");
    fs::create_dir_all(&data).map_err(|error| Failure::local(format!("cannot make {}", data.display()), error))?;
    // Mount points of a workspace, made here so that a layer without them needs no copy.
    for (file, text) in [
        ("etc/resolv.conf", ""),
        ("etc/machine-id", ""),
        ("etc/hostname", "workspace\n"),
    ] {
        let path = root.join(file);
        fs::write(&path, text).map_err(|error| Failure::local(format!("cannot write {}", path.display()), error))?;
    }
    Ok(())
}

fn empty(directory: &Path) -> Result<()> {
    let failed = |error| Failure::local(format!("cannot empty {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let removed = if kind.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        removed.map_err(failed)?;
    }
    Ok(())
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::local(format!("cannot remove {}", file.display()), error))
        }
        _ => Ok(()),
    }
}
