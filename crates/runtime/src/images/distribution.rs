//! The OCI distribution protocol, as far as pulling needs it: manifests and blobs of one repository,
//! from its mirrors and then the registry itself, with token and basic authentication.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use skep_names::ImageReference;
use tokio::sync::Mutex;
use url::Url;

use super::challenge::{self, Challenge};
use super::credentials::{self, SignIn};
use super::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Digest, OCI_INDEX, OCI_MANIFEST};
use super::settings::RegistrySettings;
use super::transport::{Failure, Transport, Trust, base_url, read_limited, refusal, shown};
use crate::{Result, RuntimeError};

/// Registries refuse larger manifests themselves.
pub(super) const MANIFEST_LIMIT: usize = 4 << 20;
/// Configurations hold a history that build tools may fill.
pub(super) const CONFIG_LIMIT: usize = 8 << 20;
const TOKEN_LIMIT: usize = 1 << 20;
/// How often a thing is tried before it counts as failed.
const TRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// One repository: where it can be had, in the order of trying.
pub(super) struct Repository<'a> {
    transport: &'a Transport,
    reference: &'a ImageReference,
    trust: Trust,
    endpoints: Vec<Endpoint>,
    /// A failure that may pass was met too often.
    gave_up: AtomicBool,
}

struct Endpoint {
    /// Its name in references.
    host: String,
    base: Url,
    sign_in: SignIn,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index as a registry sent it.
pub(super) struct Fetched {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl<'a> Repository<'a> {
    /// Finds out where the repository of a reference can be had and how to sign in there.
    pub(super) async fn new(
        transport: &'a Transport,
        settings: &RegistrySettings,
        reference: &'a ImageReference,
    ) -> Result<Self> {
        let own = reference.host();
        let configured = settings.hosts.get(own);
        let mirrors = configured.map_or(&[][..], |host| &host.mirrors[..]);
        let mut endpoints = Vec::new();
        for host in mirrors.iter().map(String::as_str).chain([own]) {
            let base = base_url(settings, host).ok_or_else(|| RuntimeError::Rejected {
                reason: format!("{host:?} is not the address of a registry"),
            })?;
            endpoints.push(Endpoint {
                host: host.to_owned(),
                base,
                sign_in: credentials::find(settings, host).await,
                authorization: Mutex::new(None),
            });
        }
        Ok(Self {
            transport,
            reference,
            trust: Trust::new(settings, own),
            endpoints,
            gave_up: AtomicBool::new(false),
        })
    }

    /// What the reference points to now.
    pub(super) async fn resolve(&self) -> Result<Fetched> {
        if let Some(digest) = self.reference.digest() {
            let digest = Digest::try_from(digest.to_owned()).map_err(|error| RuntimeError::Rejected {
                reason: error.to_string(),
            })?;
            return self
                .at_any_place(|endpoint| self.manifest(endpoint, digest.as_str(), Some(&digest)))
                .await;
        }
        let tag = self.reference.tag().unwrap_or("latest");
        self.at_any_place(|endpoint| self.manifest(endpoint, tag, None)).await
    }

    /// A manifest that an index points to.
    pub(super) async fn child(&self, descriptor: &Descriptor) -> Result<Fetched> {
        let name = descriptor.digest.as_str();
        let fetched = self
            .at_any_place(|endpoint| self.manifest(endpoint, name, Some(&descriptor.digest)))
            .await?;
        verified(descriptor, &fetched.bytes)?;
        Ok(fetched)
    }

    /// A small blob, checked against its descriptor.
    pub(super) async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let limit = CONFIG_LIMIT.min(usize::try_from(descriptor.size).unwrap_or(CONFIG_LIMIT));
        let bytes = self
            .at_any_place(|endpoint| async move {
                let answer = self.open_blob(endpoint, descriptor, 0).await?;
                read_limited(answer, limit).await
            })
            .await?;
        verified(descriptor, &bytes)?;
        Ok(bytes)
    }

    /// How many places there are to get a blob from.
    pub(super) fn places(&self) -> usize {
        self.endpoints.len()
    }

    /// Opens a blob at one place, from `offset` on; the answer's body begins there exactly.
    pub(super) async fn blob(
        &self,
        place: usize,
        descriptor: &Descriptor,
        offset: u64,
    ) -> std::result::Result<Response, Failure> {
        let endpoint = self.endpoints.get(place).ok_or(Failure::Missing)?;
        self.open_blob(endpoint, descriptor, offset).await
    }

    async fn open_blob(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        offset: u64,
    ) -> std::result::Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.insert(
                RANGE,
                range.map_err(|_| Failure::registry("a range cannot be asked for"))?,
            );
        }
        let path = format!("blobs/{}", descriptor.digest);
        self.get(endpoint, &path, headers).await
    }

    async fn manifest(
        &self,
        endpoint: &Endpoint,
        name: &str,
        digest: Option<&Digest>,
    ) -> std::result::Result<Fetched, Failure> {
        let mut headers = HeaderMap::new();
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let answer = self.get(endpoint, &format!("manifests/{name}"), headers).await?;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (media_type, promised) = (header("content-type"), header("docker-content-digest"));
        let bytes = read_limited(answer, MANIFEST_LIMIT).await?;
        let mut descriptor = Descriptor::new("", &bytes);
        let promised = promised.filter(|promised| promised.starts_with("sha256:"));
        let expected = digest.map(Digest::as_str).or(promised.as_deref());
        if expected.is_some_and(|expected| expected != descriptor.digest.as_str()) {
            return Err(Failure::registry(format!(
                "registry {} sent a manifest {name} whose digest is not what it should be",
                endpoint.host
            )));
        }
        let parsed = super::manifest::parse_document(&bytes, media_type.as_deref());
        let (_, media_type) = parsed.map_err(|error| Failure::registry(format!("{}: {error}", self.reference)))?;
        descriptor.media_type = media_type;
        Ok(Fetched { descriptor, bytes })
    }

    /// Tries every place in order, each as often as is worth it. The last one's failure is told.
    async fn at_any_place<'b, T, F: Future<Output = std::result::Result<T, Failure>>>(
        &'b self,
        ask: impl Fn(&'b Endpoint) -> F,
    ) -> Result<T> {
        let mut last = RuntimeError::ImageNotFound {
            reference: self.reference.to_string(),
        };
        for endpoint in &self.endpoints {
            match patiently(|| ask(endpoint)).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    last = self.told(error);
                    tracing::info!(host = endpoint.host, reason = %last, "this registry did not help");
                }
            }
        }
        Err(last)
    }

    /// A failure in the words of our callers.
    pub(super) fn told(&self, failure: Failure) -> RuntimeError {
        match failure {
            Failure::Passing { reason, .. } => {
                self.gave_up.store(true, Ordering::Relaxed);
                RuntimeError::Registry { reason }
            }
            Failure::Missing => RuntimeError::ImageNotFound {
                reference: self.reference.to_string(),
            },
            Failure::Final(error) => error,
        }
    }

    /// Whether something came to nothing that may work another time.
    pub(super) fn has_given_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    /// A GET below the repository, signed in as far as the registry asks for it.
    async fn get(&self, endpoint: &Endpoint, path: &str, headers: HeaderMap) -> std::result::Result<Response, Failure> {
        let path = format!("v2/{}/{path}", self.reference.repository());
        let url = endpoint
            .base
            .join(&path)
            .map_err(|error| Failure::registry(error.to_string()))?;
        let used = endpoint.authorization.lock().await.clone();
        let answer = self.get_as(&url, headers.clone(), used.clone()).await?;
        let answer = if answer.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorize(endpoint, &answer, used).await?;
            self.get_as(&url, headers, Some(authorization)).await?
        } else {
            answer
        };
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(endpoint)),
            _ => Err(refusal(answer, self.reference.as_str()).await),
        }
    }

    async fn get_as(
        &self,
        url: &Url,
        mut headers: HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> std::result::Result<Response, Failure> {
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        self.transport.get(&self.trust, url.clone(), headers).await
    }

    fn denied(&self, endpoint: &Endpoint) -> Failure {
        let who = match &endpoint.sign_in {
            SignIn::Anonymous => "without a user name".to_owned(),
            SignIn::Password(credentials) => format!("as {}", credentials.username),
            SignIn::IdentityToken(_) => "with the token of config.json".to_owned(),
        };
        Failure::registry(format!(
            "registry {} does not give {} out {who}: it is not there, or it needs another sign-in",
            endpoint.host, self.reference
        ))
    }

    /// Does what a 401 asks for. Parallel downloads that meet it at once sign in once.
    async fn authorize(
        &self,
        endpoint: &Endpoint,
        answer: &Response,
        used: Option<HeaderValue>,
    ) -> std::result::Result<HeaderValue, Failure> {
        let mut current = endpoint.authorization.lock().await;
        if let Some(newer) = current.clone().filter(|newer| Some(newer) != used.as_ref()) {
            return Ok(newer);
        }
        let headers = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> = headers
            .filter_map(|header| challenge::parse(header.to_str().ok()?))
            .collect();
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let authorization = match (bearer.or(challenges.first()), &endpoint.sign_in) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let scope = scope
                    .clone()
                    .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository()));
                let token = self.token(endpoint, realm, &[service.as_deref(), Some(&scope)]).await?;
                secret(&format!("Bearer {token}"))?
            }
            (Some(Challenge::Basic), SignIn::Password(credentials)) => basic(credentials)?,
            _ => return Err(self.denied(endpoint)),
        };
        *current = Some(authorization.clone());
        Ok(authorization)
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service_and_scope: &[Option<&str>; 2],
    ) -> std::result::Result<String, Failure> {
        let [service, scope] = *service_and_scope;
        let mut url = endpoint
            .base
            .join(realm)
            .map_err(|_| Failure::registry(format!("registry {} names no place for tokens", endpoint.host)))?;
        let named = [("service", service), ("scope", scope)];
        let named = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let answer = if let SignIn::IdentityToken(token) = &endpoint.sign_in {
            let fixed = [
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "skep"),
            ];
            let form: Vec<(&str, &str)> = named.chain(fixed).collect();
            self.transport.post_form(&self.trust, &url, &form).await?
        } else {
            url.query_pairs_mut().extend_pairs(named);
            let mut headers = HeaderMap::new();
            if let SignIn::Password(credentials) = &endpoint.sign_in {
                headers.insert(AUTHORIZATION, basic(credentials)?);
            }
            self.transport.get(&self.trust, url.clone(), headers).await?
        };
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(endpoint)),
            StatusCode::NOT_FOUND => {
                return Err(Failure::registry(format!("{} gives out no tokens", shown(&url))));
            }
            _ => return Err(refusal(answer, "a token").await),
        }
        let bytes = read_limited(answer, TOKEN_LIMIT).await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        let token = token.filter(|token| !token.is_empty());
        token.ok_or_else(|| Failure::registry(format!("{} answered without a token", shown(&url))))
    }
}

fn verified(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    descriptor.verify(bytes).map_err(|error| RuntimeError::Registry {
        reason: error.to_string(),
    })
}

fn basic(credentials: &crate::PullCredentials) -> std::result::Result<HeaderValue, Failure> {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    secret(&format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    ))
}

fn secret(text: &str) -> std::result::Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Failure::registry("the token cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Asks up to three times, as long as the failure may pass.
async fn patiently<T, F: Future<Output = std::result::Result<T, Failure>>>(
    ask: impl Fn() -> F,
) -> std::result::Result<T, Failure> {
    let mut retry = Retry::default();
    loop {
        match ask().await {
            Err(failure) => retry.after(failure).await?,
            done => return done,
        }
    }
}

/// Counts the tries of one thing and waits between them, longer each time.
#[derive(Default)]
pub(super) struct Retry {
    failures: u32,
}

impl Retry {
    /// Waits until the next try.
    ///
    /// # Errors
    /// Gives the failure back when it will not pass or the tries are used up.
    pub(super) async fn after(&mut self, failure: Failure) -> std::result::Result<(), Failure> {
        self.failures += 1;
        let wait = match &failure {
            Failure::Passing { wait, reason } if self.failures < TRIES => {
                let wait = wait.unwrap_or(FIRST_WAIT * 4_u32.pow(self.failures - 1));
                tracing::info!(reason, wait_ms = wait.as_millis() as u64, "trying the registry again");
                wait
            }
            _ => return Err(failure),
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Forgets what failed before: it got somewhere.
    pub(super) fn forget(&mut self) {
        self.failures = 0;
    }
}
