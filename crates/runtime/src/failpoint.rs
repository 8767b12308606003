//! Places between two side effects, where a test stops the server or lets a step fail.
//!
//! Without the feature `failpoints`, which no shipped program has, passing one does nothing. With it, the directory
//! named by `SKEP_FAILPOINTS` says which are armed and keeps a record of all that are passed: the tests in
//! `bin/skep/tests/crash` learn from that record where a server can be stopped, so a new point is tested unasked.

use std::io;

/// One place. They are all named here, so that a test can tell that none is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point(&'static str);

macro_rules! points {
    ($($(#[$doc:meta])* $constant:ident = $name:literal,)*) => {
        $($(#[$doc])* pub(crate) const $constant: Point = Point($name);)*

        /// Every point of the runtime.
        pub const ALL: &[Point] = &[$($constant,)*];
    };
}

points! {
    /// The draft of a claim of ids is written, the claim is not made.
    CLAIM_DRAFTED = "host.claim_drafted",
    /// A block of ids is claimed, no record says so.
    IDS_CLAIMED = "host.ids_claimed",
    /// The record of a start is written, nothing else is made.
    START_RECORDED = "host.start_recorded",
    /// The user namespace is pinned.
    USER_NAMESPACE_PINNED = "host.user_namespace_pinned",
    /// The network namespace is pinned too.
    NETWORK_NAMESPACE_PINNED = "host.network_namespace_pinned",
    /// The socket directory is mounted.
    SOCKET_DIRECTORY_MOUNTED = "host.socket_directory_mounted",
    /// The root file system is mounted.
    ROOT_MOUNTED = "host.root_mounted",
    /// Our mount of the root file system is gone, the task's own remains.
    ROOT_RELEASED = "host.root_released",
    /// The socket directory is gone.
    SOCKET_DIRECTORY_GONE = "host.socket_directory_gone",
    /// The pins of the namespaces are gone.
    NAMESPACES_GONE = "host.namespaces_gone",
    /// The block of ids is given back, the record still names it.
    IDS_RELEASED = "host.ids_released",
    /// The record of a start is gone.
    RECORD_GONE = "host.record_gone",
    /// The intent to attach is recorded.
    ATTACHMENT_INTENDED = "network.intended",
    /// The plugins have attached it, nothing is recorded of that.
    ATTACHED = "network.attached",
    /// What the plugins made is recorded, the rules do not name it.
    ATTACHMENT_RECORDED = "network.recorded",
    /// The rules name it.
    PROTECTED = "network.protected",
    /// The plugins have let it go, the record is there.
    DETACHED = "network.detached",
    /// The record of the attachment is gone.
    ATTACHMENT_FORGOTTEN = "network.forgotten",
    /// The layer is made, no container is.
    LAYER_MADE = "container.layer_made",
    /// The container is stored.
    CONTAINER_STORED = "container.stored",
    /// The container's record is gone, its layer is there.
    CONTAINER_GONE = "container.gone",
    /// The layers are gone.
    LAYERS_GONE = "container.layers_gone",
    /// The lease of a change of layers is there.
    LAYERS_LEASED = "layers.leased",
    /// The present layer is committed, no active one is on it.
    PRESENT_COMMITTED = "layers.committed",
    /// A new active layer is there, no container is on it.
    ACTIVE_PREPARED = "layers.prepared",
    /// The container is on another layer, whose labels do not say so.
    CONTAINER_SWAPPED = "layers.swapped",
    /// The labels say which layer is the present one, the one before is there.
    PRESENT_MARKED = "layers.marked",
    /// A layer that was left is gone.
    ABANDONED_GONE = "layers.abandoned_gone",
    /// A staged layer is gone.
    STAGED_GONE = "layers.staged_gone",
    /// A committed layer is marked as one that nobody needs.
    LAYER_RELEASED = "layers.released",
    /// One of the layers that nobody needs is gone.
    RELEASED_GONE = "layers.released_gone",
    /// An empty layer is there that others are to be merged into.
    MERGE_PREPARED = "layers.merge_prepared",
    /// Layers are merged, the result is not committed.
    LAYERS_MERGED = "layers.merged",
    /// The result of a merge is committed.
    MERGE_COMMITTED = "layers.merge_committed",
    /// The lease of a change of layers is gone.
    LAYERS_LEASE_GONE = "layers.lease_gone",
    /// The specification of a start is stored.
    SPECIFICATION_STORED = "task.specification_stored",
    /// The task is created, its process does not run.
    TASK_CREATED = "task.created",
    /// Process 1 runs.
    TASK_STARTED = "task.started",
    /// Process 1 was asked to end.
    TASK_ASKED_TO_END = "task.asked_to_end",
    /// Process 1 has ended, its task is there.
    TASK_ENDED = "task.ended",
    /// The task is gone.
    TASK_GONE = "task.gone",
    /// New limits are in force.
    TASK_LIMITED = "task.limited",
    /// The lease of a pull is there.
    PULL_LEASED = "pull.leased",
    /// A layer's blob is stored.
    BLOB_STORED = "pull.blob_stored",
    /// A layer is prepared and empty.
    LAYER_PREPARED = "pull.layer_prepared",
    /// A layer is unpacked, its stack is not committed.
    LAYER_APPLIED = "pull.layer_applied",
    /// A stack is committed.
    LAYER_COMMITTED = "pull.layer_committed",
    /// Manifest and configuration are stored, no name points to them.
    DOCUMENTS_STORED = "pull.documents_stored",
    /// The image has its name, the lease is there.
    IMAGE_NAMED = "pull.image_named",
    /// The lease of a pull is gone.
    PULL_LEASE_GONE = "pull.lease_gone",
}

impl Point {
    /// As it stands in the record of what was passed.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Passes it.
    ///
    /// # Errors
    /// When it is armed to fail.
    pub(crate) fn pass(self) -> io::Result<()> {
        pass(self.0)
    }

    /// Passes it, where a runtime's error is wanted.
    ///
    /// # Errors
    /// When it is armed to fail.
    pub(crate) fn passed(self) -> crate::Result<()> {
        self.pass()
            .map_err(|error| crate::RuntimeError::other("passing a failpoint", error))
    }
}

/// Passes a point whose name is made up at run time.
///
/// # Errors
/// When it is armed to fail.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) -> io::Result<()> {
    armed::pass(name, armed::Exits::AbortOrError)
}

/// Passes a point behind which nothing can fail any more: it can only be armed to end the server.
#[cfg(feature = "failpoints")]
pub fn pass_or_abort(name: &str) {
    // No error comes of a point that is not armed to fail.
    if let Err(error) = armed::pass(name, armed::Exits::Abort) {
        tracing::error!(%error, "a failpoint that cannot fail was armed to fail");
    }
}

/// Passes a point whose name is made up at run time.
///
/// # Errors
/// When it is armed to fail.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_name: &str) -> io::Result<()> {
    Ok(())
}

/// Passes a point behind which nothing can fail any more: it can only be armed to end the server.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass_or_abort(_name: &str) {}

#[cfg(feature = "failpoints")]
mod armed {
    //! The directory of a test: `armed` has a line `<point> <times to pass it> abort|error|hold` for each that is armed
    //! (`*` is any point), `passed` gets a line for each that was passed, `fired` one for each that did what it was
    //! armed for. One that holds waits for as long as there is a file `held`.

    use std::fs::File;
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    const DIRECTORY: &str = "SKEP_FAILPOINTS";
    const ANY: &str = "*";
    /// A test that takes longer has died.
    const HOLD_LIMIT: Duration = Duration::from_secs(20);
    const LOOK_AGAIN: Duration = Duration::from_millis(2);

    /// One at a time: a pass reads and rewrites what is armed.
    static PLACE: LazyLock<Option<Mutex<PathBuf>>> =
        LazyLock::new(|| std::env::var_os(DIRECTORY).map(|directory| Mutex::new(directory.into())));

    /// What a point can be armed for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Exits {
        Abort,
        AbortOrError,
    }

    pub(super) fn pass(name: &str, exits: Exits) -> io::Result<()> {
        let Some(place) = &*PLACE else { return Ok(()) };
        let place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = match exits {
            Exits::Abort => format!("{name} abort-only"),
            Exits::AbortOrError => name.to_owned(),
        };
        append(&place.join("passed"), &marked)?;
        match fires(&place, name)?.as_deref() {
            None => Ok(()),
            Some("abort") => std::process::abort(),
            Some("hold") => {
                let held = place.join("held");
                drop(place);
                hold(&held)
            }
            Some(_) => Err(io::Error::other(format!("failpoint {name}"))),
        }
    }

    /// The thread waits, whatever else should run on it: between two side effects nothing of this server happens.
    fn hold(held: &Path) -> io::Result<()> {
        let begun = Instant::now();
        while held.try_exists()? {
            if begun.elapsed() > HOLD_LIMIT {
                return Err(io::Error::other("nobody let go of it"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// What the point does now. Each line counts down and is gone once it fired.
    fn fires(place: &Path, name: &str) -> io::Result<Option<String>> {
        let file = place.join("armed");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut left = String::new();
        let mut fired = None;
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [point, times, action] = words[..] else {
                return Err(io::Error::other(format!("{line:?} arms nothing")));
            };
            let times: u32 = times.parse().map_err(io::Error::other)?;
            match point == name || point == ANY {
                true if times <= 1 && fired.is_none() => fired = Some(action.to_owned()),
                true => left.push_str(&format!("{point} {} {action}\n", times.saturating_sub(1))),
                false => left.push_str(&format!("{line}\n")),
            }
        }
        if fired.is_some() {
            append(&place.join("fired"), name)?;
        }
        if left != text {
            std::fs::write(&file, left)?;
        }
        Ok(fired)
    }

    fn append(file: &Path, line: &str) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(file)?;
        file.write_all(format!("{line}\n").as_bytes())
    }
}
