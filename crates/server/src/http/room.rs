//! Room in memory for answers that are held whole. Whoever asks for more than there is waits a while, and is then
//! refused: one user takes no more than his share, and all together no more than the host is meant to give.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use skep_api::ErrorCode;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::http::error::{ApiError, ApiResult};

/// Room is counted in KiB.
const UNIT_BYTES: usize = 1024;
const MIB: usize = 1024 * 1024 / UNIT_BYTES;
/// What the answers to one user may take.
const OF_USER: usize = 112 * MIB;
/// What all answers may take.
const IN_ALL: usize = 4 * OF_USER;
/// What is left for answers that take little, beside that: a list is answered also where large files are read.
const LITTLE_OF_USER: usize = 8 * MIB;
const LITTLE_IN_ALL: usize = 64 * MIB;
/// The most that an answer takes of what is left.
const LITTLE: usize = 4 * MIB;
/// What the outputs of a user's commands may take, beside that: they hold it for as long as the commands run.
const OUTPUTS_OF_USER: usize = 32 * MIB;
const OUTPUTS_IN_ALL: usize = 4 * OUTPUTS_OF_USER;
/// An answer that takes no more than a connection itself needs none.
const SMALL: usize = 128 * 1024 / UNIT_BYTES;
/// What is collected takes room for at least so many bytes.
const LEAST_BYTES: usize = 64 * 1024;
/// A buffer that grows may be twice as long as what is in it.
const ROOM_OF_A_BYTE: usize = 2;
/// How long an answer waits for its room.
const WAIT: Duration = Duration::from_secs(10);

/// What there is, and who has how much of it.
pub struct Rooms {
    all: Pool,
    little: Pool,
    outputs: Pool,
    wait: Duration,
}

/// What room is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An answer, which must be taken in time: it waits for its room.
    Answer,
    /// What a command writes that is waited for: it is kept waiting for nothing.
    Output,
}

/// A part of it, until it is dropped.
#[derive(Debug, Default)]
pub struct Room {
    /// Of the user's share and of what all have, the same of both.
    permits: Option<[OwnedSemaphorePermit; 2]>,
}

/// Room for what is collected in a buffer whose length is not known before: more as it grows.
pub struct GrowingRoom<'a> {
    rooms: &'a Rooms,
    purpose: Purpose,
    user_id: &'a str,
    covered: usize,
    taken: Vec<Room>,
}

/// Of an answer that has room, but comes in pieces. It must be taken in time, as one that is whole.
#[derive(Debug, Clone, Copy)]
pub struct HoldsRoom;

impl Default for Rooms {
    fn default() -> Self {
        Self {
            all: Pool::new(OF_USER, IN_ALL),
            little: Pool::new(LITTLE_OF_USER, LITTLE_IN_ALL),
            outputs: Pool::new(OUTPUTS_OF_USER, OUTPUTS_IN_ALL),
            wait: WAIT,
        }
    }
}

impl Rooms {
    /// Room for so many bytes of an answer to this user; more than his share counts as all of it.
    ///
    /// # Errors
    /// 429 `rate_limited` when there is none for ten seconds.
    pub async fn take(&self, user_id: &str, bytes: usize) -> ApiResult<Room> {
        let units = units(bytes);
        if units == 0 {
            return Ok(Room::default());
        }
        let taken = async {
            let of_all = self.all.take(user_id, units);
            if units > LITTLE {
                return of_all.await;
            }
            tokio::select! {
                biased;
                taken = of_all => taken,
                taken = self.little.take(user_id, units) => taken,
            }
        };
        match tokio::time::timeout(self.wait, taken).await {
            Ok(taken) => taken.map_err(ApiError::internal),
            Err(_) => Err(no_room()),
        }
    }

    async fn take_for(&self, purpose: Purpose, user_id: &str, bytes: usize) -> ApiResult<Room> {
        match (purpose, units(bytes)) {
            (Purpose::Answer, _) | (_, 0) => self.take(user_id, bytes).await,
            (Purpose::Output, units) => match self.outputs.take(user_id, units).now_or_never() {
                Some(taken) => taken.map_err(ApiError::internal),
                None => Err(no_room()),
            },
        }
    }
}

fn no_room() -> ApiError {
    ApiError::new(
        ErrorCode::RateLimited,
        "too many large answers are being sent; try again later",
    )
}

impl<'a> GrowingRoom<'a> {
    /// For this user, for so many bytes at first.
    ///
    /// # Errors
    /// As [`Rooms::take`]; of outputs at once.
    pub async fn begin(rooms: &'a Rooms, (purpose, user_id): (Purpose, &'a str), bytes: usize) -> ApiResult<Self> {
        let covered = bytes.max(LEAST_BYTES);
        let taken = vec![rooms.take_for(purpose, user_id, covered * ROOM_OF_A_BYTE).await?];
        Ok(Self {
            rooms,
            purpose,
            user_id,
            covered,
            taken,
        })
    }

    /// For so many bytes in all.
    ///
    /// # Errors
    /// As [`GrowingRoom::begin`]; what was taken before stays.
    pub async fn cover(&mut self, bytes: usize) -> ApiResult<()> {
        while bytes > self.covered {
            let more = self.covered * ROOM_OF_A_BYTE;
            let more = self.rooms.take_for(self.purpose, self.user_id, more).await?;
            self.taken.push(more);
            self.covered *= 2;
        }
        Ok(())
    }

    /// All of it, for as long as what was collected is held.
    pub fn into_taken(self) -> Vec<Room> {
        self.taken
    }
}

/// What an answer of so many bytes takes.
fn units(bytes: usize) -> usize {
    match bytes.div_ceil(UNIT_BYTES).min(OF_USER) {
        ..=SMALL => 0,
        units => units,
    }
}

impl Room {
    /// The text, with as much of the room as it needs until all of it is sent.
    pub fn hold(mut self, text: Vec<u8>) -> Bytes {
        let needed = units(text.len());
        if needed == 0 {
            self.permits = None;
        }
        for permit in self.permits.iter_mut().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(needed)));
        }
        Bytes::from_owner(Held {
            text: text.into_boxed_slice(),
            _room: self,
        })
    }
}

struct Held {
    text: Box<[u8]>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Room that all share.
struct Pool {
    of_user: usize,
    in_all: Arc<Semaphore>,
    /// Of those who have some.
    of_users: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Pool {
    fn new(of_user: usize, in_all: usize) -> Self {
        Self {
            of_user,
            in_all: Arc::new(Semaphore::new(in_all)),
            of_users: Mutex::default(),
        }
    }

    async fn take(&self, user_id: &str, units: usize) -> Result<Room, AcquireError> {
        // Never more than a share has.
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let of_user = self.of_user(user_id).acquire_many_owned(units).await?;
        let of_all = self.in_all.clone().acquire_many_owned(units).await?;
        Ok(Room {
            permits: Some([of_user, of_all]),
        })
    }

    fn of_user(&self, user_id: &str) -> Arc<Semaphore> {
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of_users.get(user_id).and_then(Weak::upgrade) {
            return known;
        }
        // One that nobody has a part of is as good as a new one.
        of_users.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.of_user));
        of_users.insert(user_id.to_owned(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    const SHARE: usize = OF_USER * UNIT_BYTES;
    const NOTHING: usize = SMALL * UNIT_BYTES;
    const MUCH: usize = LITTLE * UNIT_BYTES + 1;

    /// What is there is taken at once, and nobody waits for what is not.
    fn impatient() -> Rooms {
        Rooms {
            wait: Duration::ZERO,
            ..Rooms::default()
        }
    }

    #[tokio::test]
    async fn one_who_has_his_share_waits_and_keeps_nobody_else_waiting() {
        let rooms = impatient();
        let all_of_ada = rooms.take("ada", SHARE * 9).await.unwrap();
        rooms.take("ada", NOTHING).await.unwrap();
        let refused = rooms.take("ada", MUCH).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        rooms.take("bob", SHARE).await.unwrap();
        drop(all_of_ada);
        rooms.take("ada", SHARE).await.unwrap();
    }

    #[tokio::test]
    async fn all_together_have_a_limit_too_and_whoever_was_refused_holds_nothing() {
        let rooms = impatient();
        let mut taken = Vec::new();
        for user in ["a", "b", "c", "d"] {
            taken.push(rooms.take(user, SHARE).await.unwrap());
        }
        rooms.take("e", MUCH).await.unwrap_err();
        taken.pop();
        rooms.take("e", SHARE).await.unwrap();
        taken.clear();
        rooms.take("f", MUCH).await.unwrap();
        assert_eq!(rooms.all.of_users.lock().unwrap().len(), 1, "nobody else has a part");
    }

    #[tokio::test]
    async fn what_grows_has_twice_its_length_until_it_is_given_up() {
        let rooms = impatient();
        let mut growing = GrowingRoom::begin(&rooms, (Purpose::Answer, "ada"), 0).await.unwrap();
        growing.cover(SHARE / 4).await.unwrap();
        let held = growing.covered * ROOM_OF_A_BYTE;
        assert!((SHARE / 2..SHARE).contains(&held), "{held}");
        growing.cover(SHARE).await.unwrap_err();
        // What was no room for takes none.
        rooms.take("ada", SHARE - held).await.unwrap();
        rooms.take("ada", SHARE).await.unwrap_err();
        let taken = growing.into_taken();
        rooms.take("ada", SHARE).await.unwrap_err();
        drop(taken);
        rooms.take("ada", SHARE).await.unwrap();
    }

    #[tokio::test]
    async fn outputs_wait_for_nothing_and_take_nothing_of_what_answers_have() {
        let rooms = Rooms::default();
        let mut long = Vec::new();
        let share = OUTPUTS_OF_USER * UNIT_BYTES;
        for user in ["a", "b", "c", "d"] {
            long.push(rooms.take_for(Purpose::Output, user, share).await.unwrap());
        }
        for user in ["a", "e"] {
            let mut refused = GrowingRoom::begin(&rooms, (Purpose::Output, user), 0).await.unwrap();
            let covered = refused.cover(share / 2).now_or_never().expect("at once");
            covered.unwrap_err();
            rooms.take(user, SHARE).now_or_never().expect("at once").unwrap();
        }
    }

    #[tokio::test]
    async fn something_is_left_for_answers_that_take_little() {
        let rooms = impatient();
        let mut taken = Vec::new();
        for user in ["a", "b", "c", "d"] {
            taken.push(rooms.take(user, SHARE).await.unwrap());
        }
        let mut little = Vec::new();
        while let Ok(room) = rooms.take("a", MUCH - 1).await {
            little.push(room);
        }
        assert_eq!(little.len(), LITTLE_OF_USER / LITTLE, "of one user");
        for user in ["b", "c", "d", "e", "f", "g", "h"] {
            little.push(rooms.take(user, LITTLE_OF_USER / 2 * UNIT_BYTES).await.unwrap());
            little.push(rooms.take(user, LITTLE_OF_USER / 2 * UNIT_BYTES).await.unwrap());
        }
        rooms.take("i", NOTHING + 1).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_text_has_what_it_needs_of_the_room_until_it_is_sent() {
        let rooms = impatient();
        let text = vec![b'a'; SHARE / 2];
        let held = rooms.take("ada", SHARE).await.unwrap().hold(text.clone());
        assert!(held == text);
        let rest = rooms.take("ada", SHARE / 2).await.expect("the rest is free at once");
        rooms.take("ada", MUCH).await.unwrap_err();
        // As a connection sends it.
        let unsent = held.slice(1..);
        drop(held);
        rooms.take("ada", MUCH).await.unwrap_err();
        drop(unsent);
        rooms.take("ada", SHARE / 2).await.expect("it was sent");
        drop(rest);
        let small = rooms.take("ada", SHARE).await.unwrap().hold(b"small".to_vec());
        rooms.take("ada", SHARE).await.expect("a small one needs none");
        drop(small);
    }
}
