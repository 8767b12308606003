//! `skep shell` in a real terminal: what a person types and sees, under tmux.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::installation::{Installation, OciRuntime};

const LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A tmux server of our own with one window of 100 by 30, in which a shell of the host runs.
struct Window {
    socket: String,
}

impl Window {
    fn open(skep: &Installation) -> Self {
        let window = Self {
            socket: format!("skep-{}", skep.bridge()),
        };
        let program = skep.skep_command(&[]);
        let mut tmux = window.tmux();
        // Prompts and start-up files of whoever runs the tests would be seen too.
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30"]);
        for (name, value) in program.get_envs() {
            let value = value.expect("a variable that is set").to_str().expect("text");
            tmux.arg("-e").arg(format!("{}={value}", name.to_str().expect("text")));
        }
        tmux.args(["env", "PS1=host$ ", "/bin/sh"]);
        assert!(tmux.status().expect("tmux is needed").success());
        window
    }

    fn tmux(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.args(["-L", &self.socket]).env_remove("TMUX");
        tmux
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.tmux().args(arguments).output().expect("tmux is needed");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn type_line(&self, line: &str) {
        self.run(&["send-keys", "-l", line]);
        self.run(&["send-keys", "Enter"]);
    }

    fn keys(&self, keys: &str) {
        self.run(&["send-keys", keys]);
    }

    /// What it shows, once it shows that.
    async fn shows(&self, what: &str) {
        self.until(|shown| shown.contains(what), what).await;
    }

    async fn no_longer_shows(&self, what: &str) {
        self.until(|shown| !shown.contains(what), what).await;
    }

    async fn is_at_a_prompt(&self) {
        self.until(|shown| shown.trim_end().ends_with('#'), "a prompt").await;
    }

    async fn until(&self, is_so: impl Fn(&str) -> bool, what: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let shown = self.run(&["capture-pane", "-p"]);
            if is_so(&shown) {
                return;
            }
            assert!(Instant::now() < deadline, "about {what:?}, after {LIMIT:?}:\n{shown}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let ended = self.tmux().arg("kill-server").status();
        if !ended.is_ok_and(|ended| ended.success()) {
            eprintln!("the tmux server {} could not be ended", self.socket);
        }
    }
}

/// The program, and after it a line of the host's shell that tells its exit code.
fn skep(arguments: &str) -> String {
    format!("{} {arguments}; echo co''de-$?", env!("CARGO_BIN_EXE_skep"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_the_size_the_keys_and_the_end_of_the_window_it_is_in() {
    let installation = Installation::start(OciRuntime::Found).await;
    let image = installation.debian().await;
    installation.client.workspace("shell", Some(&image)).await;
    let window = Window::open(&installation);
    window.type_line(&skep("shell shell"));
    window.is_at_a_prompt().await;
    window.type_line("echo size-$(stty size | tr ' ' x)");
    window.shows("size-30x100").await;
    window.run(&["resize-window", "-x", "77", "-y", "20"]);
    window.type_line("until [ \"$(stty size)\" = '20 77' ]; do sleep 0.1; done; echo re''sized");
    window.shows("resized").await;
    // Every key is the workspace's, Ctrl-C too; a full-screen program comes and goes.
    // One process tells and sleeps: bash may not have given the terminal to the next one yet.
    window.type_line("sh -c \"echo sl''eeps; exec sleep 1000\"");
    window.shows("sleeps").await;
    window.keys("C-c");
    window.is_at_a_prompt().await;
    window.type_line("seq 1000 | more");
    window.shows("--More--").await;
    window.keys("q");
    window.is_at_a_prompt().await;
    window.type_line("exit 7");
    window.shows("code-7").await;
    window.type_line("stty -a | grep -o ' icanon' | tr i I");
    window.shows("Icanon").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_watched_and_not_typed_to_runs_past_the_idle_time() {
    let idle = [("SKEP_TERMINAL__IDLE_TIMEOUT", "50s".to_owned())];
    let installation = Installation::start_with(OciRuntime::Found, &idle).await;
    installation.client.workspace("quiet", None).await;
    let window = Window::open(&installation);
    window.type_line(&skep("exec -it quiet -- sh -c \"echo be''gun; sleep 60; echo wo''ke\""));
    window.shows("begun").await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    window.shows("woke").await;
    window.shows("code-0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_connected_to_again_when_the_server_comes_back() {
    let mut installation = Installation::start(OciRuntime::Found).await;
    installation.client.workspace("session", None).await;
    let window = Window::open(&installation);
    window.type_line(&skep("shell session --session work"));
    window.is_at_a_prompt().await;
    window.type_line("kept=value; echo before-$kept");
    window.shows("before-value").await;
    installation.kill_server();
    window.shows("the connection was lost").await;
    installation.start_server_again().await;
    // The screen is what it was, and so is the shell.
    window.no_longer_shows("the connection was lost").await;
    window.shows("before-value").await;
    window.type_line("echo after-$kept");
    window.shows("after-value").await;
    installation.kill_server();
    window.shows("the connection was lost").await;
    window.keys("C-c");
    window.shows("code-1").await;
    installation.start_server_again().await;
    window.type_line(&skep("shell session --session work"));
    window.shows("after-value").await;
    window.type_line("exit 5");
    window.shows("code-5").await;
}
