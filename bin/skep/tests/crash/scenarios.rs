//! The table of what is crashed. A new operation gets a line here, and its points are tried by themselves.

use reqwest::Method;
use serde_json::{Value, json};

use crate::model::State;
use crate::stage::Stage;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// `POST /bots`.
    NewBot,
    /// The same with the backup that the giver left.
    NewBotOfBackup,
    /// `POST …/data/restore` of the current backup by its name.
    RestoreByName,
    /// A request for the bot: method, the rest of the path, body.
    Request(&'static str, &'static str, &'static str),
    /// A create with the image that is nobody's yet, which is pulled for it.
    CreateOfPulled,
    /// An import of an archive with one file, another one in each trial.
    Import,
    /// Nothing: the first process of the workspace is killed, and the server sees it.
    KillFirstProcess,
}

/// One operation from one state to another.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The kinds of operations it runs.
    pub(crate) kinds: &'static [&'static str],
    pub(crate) from: State,
    pub(crate) act: Act,
    pub(crate) to: State,
    /// A crash before its commit point takes it back: `from` is as good an end as `to`.
    pub(crate) rolls_back: bool,
    /// Where a step that fails may leave it; empty: anywhere, as a repeat brings it to the end.
    pub(crate) after_failure: &'static [State],
    /// Of the points it passes, those that begin so are tried, as the others are another scenario's too. Empty: all.
    pub(crate) points: &'static [&'static str],
}

const SNAPSHOT: Act = Act::Request("POST", "/container/snapshots", "{}");
const ROLLBACK: Act = Act::Request("POST", "/container/snapshots/rollback", r#"{"version": 1}"#);
const CONTAINER: Act = Act::Request("POST", "/container", "{}");

const fn act(action: &'static str) -> Act {
    Act::Request("POST", action, "")
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario(
        "new-bot",
        &["create"],
        (State::NoBot, Act::NewBot, State::Running),
        &[State::CreateFailed, State::DownAfterCreate, State::NoBot],
    ),
    Scenario {
        points: &["bot.", "backup.", "create.verify", "create.restore", "create.release"],
        ..scenario(
            "new-bot-of-a-backup",
            &["create"],
            (State::NoBot, Act::NewBotOfBackup, State::Running),
            &[
                State::PreservedAfterCreate,
                State::DownAfterCreate,
                State::DownAndPreserved,
                State::NoBot,
            ],
        )
    },
    scenario(
        "create",
        &["create"],
        (State::Bare, CONTAINER, State::Running),
        &[State::CreateFailed, State::DownAfterCreate, State::Bare],
    ),
    Scenario {
        points: &["pull."],
        ..scenario(
            "create-with-a-pull",
            &["create"],
            (State::Bare, Act::CreateOfPulled, State::RunningPulled),
            &[State::CreateFailed, State::CreateFailedPulled],
        )
    },
    scenario(
        "create-of-a-stopped-one",
        &["create"],
        (
            State::Stopped,
            Act::Request("POST", "/container", r#"{"limits": {"pids": 200}}"#),
            State::RunningLimited,
        ),
        &[],
    ),
    Scenario {
        points: &["create.adopt", "create.wanted"],
        ..scenario(
            "create-of-an-unrecorded-one",
            &["create"],
            (State::Unrecorded, CONTAINER, State::Running),
            &[
                State::UnrecordedAfterCreate,
                State::StoppedAfterCreate,
                State::DownAfterCreate,
            ],
        )
    },
    Scenario {
        points: &["create.adopt", "create.wanted"],
        ..scenario(
            "create-of-an-unrecorded-layer",
            &["create"],
            (State::UnrecordedLayer, CONTAINER, State::Running),
            &[
                State::UnrecordedLayerAfterCreate,
                State::StoppedAfterCreate,
                State::DownAfterCreate,
            ],
        )
    },
    scenario(
        "start",
        &["start"],
        (State::Stopped, act("/container/start"), State::Running),
        &[State::Down, State::Stopped],
    ),
    scenario(
        "start-of-a-running-one",
        &["start"],
        (State::Running, act("/container/start"), State::Running),
        &[],
    ),
    scenario(
        "stop",
        &["stop"],
        (State::Running, act("/container/stop"), State::Stopped),
        &[],
    ),
    scenario(
        "restart",
        &["restart"],
        (State::Running, act("/container/restart"), State::Running),
        &[State::Down, State::Running],
    ),
    scenario(
        "limits",
        &["limits"],
        (
            State::Running,
            Act::Request("PUT", "/container/limits", r#"{"pids": 200}"#),
            State::RunningLimited,
        ),
        &[State::Running, State::RunningLimited],
    ),
    scenario(
        "delete",
        &["delete"],
        (State::Running, Act::Request("DELETE", "/container", ""), State::Bare),
        &[],
    ),
    scenario(
        "delete-of-a-stopped-one",
        &["delete"],
        (State::Stopped, Act::Request("DELETE", "/container", ""), State::Bare),
        &[],
    ),
    scenario(
        "delete-bot",
        &["delete_bot"],
        (State::Running, Act::Request("DELETE", "", ""), State::NoBot),
        &[],
    ),
    Scenario {
        points: &["delete_bot.", "backup."],
        ..scenario(
            "delete-bot-and-preserve",
            &["delete_bot"],
            (
                State::Running,
                Act::Request("DELETE", "?preserve_data=true", ""),
                State::GoneAndPreserved,
            ),
            &[],
        )
    },
    Scenario {
        points: &["delete_bot.preserve_legacy", "delete_bot.files"],
        ..scenario(
            "delete-bot-and-preserve-legacy",
            &["delete_bot"],
            (
                State::Legacy,
                Act::Request("DELETE", "?preserve_data=true", ""),
                State::GoneAndPreserved,
            ),
            &[
                State::LegacyNotRemoved,
                State::LegacyKeptNotRemoved,
                State::PreservedNotRemoved,
            ],
        )
    },
    takes_back(
        "snapshot",
        &["snapshot"],
        (State::Running, SNAPSHOT, State::Versioned),
        &[State::Running, State::Versioned, State::Down, State::DownVersioned],
    ),
    takes_back(
        "snapshot-of-a-stopped-one",
        &["snapshot"],
        (State::Stopped, SNAPSHOT, State::VersionedStopped),
        &[State::Stopped, State::VersionedStopped],
    ),
    takes_back(
        "snapshot-with-a-merge",
        &["snapshot"],
        (State::LongLine, SNAPSHOT, State::Versioned),
        &[State::Versioned, State::DownVersioned],
    ),
    takes_back(
        "rollback",
        &["rollback"],
        (State::Versioned, ROLLBACK, State::Versioned),
        &[State::Versioned, State::DownVersioned],
    ),
    takes_back(
        "rollback-of-a-stopped-one",
        &["rollback"],
        (State::VersionedStopped, ROLLBACK, State::VersionedStopped),
        &[State::VersionedStopped],
    ),
    scenario(
        "snapshot-delete",
        &["snapshot_delete"],
        (
            State::Versioned,
            Act::Request("DELETE", "/container/snapshots/1", ""),
            State::Running,
        ),
        &[],
    ),
    scenario(
        "preserve",
        &["delete"],
        (
            State::Running,
            Act::Request("DELETE", "/container?preserve_data=true", ""),
            State::Preserved,
        ),
        &[],
    ),
    scenario(
        "preserve-of-a-stopped-one",
        &["delete"],
        (
            State::Stopped,
            Act::Request("DELETE", "/container?preserve_data=true", ""),
            State::Preserved,
        ),
        &[],
    ),
    Scenario {
        points: &["delete.", "container."],
        ..scenario(
            "preserve-of-a-legacy-one",
            &["delete"],
            (
                State::RunningLegacy,
                Act::Request("DELETE", "/container?preserve_data=true", ""),
                State::PreservedLegacy,
            ),
            &[],
        )
    },
    Scenario {
        points: &["create.create", "create.record"],
        ..scenario(
            "create-without-restore",
            &["create"],
            (
                State::Preserved,
                Act::Request("POST", "/container", r#"{"restore_data": false}"#),
                State::Restorable,
            ),
            &[State::PreservedAfterCreate, State::DownAndPreserved],
        )
    },
    Scenario {
        points: &["create.forget", "create.restore", "create.release"],
        ..scenario(
            "create-of-a-lost-one",
            &["create"],
            (State::Lost, CONTAINER, State::Running),
            &[
                State::LostAfterCreate,
                State::ForgottenAfterCreate,
                State::PreservedAfterCreate,
                State::Preserved,
                State::DownAfterCreate,
                State::DownAndPreserved,
            ],
        )
    },
    scenario(
        "create-with-restore",
        &["create"],
        (State::Preserved, CONTAINER, State::Running),
        &[
            State::PreservedAfterCreate,
            State::DownAfterCreate,
            State::DownAndPreserved,
            State::Preserved,
        ],
    ),
    scenario(
        "legacy-import",
        &["create"],
        (State::Legacy, CONTAINER, State::Migrated),
        &[
            State::LegacyAfterCreate,
            State::DownAndLegacy,
            State::DownAndMigrated,
            State::Legacy,
        ],
    ),
    scenario(
        "restore",
        &["restore"],
        (State::Restorable, act("/container/data/restore"), State::Running),
        &[State::Restorable, State::DownRestorable, State::Running, State::Down],
    ),
    Scenario {
        points: &["restore.verify", "restore.adopt"],
        ..scenario(
            "restore-by-name",
            &["restore"],
            (State::Restorable, Act::RestoreByName, State::Restorable),
            &[State::Restorable, State::DownRestorable],
        )
    },
    scenario(
        "orphan",
        &["start"],
        (State::Orphaned, act("/container/start"), State::Running),
        &[
            State::Down,
            State::Orphaned,
            State::DownOrphaned,
            State::DownAfterCreate,
        ],
    ),
    scenario(
        "import",
        &["import"],
        (State::Running, Act::Import, State::Running),
        &[State::Running, State::Down],
    ),
    scenario(
        "import-into-a-stopped-one",
        &["import"],
        (State::Stopped, Act::Import, State::Stopped),
        &[State::Stopped],
    ),
    scenario(
        "import-with-a-merge",
        &["import"],
        (State::LongLine, Act::Import, State::Versioned),
        &[State::Versioned, State::DownVersioned],
    ),
    scenario(
        "recover",
        &["recover"],
        (State::Running, Act::KillFirstProcess, State::Running),
        &[],
    ),
];

const fn scenario(
    name: &'static str,
    kinds: &'static [&'static str],
    (from, act, to): (State, Act, State),
    after_failure: &'static [State],
) -> Scenario {
    Scenario {
        name,
        kinds,
        from,
        act,
        to,
        rolls_back: false,
        after_failure,
        points: &[],
    }
}

const fn takes_back(
    name: &'static str,
    kinds: &'static [&'static str],
    states: (State, Act, State),
    after_failure: &'static [State],
) -> Scenario {
    Scenario {
        rolls_back: true,
        ..scenario(name, kinds, states, after_failure)
    }
}

impl Act {
    /// There is no bot before it.
    pub(crate) fn makes_a_bot(self) -> bool {
        matches!(self, Self::NewBot | Self::NewBotOfBackup)
    }

    /// Method, path and body for a bot.
    pub(crate) fn request(&self, stage: &Stage, name: &str) -> Option<(Method, String, Option<Value>)> {
        let bot = stage.subject.as_ref().map(|subject| subject.bot.as_str());
        match self {
            Self::NewBot => Some((Method::POST, "/bots".to_owned(), Some(json!({ "display_name": name })))),
            Self::NewBotOfBackup => {
                let body = json!({ "display_name": name, "restore_backup": stage.given_backup() });
                Some((Method::POST, "/bots".to_owned(), Some(body)))
            }
            Self::RestoreByName => {
                let bot = bot.expect("there is a bot");
                let body = json!({ "name": format!("{bot}.tar.gz") });
                Some((Method::POST, format!("/bots/{bot}/container/data/restore"), Some(body)))
            }
            Self::CreateOfPulled => {
                let bot = bot.expect("there is a bot");
                let body = json!({ "image": stage.pulled_image() });
                Some((Method::POST, format!("/bots/{bot}/container"), Some(body)))
            }
            Self::Import => {
                let bot = bot.expect("there is a bot");
                Some((Method::POST, format!("/bots/{bot}/container/data/import"), None))
            }
            Self::KillFirstProcess => None,
            Self::Request(method, rest, body) => {
                let method = Method::from_bytes(method.as_bytes()).expect("a method");
                let body = (!body.is_empty()).then(|| serde_json::from_str(body).expect("the table holds JSON"));
                let bot = bot.expect("there is a bot");
                Some((method, format!("/bots/{bot}{rest}"), body))
            }
        }
    }
}
