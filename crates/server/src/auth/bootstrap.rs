//! The first start: a user who may do everything, and a key for the command line on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_store::{NewApiKey, NewUser, Scope, Store, StoreError, UserRole, UserRow};

use crate::auth::secret::{digest, keep_secret_file, new_api_key, random_text};
use crate::auth::{PasswordError, Passwords};
use crate::config::Config;

/// The file below the data root with the key of the command line on this host.
pub const ADMIN_KEY_FILE: &str = "admin.key";
/// Length of a password that we make.
const GENERATED_LENGTH: usize = 20;

/// Why there is no first user.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store failed.
    #[error("making the first admin")]
    Store(#[from] StoreError),
    /// The password could not be hashed.
    #[error("making the first admin")]
    Password(#[from] PasswordError),
    /// A file could not be read or written.
    #[error("keeping {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Nobody could use the admin key.
    #[error("there is no active admin, so the command line on this host has no key")]
    NoAdmin,
}

/// What the first start made.
pub enum FirstAdmin {
    /// There were users already.
    NotNeeded,
    /// Made with the configured password.
    Configured { username: String },
    /// Made with this password, which is shown once and kept nowhere.
    Generated { username: String, password: String },
}

/// Makes an admin when there is no user.
pub async fn ensure_first_admin(
    store: &Store,
    passwords: &Arc<Passwords>,
    config: &Config,
) -> Result<FirstAdmin, BootstrapError> {
    if !store.users().await?.is_empty() {
        return Ok(FirstAdmin::NotNeeded);
    }
    let (password, generated) = match &config.admin.password {
        Some(chosen) => (chosen.clone(), None),
        None => {
            let generated = random_text()[..GENERATED_LENGTH].to_owned();
            (generated.clone(), Some(generated))
        }
    };
    let username = config.admin.username.clone();
    store
        .insert_user(NewUser {
            id: uuid::Uuid::new_v4().to_string(),
            username: username.clone(),
            email: config.admin.email.clone(),
            password_hash: passwords.hash(password).await?,
            role: UserRole::Admin,
            display_name: username.clone(),
            avatar_url: None,
            timezone: None,
            is_active: true,
        })
        .await?;
    Ok(match generated {
        Some(password) => FirstAdmin::Generated { username, password },
        None => FirstAdmin::Configured { username },
    })
}

/// Makes sure that the file holds a key of an active admin; a lost or revoked one is made anew.
pub async fn ensure_admin_key(store: &Store, path: &Path) -> Result<(), BootstrapError> {
    let failed = |source| BootstrapError::File {
        path: path.to_owned(),
        source,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            if let Some((_, user)) = store.api_key(&digest(text.trim())).await?
                && is_active_admin(&user)
            {
                return Ok(());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let admin = store
        .users()
        .await?
        .into_iter()
        .find(is_active_admin)
        .ok_or(BootstrapError::NoAdmin)?;
    let key = new_api_key();
    store
        .insert_api_key(NewApiKey {
            id: uuid::Uuid::new_v4().to_string(),
            user_id: admin.id,
            name: "command line on this host".to_owned(),
            key_sha256: digest(&key),
            scope: Scope::Manage,
            bots: None,
            expires_at: None,
        })
        .await?;
    keep_secret_file(path, &key).map_err(failed)
}

fn is_active_admin(user: &UserRow) -> bool {
    user.role == UserRole::Admin && user.is_active
}
