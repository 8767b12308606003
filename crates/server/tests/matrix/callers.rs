//! Everybody who may come: by what credential, and what the contract lets such a one do.

use serde_json::{Value, json};
use skep_testkit::server::{ADMIN_PASSWORD, TestServer, text_of};

use crate::table::Needs;

/// Of the tokens of the test's server.
pub(crate) const JWT_SECRET: &str = "a secret of the matrix, long enough";

/// What a caller may do with the bot that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OnBot {
    Nothing,
    Read,
    Operate,
    Manage,
}

/// By what a caller comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Nothing, or nothing that counts.
    Nothing,
    Token,
    /// A key of scope `manage` for all bots of its user.
    WholeKey,
    /// A key of less, or for some bots.
    NarrowKey,
}

pub(crate) struct Caller {
    pub(crate) name: &'static str,
    pub(crate) credential: String,
    /// A token of the same user, to make keys with.
    pub(crate) own_token: String,
    pub(crate) by: By,
    pub(crate) admin: bool,
    pub(crate) on_bot: OnBot,
    /// Asks for a bot that has guest access.
    pub(crate) guest: bool,
    /// The credential's scope is `read`, whatever its user may do.
    pub(crate) reads_only: bool,
}

/// How an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Unauthorized,
    Denied,
}

impl Caller {
    /// What the contract says to this caller on a route with these needs; `below_media` for a download.
    pub(crate) fn verdict(&self, needs: Needs, below_media: bool) -> Verdict {
        if needs == Needs::Nothing {
            return Verdict::Allowed;
        }
        if self.by == By::Nothing {
            return Verdict::Unauthorized;
        }
        let whole = matches!(self.by, By::Token | By::WholeKey);
        let allowed = match needs {
            Needs::Nothing | Needs::Credential => true,
            Needs::Token => self.by == By::Token,
            Needs::Account | Needs::AccountAndOwnKey => whole,
            Needs::Admin => self.admin && whole,
            Needs::AdminOnBot => self.admin && whole && self.on_bot >= OnBot::Read,
            Needs::Read => self.on_bot >= OnBot::Read,
            Needs::Operate | Needs::OperateOnBotOfBody => self.on_bot >= OnBot::Operate,
            Needs::Manage => self.on_bot >= OnBot::Manage,
            Needs::DownloadOfGuests => self.on_bot >= OnBot::Operate || (self.guest && below_media),
            Needs::OperateOrGuest => self.on_bot >= OnBot::Operate || (self.guest && !self.reads_only),
        };
        if allowed { Verdict::Allowed } else { Verdict::Denied }
    }
}

/// The bots that the callers ask for.
pub(crate) struct Bots {
    /// Without guest access.
    pub(crate) closed: String,
    /// With it.
    pub(crate) open: String,
    pub(crate) other: String,
}

pub(crate) struct Cast {
    pub(crate) bots: Bots,
    pub(crate) callers: Vec<Caller>,
}

async fn key(server: &TestServer, token: &str, scope: &str, bot: Option<&str>) -> String {
    let mut body = json!({"name": scope, "scope": scope});
    if let Some(bot) = bot {
        body["bots"] = json!([bot]);
    }
    let made = server.call_as(token, "POST", "/auth/keys").json(&body).send().await;
    text_of(&made.expect_status(201).json(), "key")
}

/// A token of this user that ends after so many seconds; negative: it has ended.
fn token_ending_in(user_id: &str, seconds: i64) -> String {
    let now = chrono::Utc::now().timestamp();
    let claims = json!({
        "sub": user_id, "user_id": user_id, "iat": now - 3600, "exp": now + seconds,
        "jti": uuid::Uuid::new_v4().to_string(),
    });
    let key = jsonwebtoken::EncodingKey::from_secret(JWT_SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

async fn member(server: &TestServer, bot: &str, role: &'static str) -> String {
    let (id, token) = server.member(role).await;
    let path = format!("/bots/{bot}/members/{id}");
    let body = json!({"role": role});
    server.call("PUT", &path).json(&body).send().await.expect_status(200);
    token
}

/// Everybody, on a server of its own secret.
pub(crate) async fn everybody(server: &TestServer) -> Cast {
    let (owner_id, owner) = server.member("owner").await;
    let bots = Bots {
        closed: server.bare_bot(&owner).await,
        open: server.bare_bot(&owner).await,
        other: server.bare_bot(&owner).await,
    };
    let open = server.call("PUT", &format!("/bots/{}/guest", bots.open));
    open.json(&json!({"enabled": true})).send().await.expect_status(200);
    let mut callers = with_tokens(server, &bots, &owner).await;
    callers.extend(with_keys(server, &bots, &owner).await);
    callers.extend(without_anything(server, &owner_id).await);
    Cast { bots, callers }
}

async fn with_tokens(server: &TestServer, bots: &Bots, owner: &str) -> Vec<Caller> {
    let (_, stranger) = server.member("stranger").await;
    let (_, guest) = server.member("guest").await;
    let admin = server.login("admin", ADMIN_PASSWORD).await;
    let viewer = member(server, &bots.closed, "viewer").await;
    let operator = member(server, &bots.closed, "operator").await;
    let manager = member(server, &bots.closed, "manager").await;
    let of = |name, token: &str, on_bot| Caller {
        name,
        credential: token.to_owned(),
        own_token: token.to_owned(),
        by: By::Token,
        admin: name == "an admin",
        on_bot,
        guest: name == "a guest",
        reads_only: false,
    };
    let read_key = key(server, &guest, "read", None).await;
    vec![
        Caller {
            name: "a guest by a read key",
            credential: read_key,
            by: By::NarrowKey,
            guest: true,
            reads_only: true,
            ..of("", &guest, OnBot::Nothing)
        },
        of("another user", &stranger, OnBot::Nothing),
        of("a guest", &guest, OnBot::Nothing),
        of("a viewer", &viewer, OnBot::Read),
        of("an operator", &operator, OnBot::Operate),
        of("a manager", &manager, OnBot::Manage),
        of("the owner", owner, OnBot::Manage),
        of("an admin", &admin, OnBot::Manage),
    ]
}

async fn with_keys(server: &TestServer, bots: &Bots, owner: &str) -> Vec<Caller> {
    let admin = server.login("admin", ADMIN_PASSWORD).await;
    let mut callers = Vec::new();
    for (name, token, scope, bot, by, on_bot) in [
        ("a read key", owner, "read", None, By::NarrowKey, OnBot::Read),
        ("an operate key", owner, "operate", None, By::NarrowKey, OnBot::Operate),
        ("a manage key", owner, "manage", None, By::WholeKey, OnBot::Manage),
        (
            "a key for another bot",
            owner,
            "manage",
            Some(&bots.other),
            By::NarrowKey,
            OnBot::Nothing,
        ),
        (
            "a key for this bot",
            owner,
            "manage",
            Some(&bots.closed),
            By::NarrowKey,
            OnBot::Manage,
        ),
        (
            "a read key of an admin",
            &admin,
            "read",
            None,
            By::NarrowKey,
            OnBot::Read,
        ),
        (
            "a manage key of an admin",
            &admin,
            "manage",
            None,
            By::WholeKey,
            OnBot::Manage,
        ),
        (
            "an admin's key for another bot",
            &admin,
            "manage",
            Some(&bots.other),
            By::NarrowKey,
            OnBot::Nothing,
        ),
    ] {
        callers.push(Caller {
            name,
            credential: key(server, token, scope, bot.map(String::as_str)).await,
            own_token: token.to_owned(),
            by,
            admin: token == admin,
            on_bot,
            guest: false,
            reads_only: scope == "read",
        });
    }
    callers
}

/// Those whose credential does not count, each for its own reason.
async fn without_anything(server: &TestServer, owner_id: &str) -> Vec<Caller> {
    // The same token with an end to come counts: it is its end alone that makes the other one not count.
    let counting = token_ending_in(owner_id, 60);
    server
        .call_as(&counting, "GET", "/users/me")
        .send()
        .await
        .expect_status(200);
    let (revoked_id, revoked) = server.member("revoked").await;
    server
        .call_as(&revoked, "POST", "/auth/logout")
        .send()
        .await
        .expect_status(204);
    let (inactive_id, inactive) = server.member("inactive").await;
    let off = server
        .call("PUT", &format!("/users/{inactive_id}"))
        .json(&json!({"is_active": false}));
    off.send().await.expect_status(200);
    assert_ne!(Value::from(revoked_id), Value::from(inactive_id));
    [
        ("nobody", String::new()),
        ("an ended token", token_ending_in(owner_id, -1)),
        ("a revoked token", revoked),
        ("an inactive user", inactive),
        ("a made-up key", "skep_0123456789abcdef0123456789abcdef".to_owned()),
    ]
    .into_iter()
    .map(|(name, credential)| Caller {
        name,
        own_token: credential.clone(),
        credential,
        by: By::Nothing,
        admin: false,
        on_bot: OnBot::Nothing,
        guest: false,
        reads_only: false,
    })
    .collect()
}
