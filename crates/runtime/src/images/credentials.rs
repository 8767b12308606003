//! Who we are at a registry: the configuration's word, else that of a docker-style `config.json`.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use serde::Deserialize;

use super::settings::RegistrySettings;
use crate::PullCredentials;

/// How to sign in.
#[derive(Clone)]
pub(super) enum SignIn {
    /// Nobody in particular.
    Anonymous,
    /// User name and password.
    Password(PullCredentials),
    /// A refresh token of the registry's token service.
    IdentityToken(String),
}

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize, Default, Clone)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// Finds how to sign in at a host, as it stands in references.
pub(super) async fn find(settings: &RegistrySettings, host: &str) -> SignIn {
    let configured = settings.hosts.get(host).and_then(|host| host.credentials.clone());
    if let Some(credentials) = configured {
        return SignIn::Password(credentials);
    }
    let Some(path) = &settings.docker_config else {
        return SignIn::Anonymous;
    };
    let config = match tokio::fs::read(path).await {
        Ok(bytes) => parse(path, &bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return SignIn::Anonymous,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the file with registry passwords cannot be read");
            return SignIn::Anonymous;
        }
    };
    sign_in(&config, host)
}

/// A broken file must not keep public images from being pulled; it is told, and so is the registry's 401.
fn parse(path: &Path, bytes: &[u8]) -> DockerConfig {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "the file with registry passwords is not understood");
        DockerConfig::default()
    })
}

fn sign_in(config: &DockerConfig, host: &str) -> SignIn {
    let same = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let key = key.split('/').next().unwrap_or_default();
        key == host || (host == "docker.io" && ["index.docker.io", "registry-1.docker.io"].contains(&key))
    };
    // The very name wins over names that mean the same.
    let found = config.auths.get(host);
    let found = found.or_else(|| config.auths.iter().find(|(key, _)| same(key)).map(|(_, auth)| auth));
    let Some(auth) = found else {
        return SignIn::Anonymous;
    };
    if !auth.identity_token.is_empty() {
        return SignIn::IdentityToken(auth.identity_token.clone());
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim());
    let decoded = decoded
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default();
    let (username, password) = match decoded.split_once(':') {
        Some((username, password)) => (username, password.trim_end_matches('\0')),
        None => (auth.username.as_str(), auth.password.as_str()),
    };
    if username.is_empty() {
        return SignIn::Anonymous;
    }
    SignIn::Password(PullCredentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_at(config: &str, host: &str) -> Option<(String, String)> {
        match sign_in(&parse(Path::new("config.json"), config.as_bytes()), host) {
            SignIn::Password(found) => Some((found.username, found.password)),
            SignIn::IdentityToken(token) => Some(("token".to_owned(), token)),
            SignIn::Anonymous => None,
        }
    }

    #[test]
    fn docker_style_files_are_read() {
        let encoded = base64::engine::general_purpose::STANDARD.encode("me:pass:word");
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{encoded}"}},
                "ghcr.io":{{"identitytoken":"t"}},"r.example:5000":{{"username":"u","password":"p"}}}},
                "credsStore":"desktop"}}"#
        );
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(user_at(&config, "docker.io"), pair("me", "pass:word"));
        assert_eq!(user_at(&config, "ghcr.io"), pair("token", "t"));
        assert_eq!(user_at(&config, "r.example:5000"), pair("u", "p"));
        assert_eq!(user_at(&config, "r.example"), None);
        assert_eq!(user_at("{broken", "ghcr.io"), None);
    }
}
