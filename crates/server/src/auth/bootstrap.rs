//! The first start: a user who may do everything, and a key for the command line on this host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_store::{NewApiKey, NewUser, Scope, Store, StoreError, UserRole, UserRow};

use crate::auth::secret::{digest, keep_secret_file, new_api_key, random_text};
use crate::auth::{PasswordError, Passwords};
use crate::config::Config;

/// The file below the data root with the key of the command line on this host.
pub const ADMIN_KEY_FILE: &str = "admin.key";
/// The file below the data root with the first user and a password that was made for him, until somebody has read it:
/// written before the user is, so that no start which fails later, or is killed, can lose it.
const FIRST_PASSWORD_FILE: &str = "first-password";
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
        source: io::Error,
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
    /// Made with this password, now or at an earlier start that showed it to nobody.
    Generated(FirstPassword),
}

/// A password that was made, and that nobody has read yet.
pub struct FirstPassword {
    /// Whose it is.
    pub username: String,
    /// The password.
    pub password: String,
    /// Where both are until they are read, for root alone.
    pub file: PathBuf,
}

impl FirstPassword {
    /// A person has it: it is nowhere from now on.
    ///
    /// # Errors
    /// What the file system says.
    pub fn was_read(&self) -> io::Result<()> {
        std::fs::remove_file(&self.file)
    }

    /// The one that an earlier start left. `None`: there is none, or he has another password by now.
    async fn left_by(
        users: &[UserRow],
        passwords: &Arc<Passwords>,
        file: PathBuf,
    ) -> Result<Option<Self>, BootstrapError> {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(BootstrapError::File { path: file, source }),
        };
        let (username, password) = text.trim_end().rsplit_once(' ').unwrap_or_default();
        let user = users.iter().find(|user| user.username == username);
        let hash = user.map(|user| user.password_hash.clone());
        let left = Self {
            username: username.to_owned(),
            password: password.to_owned(),
            file,
        };
        if passwords.matches(left.password.clone(), hash).await? {
            return Ok(Some(left));
        }
        left.was_read().map_err(|source| BootstrapError::File {
            path: left.file,
            source,
        })?;
        Ok(None)
    }
}

/// The file with a password that nobody has read yet, when there is one: for a start that came to nothing.
pub fn unread_first_password(data_root: &Path) -> Option<PathBuf> {
    let file = data_root.join(FIRST_PASSWORD_FILE);
    file.exists().then_some(file)
}

/// Makes an admin when there is no user.
pub async fn ensure_first_admin(
    store: &Store,
    passwords: &Arc<Passwords>,
    config: &Config,
    data_root: &Path,
) -> Result<FirstAdmin, BootstrapError> {
    let file = data_root.join(FIRST_PASSWORD_FILE);
    let users = store.users().await?;
    if !users.is_empty() {
        let left = FirstPassword::left_by(&users, passwords, file).await?;
        return Ok(left.map_or(FirstAdmin::NotNeeded, FirstAdmin::Generated));
    }
    let username = config.admin.username.clone();
    let (password, first) = match &config.admin.password {
        Some(chosen) => (
            chosen.clone(),
            FirstAdmin::Configured {
                username: username.clone(),
            },
        ),
        None => {
            let made = made_for(&username, file)?;
            (made.password.clone(), FirstAdmin::Generated(made))
        }
    };
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
    Ok(first)
}

fn made_for(username: &str, file: PathBuf) -> Result<FirstPassword, BootstrapError> {
    let password = random_text()[..GENERATED_LENGTH].to_owned();
    keep_secret_file(&file, &format!("{username} {password}")).map_err(|source| BootstrapError::File {
        path: file.clone(),
        source,
    })?;
    Ok(FirstPassword {
        username: username.to_owned(),
        password,
        file,
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Settings;

    struct Start {
        directory: tempfile::TempDir,
        store: Store,
        passwords: Arc<Passwords>,
    }

    impl Start {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            Self {
                store: Store::open(&directory.path().join("skep.db")).await.unwrap(),
                passwords: Arc::default(),
                directory,
            }
        }

        /// What a start says, and whether the file is there after it.
        async fn again(&self) -> (Option<FirstPassword>, bool) {
            let settings = Settings::read(Some(Path::new("/dev/null")), &[]).unwrap();
            let config = Config::settle(&settings).unwrap();
            let root = self.directory.path();
            let first = ensure_first_admin(&self.store, &self.passwords, &config, root).await;
            let made = match first.unwrap() {
                FirstAdmin::Generated(made) => Some(made),
                FirstAdmin::NotNeeded | FirstAdmin::Configured { .. } => None,
            };
            (made, unread_first_password(root).is_some())
        }
    }

    #[tokio::test]
    async fn a_password_that_nobody_has_read_is_told_by_the_next_start() {
        let start = Start::new().await;
        let (first, _) = start.again().await;
        let first = first.expect("a password");
        let mode = std::fs::metadata(&first.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (second, _) = start.again().await;
        let second = second.expect("the same password");
        assert_eq!((&second.username, &second.password), (&first.username, &first.password));
        first.was_read().unwrap();
        let (third, is_there) = start.again().await;
        assert!(third.is_none() && !is_there);
    }

    #[tokio::test]
    async fn a_password_that_counts_no_more_is_not_told() {
        let start = Start::new().await;
        start.again().await.0.expect("a password");
        let user = start.store.users().await.unwrap().remove(0);
        let other = start.passwords.hash("another".to_owned()).await.unwrap();
        assert!(
            start
                .store
                .set_user_password((&user.id, None), &other, None)
                .await
                .unwrap()
        );
        let (told, is_there) = start.again().await;
        assert!(told.is_none() && !is_there);
    }
}
