//! Passwords as Argon2id. A check takes the same time whether or not there is such a user.

use std::sync::{Arc, OnceLock};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each check takes 19 MiB for its time; more at once would let a stranger fill the memory.
const CHECKS_AT_ONCE: usize = 4;

/// Hashing failed: a defect, or no memory.
#[derive(Debug, thiserror::Error)]
#[error("hashing a password: {0}")]
pub struct PasswordError(String);

/// Hashes and checks passwords, a few at a time, off the threads that serve.
pub struct Passwords {
    /// What an unknown user's password is checked against. Made at the first check of any: a start need not wait for it.
    nobody: OnceLock<String>,
    permits: Arc<Semaphore>,
}

/// A place among those who hash or check now. It belongs to the work and not to who waits for it: a caller who goes
/// away leaves the work running, and its memory is taken until the end of it.
pub struct Turn(OwnedSemaphorePermit);

impl Default for Passwords {
    fn default() -> Self {
        Self {
            nobody: OnceLock::new(),
            permits: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
        }
    }
}

impl Passwords {
    /// A PHC string of this password, with a salt of its own.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let turn = self.turn().await?;
        aside(turn, move || hash_now(&password)).await
    }

    /// Whether the password is that of the hash; without a hash never, after the same work.
    pub async fn matches(self: &Arc<Self>, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let turn = self.turn().await?;
        self.matches_in(turn, password, hash).await
    }

    /// [`Self::matches`] for who has a turn already.
    pub async fn matches_in(
        self: &Arc<Self>,
        turn: Turn,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        let passwords = self.clone();
        aside(turn, move || passwords.matches_now(&password, hash.as_deref())).await
    }

    /// Waits for a turn; who goes away while he waits has cost nothing.
    pub async fn turn(&self) -> Result<Turn, PasswordError> {
        let permits = self.permits.clone();
        permits
            .acquire_owned()
            .await
            .map(Turn)
            .map_err(|error| PasswordError(error.to_string()))
    }

    fn matches_now(&self, password: &str, hash: Option<&str>) -> Result<bool, PasswordError> {
        // Made also when it is not used: the first check must not tell either who is known.
        let nobody = match self.nobody.get() {
            Some(made) => made,
            None => {
                let made = hash_now(&crate::auth::secret::random_text())?;
                self.nobody.get_or_init(|| made)
            }
        };
        let matches = PasswordHash::new(hash.unwrap_or(nobody))
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        Ok(matches && hash.is_some())
    }
}

/// Runs work off the threads that serve; the turn is over when the work is.
async fn aside<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
) -> Result<T, PasswordError> {
    let in_turn = move || {
        let Turn(_permit) = turn;
        work()
    };
    tokio::task::spawn_blocking(in_turn)
        .await
        .map_err(|error| PasswordError(error.to_string()))?
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| PasswordError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Arc::new(Passwords::default());
        let hash = passwords.hash("right".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(passwords.matches("right".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.matches("wrong".into(), Some(hash)).await.unwrap());
        assert!(!passwords.matches("right".into(), None).await.unwrap());
    }

    #[test]
    fn a_check_keeps_its_turn_when_its_caller_goes_away() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let passwords = Arc::new(Passwords::default());
            // Holds the only thread there is for such work, so that no check ends before it is looked at.
            let (release, held) = std::sync::mpsc::channel::<()>();
            let blocker = tokio::task::spawn_blocking(move || held.recv().is_err());
            for _ in 0..50 {
                let mut check = Box::pin(passwords.matches("guess".into(), None));
                assert!(futures::poll!(&mut check).is_pending());
            }
            assert_eq!(
                passwords.permits.available_permits(),
                0,
                "as many more would run at once"
            );
            drop(release);
            assert!(blocker.await.unwrap());
            assert!(!passwords.matches("guess".into(), None).await.unwrap());
        });
    }
}
