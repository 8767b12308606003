//! What the bridge does before it listens: `/data`, the templates, and the environment of all that it starts.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use crate::files::{self, Commit};
use crate::log;
use crate::paths::DATA_DIRECTORY;

const TEMPLATES: &str = "/opt/memoh/templates";
const TOOLKIT: &str = "/opt/memoh/toolkit/bin";
/// Where an image names no search path: what other container tools give.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DATA_MODE: u32 = 0o750;
const TEMPLATE_MODE: u32 = 0o644;

/// Makes `/data` and copies the templates that are not there by name. What fails is told and left: a workspace whose
/// disk is full or read-only must still be reachable.
pub(crate) fn prepare_data() {
    if let Err(error) = files::make_directory(Path::new(DATA_DIRECTORY), DATA_MODE) {
        log::tell!("make {DATA_DIRECTORY}: {error}");
        return;
    }
    if let Err(error) = copy_templates(Path::new(TEMPLATES), Path::new(DATA_DIRECTORY)) {
        log::tell!("read the templates of {TEMPLATES}: {error}");
    }
}

/// One that fails is told, and the others are copied.
fn copy_templates(templates: &Path, data: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(templates) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let template = entry?.path();
        let Some(name) = template.file_name() else { continue };
        if let Err(error) = copy_template(&template, &data.join(name)) {
            log::tell!("copy the template {}: {error}", template.display());
        }
    }
    Ok(())
}

fn copy_template(template: &Path, to: &Path) -> io::Result<()> {
    // A link that leads nowhere is a name too.
    if !template.is_file() || to.symlink_metadata().is_ok() {
        return Ok(());
    }
    let mut new = files::Target::find(to)?.begin()?;
    new.write(&fs::read(template)?)?;
    new.commit(&Commit {
        new_mode: TEMPLATE_MODE,
        set_mode: Some(TEMPLATE_MODE),
    })?;
    Ok(())
}

/// The environment of every process: the image's own, with what the contract fixes.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = env::vars_os().filter(|(name, _)| !is_fixed(name)).collect();
    let mut path = env::var_os("PATH")
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| DEFAULT_PATH.into());
    path.push(":");
    path.push(TOOLKIT);
    let fixed = [
        ("HOME", DATA_DIRECTORY.into()),
        ("XDG_CONFIG_HOME", format!("{DATA_DIRECTORY}/.config").into()),
        ("XDG_DATA_HOME", format!("{DATA_DIRECTORY}/.local/share").into()),
        ("XDG_CACHE_HOME", format!("{DATA_DIRECTORY}/.cache").into()),
        ("PATH", path),
    ];
    variables.extend(fixed.map(|(name, value)| (name.into(), value)));
    variables
}

/// Also what is meant for the bridge alone.
fn is_fixed(name: &OsString) -> bool {
    let names = [
        "HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_CACHE_HOME",
        "PATH",
        crate::listen::SAME_NAMESPACE_VARIABLE,
    ];
    let names = names.iter().chain(&crate::tcp::VARIABLES);
    names.into_iter().any(|fixed| name == fixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn templates_fill_in_only_names_that_are_missing() {
        let (templates, data) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("another"),
        );
        fs::write(templates.path().join("a"), b"template").expect("written");
        fs::write(templates.path().join("b"), b"template").expect("written");
        fs::set_permissions(templates.path().join("b"), fs::Permissions::from_mode(0o400)).expect("read-only");
        fs::write(data.path().join("a"), b"own").expect("written");
        copy_templates(templates.path(), data.path()).expect("copied");
        assert_eq!(fs::read(data.path().join("a")).expect("a"), b"own");
        assert_eq!(fs::read(data.path().join("b")).expect("b"), b"template");
        let mode = fs::metadata(data.path().join("b")).expect("b").permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
    }

    #[test]
    fn a_template_that_cannot_be_copied_keeps_back_no_other() {
        let (templates, data) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("another"),
        );
        let names: Vec<String> = (0..20).map(|number| format!("{number:02}.md")).collect();
        for name in &names {
            fs::write(templates.path().join(name), b"template").expect("written");
        }
        // Whoever reads the directory's entries in whatever order meets one of these before another.
        for bad in ["00.md", "10.md", "19.md"] {
            let path = templates.path().join(bad);
            fs::remove_file(&path).expect("removed");
            // A plain file that no read of any length takes: what it maps is nowhere.
            std::os::unix::fs::symlink("/proc/self/mem", path).expect("a link");
        }
        copy_templates(templates.path(), data.path()).expect("told, and no more");
        let copied = fs::read_dir(data.path()).expect("listed").count();
        assert_eq!(copied, names.len() - 3);
    }

    #[test]
    fn no_templates_are_no_error() {
        let data = tempfile::tempdir().expect("a directory");
        copy_templates(Path::new("/nonexistent/templates"), data.path()).expect("nothing to do");
    }
}
