//! Who asks, and whether they may: the only way a handler gets a caller or a bot.
//!
//! The order is that of the contract: credential (401), form of ids (400), existence (404),
//! permission (403). Only then is the body read, because extractors that read it come last.

use std::marker::PhantomData;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use skep_api::ErrorCode;
use skep_core::{Patience, Requester};
use skep_names::BotId;
use skep_store::{BotRow, MemberRole, Scope, TicketPurpose, UserRole, UserRow};

use crate::app::App;
use crate::auth::{API_KEY_PREFIX, digest};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, chain};
use crate::http::extract::path_part;

/// How long a call waits for the use of its key to be noted.
const NOTE_USE: Duration = Duration::from_secs(1);

/// What a route needs of its caller.
pub trait Need: Send + Sync + 'static {
    /// The least scope.
    const SCOPE: Scope;
    /// Tickets that stand in for a header, where a browser cannot send one.
    const TICKET: Option<TicketPurpose> = None;
    /// What of it a bot with guest access allows to any signed-in user.
    const GUESTS: Guests = Guests::Nothing;
    /// It opens a socket, which is told in the audit trail though it is a GET.
    const SOCKET: bool = false;
}

/// What any signed-in user may do with a bot that has guest access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guests {
    /// Nothing.
    Nothing,
    /// What the query's `path` names below `/data/media`.
    BelowMedia,
    /// All of the route.
    Everything,
}

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident: $scope:ident $(, $constant:ident = $value:expr)*;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl Need for $name {
            const SCOPE: Scope = Scope::$scope;
            $(needs!(@ $constant $value);)*
        }
    )*};
    (@ TICKET $value:expr) => { const TICKET: Option<TicketPurpose> = Some($value); };
    (@ GUESTS $value:expr) => { const GUESTS: Guests = $value; };
    (@ SOCKET $value:expr) => { const SOCKET: bool = $value; };
}

needs! {
    /// See.
    Read: Read;
    /// Files, exec, terminal, tools.
    Operate: Operate;
    /// Everything else.
    Manage: Manage;
    /// A download: also by ticket, also for guests below `/data/media`.
    Download: Operate, TICKET = TicketPurpose::Download, GUESTS = Guests::BelowMedia;
    /// Files and directories as an archive: also by ticket.
    DownloadArchive: Operate, TICKET = TicketPurpose::Download;
    /// The tools gateway: also for guests.
    Tools: Operate, GUESTS = Guests::Everything;
    /// The terminal's socket: also by ticket.
    Terminal: Operate, TICKET = TicketPurpose::Terminal, SOCKET = true;
    /// A forwarded port: also by ticket.
    Port: Operate, TICKET = TicketPurpose::Port, SOCKET = true;
}

/// By what a caller is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token, by its id.
    Token {
        /// Its id.
        jti: String,
        /// When it ends by itself.
        expires_at: chrono::DateTime<chrono::Utc>,
    },
    /// An API key.
    Key {
        /// Its id.
        id: String,
        /// When it ends by itself, if ever.
        expires_at: Option<chrono::DateTime<chrono::Utc>>,
    },
    /// A ticket, used up by now.
    Ticket,
}

/// Somebody with a credential that counts.
#[derive(Debug, Clone)]
pub struct Caller {
    /// An active user.
    pub user: UserRow,
    /// What the credential may do at most.
    pub scope: Scope,
    /// The only bots the credential is for.
    pub bots: Option<Vec<String>>,
    /// By what the caller is known.
    pub credential: Credential,
}

impl Caller {
    /// Role `admin`, and a credential that is not narrowed to some bots.
    pub fn is_admin(&self) -> bool {
        self.user.role == UserRole::Admin && self.bots.is_none()
    }

    /// The credential's scope is at least this.
    ///
    /// # Errors
    /// 403 `forbidden`.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scope < scope {
            return Err(ApiError::forbidden(format!("this key has no scope {}", scope.as_str())));
        }
        Ok(())
    }

    /// An admin with scope `manage`.
    ///
    /// # Errors
    /// 403 "admin role required".
    pub fn require_admin(&self) -> Result<(), ApiError> {
        if !self.is_admin() {
            return Err(ApiError::forbidden("admin role required"));
        }
        self.require(Scope::Manage)
    }

    /// Scope `manage`, and a credential that is not narrowed to some bots.
    ///
    /// # Errors
    /// 403 `forbidden`.
    pub fn require_account(&self) -> Result<(), ApiError> {
        if self.bots.is_some() {
            return Err(ApiError::forbidden("this key is for some bots only"));
        }
        self.require(Scope::Manage)
    }

    /// The credential is not narrowed to other bots than this one.
    pub fn is_for(&self, bot: &BotId) -> bool {
        self.bots
            .as_ref()
            .is_none_or(|bots| bots.iter().any(|id| id == bot.as_str()))
    }

    /// What the caller may do with a bot; `None`: nothing.
    ///
    /// # Errors
    /// 503 when the store is away.
    pub async fn scope_on(&self, app: &App, bot: &BotRow) -> Result<Option<Scope>, ApiError> {
        if !self.is_for(&bot.id) {
            return Ok(None);
        }
        let by_user = if self.user.role == UserRole::Admin || bot.owner_user_id == self.user.id {
            Some(Scope::Manage)
        } else {
            app.store()
                .member(&bot.id, &self.user.id)
                .await?
                .map(|member| match member.role {
                    MemberRole::Viewer => Scope::Read,
                    MemberRole::Operator => Scope::Operate,
                    MemberRole::Manager => Scope::Manage,
                })
        };
        Ok(by_user.map(|scope| scope.min(self.scope)))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        identify(parts, app, None).await
    }
}

/// A caller with at least the scope `N`.
pub struct SignedIn<N: Need> {
    /// The caller.
    pub caller: Caller,
    need: PhantomData<N>,
}

impl<N: Need> FromRequestParts<App> for SignedIn<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.require(N::SCOPE)?;
        Ok(Self {
            caller,
            need: PhantomData,
        })
    }
}

/// An admin.
pub struct Admin(pub Caller);

impl FromRequestParts<App> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.require_admin()?;
        Ok(Self(caller))
    }
}

/// Somebody who may change the account: scope `manage`, and a credential that is not narrowed to some bots.
pub struct AccountHolder(pub Caller);

impl FromRequestParts<App> for AccountHolder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.require_account()?;
        Ok(Self(caller))
    }
}

/// An identity id of a path: not empty, of `A–Z a–z 0–9 - _`.
///
/// # Errors
/// 400 `invalid_id`.
pub fn identity_part<'a>(text: &'a str, what: &str) -> Result<&'a str, ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
        return Err(ApiError::invalid_id(what));
    }
    Ok(text)
}

/// The bot of the route, for a caller who may do `N` with it.
pub struct BotAccess<N: Need> {
    /// The bot.
    pub bot: BotRow,
    /// The caller.
    pub caller: Caller,
    /// What the caller may do with this bot.
    pub scope: Scope,
    /// Let in as a guest: only for what was asked, and no link that leads out may be followed.
    pub as_guest: bool,
    /// The request.
    pub context: RequestContext,
    requester: Requester,
    need: PhantomData<N>,
}

impl<N: Need> BotAccess<N> {
    /// The bot's id.
    pub fn bot_id(&self) -> &BotId {
        &self.bot.id
    }

    /// On whose behalf core acts.
    pub fn requester(&self) -> Requester {
        self.requester.clone()
    }
}

impl<N: Need> FromRequestParts<App> for BotAccess<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let context = RequestContext::from_request_parts(parts, app).await?;
        if N::SOCKET {
            context.note_told();
        }
        let text = path_part(parts, "bot_id").await;
        let ticket_for = text.as_deref().unwrap_or_default().to_owned();
        let caller = identify(parts, app, N::TICKET.map(|purpose| (purpose, ticket_for.as_str()))).await?;
        let id: BotId = text?.parse().map_err(|_| ApiError::invalid_id("bot"))?;
        let bot = app
            .store()
            .bot(&id)
            .await?
            .ok_or_else(|| ApiError::new(ErrorCode::BotNotFound, "bot not found"))?;
        context.note_bot(&id);
        let granted = caller.scope_on(app, &bot).await?;
        let as_guest = granted.is_none_or(|scope| scope < N::SCOPE) && is_guest::<N>(&caller, &bot, parts);
        let scope = match granted {
            Some(scope) if scope >= N::SCOPE => scope,
            _ if as_guest => N::SCOPE,
            _ => return Err(ApiError::new(ErrorCode::BotAccessDenied, "bot access denied")),
        };
        let requester = requester(&caller, Some(scope), &context, &parts.headers);
        Ok(Self {
            bot,
            caller,
            scope,
            as_guest,
            context,
            requester,
            need: PhantomData,
        })
    }
}

/// The id of the route's bot, for an admin.
pub struct BotAdmin(pub BotId);

impl FromRequestParts<App> for BotAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let access = BotAccess::<Read>::from_request_parts(parts, app).await?;
        access.caller.require_admin()?;
        Ok(Self(access.bot.id))
    }
}

/// On whose behalf core acts.
pub fn requester(caller: &Caller, scope: Option<Scope>, context: &RequestContext, headers: &HeaderMap) -> Requester {
    Requester {
        user_id: Some(caller.user.id.clone()),
        is_admin: caller.is_admin(),
        may_manage: scope == Some(Scope::Manage),
        request_id: Some(context.request_id.clone()),
        patience: patience(headers),
        idempotency: None,
    }
}

/// `Prefer: wait=0` does not queue.
fn patience(headers: &HeaderMap) -> Patience {
    let asked = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split([',', ';']))
        .any(|part| part.trim().replace([' ', '"'], "").eq_ignore_ascii_case("wait=0"));
    if asked { Patience::Refuse } else { Patience::Queue }
}

fn is_guest<N: Need>(caller: &Caller, bot: &BotRow, parts: &Parts) -> bool {
    let open = match N::GUESTS {
        Guests::Nothing => false,
        Guests::BelowMedia => query_part(parts, "path").is_some_and(|path| is_below_media(&path)),
        Guests::Everything => caller.scope >= N::SCOPE,
    };
    open && bot.guest_enabled && caller.is_for(&bot.id)
}

/// Whether a path, cleaned as the file routes clean it, lies below `/data/media`.
fn is_below_media(path: &str) -> bool {
    let mut clean: Vec<&str> = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean.len() > 2 && clean[0] == "data" && clean[1] == "media"
}

/// One part of the query string, decoded.
fn query_part(parts: &Parts, name: &str) -> Option<String> {
    let query: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(&parts.uri).ok()?;
    query.0.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

async fn identify(parts: &mut Parts, app: &App, ticket: Option<(TicketPurpose, &str)>) -> Result<Caller, ApiError> {
    if let Some(caller) = parts.extensions.get::<Caller>() {
        return Ok(caller.clone());
    }
    let caller = match (bearer(&parts.headers), ticket) {
        (Some(secret), _) => by_secret(app, &secret).await?,
        (None, Some((purpose, bot_id))) => by_query(app, parts, purpose, bot_id).await?,
        (None, None) => return Err(ApiError::unauthorized("a credential is required")),
    };
    if let Some(context) = parts.extensions.get::<RequestContext>() {
        context.note_user(&caller.user.id);
    }
    parts.extensions.insert(caller.clone());
    Ok(caller)
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim().to_owned())
}

async fn by_query(app: &App, parts: &Parts, purpose: TicketPurpose, bot_id: &str) -> Result<Caller, ApiError> {
    if let Some(ticket) = query_part(parts, "ticket") {
        let refused = || ApiError::unauthorized("the ticket does not count, or not any more");
        let taken = app
            .store()
            .take_ticket(&digest(&ticket), purpose)
            .await?
            .ok_or_else(refused)?;
        let user = app
            .store()
            .user(&taken.user_id)
            .await?
            .filter(|user| user.is_active)
            .ok_or_else(refused)?;
        if taken.bot_id != bot_id {
            return Err(refused());
        }
        return Ok(Caller {
            user,
            scope: taken.scope,
            bots: Some(vec![taken.bot_id]),
            credential: Credential::Ticket,
        });
    }
    match query_part(parts, "token") {
        // A forwarded port is opened by programs, which send a header: there a token would only come into logs.
        Some(token) if app.config().auth.query_token && purpose != TicketPurpose::Port => by_token(app, &token).await,
        _ => Err(ApiError::unauthorized("a credential is required")),
    }
}

async fn by_secret(app: &App, secret: &str) -> Result<Caller, ApiError> {
    if !secret.starts_with(API_KEY_PREFIX) {
        return by_token(app, secret).await;
    }
    let refused = || ApiError::unauthorized("the API key does not count, or not any more");
    let (key, user) = app.store().api_key(&digest(secret)).await?.ok_or_else(refused)?;
    if key.expires_at.is_some_and(|at| at <= chrono::Utc::now()) {
        return Err(refused());
    }
    if !user.is_active {
        return Err(ApiError::unauthorized("user is inactive"));
    }
    // The key counts all the same while the store cannot be written, and its caller does not wait for that.
    let noted = tokio::time::timeout(NOTE_USE, app.store().note_key_used(&key)).await;
    let cause = match &noted {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(error)),
        Err(late) => Some(late.to_string()),
    };
    if let Some(cause) = cause {
        tracing::warn!(key = key.id, cause, "the use of an API key may not be noted");
    }
    Ok(Caller {
        user,
        scope: key.scope,
        bots: key.bots,
        credential: Credential::Key {
            id: key.id,
            expires_at: key.expires_at,
        },
    })
}

async fn by_token(app: &App, token: &str) -> Result<Caller, ApiError> {
    let refused = || ApiError::unauthorized("the token does not count, or not any more");
    let claims = app
        .auth()
        .tokens
        .check(token)
        .map_err(|error| refused().caused_by(error))?;
    let found = app
        .store()
        .token_user(&claims.sub, &claims.jti, claims.generation())
        .await?
        .ok_or_else(refused)?;
    if found.revoked {
        return Err(refused());
    }
    if !found.user.is_active {
        return Err(ApiError::unauthorized("user is inactive"));
    }
    Ok(Caller {
        user: found.user,
        scope: Scope::Manage,
        bots: None,
        credential: Credential::Token {
            expires_at: claims.expires_at(),
            jti: claims.jti,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_media_are_open_to_guests() {
        for good in [
            "/data/media/a.png",
            "data/media/x/y",
            "/data//media/./a",
            "/data/x/../media/a",
        ] {
            assert!(is_below_media(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "/data/media",
            "/data/media/",
            "/data/mediakit/a",
            "/data/media/../secret",
            "/media/a",
        ] {
            assert!(!is_below_media(bad), "{bad}");
        }
    }

    #[test]
    fn prefer_wait_0_does_not_queue() {
        let header = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", axum::http::HeaderValue::from_static(value));
            patience(&headers)
        };
        assert_eq!(header("respond-async, wait=0"), Patience::Refuse);
        assert_eq!(header("wait=10"), Patience::Queue);
        assert_eq!(patience(&HeaderMap::new()), Patience::Queue);
    }
}
