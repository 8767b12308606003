//! Work that blocks, on a few threads. Whatever its callers do, a workspace stays reachable: work that goes only as fast as
//! its caller has places of its own, which leave threads for everything else, and what its caller has given up before a
//! thread was free for it is not done at all.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skep_bridge_protocol::reason;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tonic::Status;

use crate::failure;

/// Pieces of work that run at once; more wait for a thread.
pub(crate) const MOST_WORKERS: usize = 128;
/// How long a thread without work stays.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// Well before the last one goes.
const KEPT_EVERY: Duration = Duration::from_secs(4);
/// How long is waited for a place in a lane, well within the caller's own patience.
const PLACE_WITHIN: Duration = Duration::from_secs(10);

/// Work that keeps what it holds while its caller does not read or write on.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// Some pieces of each file that is longer than one.
    Downloads,
    /// The names of whole directories.
    Listings,
    /// A thread.
    Searches,
    /// A thread, in either direction.
    Archives,
}

const MOST_DOWNLOADS: usize = 256;
const MOST_LISTINGS: usize = 64;
const MOST_SEARCHES: usize = 16;
const MOST_ARCHIVES: usize = 48;
// As many threads are left for all else.
const _: () = assert!(MOST_SEARCHES + MOST_ARCHIVES <= MOST_WORKERS / 2);

static DOWNLOADS: Semaphore = Semaphore::const_new(MOST_DOWNLOADS);
static LISTINGS: Semaphore = Semaphore::const_new(MOST_LISTINGS);
static SEARCHES: Semaphore = Semaphore::const_new(MOST_SEARCHES);
static ARCHIVES: Semaphore = Semaphore::const_new(MOST_ARCHIVES);

/// A place in a lane, for as long as it is held.
pub(crate) type Place = SemaphorePermit<'static>;

impl Lane {
    /// # Errors
    /// FailedPrecondition with the reason `too_many` when all are taken and none becomes free in time.
    pub(crate) async fn place(self) -> Result<Place, Status> {
        self.place_within(PLACE_WITHIN).await
    }

    async fn place_within(self, limit: Duration) -> Result<Place, Status> {
        let (places, most, what) = match self {
            Self::Downloads => (&DOWNLOADS, MOST_DOWNLOADS, "downloads"),
            Self::Listings => (&LISTINGS, MOST_LISTINGS, "listings"),
            Self::Searches => (&SEARCHES, MOST_SEARCHES, "searches"),
            Self::Archives => (&ARCHIVES, MOST_ARCHIVES, "archives"),
        };
        match tokio::time::timeout(limit, places.acquire()).await {
            Ok(place) => place.map_err(|_| failure::worker_gone()),
            Err(_) => Err(failure::refused(
                reason::TOO_MANY,
                format!("{most} {what} of this workspace are under way already; try again when one has ended"),
            )),
        }
    }
}

/// Keeps one thread, as long as it is polled. Where no thread can be made, as in a workspace at its limit of processes,
/// work waits for one that is there; without any, tokio would end process 1 and all of the workspace with it.
pub(crate) async fn keep_one() {
    let mut turns = tokio::time::interval(KEPT_EVERY);
    loop {
        turns.tick().await;
        drop(tokio::task::spawn_blocking(|| ()));
    }
}

/// Held by whoever waits for some work.
pub(crate) type Waiting = oneshot::Receiver<Infallible>;

/// What the work sees of that.
pub(crate) struct Asked(oneshot::Sender<Infallible>);

pub(crate) fn asked() -> (Waiting, Asked) {
    let (sender, receiver) = oneshot::channel();
    (receiver, Asked(sender))
}

/// Runs blocking work on a worker thread. Work that was begun is done, also when nobody waits for it any more.
///
/// # Errors
/// Those of the work; Cancelled when it was given up before it began: whoever asked may have been told that it failed.
pub(crate) async fn blocking_while<T: Send + 'static>(
    asked: Asked,
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let begun = move || match asked.0.is_closed() {
        true => Err(Status::cancelled("given up before it was begun")),
        false => work(),
    };
    tokio::task::spawn_blocking(begun)
        .await
        .map_err(|_| failure::worker_gone())?
}

/// As [`blocking_while`], for whoever polls this.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let (_waiting, asked) = asked();
    blocking_while(asked, work).await
}

/// Like [`blocking`], for work whose error is about one path.
pub(crate) async fn on_path<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    blocking(move || work(&path).map_err(|error| failure::of_path(&error, &path))).await
}

/// Like [`on_path`], for work from one path to another: its error names the one that is at fault.
pub(crate) async fn from_path_to_path(
    from: PathBuf,
    to: PathBuf,
    work: impl FnOnce(&Path, &Path) -> io::Result<()> + Send + 'static,
) -> Result<(), Status> {
    blocking(move || {
        work(&from, &to).map_err(|error| failure::of_path(&error, failure::path_at_fault(&error, &from, &to)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// One thread, which is taken until the sender says something or goes.
    fn busy() -> (tokio::runtime::Runtime, mpsc::Sender<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let (free, until) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        runtime.spawn_blocking(move || {
            begun.send(()).expect("it is waited for");
            assert!(until.recv().is_err(), "its end is the sign");
        });
        has_begun.recv().expect("the thread is taken");
        (runtime, free)
    }

    #[test]
    fn work_that_was_given_up_before_it_began_is_not_done() {
        let (runtime, free) = busy();
        let done = Arc::new(AtomicUsize::new(0));
        let work = |number: usize| {
            let done = Arc::clone(&done);
            move || Ok(done.fetch_add(number, Ordering::Relaxed))
        };
        runtime.block_on(async {
            let given_up = tokio::time::timeout(Duration::from_millis(20), blocking(work(1))).await;
            assert!(given_up.is_err(), "there was no thread for it");
            let waited_for = tokio::spawn(blocking(work(10)));
            tokio::task::yield_now().await;
            drop(free);
            waited_for.await.expect("no panic").expect("done");
        });
        assert_eq!(done.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn what_another_task_does_is_not_begun_when_nobody_waits_for_it() {
        let (runtime, free) = busy();
        let (waiting, asked) = asked();
        runtime.block_on(async {
            let work = tokio::spawn(blocking_while(asked, || -> Result<(), Status> {
                panic!("it was begun")
            }));
            tokio::task::yield_now().await;
            drop(waiting);
            drop(free);
            let status = work.await.expect("no panic").expect_err("given up");
            assert_eq!(status.code(), tonic::Code::Cancelled);
        });
    }

    #[tokio::test]
    async fn a_lane_that_is_full_refuses_in_time() {
        let at_once = Duration::from_millis(10);
        let mut places = Vec::new();
        for _ in 0..MOST_SEARCHES {
            places.push(Lane::Searches.place().await.expect("a place"));
        }
        let refused = Lane::Searches.place_within(at_once).await.expect_err("none is left");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().starts_with("16 searches"), "{refused}");
        places.pop();
        places.push(Lane::Searches.place().await.expect("one is free again"));
        places.push(Lane::Archives.place().await.expect("another lane is another"));
    }
}
