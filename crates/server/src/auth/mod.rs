//! Credentials: passwords, tokens, keys, tickets, and the brake on guessing.

mod bootstrap;
mod password;
mod secret;
mod throttle;
mod token;

use std::sync::Arc;
use std::time::Duration;

pub use bootstrap::{
    ADMIN_KEY_FILE, BootstrapError, FirstAdmin, FirstPassword, ensure_admin_key, ensure_first_admin,
    unread_first_password,
};
pub use password::{PasswordError, Passwords, Turn};
pub use secret::{API_KEY_PREFIX, digest, keep_secret_file, new_api_key, new_ticket, random_secret};
pub use throttle::{LoginThrottle, Verdict};
pub use token::{Claims, IssuedToken, TokenError, Tokens};

/// How long a ticket counts.
pub const TICKET_LIFE: Duration = Duration::from_secs(30);

/// Everything that checks credentials.
pub struct Auth {
    /// Signs and checks tokens.
    pub tokens: Tokens,
    /// Hashes and checks passwords.
    pub passwords: Arc<Passwords>,
    /// Slows guessing.
    pub throttle: LoginThrottle,
}

impl Auth {
    /// `secret` signs tokens that last `token_life`.
    pub fn new(secret: &[u8], token_life: Duration) -> Self {
        Self {
            tokens: Tokens::new(secret, token_life),
            passwords: Arc::default(),
            throttle: LoginThrottle::default(),
        }
    }
}
