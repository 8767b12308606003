//! The arrows of ARCHITECTURE.md, read from what cargo itself says.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// What each crate of ours may know of ours. A crate that is not here may know nothing of ours, and
/// fails: a new crate gets its line together with its place in ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("skep-names", &[]),
    ("skep-archive", &[]),
    ("skep-api", &["skep-names"]),
    ("skep-bridge-protocol", &["skep-names"]),
    ("skep-bridge-binary", &[]),
    ("skep-store", &["skep-names"]),
    ("skep-layer-protocol", &[]),
    (
        "skep-runtime",
        &["skep-names", "skep-bridge-binary", "skep-layer-protocol"],
    ),
    (
        "skep-core",
        &[
            "skep-names",
            "skep-archive",
            "skep-store",
            "skep-runtime",
            "skep-bridge-protocol",
        ],
    ),
    (
        "skep-server",
        &[
            "skep-names",
            "skep-api",
            "skep-core",
            "skep-store",
            "skep-runtime",
            "skep-bridge-protocol",
            "skep-bridge-binary",
        ],
    ),
    // Where the parts are put together: it hands a backend and a data root to the server.
    (
        "skep",
        &[
            "skep-names",
            "skep-api",
            "skep-archive",
            "skep-server",
            "skep-runtime",
            "skep-store",
        ],
    ),
    ("skep-bridge", &["skep-names", "skep-archive", "skep-bridge-protocol"]),
    ("skep-crun", &[]),
    ("skep-layer", &["skep-archive", "skep-layer-protocol"]),
    (
        "skep-testkit",
        &[
            "skep-names",
            "skep-api",
            "skep-bridge-binary",
            "skep-bridge-protocol",
            "skep-store",
            "skep-runtime",
            "skep-core",
            "skep-server",
        ],
    ),
    ("skep-bench", &["skep-bridge-protocol", "skep-testkit"]),
    ("walls", &[]),
];

/// Crates of others that only some of ours may use: HTTP and SQL stay where they belong.
const RESERVED: &[(&str, &[&str])] = &[
    ("axum", &["skep-server", "skep-testkit"]),
    ("utoipa", &["skep-api", "skep-server"]),
    ("sqlx", &["skep-store"]),
    ("containerd-client", &["skep-runtime", "skep-testkit"]),
    ("clap", &["skep"]),
    (
        "reqwest",
        &["skep", "skep-runtime", "skep-testkit", "skep-server", "skep-bench"],
    ),
];

/// The wire types are data: they know how to be written down, and nothing else.
const API_MAY_USE: &[&str] = &["serde", "serde_json", "utoipa", "chrono", "uuid", "skep-names"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("there are packages").clone()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("a package has a name")
}

/// Names of what a package needs to be built; what only its tests need is left out.
fn needs(package: &Value) -> BTreeSet<&str> {
    let dependencies = package["dependencies"].as_array().expect("a list");
    dependencies
        .iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .filter_map(|dependency| dependency["name"].as_str())
        .collect()
}

#[test]
fn crates_know_only_whom_the_architecture_lets_them_know() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(name).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(of, _)| *of == name(package)) else {
            wrong.push(format!("{} has no place in the architecture", name(package)));
            continue;
        };
        for needed in needs(package)
            .intersection(&ours)
            .filter(|needed| !allowed.contains(needed))
        {
            wrong.push(format!("{} must not know {needed}", name(package)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn http_and_sql_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for package in &packages() {
        for (reserved, allowed) in RESERVED {
            if needs(package).contains(reserved) && !allowed.contains(&name(package)) {
                wrong.push(format!("{} must not use {reserved}", name(package)));
            }
        }
        if name(package) == "skep-api" {
            let more = needs(package)
                .into_iter()
                .filter(|needed| !API_MAY_USE.contains(needed));
            wrong.extend(more.map(|needed| format!("skep-api is data alone and must not use {needed}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_that_is_shipped_contains_the_testkit() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|package| name(package) != "skep-bench" && needs(package).contains("skep-testkit"))
        .map(|package| name(package).to_owned())
        .collect();
    assert!(wrong.is_empty(), "these would ship the test kit: {wrong:?}");
}

#[test]
fn every_crate_has_the_licence_of_the_repository() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|package| package["license"].as_str() != Some("Apache-2.0"))
        .map(|package| name(package).to_owned())
        .collect();
    assert!(wrong.is_empty(), "without Apache-2.0: {wrong:?}");
}

/// What `cargo tree` shows of our crates' features with these kinds of dependencies.
fn features_of_the_program(edges: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", "skep", "--edges", edges])
        .args(["--format", "{p} {f}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_the_program_of_the_tests_has_failpoints() {
    assert!(!features_of_the_program("normal,build").contains("failpoints"));
    assert!(
        features_of_the_program("normal,build,dev").contains("failpoints"),
        "the tests that crash the server have nothing to crash it with"
    );
}
