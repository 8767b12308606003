//! Access tokens: JWT, HS256, and nothing else.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: String,
    /// The user again, where clients of the reference system look for it.
    pub user_id: String,
    /// When it was made, in seconds since 1970.
    pub iat: i64,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// Its own id, by which it is revoked: the generation of the user's tokens, a dot, and a UUID.
    pub jti: String,
}

/// A token that was just made.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// A token that does not count, or could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the token does not count")]
pub struct TokenError(#[from] jsonwebtoken::errors::Error);

/// Signs and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    life: Duration,
}

impl Tokens {
    /// Tokens signed with `secret` that last `life`.
    pub fn new(secret: &[u8], life: Duration) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
            life,
        }
    }

    /// A new token for a user; `generation` is how often the password was changed.
    pub fn issue(&self, user_id: &str, generation: i64) -> Result<IssuedToken, TokenError> {
        let now = Utc::now().timestamp();
        let life = i64::try_from(self.life.as_secs()).unwrap_or(i64::MAX / 4);
        let claims = Claims {
            sub: user_id.to_owned(),
            user_id: user_id.to_owned(),
            iat: now,
            exp: now.saturating_add(life),
            jti: format!("{generation}.{}", uuid::Uuid::new_v4()),
        };
        Ok(IssuedToken {
            token: encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)?,
            expires_at: claims.expires_at(),
        })
    }

    /// What a token says, if its signature and its time are right.
    pub fn check(&self, token: &str) -> Result<Claims, TokenError> {
        Ok(decode::<Claims>(token, &self.decoding, &self.validation)?.claims)
    }
}

impl Claims {
    /// How often the user's password had been changed when it was made; 0 for an id of another form.
    pub fn generation(&self) -> i64 {
        let generation = self.jti.split_once('.').and_then(|(first, _)| first.parse().ok());
        generation.unwrap_or(0)
    }

    /// When the token ends.
    pub fn expires_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(self.exp, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    #[test]
    fn a_token_says_who_it_is_for() {
        let tokens = Tokens::new(b"secret", Duration::from_secs(60));
        let issued = tokens.issue("u1", 3).unwrap();
        let claims = tokens.check(&issued.token).unwrap();
        assert_eq!((claims.sub.as_str(), claims.user_id.as_str()), ("u1", "u1"));
        assert_eq!((claims.expires_at(), claims.generation()), (issued.expires_at, 3));
    }

    #[test]
    fn other_secrets_ended_tokens_and_unsigned_ones_do_not_count() {
        let tokens = Tokens::new(b"secret", Duration::from_secs(60));
        let issued = Tokens::new(b"other", Duration::from_secs(60)).issue("u1", 0).unwrap();
        assert!(tokens.check(&issued.token).is_err());
        let claims = Claims {
            sub: "u".into(),
            user_id: "u".into(),
            iat: 0,
            exp: 1,
            jti: "j".into(),
        };
        let ended = encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &EncodingKey::from_secret(b"secret"),
        )
        .unwrap();
        assert!(tokens.check(&ended).is_err());
        let body = URL_SAFE_NO_PAD.encode(format!(
            "{{\"sub\":\"u\",\"user_id\":\"u\",\"iat\":0,\"jti\":\"j\",\"exp\":{}}}",
            i64::MAX / 4
        ));
        let unsigned = format!("{}.{body}.", URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"));
        assert!(tokens.check(&unsigned).is_err());
    }
}
