//! AppArmor's profile of all workspaces, where the kernel has AppArmor: loaded before a start, and told.
//!
//! One profile for all data roots of a host. What is in it is in `apparmor.profile`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::spec;

/// The profile's name, as `process.apparmorProfile` of a specification has it.
pub(crate) const PROFILE: &str = "skep-workspace";
const PARSER: &str = "apparmor_parser";
/// The server's own `PATH` may lack the `sbin` directories.
const PARSER_DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// It compiles for some tens of milliseconds.
const PARSER_LIMIT: Duration = Duration::from_secs(20);

/// What keeps the profile from being loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLoaded {
    #[error("reading {} failed: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{PARSER} is not installed (Debian's package apparmor)")]
    NoParser,
    #[error("{PARSER} cannot be run: {0}")]
    NotRun(io::Error),
    #[error("{PARSER} did not end within {PARSER_LIMIT:?}")]
    TimedOut,
    #[error("{PARSER} refuses the profile: {0}")]
    Refused(String),
}

/// AppArmor on this host.
pub(crate) struct AppArmor {
    /// `/sys`.
    kernel: PathBuf,
    parser_directories: Vec<PathBuf>,
    // By this server: one of another version may have loaded another text under the same name.
    loaded: OnceCell<()>,
}

impl AppArmor {
    pub(crate) fn of_this_host() -> Self {
        Self {
            kernel: PathBuf::from("/sys"),
            parser_directories: PARSER_DIRECTORIES.map(PathBuf::from).to_vec(),
            loaded: OnceCell::new(),
        }
    }

    /// The profile to start a workspace with, loaded; `None`: this kernel has no AppArmor, or it is switched off.
    ///
    /// # Errors
    /// The kernel has it and the profile cannot be loaded.
    pub(crate) async fn profile(&self) -> Result<Option<&'static str>, NotLoaded> {
        if !self.is_enabled()? {
            return Ok(None);
        }
        self.loaded.get_or_try_init(|| self.load()).await?;
        // Somebody may have unloaded it since: a start would fail with words that name no profile.
        if !self.is_listed()? {
            self.load().await?;
        }
        Ok(Some(PROFILE))
    }

    fn is_enabled(&self) -> Result<bool, NotLoaded> {
        let path = self.kernel.join("module/apparmor/parameters/enabled");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim() == "Y"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(NotLoaded::Unreadable { path, source }),
        }
    }

    fn is_listed(&self) -> Result<bool, NotLoaded> {
        let path = self.kernel.join("kernel/security/apparmor/profiles");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().any(|line| line == format!("{PROFILE} (enforce)"))),
            Err(source) => Err(NotLoaded::Unreadable { path, source }),
        }
    }

    async fn load(&self) -> Result<(), NotLoaded> {
        let candidates = self.parser_directories.iter().map(|directory| directory.join(PARSER));
        let parser = candidates.into_iter().find(|file| file.is_file());
        let parser = parser.ok_or(NotLoaded::NoParser)?;
        tokio::time::timeout(PARSER_LIMIT, replace(&parser))
            .await
            .map_err(|_| NotLoaded::TimedOut)?
    }
}

/// Loads the profile in place of one of that name: workspaces that run under it go on under the new text.
async fn replace(parser: &Path) -> Result<(), NotLoaded> {
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NotLoaded::NotRun)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text().as_bytes()).await {
            // It may refuse without reading all; its exit status says so.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(NotLoaded::NotRun(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let ended = child.wait_with_output().await.map_err(NotLoaded::NotRun)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    Err(NotLoaded::Refused(format!("{}: {said}", ended.status)))
}

/// The profile, with the capabilities that a specification gives at most.
fn text() -> String {
    let lines: Vec<String> = spec::capabilities(true)
        .iter()
        .map(|name| format!("  capability {},", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    include_str!("apparmor.profile").replace("@CAPABILITIES@", &lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLED: &str = "module/apparmor/parameters/enabled";
    const PROFILES: &str = "kernel/security/apparmor/profiles";

    /// A host as recorded: what stands below its `/sys`, and its parser as a script.
    struct Host {
        directory: tempfile::TempDir,
        apparmor: AppArmor,
    }

    impl Host {
        fn new(enabled: Option<&str>, parser: Option<&str>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (kernel, programs) = (directory.path().join("sys"), directory.path().join("sbin"));
            std::fs::create_dir(&programs).unwrap();
            for file in [ENABLED, PROFILES] {
                std::fs::create_dir_all(kernel.join(file).parent().unwrap()).unwrap();
            }
            if let Some(enabled) = enabled {
                std::fs::write(kernel.join(ENABLED), enabled).unwrap();
                std::fs::write(kernel.join(PROFILES), "/usr/bin/man (enforce)\n").unwrap();
            }
            if let Some(script) = parser {
                let written = directory.path().join("script");
                let text = format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display());
                std::fs::write(&written, text).unwrap();
                // By another process: a child forked by another test while this one has it open would keep it busy.
                let mut install = std::process::Command::new("install");
                let installed = install
                    .args(["-m", "0755"])
                    .arg(&written)
                    .arg(programs.join(PARSER))
                    .status();
                assert!(installed.unwrap().success());
            }
            let apparmor = AppArmor {
                kernel,
                parser_directories: vec![programs],
                loaded: OnceCell::new(),
            };
            Self { directory, apparmor }
        }

        fn read(&self, file: &str) -> String {
            std::fs::read_to_string(self.directory.path().join(file)).unwrap_or_default()
        }
    }

    /// Loads as the real one does, as far as can be seen in `/sys`.
    const LOADS: &str = "/bin/cat >loaded; echo \"$*\" >>calls; echo 'skep-workspace (enforce)' >>sys/kernel/security/apparmor/profiles";

    #[tokio::test]
    async fn a_kernel_without_apparmor_asks_for_no_profile_and_no_parser() {
        for enabled in [None, Some("N\n")] {
            let host = Host::new(enabled, None);
            assert_eq!(host.apparmor.profile().await.unwrap(), None, "{enabled:?}");
        }
    }

    #[tokio::test]
    async fn the_profile_is_loaded_once_and_again_when_somebody_unloaded_it() {
        let host = Host::new(Some("Y\n"), Some(LOADS));
        // Loaded by a server of another version: this one's text has to take its place.
        let profiles = host.apparmor.kernel.join(PROFILES);
        std::fs::write(&profiles, "skep-workspace (enforce)\n").unwrap();
        for _ in 0..3 {
            assert_eq!(host.apparmor.profile().await.unwrap(), Some(PROFILE));
        }
        assert_eq!(host.read("calls"), "--replace --skip-cache\n");
        assert_eq!(host.read("loaded"), text());
        std::fs::write(&profiles, "skep-workspace-of-another (enforce)\n").unwrap();
        assert_eq!(host.apparmor.profile().await.unwrap(), Some(PROFILE));
        assert_eq!(host.read("calls").lines().count(), 2);
    }

    #[tokio::test]
    async fn a_missing_parser_and_one_that_refuses_are_told() {
        let missing = Host::new(Some("Y\n"), None).apparmor.profile().await.unwrap_err();
        assert!(matches!(missing, NotLoaded::NoParser), "{missing}");
        let refusing = Host::new(Some("Y\n"), Some("echo 'Permission denied' >&2; exit 243"));
        let refused = refusing.apparmor.profile().await.unwrap_err().to_string();
        assert!(
            refused.contains("243") && refused.contains("Permission denied"),
            "{refused}"
        );
    }

    #[test]
    fn the_real_parser_understands_the_profile() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text()).unwrap();
        let parsed = |arguments: &[&str]| {
            let parser = PARSER_DIRECTORIES.map(|directory| Path::new(directory).join(PARSER));
            let parser = parser.iter().find(|file| file.is_file());
            let mut command = std::process::Command::new(parser.expect("apparmor_parser: scripts/install test"));
            command.args(arguments).arg(file.path());
            let ended = command.output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(ended.status.success() && !said.contains("error"), "{said}");
            String::from_utf8(ended.stdout).unwrap()
        };
        parsed(&["--skip-kernel-load", "--skip-cache"]);
        assert_eq!(parsed(&["--names", "--skip-cache"]).trim(), PROFILE);
        let debugged = parsed(&["--debug", "--skip-kernel-load", "--skip-cache"]);
        let capabilities = debugged.lines().find_map(|line| line.strip_prefix("Capabilities: "));
        let mut found: Vec<String> = capabilities
            .unwrap()
            .split_whitespace()
            .map(str::to_uppercase)
            .collect();
        let mut given: Vec<String> = spec::capabilities(true)
            .iter()
            .map(|name| name.trim_start_matches("CAP_").to_owned())
            .collect();
        found.sort();
        given.sort();
        assert_eq!(found, given);
    }
}
