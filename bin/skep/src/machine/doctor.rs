//! `skep doctor`: what is on this host, what is missing, and what to do about it. Changes nothing.

use std::path::PathBuf;

use serde_json::{Value, json};
use skep_server::config::Config;

use super::configuration;
use crate::arguments::{ConfigurationFile, OutputForm};
use crate::client::{Client, Endpoint, server_here};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};

const COLUMNS: &[Column] = &[
    Column {
        title: "CHECK",
        read: |check| text(check, "name"),
    },
    Column {
        title: "STATUS",
        read: |check| text(check, "status"),
    },
    Column {
        title: "DETAIL",
        read: |check| text(check, "detail"),
    },
];

/// Programs, and what of ours does not work without.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "error"),
    ("runc", "error"),
    ("crun", "warn"),
    ("nft", "error"),
    ("ip", "warn"),
    ("debootstrap", "warn"),
];

pub(crate) async fn run(file: ConfigurationFile, form: OutputForm) -> Result<()> {
    let (_, config) = configuration::read(&file)?;
    let mut checks: Vec<Value> = PROGRAMS
        .iter()
        .map(|(program, without)| program_check(program, without))
        .collect();
    checks.push(plugin_check(&config));
    checks.push(kernel_check());
    checks.extend(server_checks().await?);
    output::print_list(form, &checks, "name", COLUMNS)?;
    match checks.iter().filter(|check| text(check, "status") == "error").count() {
        0 => Ok(()),
        errors => Err(Failure::Failed(format!("{errors} checks failed"))),
    }
}

fn check(name: &str, status: &str, detail: impl Into<String>) -> Value {
    json!({"name": name, "status": status, "detail": detail.into()})
}

fn program_check(program: &str, without: &str) -> Value {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file());
    match found {
        Some(path) => check(program, "ok", path.display().to_string()),
        None => check(
            program,
            without,
            "is not in PATH; `make build` or the package of this name installs it",
        ),
    }
}

fn plugin_check(config: &Config) -> Value {
    let usual = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).to_vec();
    let places = config.workspace.cni_bin_dir.clone().map_or(usual, |told| vec![told]);
    match places.iter().find(|place| place.join("bridge").is_file()) {
        Some(place) => check("cni", "ok", place.display().to_string()),
        None => check(
            "cni",
            "error",
            "no CNI plugins; the package containernetworking-plugins has them",
        ),
    }
}

/// User namespaces with id-mapped layers came with 5.19.
fn kernel_check() -> Value {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (5, 19) => check("kernel", "ok", release),
        _ => check(
            "kernel",
            "warn",
            format!("{release}: user namespaces need Linux 5.19; workspaces go without"),
        ),
    }
}

/// The probes of the server of this host, when one runs: these are real ones.
async fn server_checks() -> Result<Vec<Value>> {
    let Some(server) = server_here()?.map(|meant| meant.server) else {
        return Ok(vec![check(
            "server",
            "warn",
            "none runs here; `skep up` starts one, and its probes are shown then",
        )]);
    };
    let client = Client::new(Endpoint {
        server: server.server.clone(),
        token: None,
    })?;
    match client.readiness().await {
        Ok(readiness) => {
            let who = format!("{} (process {})", server.server, server.pid);
            let Some(found) = readiness.get("checks").and_then(Value::as_array) else {
                return Ok(vec![check("server", "error", format!("{who} tells no checks"))]);
            };
            let mut all = vec![check("server", "ok", who)];
            all.extend(found.iter().cloned());
            Ok(all)
        }
        Err(failure) => Ok(vec![check("server", "error", failure.to_string())]),
    }
}
