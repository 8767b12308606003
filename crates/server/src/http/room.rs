//! Room in memory for answers that are held whole. Whoever asks for more than there is waits a while, and is then
//! refused: one user takes no more than his share, and all together no more than the host is meant to give.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use skep_api::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::{ApiError, ApiResult};

/// Room is counted in KiB.
const UNIT_BYTES: usize = 1024;
/// What the answers to one user may take.
const OF_USER: usize = 128 * 1024 * 1024 / UNIT_BYTES;
/// What all answers may take.
const IN_ALL: usize = 4 * OF_USER;
/// An answer that takes no more than a connection itself needs none.
const SMALL: usize = 128 * 1024 / UNIT_BYTES;
/// How long an answer waits for its room.
const WAIT: Duration = Duration::from_secs(10);

/// What there is, and who has how much of it.
pub struct Rooms {
    in_all: Arc<Semaphore>,
    wait: Duration,
    /// Of those who have some.
    of_users: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub struct Room {
    _of_user: Option<OwnedSemaphorePermit>,
    _in_all: Option<OwnedSemaphorePermit>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            in_all: Arc::new(Semaphore::new(IN_ALL)),
            wait: WAIT,
            of_users: Mutex::default(),
        }
    }
}

impl Rooms {
    /// Room for so many bytes of an answer to this user; more than his share counts as all of it.
    ///
    /// # Errors
    /// 429 `rate_limited` when there is none for ten seconds.
    pub async fn take(&self, user_id: &str, bytes: usize) -> ApiResult<Room> {
        let units = bytes.div_ceil(UNIT_BYTES).min(OF_USER);
        if units <= SMALL {
            return Ok(Room {
                _of_user: None,
                _in_all: None,
            });
        }
        let units = u32::try_from(units).map_err(ApiError::internal)?;
        let of_user = self.of_user(user_id);
        let taken = async {
            Ok::<_, tokio::sync::AcquireError>(Room {
                _of_user: Some(of_user.acquire_many_owned(units).await?),
                _in_all: Some(self.in_all.clone().acquire_many_owned(units).await?),
            })
        };
        match tokio::time::timeout(self.wait, taken).await {
            Ok(taken) => taken.map_err(ApiError::internal),
            Err(_) => Err(ApiError::new(
                ErrorCode::RateLimited,
                "too many large answers are being sent; try again later",
            )),
        }
    }

    fn of_user(&self, user_id: &str) -> Arc<Semaphore> {
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of_users.get(user_id).and_then(Weak::upgrade) {
            return known;
        }
        // One that nobody has a part of is as good as a new one.
        of_users.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(OF_USER));
        of_users.insert(user_id.to_owned(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    const SHARE: usize = OF_USER * UNIT_BYTES;
    const LITTLE: usize = SMALL * UNIT_BYTES;

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
        rooms.take("ada", LITTLE).await.unwrap();
        let refused = rooms.take("ada", LITTLE + 1).await.unwrap_err();
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
        rooms.take("e", LITTLE + 1).await.unwrap_err();
        taken.pop();
        rooms.take("e", SHARE).await.unwrap();
        taken.clear();
        rooms.take("f", LITTLE + 1).await.unwrap();
        assert_eq!(rooms.of_users.lock().unwrap().len(), 1, "nobody else has a part");
    }
}
