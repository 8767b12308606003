//! A server on the fake runtime, and the program with a home of its own.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use skep_testkit::server::TestServer;

/// No command of these tests takes longer; one that hangs is told.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A server, and `skep` with its address, its admin key and a home of its own.
pub(crate) struct Setting {
    pub(crate) server: TestServer,
    home: tempfile::TempDir,
}

impl Setting {
    pub(crate) async fn new() -> Self {
        Self {
            server: TestServer::start().await,
            home: tempfile::tempdir().expect("a directory"),
        }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command
            .args(arguments)
            .env("SKEP_SERVER", self.server.url())
            .env("SKEP_TOKEN", self.server.admin_key())
            .env("HOME", self.home())
            .env_remove("XDG_CONFIG_HOME")
            .current_dir(self.home());
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "").await
    }

    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        run(self.command(arguments), input.to_owned()).await
    }

    /// Runs what must succeed, and returns what it printed.
    pub(crate) async fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }
}

pub(crate) async fn run(mut command: Command, input: String) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("skep runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A command that reads nothing may have ended before.
        if let Err(error) = stdin.write_all(input.as_bytes()) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
        drop(stdin);
        child.wait_with_output().expect("skep ends")
    });
    tokio::time::timeout(LIMIT, ended)
        .await
        .expect("skep ends in time")
        .expect("it is waited for")
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

/// Gives one command the environment that was set for another.
pub(crate) fn pass_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}
