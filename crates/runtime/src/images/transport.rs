//! HTTP to registries: TLS, the guard on addresses, and redirects followed with open eyes.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode};
use url::Url;

use super::address_guard::{GuardedResolver, Reach};
use super::settings::RegistrySettings;
use crate::RuntimeError;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Without a byte for so long, a connection counts as cut.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
const REDIRECT_LIMIT: usize = 5;
/// A registry that asks for more patience than this does not want us.
const PATIENCE_LIMIT: Duration = Duration::from_secs(30);

/// Why a request to a registry failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work the next time.
    Passing {
        reason: String,
        /// The registry asked to wait so long.
        wait: Option<Duration>,
    },
    /// The thing asked for is not there.
    Missing,
    /// It will not work.
    Final(RuntimeError),
}

impl Failure {
    pub(super) fn registry(reason: impl Into<String>) -> Self {
        Self::Final(RuntimeError::Registry { reason: reason.into() })
    }

    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing {
            reason: reason.into(),
            wait: None,
        }
    }
}

/// How a client differs from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    reach: Reach,
    /// No proxy of the environment is used.
    direct: bool,
    /// Trusted beside the host's own store.
    ca_file: Option<PathBuf>,
}

/// One client for each kind.
#[derive(Default)]
pub(super) struct Transport {
    clients: Mutex<HashMap<Kind, Client>>,
}

/// What the configuration says of origins (scheme, host and port).
pub(super) struct Trust {
    configured: Vec<url::Origin>,
    named: Vec<url::Origin>,
    authorities: Vec<(url::Origin, PathBuf)>,
}

impl Trust {
    /// All hosts of the configuration, and the registry's own, which a user named.
    pub(super) fn new(settings: &RegistrySettings, host: &str) -> Self {
        let mirrors = settings.hosts.values().flat_map(|host| &host.mirrors);
        let configured = settings.hosts.keys().chain(mirrors);
        let origin = |host: &str| base_url(settings, host).map(|url| url.origin());
        Self {
            configured: configured.filter_map(|host| origin(host)).collect(),
            named: origin(host).into_iter().collect(),
            authorities: settings
                .hosts
                .iter()
                .filter_map(|(name, host)| Some((origin(name)?, host.ca_file.clone()?)))
                .collect(),
        }
    }

    fn ca_file(&self, url: &Url) -> Option<PathBuf> {
        let origin = url.origin();
        let found = self.authorities.iter().find(|(host, _)| *host == origin);
        found.map(|(_, file)| file.clone())
    }

    fn reach(&self, url: &Url) -> Reach {
        let origin = url.origin();
        if self.configured.contains(&origin) {
            Reach::Configured
        } else if self.named.contains(&origin) {
            Reach::Named
        } else {
            Reach::Sent
        }
    }
}

/// Where a registry listens: TLS unless the configuration says otherwise. `None`: not a host.
pub(super) fn base_url(settings: &RegistrySettings, host: &str) -> Option<Url> {
    let host = host.trim_start_matches("https://").trim_end_matches('/');
    let plain = settings.hosts.get(host).is_some_and(|host| host.plain_http);
    // Docker Hub's name in references is not its registry's.
    let address = if host == "docker.io" {
        "registry-1.docker.io"
    } else {
        host
    };
    Url::parse(&format!("{}://{address}/", if plain { "http" } else { "https" })).ok()
}

impl Transport {
    /// Sends a GET and follows redirects. Credentials go to `url`'s own origin only.
    pub(super) async fn get(&self, trust: &Trust, url: Url, headers: HeaderMap) -> Result<Response, Failure> {
        let origin = url.origin();
        let mut url = url;
        for _ in 0..=REDIRECT_LIMIT {
            let mut headers = headers.clone();
            if url.origin() != origin {
                headers.remove(AUTHORIZATION);
            }
            let client = self.client_for(trust, &url)?;
            let sent = client.get(url.clone()).headers(headers).send().await;
            let answer = sent.map_err(|error| not_sent(&url, error))?;
            let Some(next) = redirection(&url, &answer)? else {
                return Ok(answer);
            };
            url = next;
        }
        Err(Failure::registry(format!("{} redirects too often", shown(&url))))
    }

    /// Sends a form, without following redirects.
    pub(super) async fn post_form(&self, trust: &Trust, url: &Url, form: &[(&str, &str)]) -> Result<Response, Failure> {
        let client = self.client_for(trust, url)?;
        let sent = client.post(url.clone()).form(form).send().await;
        sent.map_err(|error| not_sent(url, error))
    }

    fn client_for(&self, trust: &Trust, url: &Url) -> Result<Client, Failure> {
        let reach = trust.reach(url);
        reach
            .check_url(url)
            .map_err(|refused| Failure::registry(refused.to_string()))?;
        if url.scheme() != "https" && reach != Reach::Configured {
            let host = shown(url);
            return Err(Failure::registry(format!(
                "{host} is refused: plain HTTP is spoken only with hosts that the configuration names with plain_http"
            )));
        }
        let kind = Kind {
            reach,
            direct: Reach::Sent.check_url(url).is_err(),
            ca_file: trust.ca_file(url),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = new_client(&kind).map_err(Failure::Final)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }
}

fn new_client(kind: &Kind) -> Result<Client, RuntimeError> {
    // One provider for the whole process; whoever comes second finds it installed.
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread installed the TLS provider at the same time");
    }
    let mut builder = Client::builder()
        .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        .http2_adaptive_window(true);
    if kind.reach != Reach::Configured {
        builder = builder.dns_resolver(GuardedResolver::new(kind.reach));
    }
    if kind.direct {
        // No proxy can reach this host's own loopback in our stead.
        builder = builder.no_proxy();
    }
    if let Some(file) = &kind.ca_file {
        builder = builder.tls_certs_merge(authorities(file)?);
    }
    let built = builder.build();
    built.map_err(|error| RuntimeError::other("prepare HTTP for registries", error))
}

/// The certificates of a configured file.
fn authorities(file: &Path) -> Result<Vec<Certificate>, RuntimeError> {
    let refused = |why: String| RuntimeError::Rejected {
        reason: format!("the ca_file that the configuration names for this registry cannot be used: {why}"),
    };
    let pem = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| refused(chain(error)))?;
    if found.is_empty() {
        return Err(refused("it has no certificate in PEM form".to_owned()));
    }
    Ok(found)
}

fn redirection(url: &Url, answer: &Response) -> Result<Option<Url>, Failure> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&answer.status()) {
        return Ok(None);
    }
    let target = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = target.and_then(|target| url.join(target).ok());
    match target {
        Some(target) if ["http", "https"].contains(&target.scheme()) => Ok(Some(target)),
        _ => Err(Failure::registry(format!("{} redirects to nowhere", shown(url)))),
    }
}

fn not_sent(url: &Url, error: reqwest::Error) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<super::address_guard::Refused>() {
            return Failure::registry(refused.to_string());
        }
        cause = inner.source();
    }
    let reason = chain(error);
    if reason.contains("invalid peer certificate") {
        let hint = "trust its authority by ca_file in the configuration of this registry, or on this host";
        return Failure::registry(format!("registry {} is not trusted: {reason} ({hint})", shown(url)));
    }
    let hint = if reason.contains("InvalidContentType") || reason.contains("corrupt message") {
        " (it does not speak TLS: a plain HTTP registry needs plain_http in the configuration)"
    } else {
        ""
    };
    Failure::passing(format!("registry {} is not reachable: {reason}{hint}", shown(url)))
}

/// An error and its causes in one line; without the URL, whose query may hold a signature.
pub(super) fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Writing to a String cannot fail.
        if write!(text, ": {inner}").is_err() {
            break;
        }
        cause = inner.source();
    }
    text
}

/// Host and port of a URL, for messages.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What an answer that is no success means. Not for 401, which has a way on.
pub(super) async fn refusal(answer: Response, asked: &str) -> Failure {
    let status = answer.status();
    let host = shown(answer.url());
    let wait = answer.headers().get(RETRY_AFTER).and_then(seconds);
    let reason = format!("registry {host} answered {status} for {asked}");
    match status {
        StatusCode::NOT_FOUND => Failure::Missing,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::Passing { reason, wait },
        status if status.is_server_error() => Failure::Passing { reason, wait },
        _ => Failure::registry(reason),
    }
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(PATIENCE_LIMIT))
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_limited(mut answer: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let host = shown(answer.url());
    let mut bytes = Vec::new();
    while let Some(part) = answer
        .chunk()
        .await
        .map_err(|error| Failure::passing(format!("the answer of registry {host} was cut: {}", chain(error))))?
    {
        if bytes.len() + part.len() > limit {
            return Err(Failure::registry(format!(
                "the answer of registry {host} is longer than {limit} bytes"
            )));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
