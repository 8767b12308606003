//! `skep login`, `skep users` and `skep keys`.

use std::io::{BufRead, IsTerminal};

use reqwest::Method;
use serde_json::{Value, json};

use crate::arguments::{KeysCommand, LoginArguments, OutputForm, Shared, UsersCommand};
use crate::client::{Client, Endpoint, StoredLogin, encode, find_bot};
use crate::failure::{Failure, Result};
use crate::output::{self, Column, text};
use crate::terminal;

const USER_COLUMNS: &[Column] = &[
    Column {
        title: "USERNAME",
        read: |user| text(user, "username"),
    },
    Column {
        title: "ID",
        read: |user| text(user, "id"),
    },
    Column {
        title: "ROLE",
        read: |user| text(user, "role"),
    },
    Column {
        title: "ACTIVE",
        read: |user| text(user, "is_active"),
    },
    Column {
        title: "LAST LOGIN",
        read: |user| output::time(user, "last_login_at"),
    },
];

const KEY_COLUMNS: &[Column] = &[
    Column {
        title: "NAME",
        read: |key| text(key, "name"),
    },
    Column {
        title: "ID",
        read: |key| text(key, "id"),
    },
    Column {
        title: "SCOPE",
        read: |key| text(key, "scope"),
    },
    Column {
        title: "EXPIRES",
        read: |key| output::time(key, "expires_at"),
    },
    Column {
        title: "LAST USED",
        read: |key| output::time(key, "last_used_at"),
    },
];

/// Signs in with a password and keeps the token for the commands that follow.
pub(crate) async fn login(shared: &Shared, login: LoginArguments) -> Result<()> {
    let server = Endpoint::find_server(shared)?;
    let client = Client::new(Endpoint {
        server: server.clone(),
        token: None,
    })?;
    let username = match login.username {
        Some(username) => username,
        None => {
            eprint!("User name: ");
            read_line()?
        }
    };
    let password = read_password(&format!("Password of {username} at {server}: "), login.password_stdin)?;
    let answer = client
        .post("/auth/login", &json!({"username": username, "password": password}))
        .await?;
    let token = text(&answer, "access_token");
    if token.is_empty() {
        return Err(Failure::Unexpected {
            doing: "signing in",
            what: "there is no token".into(),
        });
    }
    let path = StoredLogin { server, token }.write()?;
    match shared.output {
        OutputForm::Json => {
            output::print_json(&json!({"username": username, "kept_in": path, "expires_at": answer["expires_at"]}))
        }
        OutputForm::Name => output::print_text(&format!("{username}\n")),
        OutputForm::Table => output::print_text(&format!(
            "signed in as {} until {}; the token is kept in {}\n",
            text(&answer, "username"),
            output::time(&answer, "expires_at"),
            path.display()
        )),
    }
}

fn read_line() -> Result<String> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::local("cannot read standard input", error))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks without showing what is typed; without a terminal, one line of standard input.
fn read_password(prompt: &str, from_stdin: bool) -> Result<String> {
    if from_stdin || !std::io::stdin().is_terminal() {
        return read_line();
    }
    terminal::read_hidden(prompt)
}

/// A new password: asked for twice, since nobody sees what is typed.
fn choose_password() -> Result<String> {
    let first = read_password("New password: ", false)?;
    if std::io::stdin().is_terminal() && read_password("Once more: ", false)? != first {
        return Err(Failure::Failed("the two are not the same; nothing was changed".into()));
    }
    if first.is_empty() {
        return Err(Failure::Usage("the password is empty".into()));
    }
    Ok(first)
}

pub(crate) async fn users(client: &Client, form: OutputForm, command: UsersCommand) -> Result<()> {
    let changed = match command {
        UsersCommand::Ls => {
            return output::print_list(form, &client.all_items("/users").await?, "username", USER_COLUMNS);
        }
        UsersCommand::Create { username, role, email } => {
            let password = choose_password()?;
            let body = json!({"username": username, "password": password, "role": role, "email": email});
            client.post("/users", &body).await?
        }
        UsersCommand::Password { user } => {
            let user = find_user(client, &user).await?;
            let path = format!("/users/{}/password", encode(&text(&user, "id")));
            client.put(&path, &json!({"new_password": choose_password()?})).await?;
            user
        }
        UsersCommand::Enable { user } => set_active(client, &user, true).await?,
        UsersCommand::Disable { user } => set_active(client, &user, false).await?,
    };
    output::print_one(form, &changed, "username")
}

async fn set_active(client: &Client, user: &str, is_active: bool) -> Result<Value> {
    let user = find_user(client, user).await?;
    client
        .put(
            &format!("/users/{}", encode(&text(&user, "id"))),
            &json!({"is_active": is_active}),
        )
        .await
}

async fn find_user(client: &Client, name: &str) -> Result<Value> {
    let users = client.all_items("/users").await?;
    users
        .into_iter()
        .find(|user| text(user, "username") == name || text(user, "id") == name)
        .ok_or_else(|| Failure::Refused {
            status: 404,
            code: "not_found".into(),
            message: format!("there is no user {name:?}"),
            request_id: None,
        })
}

pub(crate) async fn keys(client: &Client, form: OutputForm, command: KeysCommand) -> Result<()> {
    match command {
        KeysCommand::Ls => output::print_list(form, &client.all_items("/auth/keys").await?, "id", KEY_COLUMNS),
        KeysCommand::Create {
            name,
            scope,
            bot,
            expires_in,
        } => {
            let mut body = json!({"name": name, "scope": scope});
            if !bot.is_empty() {
                let mut ids = Vec::new();
                for name in &bot {
                    ids.push(find_bot(client, name).await?.id);
                }
                body["bots"] = json!(ids);
            }
            if let Some(expires_in) = expires_in {
                let at = std::time::SystemTime::now() + expires_in;
                body["expires_at"] = json!(humantime::format_rfc3339_seconds(at).to_string());
            }
            let made = client.post("/auth/keys", &body).await?;
            output::print_one(form, &made, "key")
        }
        KeysCommand::Rm { id } => {
            client
                .json(client.request(Method::DELETE, &format!("/auth/keys/{}", encode(&id))))
                .await?;
            output::print_changed(form, &json!({"id": id, "deleted": true}), "id")
        }
    }
}
