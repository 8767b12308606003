//! Users: oneself, and for admins all of them.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use skep_api::{
    CreateUserRequest, ErrorCode, PasswordChange, PasswordReset, UpdateMeRequest, UpdateUserRequest, User, UserList,
};
use skep_store::{NewUser, StoreError, UserRole, UserRow, UserUpdate};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::{ADMIN_KEY_FILE, ensure_admin_key};
use crate::http::access::{AccountHolder, Admin, Caller, Credential, identity_part};
use crate::http::error::{ApiError, ApiResult, chain};
use crate::http::extract::{JsonBody, Still, path_part};
use crate::http::{timezone, wire};

/// Longest name, address, picture or shown name.
const LONGEST_FIELD: usize = 4096;
const LONGEST_USERNAME: usize = 64;
const LONGEST_PASSWORD: usize = 1024;

/// `/users`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(me, update_me))
        .routes(routes!(change_password))
        .routes(routes!(list, create))
        .routes(routes!(get, update))
        .routes(routes!(reset_password))
}

/// The caller.
#[utoipa::path(get, path = "/users/me", tag = "users", responses((status = 200, body = User)))]
async fn me(caller: Caller) -> Json<User> {
    Json(wire::user(caller.user))
}

/// Change oneself; what is absent stays.
#[utoipa::path(put, path = "/users/me", tag = "users", request_body = UpdateMeRequest,
    responses((status = 200, body = User), (status = 409, description = "The address is taken")))]
async fn update_me(
    State(app): State<App>,
    Still(AccountHolder(caller), JsonBody(body)): Still<AccountHolder, JsonBody<UpdateMeRequest>>,
) -> ApiResult<Json<User>> {
    let update = UserUpdate {
        email: checked_email(body.email)?,
        role: None,
        display_name: checked_field("display_name", body.display_name)?,
        avatar_url: checked_field("avatar_url", body.avatar_url)?.map(emptied),
        timezone: timezone::checked(body.timezone)?,
        is_active: None,
    };
    change(&app, &caller.user.id, update).await
}

/// Change one's password. Every other token of the user ends.
#[utoipa::path(put, path = "/users/me/password", tag = "users", request_body = PasswordChange,
    responses((status = 204), (status = 403, description = "The current password is wrong"),
        (status = 409, description = "It was changed meanwhile")))]
async fn change_password(
    State(app): State<App>,
    Still(AccountHolder(caller), JsonBody(body)): Still<AccountHolder, JsonBody<PasswordChange>>,
) -> ApiResult<StatusCode> {
    check_password(&body.new_password)?;
    let current = &caller.user.password_hash;
    let matches = app
        .auth()
        .passwords
        .matches(body.current_password, Some(current.clone()))
        .await
        .map_err(ApiError::internal)?;
    if !matches {
        return Err(ApiError::forbidden("the current password is wrong"));
    }
    set_password(&app, &caller, (&caller.user.id, Some(current)), body.new_password).await
}

/// All users.
#[utoipa::path(get, path = "/users", tag = "users", responses((status = 200, body = UserList)))]
async fn list(State(app): State<App>, _admin: Admin) -> ApiResult<Json<UserList>> {
    let users = app.store().users().await?;
    Ok(Json(UserList {
        items: users.into_iter().map(wire::user).collect(),
    }))
}

/// Make a user.
#[utoipa::path(post, path = "/users", tag = "users", request_body = CreateUserRequest,
    responses((status = 201, body = User), (status = 409, description = "The name or the address is taken")))]
async fn create(
    State(app): State<App>,
    Still(Admin(_admin), JsonBody(body)): Still<Admin, JsonBody<CreateUserRequest>>,
) -> ApiResult<(StatusCode, Json<User>)> {
    let username = body.username.trim().to_owned();
    if username.is_empty() || body.password.is_empty() {
        return Err(ApiError::invalid_argument("username and password are required"));
    }
    let plain = |c: char| c.is_alphanumeric() || "-_.@+".contains(c);
    if username.len() > LONGEST_USERNAME || !username.chars().all(plain) {
        return Err(ApiError::invalid_argument(format!(
            "username may have {LONGEST_USERNAME} bytes: letters, digits and - _ . @ +"
        )));
    }
    check_password(&body.password)?;
    let new = NewUser {
        id: uuid::Uuid::new_v4().to_string(),
        email: checked_email(body.email)?.flatten(),
        role: checked_role(body.role)?.unwrap_or(UserRole::Member),
        display_name: checked_field("display_name", body.display_name)?.unwrap_or_else(|| username.clone()),
        avatar_url: checked_field("avatar_url", body.avatar_url)?.and_then(emptied),
        timezone: timezone::checked(body.timezone)?.flatten(),
        is_active: body.is_active.unwrap_or(true),
        password_hash: app
            .auth()
            .passwords
            .hash(body.password)
            .await
            .map_err(ApiError::internal)?,
        username,
    };
    let row = app
        .store()
        .insert_user(new)
        .await
        .map_err(taken("the username or the email is taken"))?;
    Ok((StatusCode::CREATED, Json(wire::user(row))))
}

/// One user.
#[utoipa::path(get, path = "/users/{id}", tag = "users",
    responses((status = 200, body = User), (status = 404, description = "No such user")))]
async fn get(UserAccess { user, .. }: UserAccess) -> Json<User> {
    Json(wire::user(user))
}

/// Change a user; what is absent stays.
#[utoipa::path(put, path = "/users/{id}", tag = "users", request_body = UpdateUserRequest,
    responses((status = 200, body = User), (status = 404, description = "No such user"),
        (status = 409, description = "The address is taken, or no active admin would be left")))]
async fn update(
    State(app): State<App>,
    Still(UserAccess { user, .. }, JsonBody(body)): Still<UserAccess, JsonBody<UpdateUserRequest>>,
) -> ApiResult<Json<User>> {
    let role = checked_role(body.role)?;
    let update = UserUpdate {
        email: checked_email(body.email)?,
        role,
        display_name: checked_field("display_name", body.display_name)?,
        avatar_url: checked_field("avatar_url", body.avatar_url)?.map(emptied),
        timezone: timezone::checked(body.timezone)?,
        is_active: body.is_active,
    };
    let changed = change(&app, &user.id, update).await?;
    renew_admin_key(&app).await;
    Ok(changed)
}

/// Give a user another password. The user's tokens end.
#[utoipa::path(put, path = "/users/{id}/password", tag = "users", request_body = PasswordReset,
    responses((status = 204), (status = 404, description = "No such user")))]
async fn reset_password(
    State(app): State<App>,
    Still(UserAccess { user, caller }, JsonBody(body)): Still<UserAccess, JsonBody<PasswordReset>>,
) -> ApiResult<StatusCode> {
    check_password(&body.new_password)?;
    set_password(&app, &caller, (&user.id, None), body.new_password).await
}

/// The user of the route's `id`, for an admin; checked in the order of the contract, before the body is read.
struct UserAccess {
    user: UserRow,
    caller: Caller,
}

impl FromRequestParts<App> for UserAccess {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let user = existing(app, &path_part(parts, "id").await?).await?;
        caller.require_admin()?;
        Ok(Self { user, caller })
    }
}

/// The user of a path part.
///
/// # Errors
/// 400 for a malformed id, 404 "user not found".
pub(crate) async fn existing(app: &App, id: &str) -> ApiResult<UserRow> {
    let id = identity_part(id, "user")?;
    app.store()
        .user(id)
        .await?
        .ok_or_else(|| ApiError::not_found("user not found"))
}

/// The command line on this host goes on to work when the key in its file stopped counting, or its user is no admin
/// any more. What was asked for is done, so a failure is no answer to it; the next start tries again.
pub(crate) async fn renew_admin_key(app: &App) {
    let file = app.config().workspace.data_root.join(ADMIN_KEY_FILE);
    if let Err(error) = ensure_admin_key(app.store(), &file).await {
        let cause = chain(&error);
        tracing::error!(cause, "the key of the command line on this host was not renewed");
    }
}

async fn change(app: &App, id: &str, update: UserUpdate) -> ApiResult<Json<User>> {
    let row = app
        .store()
        .update_user(id, update)
        .await
        .map_err(taken("the email is taken"))?;
    match row {
        Some(row) => Ok(Json(wire::user(row))),
        // Without an active admin nobody could ever make one again.
        None if app.store().user(id).await?.is_some() => {
            Err(ApiError::new(ErrorCode::Conflict, "this is the last active admin"))
        }
        None => Err(ApiError::not_found("user not found")),
    }
}

/// The one who does it stays signed in. `current`: the hash that it takes the place of, and of no other.
async fn set_password(
    app: &App,
    caller: &Caller,
    (id, current): (&str, Option<&str>),
    password: String,
) -> ApiResult<StatusCode> {
    let hash = app.auth().passwords.hash(password).await.map_err(ApiError::internal)?;
    let kept = match &caller.credential {
        Credential::Token { jti, .. } if caller.user.id == id => Some(jti.as_str()),
        _ => None,
    };
    match app.store().set_user_password((id, current), &hash, kept).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false if app.store().user(id).await?.is_some() => {
            Err(ApiError::new(ErrorCode::Conflict, "the password was changed meanwhile"))
        }
        false => Err(ApiError::not_found("user not found")),
    }
}

fn taken(message: &'static str) -> impl Fn(StoreError) -> ApiError {
    move |error| match error {
        StoreError::Exists { .. } => ApiError::new(ErrorCode::AlreadyExists, message),
        other => other.into(),
    }
}

fn check_password(password: &str) -> ApiResult<()> {
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        return Err(ApiError::invalid_argument(format!(
            "a password has 1 to {LONGEST_PASSWORD} bytes"
        )));
    }
    Ok(())
}

fn checked_role(role: Option<String>) -> ApiResult<Option<UserRole>> {
    role.map(|text| UserRole::parse(&text).ok_or_else(|| ApiError::invalid_argument("role must be admin or member")))
        .transpose()
}

fn checked_field(name: &str, field: Option<String>) -> ApiResult<Option<String>> {
    let too_long = |text: &String| text.len() > LONGEST_FIELD || text.chars().any(char::is_control);
    if field.as_ref().is_some_and(too_long) {
        return Err(ApiError::invalid_argument(format!(
            "{name} must be one line of at most {LONGEST_FIELD} bytes"
        )));
    }
    Ok(field)
}

/// Empty takes it away.
fn emptied(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn checked_email(email: Option<String>) -> ApiResult<Option<Option<String>>> {
    let Some(email) = checked_field("email", email)? else {
        return Ok(None);
    };
    let email = email.trim().to_owned();
    let well_formed = email
        .split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    if !email.is_empty() && (!well_formed || email.len() > 254 || email.contains(char::is_whitespace)) {
        return Err(ApiError::invalid_argument("email is not an address"));
    }
    Ok(Some(emptied(email)))
}
