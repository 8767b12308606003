//! `skep doctor`: what is on this host, what is missing, and what to do about it. Changes nothing.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Value, json};
use skep_server::config::{Config, NetworkMode};

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

/// Programs, and how bad it is not to have them here: a containerd that the configuration names runs already, and a
/// runtime that it names is the one that counts.
fn programs(config: &Config) -> Vec<(String, &'static str)> {
    let named = config.containerd.runtime_binary.as_deref();
    let containerd = if config.containerd.socket_is_named {
        "warn"
    } else {
        "error"
    };
    let rules = if has_network(config) { "error" } else { "warn" };
    let runc = if named.is_some() { "warn" } else { "error" };
    let mut all = vec![
        ("containerd".to_owned(), containerd),
        ("runc".to_owned(), runc),
        ("crun".to_owned(), "warn"),
        ("nft".to_owned(), rules),
        ("ip".to_owned(), "warn"),
        ("debootstrap".to_owned(), "warn"),
    ];
    if let Some(runtime) = named {
        let runtime = runtime.display().to_string();
        all.retain(|(program, _)| *program != runtime);
        all.push((runtime, "error"));
    }
    all
}

/// Without one, workspaces need neither rules nor plugins.
fn has_network(config: &Config) -> bool {
    config.network.mode != NetworkMode::None
}

pub(crate) async fn run(file: ConfigurationFile, form: OutputForm) -> Result<()> {
    let (_, config) = configuration::read(&file)?;
    let mut checks: Vec<Value> = programs(&config)
        .iter()
        .map(|(program, without)| program_check(program, without))
        .collect();
    checks.extend(socket_check(&config));
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
        None => {
            let package = package_of(program);
            check(
                program,
                without,
                format!("is not in PATH; Debian's package {package} has it"),
            )
        }
    }
}

fn package_of(program: &str) -> &str {
    match program {
        "nft" => "nftables",
        "ip" => "iproute2",
        other => other,
    }
}

/// The containerd that the configuration names.
fn socket_check(config: &Config) -> Option<Value> {
    let socket = &config.containerd.socket_path;
    let answers = config.containerd.socket_is_named.then(|| UnixStream::connect(socket))?;
    Some(match answers {
        Ok(_) => check("containerd.socket", "ok", socket.display().to_string()),
        Err(error) => check("containerd.socket", "error", format!("{}: {error}", socket.display())),
    })
}

fn plugin_check(config: &Config) -> Value {
    let usual = ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).to_vec();
    let places = config.workspace.cni_bin_dir.clone().map_or(usual, |told| vec![told]);
    match places.iter().find(|place| place.join("bridge").is_file()) {
        Some(place) => check("cni", "ok", place.display().to_string()),
        None => check(
            "cni",
            if has_network(config) { "error" } else { "warn" },
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use skep_server::config::Settings;

    use super::*;

    fn config(environment: &[(&str, &str)]) -> Config {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(owned).collect();
        Config::settle(&Settings::read(Some(Path::new("/dev/null")), &environment).unwrap()).unwrap()
    }

    fn without(config: &Config, program: &str) -> Option<&'static str> {
        let all = programs(config);
        all.iter().find(|(name, _)| name == program).map(|(_, status)| *status)
    }

    #[test]
    fn what_the_configuration_replaces_need_not_be_here() {
        let plain = config(&[]);
        assert_eq!(
            (without(&plain, "containerd"), without(&plain, "runc")),
            (Some("error"), Some("error"))
        );
        assert!(socket_check(&plain).is_none());
        let own = config(&[("SKEP_CONTAINERD__RUNTIME_BINARY", "crun")]);
        assert_eq!(
            (without(&own, "runc"), without(&own, "crun")),
            (Some("warn"), Some("error"))
        );
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("containerd.sock");
        let named = config(&[("SKEP_CONTAINERD__SOCKET_PATH", socket.to_str().unwrap())]);
        assert_eq!(without(&named, "containerd"), Some("warn"));
        assert_eq!(socket_check(&named).unwrap()["status"], "error");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(socket_check(&named).unwrap()["status"], "ok");
    }
}
