//! Commands that look at this host and need no server of it.

use std::path::Path;
use std::process::{Command, Output};

fn skep(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command
        .args(arguments)
        .current_dir(directory)
        .env("HOME", directory)
        .env_remove("SKEP_SERVER")
        .env_remove("SKEP_TOKEN");
    command
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn the_default_configuration_is_valid_and_all_comments() {
    let directory = tempfile::tempdir().unwrap();
    let text = printed(&skep(directory.path(), &["config", "default"]).output().unwrap());
    let set = |line: &&str| !(line.is_empty() || line.starts_with('#') || line.starts_with('['));
    assert_eq!(text.lines().filter(set).collect::<Vec<_>>(), Vec::<&str>::new());
    std::fs::write(directory.path().join("skep.toml"), &text).unwrap();
    printed(&skep(directory.path(), &["config", "check"]).output().unwrap());
}

#[test]
fn doctor_tells_what_a_host_lacks_and_which_package_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("none");
    let looked = |network: &str| {
        let text = format!(
            "[network]\nmode = \"{network}\"\n[workspace]\ncni_bin_dir = \"{}\"\n",
            empty.display()
        );
        std::fs::write(directory.path().join("skep.toml"), text).unwrap();
        let mut doctor = skep(directory.path(), &["doctor", "-o", "json"]);
        let output = doctor.env("PATH", &empty).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = answer["items"]
            .as_array()
            .unwrap_or_else(|| answer.as_array().unwrap())
            .clone();
        let of = move |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
        (output.status.code(), of)
    };
    let (code, of) = looked("bridge");
    assert_eq!(code, Some(1));
    let nft = of("nft");
    assert_eq!(nft["status"], "error");
    assert!(nft["detail"].as_str().unwrap().contains("nftables"), "{nft}");
    assert_eq!(
        (&of("runc")["status"], &of("cni")["status"]),
        (&"error".into(), &"error".into())
    );
    // Without a network nothing is missing for one.
    let (_, of) = looked("none");
    assert_eq!(
        (&of("nft")["status"], &of("cni")["status"]),
        (&"warn".into(), &"warn".into())
    );
}

#[test]
fn a_shell_is_told_how_to_complete() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&skep(directory.path(), &["completion", shell]).output().unwrap());
        assert!(script.contains("port-forward"), "{shell}: {script}");
    }
}
