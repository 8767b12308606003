//! The certificates this host was told to trust go into the image, so that TLS from a workspace
//! trusts what TLS from the host trusts.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Failure, Result};

/// Where an administrator puts certificates on Debian and its kin.
const ADDED: &str = "usr/local/share/ca-certificates";

/// Copies the added certificates, makes the bundle anew inside, and says how many there are.
pub(super) fn add(root: &Path) -> Result<usize> {
    let from = Path::new("/").join(ADDED);
    let to = root.join(ADDED);
    let count = copy_certificates(&from, &to)?;
    if count > 0 {
        update(root)?;
    }
    Ok(count)
}

fn copy_certificates(from: &Path, to: &Path) -> Result<usize> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|error| Failure::local(format!("cannot read {}", from.display()), error))?,
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry.map_err(|error| Failure::local(format!("cannot read {}", from.display()), error))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let failed = |error| Failure::local(format!("cannot copy {}", path.display()), error);
        if path.is_dir() {
            count += copy_certificates(&path, &target)?;
        } else if path.extension().is_some_and(|extension| extension == "crt") {
            fs::create_dir_all(to).map_err(failed)?;
            fs::write(&target, fs::read(&path).map_err(failed)?).map_err(failed)?;
            count += 1;
        }
    }
    Ok(count)
}

/// The image's own tool writes its bundle, links and hooks.
fn update(root: &Path) -> Result<()> {
    let output = Command::new("chroot")
        .arg(root)
        .arg("update-ca-certificates")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| Failure::local("cannot run update-ca-certificates in the image", error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "update-ca-certificates failed in the image ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_copied_with_their_directories_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        fs::create_dir_all(from.join("more")).unwrap();
        fs::write(from.join("a.crt"), "A").unwrap();
        fs::write(from.join("more/b.crt"), "B").unwrap();
        fs::write(from.join("key.pem"), "secret").unwrap();
        let to = directory.path().join("to");
        assert_eq!(copy_certificates(&from, &to).unwrap(), 2);
        assert_eq!(fs::read_to_string(to.join("more/b.crt")).unwrap(), "B");
        assert!(!to.join("key.pem").exists());
        assert_eq!(copy_certificates(&directory.path().join("none"), &to).unwrap(), 0);
    }
}
