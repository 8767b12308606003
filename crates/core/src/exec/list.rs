//! The processes that a bridge knows, page by page as it sends them: there may be more than anybody wants to hold.

use skep_bridge_protocol::workspace::{self as wire, ExecList};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use super::ExecId;
use super::status::{self, ExecStatus};
use crate::bridge::{Bridge, BridgeError, BridgeResult, LARGE_WITHIN, NEXT_PIECE_WITHIN, SMALL_WITHIN};

/// The most processes that a bridge is believed to know. It remembers 20,000 and those that run.
const MOST_EXECS: usize = 65_536;
/// The most that their commands may take in all, each cut to 1,024 characters.
const MOST_LISTED_BYTES: usize = 128 * 1024 * 1024;

/// Running and recent processes, the oldest start first.
pub struct ProcessPages {
    pages: Streaming<ExecList>,
    left: usize,
    left_bytes: usize,
    /// By when the last page must be there.
    deadline: Instant,
}

/// Begins a list of the processes; long commands are cut.
///
/// # Errors
/// `Unreachable`; the later ones come from [`ProcessPages::next_page`].
pub async fn list(bridge: &Bridge) -> BridgeResult<ProcessPages> {
    let mut client = bridge.workspace();
    let pages = Bridge::answer(SMALL_WITHIN, client.list_execs(wire::Empty {})).await?;
    Ok(ProcessPages {
        pages,
        left: MOST_EXECS,
        left_bytes: MOST_LISTED_BYTES,
        deadline: Instant::now() + LARGE_WITHIN,
    })
}

impl ProcessPages {
    /// The next processes; `None` at the end.
    ///
    /// # Errors
    /// `Unreachable`; `Untrustworthy` for more of them than a bridge remembers.
    pub async fn next_page(&mut self) -> BridgeResult<Option<Vec<ExecStatus>>> {
        let end = self.deadline.min(Instant::now() + NEXT_PIECE_WITHIN);
        let page = match timeout_at(end, self.pages.message()).await {
            Ok(page) => page?,
            Err(_) => return Err(BridgeError::late("the next part of the processes")),
        };
        let Some(page) = page else { return Ok(None) };
        if page.execs.is_empty() {
            return Err(BridgeError::Untrustworthy(
                "a part of a list with nothing in it".to_owned(),
            ));
        }
        let too_many = || BridgeError::Untrustworthy("more processes than it can remember".to_owned());
        self.left = self.left.checked_sub(page.execs.len()).ok_or_else(too_many)?;
        let mut found = Vec::with_capacity(page.execs.len());
        for status in page.execs {
            let id = ExecId::parse(&status.exec_id)
                .map_err(|_| BridgeError::Untrustworthy("an id that no process has".to_owned()))?;
            let status = ExecStatus::from_wire(status::shortened(status), &id)?;
            let left = self.left_bytes.checked_sub(status.held_bytes());
            self.left_bytes = left.ok_or_else(too_many)?;
            found.push(status);
        }
        Ok(Some(found))
    }
}
