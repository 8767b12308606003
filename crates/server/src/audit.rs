//! The audit trail's writer: lines are queued by requests and written together, so that a thousand
//! execs a second do not wait for a thousand syncs of the disk.

use std::time::Duration;

use skep_store::{NewAudit, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Lines that may wait. Over it, requests wait: none is dropped.
const QUEUE: usize = 4096;
/// Lines written together.
const TOGETHER: usize = 500;
/// Between two tries while the store is away.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Takes lines for the one writer.
#[derive(Clone)]
pub struct AuditTrail(mpsc::Sender<NewAudit>);

impl AuditTrail {
    /// Starts the writer among `tasks`.
    /// When `end` is cancelled it writes what waits, takes nothing more, and ends.
    pub fn start(store: Store, tasks: &TaskTracker, end: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tasks.spawn(write(store, receiver, end));
        Self(sender)
    }

    /// Appends a line; waits while the queue is full.
    pub async fn append(&self, line: NewAudit) {
        if let Err(lost) = self.0.send(line).await {
            tracing::error!(line = ?lost.0, "the audit trail has ended; this line is only here");
        }
    }
}

async fn write(store: Store, mut receiver: mpsc::Receiver<NewAudit>, end: CancellationToken) {
    let mut lines = Vec::with_capacity(TOGETHER);
    loop {
        let taken = tokio::select! {
            taken = receiver.recv_many(&mut lines, TOGETHER) => taken,
            () = end.cancelled(), if !receiver.is_closed() => {
                receiver.close();
                continue;
            }
        };
        if taken == 0 {
            return;
        }
        while let Err(error) = store.append_audit(&lines).await {
            let cause = crate::http::error::chain(&error);
            if end.is_cancelled() {
                tracing::error!(cause, lines = ?lines, "the audit trail could not be written before the end");
                break;
            }
            tracing::error!(
                cause,
                waiting = lines.len(),
                "the audit trail is not written; trying again"
            );
            tokio::time::sleep(TRY_AGAIN).await;
        }
        lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use skep_store::AuditFilter;

    use super::*;

    #[tokio::test]
    async fn an_end_comes_after_all_that_waits_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("skep.db")).await.unwrap();
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let trail = AuditTrail::start(store.clone(), &tasks, end.clone());
        let line = |number: usize| NewAudit {
            at: chrono::Utc::now(),
            user_id: String::new(),
            action: "exec".to_owned(),
            bot_id: None,
            address: String::new(),
            outcome: "ok".to_owned(),
            request_id: number.to_string(),
        };
        // Without a break, in which the writer would take some: as many as may wait do so at the end.
        tokio::task::unconstrained(async {
            for number in 0..QUEUE {
                trail.append(line(number)).await;
            }
        })
        .await;
        end.cancel();
        tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(100), tasks.wait()).await;
        ended.expect("it ends");
        let written = store.audit(&AuditFilter::default(), None, QUEUE as u32 + 1).await;
        let written: Vec<_> = written
            .unwrap()
            .rows
            .iter()
            .rev()
            .map(|row| row.line.request_id.clone())
            .collect();
        let appended: Vec<_> = (0..QUEUE).map(|number| number.to_string()).collect();
        assert!(written == appended, "{} of {QUEUE} lines are written", written.len());
    }
}
