//! Which request for a workspace is accepted, joined, or refused now. Pure: it sees what is under way and decides.

use crate::operations::OperationKind;
use crate::requester::Patience;

/// How many operations of one bot may wait.
pub(crate) const QUEUE_LENGTH: usize = 32;

/// An operation that runs or waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) id: String,
    pub(crate) kind: OperationKind,
    /// As of [`super::request::Request::overtakes`].
    pub(crate) overtakes: bool,
    /// Equal for requests that ask for the very same.
    pub(crate) fingerprint: String,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) kind: OperationKind,
    pub(crate) overtakes: bool,
    pub(crate) fingerprint: String,
    pub(crate) patience: Patience,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It waits its turn, which may be at once.
    Enqueue,
    /// That operation does what it asks for.
    Join(String),
    /// It goes before what waits; these are cancelled.
    Overtake { cancelled: Vec<String> },
    /// No.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It would not wait for that one.
    InProgress(String),
    /// Too many wait.
    QueueFull,
    /// The bot is being removed by that one.
    Removing(String),
}

/// Decides; `present` is what runs, then what waits, in order.
pub(crate) fn admit(present: &[Present], running: bool, asked: &Asked) -> Decision {
    use OperationKind::{Delete, DeleteBot};
    if let Some(removal) = present.iter().find(|one| one.kind == DeleteBot) {
        return match asked.kind {
            // One that keeps the data is another than one that does not.
            DeleteBot if removal.fingerprint == asked.fingerprint => Decision::Join(removal.id.clone()),
            _ => Decision::Refuse(Refusal::Removing(removal.id.clone())),
        };
    }
    if let (Patience::GiveWay, Some(first)) = (asked.patience, present.first()) {
        return Decision::Refuse(Refusal::InProgress(first.id.clone()));
    }
    if asked.kind.removes() {
        let last = present
            .last()
            .filter(|last| last.kind == Delete && asked.kind == Delete && last.fingerprint == asked.fingerprint);
        return match last {
            Some(last) => Decision::Join(last.id.clone()),
            None => Decision::Overtake {
                cancelled: overtaken(present),
            },
        };
    }
    if asked.overtakes {
        return admit_stop_for_the_host(present);
    }
    let last = present.last().filter(|last| may_join(last, asked));
    match (last, present.first(), asked.patience) {
        (Some(last), _, Patience::Queue) => Decision::Join(last.id.clone()),
        // A create is joined even by those who will not wait: they get its events, from the start.
        (Some(last), _, Patience::Refuse) if last.kind == OperationKind::Create => Decision::Join(last.id.clone()),
        (_, Some(first), Patience::Refuse) => Decision::Refuse(Refusal::InProgress(first.id.clone())),
        _ if present.len().saturating_sub(usize::from(running)) >= QUEUE_LENGTH => Decision::Refuse(Refusal::QueueFull),
        _ => Decision::Enqueue,
    }
}

/// A removal ends the processes too, and soon.
fn admit_stop_for_the_host(present: &[Present]) -> Decision {
    if let Some(removal) = present.iter().find(|one| one.kind.removes()) {
        return Decision::Refuse(Refusal::Removing(removal.id.clone()));
    }
    match present.iter().find(|one| one.overtakes) {
        // What was asked for after it does not undo it before it is done.
        Some(same) => Decision::Join(same.id.clone()),
        None => Decision::Overtake {
            cancelled: overtaken(present),
        },
    }
}

fn overtaken(present: &[Present]) -> Vec<String> {
    present
        .iter()
        .filter(|one| !one.overtakes)
        .map(|one| one.id.clone())
        .collect()
}

/// Only the last in line can do another's work: what comes after an operation may undo it. A restart that runs may
/// have stopped the workspace before this caller changed what he wants to see started, so it is never joined.
fn may_join(last: &Present, asked: &Asked) -> bool {
    use OperationKind::{Create, Recover, Start, Stop};
    last.kind == asked.kind
        && last.fingerprint == asked.fingerprint
        && matches!(asked.kind, Create | Start | Stop | Recover)
}

#[cfg(test)]
mod tests {
    use super::*;
    use OperationKind::{Create, Delete, DeleteBot, Restart, Start, Stop};

    fn present(kinds: &[OperationKind]) -> Vec<Present> {
        let one = |(index, kind): (usize, &OperationKind)| Present {
            id: index.to_string(),
            kind: *kind,
            overtakes: kind.removes(),
            fingerprint: String::new(),
        };
        kinds.iter().enumerate().map(one).collect()
    }

    fn ask(present: &[Present], kind: OperationKind, patience: Patience) -> Decision {
        let asked = Asked {
            kind,
            overtakes: kind.removes(),
            fingerprint: String::new(),
            patience,
        };
        admit(present, true, &asked)
    }

    #[test]
    fn the_table_of_decisions() {
        use Patience::{GiveWay, Queue, Refuse};
        let overtake = |ids: &[&str]| Decision::Overtake {
            cancelled: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let refuse = |id: &str| Decision::Refuse(Refusal::InProgress(id.to_owned()));
        let removing = |id: &str| Decision::Refuse(Refusal::Removing(id.to_owned()));
        let join = |id: &str| Decision::Join(id.to_owned());
        let cases: &[(&[OperationKind], OperationKind, Patience, Decision)] = &[
            (&[], Start, Queue, Decision::Enqueue),
            (&[], Start, Refuse, Decision::Enqueue),
            (&[Start], Start, Queue, join("0")),
            (&[Start], Start, Refuse, refuse("0")),
            (&[Create], Create, Refuse, join("0")),
            (&[Start, Stop], Start, Queue, Decision::Enqueue),
            (&[Start, Stop], Stop, Queue, join("1")),
            (&[Restart], Restart, Queue, Decision::Enqueue),
            (&[Start, Stop], Delete, Queue, overtake(&["0", "1"])),
            (&[Start, Stop], Delete, Refuse, overtake(&["0", "1"])),
            (&[], Delete, GiveWay, overtake(&[])),
            (&[Create], Delete, GiveWay, refuse("0")),
            (&[Start], Start, GiveWay, refuse("0")),
            (&[Delete], Delete, Queue, join("0")),
            (&[Delete, Create], Delete, Queue, overtake(&["1"])),
            (&[Delete, Create], DeleteBot, Queue, overtake(&["1"])),
            (&[Delete], Create, Queue, Decision::Enqueue),
            (&[DeleteBot], DeleteBot, Queue, join("0")),
            (&[DeleteBot], Delete, Queue, removing("0")),
            (&[Delete, DeleteBot], Create, Queue, removing("1")),
        ];
        for (there, kind, patience, expected) in cases {
            let got = ask(&present(there), *kind, *patience);
            assert_eq!(&got, expected, "{there:?} then {kind:?} {patience:?}");
        }
    }

    #[test]
    fn another_image_is_not_joined() {
        let there = present(&[Create]);
        let asked = Asked {
            kind: Create,
            overtakes: false,
            fingerprint: "other".into(),
            patience: Patience::Queue,
        };
        assert_eq!(admit(&there, true, &asked), Decision::Enqueue);
    }

    /// A stop for the host's space, as it waits or runs.
    fn stop_for_the_host(id: &str) -> Present {
        Present {
            id: id.to_owned(),
            kind: Stop,
            overtakes: true,
            fingerprint: "disk_full".into(),
        }
    }

    #[test]
    fn a_stop_for_the_host_waits_for_a_removal_alone() {
        let admit = |present: &[Present]| {
            let asked = Asked {
                kind: Stop,
                overtakes: true,
                fingerprint: "disk_full".into(),
                patience: Patience::Queue,
            };
            admit(present, true, &asked)
        };
        let overtake = |cancelled: Vec<String>| Decision::Overtake { cancelled };
        assert_eq!(admit(&[]), overtake(vec![]));
        let full = present(&[Restart; 1 + QUEUE_LENGTH]);
        let all = full.iter().map(|one| one.id.clone()).collect();
        assert_eq!(admit(&full), overtake(all));
        let removing = |id: &str| Decision::Refuse(Refusal::Removing(id.to_owned()));
        assert_eq!(admit(&present(&[Start, Delete, Create])), removing("1"));
        assert_eq!(admit(&present(&[DeleteBot])), removing("0"));
        let under_way = [vec![stop_for_the_host("now")], present(&[Start])].concat();
        assert_eq!(admit(&under_way), Decision::Join("now".into()));
    }

    #[test]
    fn nothing_cancels_a_stop_for_the_host() {
        let there = [present(&[Start]), vec![stop_for_the_host("now")]].concat();
        let cancelled = vec!["0".to_owned()];
        for removal in [Delete, DeleteBot] {
            let decision = ask(&there, removal, Patience::Queue);
            let cancelled = cancelled.clone();
            assert_eq!(decision, Decision::Overtake { cancelled }, "{removal:?}");
        }
        assert_eq!(ask(&there, Start, Patience::Queue), Decision::Enqueue);
        assert_eq!(ask(&there, Stop, Patience::Queue), Decision::Enqueue);
    }

    #[test]
    fn the_queue_holds_thirty_two_beside_the_one_that_runs() {
        let mut there = present(&[Restart; 1 + QUEUE_LENGTH]);
        assert_eq!(
            ask(&there, Restart, Patience::Queue),
            Decision::Refuse(Refusal::QueueFull)
        );
        assert!(matches!(
            ask(&there, Delete, Patience::Queue),
            Decision::Overtake { .. }
        ));
        there.pop();
        assert_eq!(ask(&there, Restart, Patience::Queue), Decision::Enqueue);
    }
}
