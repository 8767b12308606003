//! Whoever takes an export of a stopped workspace, which is held still until he has it: a start waits for that, and a
//! removal does not. One who takes next to nothing is given up, so that nobody keeps a workspace for good.

use std::time::Duration;

use skep_names::BotId;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::export::TarPiece;
use crate::error::Result;
use crate::skep::Skep;
use crate::workspace::Awaited;

/// One who takes nothing for so long is given up, whether anything waits or not.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// While something waits for the workspace, after so long only one who takes this much is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const LEAST_BYTES_A_SECOND: u64 = 1 << 20;
/// Between two looks at what waits, while a piece is not taken.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The end of an export that a client has.
pub(super) struct Taker {
    bot: BotId,
    pieces: mpsc::Sender<Result<TarPiece>>,
    pace: Pace,
}

/// How fast a client takes what it is given, since something waits for it. Only its own time counts, not that of the
/// disk.
#[derive(Debug, Default)]
struct Pace {
    spent: Duration,
    taken_bytes: u64,
}

impl Pace {
    fn is_too_slow(&self) -> bool {
        self.spent >= PATIENCE && self.taken_bytes < self.spent.as_secs() * LEAST_BYTES_A_SECOND
    }
}

impl Taker {
    pub(super) fn new(bot: &BotId, pieces: mpsc::Sender<Result<TarPiece>>) -> Self {
        Self {
            bot: bot.clone(),
            pieces,
            pace: Pace::default(),
        }
    }

    /// Hands a piece on. `false`: the client has gone or is given up, and sees a transfer that breaks.
    pub(super) async fn take(&mut self, skep: &Skep, piece: Result<TarPiece>) -> bool {
        let bytes = match &piece {
            Ok(TarPiece::Data(data)) => data.len() as u64,
            Ok(TarPiece::End(_)) | Err(_) => 0,
        };
        let mut counted = Instant::now();
        let pieces = self.pieces.clone();
        let mut sent = std::pin::pin!(pieces.send_timeout(piece, TAKEN_WITHIN));
        loop {
            if self.is_given_up(skep) {
                tracing::warn!(bot = %self.bot, pace = ?self.pace, "an export is broken off: its workspace is waited for");
                return false;
            }
            let taken = tokio::select! {
                biased;
                sent = &mut sent => Some(sent.is_ok()),
                () = tokio::time::sleep(LOOK_AGAIN) => None,
            };
            self.pace.spent += counted.elapsed();
            counted = Instant::now();
            if let Some(taken) = taken {
                self.pace.taken_bytes += bytes;
                return taken;
            }
        }
    }

    /// The last piece. Nobody reads it when the client has gone.
    pub(super) async fn take_end(self, end: Result<TarPiece>) {
        drop(self.pieces.send_timeout(end, TAKEN_WITHIN).await);
    }

    fn is_given_up(&mut self, skep: &Skep) -> bool {
        match skep.lanes().awaited(&self.bot) {
            Awaited::Removal => true,
            Awaited::Work => self.pace.is_too_slow(),
            Awaited::Nothing => {
                self.pace = Pace::default();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_takes_a_mebibyte_a_second_is_waited_for_and_one_who_takes_less_is_not() {
        let pace = |seconds, taken_bytes| Pace {
            spent: Duration::from_secs(seconds),
            taken_bytes,
        };
        assert!(!pace(59, 0).is_too_slow(), "everybody has a minute");
        assert!(pace(60, (60 << 20) - 1).is_too_slow());
        assert!(!pace(60, 60 << 20).is_too_slow());
        assert!(!pace(3600, 3600 << 20).is_too_slow());
        assert!(pace(3600, 60 << 20).is_too_slow());
    }
}
