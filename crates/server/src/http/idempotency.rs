//! `Idempotency-Key`: the same key of the same user on the same method and path is the same request,
//! for a day; with another body it is a mistake, and refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequestParts, OriginalUri};
use axum::http::request::Parts;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_api::{ErrorCode, HEADER_IDEMPOTENCY_KEY};
use skep_core::{OperationHandle, Requester};
use skep_store::{IdempotencyBegin, IdempotencyKey, IdempotencyOutcome};

use crate::app::App;
use crate::http::access::Caller;
use crate::http::error::ApiError;

/// Longest key that is taken.
const LONGEST_KEY: usize = 255;
/// How long a repeat waits for the first one to be accepted, and how often it looks. An exec is accepted when its
/// snapshot has been taken, a bot when its backup has been copied.
const LOOKS: u32 = 150;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// `Retry-After` of one that waited in vain.
const COME_AGAIN_SECONDS: u64 = 5;

/// What a request says of its repeatability; without the header it is a request like any other.
#[derive(Debug, Clone)]
pub struct Idempotency {
    method: String,
    path: String,
    query: String,
    key: Option<String>,
}

/// What is to be done.
pub enum Begin {
    /// The work, and then [`Claim::finish`] or [`Claim::release`].
    First(Claim),
    /// Nothing: this is what came of it.
    Again(IdempotencyOutcome),
}

/// The keys whose requests are being worked on, each with the digest of its body. All of this server's: a key that
/// is claimed and not in here is one that nobody works on any more.
#[derive(Debug, Default)]
pub struct Claimed(Mutex<HashMap<IdempotencyKey, String>>);

impl Claimed {
    fn lock(&self) -> MutexGuard<'_, HashMap<IdempotencyKey, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key while its request is being worked on. It is dropped also when that panics, or its key cannot be given back.
struct Working {
    app: App,
    key: IdempotencyKey,
}

impl Working {
    /// `None`: another request with this key is being worked on.
    ///
    /// # Errors
    /// 422 when that one has another body.
    fn begin(app: &App, key: &IdempotencyKey, digest: &str) -> Result<Option<Self>, ApiError> {
        match app.claimed().lock().entry(key.clone()) {
            Entry::Occupied(other) if other.get() != digest => Err(other_body()),
            Entry::Occupied(_) => Ok(None),
            Entry::Vacant(place) => {
                place.insert(digest.to_owned());
                Ok(Some(Self {
                    app: app.clone(),
                    key: key.clone(),
                }))
            }
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.app.claimed().lock().remove(&self.key);
    }
}

/// A key that this request holds.
pub struct Claim {
    key: Option<IdempotencyKey>,
    /// Kept for its end.
    _working: Option<Working>,
}

impl FromRequestParts<App> for Idempotency {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let uri = match OriginalUri::from_request_parts(parts, app).await {
            Ok(OriginalUri(uri)) => uri,
            Err(never) => match never {},
        };
        let path = uri.path();
        let key = match parts.headers.get(HEADER_IDEMPOTENCY_KEY) {
            None => None,
            Some(value) => Some(
                value
                    .to_str()
                    .ok()
                    .filter(|key| (1..=LONGEST_KEY).contains(&key.len()))
                    .ok_or_else(|| ApiError::invalid_argument("Idempotency-Key must be 1 to 255 plain characters"))?
                    .to_owned(),
            ),
        };
        Ok(Self {
            method: parts.method.to_string(),
            path: path.strip_prefix("/api").unwrap_or(path).to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            key,
        })
    }
}

impl Idempotency {
    fn key_of(&self, caller: &Caller) -> Option<IdempotencyKey> {
        self.key.clone().map(|key| IdempotencyKey {
            user_id: caller.user.id.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            key,
        })
    }

    /// The request can be repeated.
    pub fn is_given(&self) -> bool {
        self.key.is_some()
    }

    /// The requester whose key is bound to what is begun for him, in the step that journals it.
    pub fn of(&self, caller: &Caller, requester: Requester) -> Requester {
        Requester {
            idempotency: self.key_of(caller),
            ..requester
        }
    }

    /// The key, claimed by this request or by the first one that came with it.
    pub fn claim(&self, caller: &Caller) -> Claim {
        Claim {
            key: self.key_of(caller),
            _working: None,
        }
    }

    /// Claims the key, if there is one.
    ///
    /// # Errors
    /// 422 when it was used with another body; 409 with `Retry-After` when the first request is still not accepted after
    /// 30 s.
    pub async fn begin(&self, app: &App, caller: &Caller, body: &[u8]) -> Result<Begin, ApiError> {
        let Some(key) = self.key_of(caller) else {
            return Ok(Begin::First(self.claim(caller)));
        };
        let mut hash = Sha256::new();
        hash.update(self.query.as_bytes());
        hash.update([0]);
        hash.update(body);
        let digest = hex::encode(hash.finalize());
        for _ in 0..LOOKS {
            let Some(working) = Working::begin(app, &key, &digest)? else {
                tokio::time::sleep(BETWEEN_LOOKS).await;
                continue;
            };
            match app.store().begin_idempotent(&key, &digest).await? {
                IdempotencyBegin::First => {
                    return Ok(Begin::First(Claim {
                        key: Some(key),
                        _working: Some(working),
                    }));
                }
                IdempotencyBegin::OtherBody => return Err(other_body()),
                // Its request has come to an end that could not be written down: as after a restart, it is begun anew.
                IdempotencyBegin::Repeat(outcome) if is_nothing(&outcome) => {
                    app.store().release_idempotent(&key).await?;
                }
                IdempotencyBegin::Repeat(outcome) => return Ok(Begin::Again(outcome)),
            }
        }
        Err(ApiError::new(
            ErrorCode::Conflict,
            "a request with this idempotency key is being worked on",
        )
        .retry_after(COME_AGAIN_SECONDS))
    }

    /// The id of the operation that `start` begins, or that an earlier request with this key began.
    /// It is begun to the end also when the client goes away in the middle.
    ///
    /// # Errors
    /// What `start` is refused for; then the key is free again.
    pub async fn operation<F>(self, app: &App, caller: &Caller, body: Bytes, start: F) -> Result<String, ApiError>
    where
        F: Future<Output = skep_core::Result<OperationHandle>> + Send + 'static,
    {
        let (server, caller) = (app.clone(), caller.clone());
        app.tasks()
            .spawn(async move { self.operation_to_end(&server, &caller, &body, start).await })
            .await
            .map_err(ApiError::internal)?
    }

    async fn operation_to_end<F>(self, app: &App, caller: &Caller, body: &[u8], start: F) -> Result<String, ApiError>
    where
        F: Future<Output = skep_core::Result<OperationHandle>>,
    {
        let claim = match self.begin(app, caller, body).await? {
            Begin::First(claim) => claim,
            Begin::Again(outcome) => {
                return outcome
                    .operation_id
                    .ok_or_else(|| ApiError::internal("an idempotency key of an operation without its id"));
            }
        };
        match start.await {
            Ok(handle) => {
                let outcome = IdempotencyOutcome {
                    operation_id: Some(handle.id().to_owned()),
                    bot_id: None,
                    answer: None,
                };
                claim.finish(app, &outcome).await?;
                Ok(handle.id().to_owned())
            }
            Err(error) => {
                claim.release(app).await?;
                Err(error.into())
            }
        }
    }
}

fn other_body() -> ApiError {
    ApiError::new(
        ErrorCode::IdempotencyKeyReused,
        "the idempotency key was used with another body",
    )
}

fn is_nothing(outcome: &IdempotencyOutcome) -> bool {
    outcome.operation_id.is_none() && outcome.bot_id.is_none() && outcome.answer.is_none()
}

impl Claim {
    /// Remembers what came of it.
    pub async fn finish(&self, app: &App, outcome: &IdempotencyOutcome) -> Result<(), ApiError> {
        match &self.key {
            Some(key) => Ok(app.store().finish_idempotent(key, outcome).await?),
            None => Ok(()),
        }
    }

    /// Gives the key back: the request was refused before it did anything.
    pub async fn release(&self, app: &App) -> Result<(), ApiError> {
        match &self.key {
            Some(key) => Ok(app.store().release_idempotent(key).await?),
            None => Ok(()),
        }
    }
}
