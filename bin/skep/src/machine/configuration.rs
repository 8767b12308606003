//! `skep config`: what is in force, from where, and whether it can be used.

use serde_json::{Map, Value, json};
use skep_server::config::{Config, ConfigError, Key, LogConfig, Setting, Settings};
use skep_server::server::DEFAULT_IMAGE_SETTING;

use crate::arguments::{ConfigCommand, ConfigurationFile, OutputForm};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};

const COLUMNS: &[Column] = &[
    Column {
        title: "KEY",
        read: |setting| text(setting, "key"),
    },
    Column {
        title: "VALUE",
        read: |setting| text(setting, "value"),
    },
    Column {
        title: "FROM",
        read: |setting| text(setting, "from"),
    },
];

pub(crate) async fn run(command: ConfigCommand, form: OutputForm) -> Result<()> {
    match command {
        ConfigCommand::Show(file) => {
            let (settings, config) = read(&file)?;
            let mut rows = shown(&settings);
            show_built_image(&mut rows, &config).await;
            output::print_list(form, &rows, "key", COLUMNS)
        }
        ConfigCommand::Check(file) => {
            let (settings, _) = read(&file)?;
            let place = settings
                .file
                .map_or("the defaults".to_owned(), |path| path.display().to_string());
            match form {
                OutputForm::Json => output::print_json(&json!({"configuration": place, "valid": true})),
                OutputForm::Name => output::print_text(&format!("{place}\n")),
                OutputForm::Table => output::print_text(&format!("{place}: valid\n")),
            }
        }
        ConfigCommand::Default => output::print_text(skep_server::config::default_file()),
    }
}

/// Reads and checks the configuration, and says on standard error what a person should know.
pub(crate) fn read(file: &ConfigurationFile) -> Result<(Settings, Config)> {
    let environment = environment()?;
    let settings = Settings::read(file.config.as_deref(), &environment).map_err(|error| whole(&error))?;
    for warning in &settings.warnings {
        eprintln!("skep: warning: {warning}");
    }
    let config = Config::settle(&settings).map_err(|error| whole(&error))?;
    Ok((settings, config))
}

/// The environment as text. A key of ours that is no text is an error; what others keep there is theirs.
fn environment() -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => all.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with("SKEP_") => {
                return Err(Failure::Usage(format!("{name} is not valid UTF-8")));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Logs to standard error from now on.
pub(super) fn start_logging(log: &LogConfig) -> Result<()> {
    skep_server::logging::start_logging(log).map_err(|error| Failure::Usage(crate::failure::with_causes(&error)))
}

/// The error with its causes: one line, since a person has to mend it.
fn whole(error: &ConfigError) -> Failure {
    Failure::Usage(crate::failure::with_causes(error))
}

/// An image that was built here is the default one in force, and comes from the store. A store that may not be read
/// is told: then the row below may not be what is in force.
async fn show_built_image(rows: &mut [Value], config: &Config) {
    let built = match skep_server::server::built_default_image(config).await {
        Ok(built) => built,
        Err(error) => {
            eprintln!(
                "skep: warning: whether a default image was built here is not known: {}",
                crate::failure::with_causes(&error)
            );
            return;
        }
    };
    let row = rows.iter_mut().find(|row| text(row, "key") == DEFAULT_IMAGE_SETTING);
    if let (Some(image), Some(row)) = (built, row) {
        let data_root = config.workspace.data_root.display();
        *row = json!({"key": DEFAULT_IMAGE_SETTING, "value": image, "from": format!("built here (data root {data_root})")});
    }
}

fn shown(settings: &Settings) -> Vec<Value> {
    let of = |name: String, key: &Key, setting: &Setting| json!({"key": name, "value": setting.value.shown(key.kind), "from": setting.origin.to_string()});
    let mut rows: Vec<Value> = settings
        .all()
        .map(|setting| {
            of(
                format!("{}.{}", setting.key.section, setting.key.name),
                setting.key,
                setting,
            )
        })
        .collect();
    for (host, keys) in &settings.registries {
        rows.extend(
            keys.iter()
                .map(|(name, setting)| of(format!("registry.{host:?}.{name}"), setting.key, setting)),
        );
    }
    if let Some(zone) = &settings.timezone {
        let mut row = Map::new();
        row.insert("key".into(), "timezone".into());
        row.insert("value".into(), zone.clone().into());
        rows.push(Value::Object(row));
    }
    rows
}
