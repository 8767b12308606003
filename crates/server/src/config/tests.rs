//! What a file and the environment may say, who wins, and how a mistake is told.

use std::path::Path;

use super::{Backend, Config, ConfigError, Settings};

fn read_with(file: &str, environment: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("skep.toml");
    std::fs::write(&path, file).unwrap();
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let environment: Vec<_> = environment.iter().map(owned).collect();
    Settings::read(Some(&path), &environment)
}

fn read(file: &str) -> Result<Settings, ConfigError> {
    read_with(file, &[])
}

fn origin(settings: &Settings, section: &'static str, name: &'static str) -> String {
    settings.get(section, name).unwrap().origin.to_string()
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let file = "[server]\naddr = '127.0.0.1:1'\n[workspace]\nstop_grace = '3s'\n[limits]\nmemory_bytes = 1048576\n";
    let settings = read_with(
        file,
        &[("SKEP_SERVER__ADDR", "127.0.0.1:2"), ("SKEP_LIMITS__PIDS", "7")],
    )
    .unwrap();
    let config = Config::settle(&settings).unwrap();
    assert_eq!(config.server.addr.port(), 2);
    assert_eq!(config.workspace.stop_grace.as_secs(), 3);
    assert_eq!((config.limits.memory_bytes, config.limits.pids), (1 << 20, 7));
    assert_eq!(origin(&settings, "server", "addr"), "env SKEP_SERVER__ADDR");
    assert!(origin(&settings, "workspace", "stop_grace").ends_with("skep.toml"));
    assert_eq!(origin(&settings, "workspace", "backend"), "default");
}

#[test]
fn a_limit_of_storage_and_the_reserve_are_sizes_of_which_the_reserve_is_there_unasked() {
    let limits = |file: &str| Config::settle(&read(file).unwrap()).unwrap().limits;
    let (unasked, asked) = (
        limits(""),
        limits("[limits]\nstorage_bytes = '10GiB'\nreserve_bytes = 0\n"),
    );
    assert_eq!((unasked.storage_bytes, unasked.reserve_bytes), (0, 2 << 30));
    assert_eq!((asked.storage_bytes, asked.reserve_bytes), (10 << 30, 0));
}

#[test]
fn nothing_is_required() {
    let settings = Settings::read(Some(Path::new("/dev/null")), &[]).unwrap();
    let config = Config::settle(&settings).unwrap();
    assert_eq!(config.server.addr.to_string(), "127.0.0.1:8080");
    assert_eq!(config.workspace.backend, Backend::Containerd);
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_nearest_one() {
    for (file, wrong, nearest) in [
        (
            "[workspace]\ndefualt_image = 'x'",
            "workspace.defualt_image",
            "workspace.default_image",
        ),
        ("[limit]\npids = 1", "limit.pids", "limits.pids"),
        ("[registry.'r.example']\nmirror = []", "mirror", "mirrors"),
    ] {
        let told = read(file).unwrap_err().to_string();
        assert!(told.contains(wrong) && told.contains(&format!("{nearest}?")), "{told}");
        assert!(told.contains("skep.toml"), "{told}");
    }
    let told = read_with("", &[("SKEP_NETWORK__SUBNETS", "x")])
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("env SKEP_NETWORK__SUBNETS") && told.contains("network.subnet?"),
        "{told}"
    );
}

#[test]
fn a_value_that_does_not_fit_is_told_with_its_key_and_what_fits() {
    for (file, expected) in [
        ("[workspace]\nstop_grace = 10", "workspace.stop_grace"),
        (
            "[workspace]\nimage_pull_policy = 'sometimes'",
            "if_not_present, always, never",
        ),
        ("[isolation]\nuser_namespace = true", "auto, required, off"),
        ("[limits]\nmemory_bytes = 'much'", "limits.memory_bytes"),
        ("[network]\nunisolated = 'yes'", "true or false"),
        ("[server", "TOML"),
    ] {
        let told = read(file).unwrap_err().to_string();
        assert!(told.contains(expected), "{file}: {told}");
    }
    for (file, expected) in [
        ("[server]\naddr = 'here'", "server.addr"),
        ("[network]\nsubnet = 'ten'", "network.subnet"),
        ("[workspace]\nbackend = 'kubernetes'", "workspace.backend"),
        ("[server]\ntls_cert = '/x'", "server.tls_cert"),
        ("[terminal]\nsession_keep = '0s'", "terminal.session_keep"),
        ("[terminal]\nidle_timeout = '0s'", "terminal.idle_timeout"),
        ("[exec]\nkeep = '0s'", "exec.keep"),
        ("[backups]\nkeep = 0", "backups.keep"),
        ("[import]\nmax_ratio = 0", "import.max_ratio"),
        ("[snapshots]\nkeep_automatic = 0", "snapshots.keep_automatic"),
        ("[snapshots]\nkeep_rollback = 0", "snapshots.keep_rollback"),
        ("[export]\nfreeze_max = '0s'", "export.freeze_max"),
        ("[export]\nfreeze_max = '61s'", "export.freeze_max"),
        ("[server]\nmetrics_addr = '127.0.0.1:9'", "server.metrics_addr"),
        ("[network]\nallow = ['junk']", "network.allow"),
        ("[network]\nbridge = 'sixteen-letters-'", "network.bridge"),
        ("[network]\ntable = '1st'", "network.table"),
        ("[network]\nsubnet = '10.88.0.1/16'", "network.subnet"),
        ("[network]\nsubnet = '10.88.0.0/30'", "network.subnet"),
        ("[log]\nlevel = 'x=y=z'", "log.level"),
        ("[mcp]\nallow_hosts = ['x']", "mcp"),
        ("[workspace]\nreconcile_interval = '0s'", "workspace.reconcile_interval"),
        ("[workspace]\nstop_grace = '301s'", "workspace.stop_grace"),
        ("[database]\nurl = 'postgres://u@h/d'", "database.url"),
    ] {
        let told = Config::settle(&read(file).unwrap()).unwrap_err().to_string();
        assert!(told.contains(expected), "{file}: {told}");
    }
}

#[test]
fn a_file_of_the_reference_system_is_read_with_one_warning() {
    let file = "timezone = 'Asia/Tokyo'\n[postgres]\nhost = 'db'\nuser = 'u'\npassword = 'p@ss'\ndatabase = 'd'\n\
                [containerd]\nsocket_path = '/x.sock'\nnamespace = 'other'\n[auth]\njwt_secret = 's'\n\
                [server]\naddr = ':8081'\n[qdrant]\nbase_url = 'x'\n[telegram]\ntoken = 'y'\n";
    let settings = read(file).unwrap();
    assert_eq!(settings.timezone.as_deref(), Some("Asia/Tokyo"));
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
    assert!(settings.warnings[0].contains("qdrant") && settings.warnings[0].contains("telegram"));
    for secret in ["p@ss", "'y'"] {
        assert!(!settings.warnings[0].contains(secret));
    }
    let shown = |section, name| {
        let setting = settings.get(section, name).unwrap();
        setting.value.shown(setting.key.kind)
    };
    assert_eq!(shown("containerd", "namespace"), "\"other\"");
    assert_eq!(shown("containerd", "socket_path"), "\"/x.sock\"");
    assert_eq!(shown("auth", "jwt_secret"), "\"***\"");
    // The same without its own section is a file of ours, in which every unknown key is a mistake.
    assert!(read("[telegram]\ntoken = 'y'\n").is_err());
    let without_database = read_with(file, &[("SKEP_DATABASE__URL", "")]).unwrap();
    let config = Config::settle(&without_database).unwrap();
    assert_eq!(config.server.addr.to_string(), "0.0.0.0:8081");
    assert_eq!(config.containerd.namespace, "other");
}

#[test]
fn a_section_of_the_old_kind_is_refused_with_its_new_name() {
    let told = read("[mcp]\nimage = 'x'\n").unwrap_err().to_string();
    assert!(told.contains("[workspace]"), "{told}");
    read("[mcp]\nmax_sessions = 3\n").unwrap();
}

#[test]
fn variables_of_the_reference_system_are_honoured() {
    let environment = [
        ("HTTP_ADDR", "127.0.0.1:9000"),
        ("CONTAINERD_SOCKET", "/other.sock"),
        ("CONTAINER_BACKEND", "containerd"),
        ("TZ", "Europe/Paris"),
        ("PATH", "/bin"),
    ];
    let settings = read_with("timezone = 'Asia/Tokyo'", &environment).unwrap();
    let config = Config::settle(&settings).unwrap();
    assert_eq!(config.server.addr.to_string(), "127.0.0.1:9000");
    assert_eq!(config.containerd.socket_path, Path::new("/other.sock"));
    assert_eq!(config.timezone.as_deref(), Some("Europe/Paris"));
    assert_eq!(origin(&settings, "workspace", "backend"), "env CONTAINER_BACKEND");
}

#[test]
fn a_variable_of_ours_wins_over_one_of_the_reference_system_wherever_it_stands() {
    let mut environment = vec![
        ("SKEP_SERVER__ADDR", "127.0.0.1:9001"),
        ("HTTP_ADDR", "127.0.0.1:9000"),
        ("SKEP_CONTAINERD__SOCKET_PATH", "/ours.sock"),
        ("CONTAINERD_SOCKET", "/other.sock"),
    ];
    for _ in 0..2 {
        let settings = read_with("", &environment).unwrap();
        let config = Config::settle(&settings).unwrap();
        assert_eq!(config.server.addr.port(), 9001);
        assert_eq!(config.containerd.socket_path, Path::new("/ours.sock"));
        assert_eq!(origin(&settings, "server", "addr"), "env SKEP_SERVER__ADDR");
        environment.reverse();
    }
}

#[test]
fn a_registry_is_put_before_the_default_image() {
    let file = "[workspace]\nregistry = 'mirror.example:5000/'\ndefault_image = 'base/debian'\n";
    let config = Config::settle(&read(file).unwrap()).unwrap();
    assert_eq!(
        config.workspace.default_image.as_str(),
        "mirror.example:5000/base/debian:latest"
    );
    assert!(
        !config.workspace.default_image_is_ours,
        "it would be replaced by one that is built here"
    );
    let config = Config::settle(&read("").unwrap()).unwrap();
    assert_eq!(
        config.workspace.default_image.as_str(),
        "docker.io/library/debian:bookworm-slim"
    );
    assert!(config.workspace.default_image_is_ours);
}

#[test]
fn no_mistake_shows_a_secret() {
    for (file, line) in [
        ("[admin]\npassword = \"s3cret\n", "line 2"),
        ("[auth]\n\njwt_secret = s3cret\n", "line 3"),
        ("[registry.\"r.test\"]\npassword = 's3cret\n", "line 2"),
    ] {
        let told = read(file).unwrap_err();
        let told = format!("{told} {told:?}");
        assert!(told.contains(line) && !told.contains("s3cret"), "{told}");
    }
    let url = read("[database]\nurl = 'mysql://user:s3cret@db.test/skep'\n").unwrap();
    let told = Config::settle(&url).unwrap_err();
    let told = format!("{told} {told:?}");
    assert!(told.contains("mysql://…") && !told.contains("s3cret"), "{told}");
}
