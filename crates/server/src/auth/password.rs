//! Passwords as Argon2id. A check takes the same time whether or not there is such a user.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::{OnceCell, Semaphore};

/// Each check takes 19 MiB for its time; more at once would let a stranger fill the memory.
const CHECKS_AT_ONCE: usize = 4;

/// Hashing failed: a defect, or no memory.
#[derive(Debug, thiserror::Error)]
#[error("hashing a password: {0}")]
pub struct PasswordError(String);

/// Hashes and checks passwords, a few at a time, off the threads that serve.
pub struct Passwords {
    /// What an unknown user's password is checked against. Made at the first check of any: a start need not wait for it.
    nobody: OnceCell<String>,
    permits: Semaphore,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            nobody: OnceCell::new(),
            permits: Semaphore::new(CHECKS_AT_ONCE),
        }
    }
}

impl Passwords {
    /// A PHC string of this password, with a salt of its own.
    pub async fn hash(self: &Arc<Self>, password: String) -> Result<String, PasswordError> {
        let _permit = self.permit().await?;
        hash_aside(password).await
    }

    /// Whether the password is that of the hash; without a hash never, after the same work.
    pub async fn matches(self: &Arc<Self>, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let _permit = self.permit().await?;
        // Asked for also when it is not used: the first check must not tell either who is known.
        let nobody = self
            .nobody
            .get_or_try_init(|| hash_aside(crate::auth::secret::random_text()))
            .await?;
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| nobody.clone());
        tokio::task::spawn_blocking(move || {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
        .map(|matches| matches && known)
        .map_err(|error| PasswordError(error.to_string()))
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, PasswordError> {
        self.permits
            .acquire()
            .await
            .map_err(|error| PasswordError(error.to_string()))
    }
}

async fn hash_aside(password: String) -> Result<String, PasswordError> {
    tokio::task::spawn_blocking(move || hash_now(&password))
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
}
