//! Signing in and out, keys, tickets.

use serde_json::json;
use skep_testkit::server::{ADMIN_PASSWORD, Answer, TestServer, text_of};

use crate::{LIMIT, database_of};

async fn login(server: &TestServer, username: &str, password: &str, from: &str) -> Answer {
    let body = json!({"username": username, "password": password});
    let call = server
        .call_as("", "POST", "/auth/login")
        .header("x-forwarded-for", from);
    call.json(&body).send().await
}

#[tokio::test]
async fn a_login_gives_a_token_that_works_until_logout() {
    let server = TestServer::start().await;
    let answer = login(&server, "admin", ADMIN_PASSWORD, "").await;
    let body = answer.expect_status(200).json();
    assert_eq!(
        (&body["token_type"], &body["role"], &body["username"]),
        (&json!("Bearer"), &json!("admin"), &json!("admin"))
    );
    let token = text_of(&body, "access_token");
    assert_eq!(token.split('.').count(), 3);
    server
        .call_as(&token, "GET", "/users/me")
        .send()
        .await
        .expect_status(200);
    server
        .call_as(&token, "POST", "/auth/logout")
        .send()
        .await
        .expect_status(204);
    server
        .call_as(&token, "GET", "/users/me")
        .send()
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn blank_wrong_and_unknown_are_told_apart_only_as_far_as_they_may() {
    let server = TestServer::start().await;
    for (name, password) in [("", ""), ("admin", ""), ("  ", "x")] {
        let message = login(&server, name, password, "")
            .await
            .expect_error(400, "invalid_argument");
        assert_eq!(message, "username and password are required");
    }
    let wrong = login(&server, "admin", "wrong", "")
        .await
        .expect_error(401, "invalid_credentials");
    let unknown = login(&server, "nobody", "wrong", "")
        .await
        .expect_error(401, "invalid_credentials");
    assert_eq!(
        (wrong.as_str(), unknown.as_str()),
        ("invalid credentials", "invalid credentials")
    );
}

#[tokio::test]
async fn an_email_is_as_good_as_a_name() {
    let server = TestServer::start().await;
    let body = json!({"email": "admin@example.org"});
    server
        .call("PUT", "/users/me")
        .json(&body)
        .send()
        .await
        .expect_status(200);
    login(&server, "Admin@example.org", ADMIN_PASSWORD, "")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn ten_failures_refuse_the_pair_also_with_the_right_password() {
    let server = TestServer::with(&[("server.trusted_proxies", "127.0.0.1")]).await;
    for _ in 0..10 {
        login(&server, "admin", "wrong", "192.0.2.1")
            .await
            .expect_error(401, "invalid_credentials");
    }
    let answer = login(&server, "admin", ADMIN_PASSWORD, "192.0.2.1").await;
    answer.expect_error(429, "rate_limited");
    assert!(
        answer
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| (1..=61).contains(&seconds))
    );
    login(&server, "admin", ADMIN_PASSWORD, "192.0.2.2")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn of_many_tries_at_once_ten_are_answered() {
    let server = TestServer::start().await;
    let tries = (0..24).map(|_| login(&server, "admin", "wrong", ""));
    let answers = futures::future::join_all(tries).await;
    let of = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((of(401), of(429)), (10, 14));
}

#[tokio::test]
async fn guesses_count_also_when_nobody_waits_for_the_answer() {
    let server = TestServer::start().await;
    let begun = std::time::Instant::now();
    let mut answered = 0;
    loop {
        let guess = login(&server, "admin", "wrong", "");
        match tokio::time::timeout(std::time::Duration::from_millis(15), guess).await {
            Ok(answer) if answer.status == 429 => break,
            Ok(answer) => {
                answer.expect_error(401, "invalid_credentials");
                answered += 1;
            }
            Err(_) => {}
        }
        assert!(begun.elapsed().as_secs() < 50, "{answered} answered, none refused");
    }
    assert!(answered < 10, "only those count that were answered");
}

#[tokio::test]
async fn a_success_resets_the_count_and_right_passwords_at_once_are_no_failures() {
    let server = TestServer::start().await;
    for _ in 0..2 {
        for _ in 0..9 {
            login(&server, "admin", "wrong", "").await.expect_status(401);
        }
        login(&server, "admin", ADMIN_PASSWORD, "").await.expect_status(200);
    }
    let right = (0..12).map(|_| login(&server, "admin", ADMIN_PASSWORD, ""));
    for answer in futures::future::join_all(right).await {
        answer.expect_status(200);
    }
}

#[tokio::test]
async fn a_token_has_the_claims_of_the_contract_and_ends() {
    let server = TestServer::with(&[("auth.jwt_expires_in", "2s")]).await;
    let body = login(&server, "admin", ADMIN_PASSWORD, "")
        .await
        .expect_status(200)
        .json();
    let token = text_of(&body, "access_token");
    for field in ["expires_at", "user_id", "display_name"] {
        assert!(!text_of(&body, field).is_empty(), "{body}");
    }
    let part = token.split('.').nth(1).expect("three parts");
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, part).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!(
        (&claims["sub"], &claims["user_id"]),
        (&body["user_id"], &body["user_id"])
    );
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 2);
    assert!(!text_of(&claims, "jti").is_empty());
    let begun = std::time::Instant::now();
    loop {
        let answer = server.call_as(&token, "GET", "/users/me").send().await;
        if answer.status == 401 {
            answer.expect_error(401, "unauthorized");
            break;
        }
        assert!(begun.elapsed() < LIMIT, "it goes on to count");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_key_with_an_end_ends() {
    let server = TestServer::start().await;
    let past = json!({"name": "k", "scope": "read", "expires_at": "2020-01-01T00:00:00Z"});
    let refused = server.call("POST", "/auth/keys").json(&past).send().await;
    refused.expect_error(400, "invalid_argument");
    let later = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    let body = json!({"name": "k", "scope": "read", "expires_at": later});
    let made = server.call("POST", "/auth/keys").json(&body).send().await;
    let made = made.expect_status(201).json();
    let key = text_of(&made, "key");
    server.call_as(&key, "GET", "/bots").send().await.expect_status(200);
    // As if two hours had gone by. One that was kept without an end stays so.
    let mut store = database_of(&server).await;
    let ended = sqlx::query("UPDATE api_keys SET expires_at = expires_at - 7200000000 WHERE id = ?1");
    let ended = ended.bind(text_of(&made, "id")).execute(&mut store);
    assert_eq!(ended.await.expect("written").rows_affected(), 1);
    let refused = server.call_as(&key, "GET", "/bots").send().await;
    refused.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_key_makes_none_that_ends_later_than_itself() {
    let server = TestServer::start().await;
    let end = "2100-01-01T00:00:00Z";
    let body = |expires_at: Option<&str>| json!({"name": "k", "scope": "manage", "expires_at": expires_at});
    let made = server.call("POST", "/auth/keys").json(&body(Some(end))).send().await;
    let key = text_of(&made.expect_status(201).json(), "key");
    let make = |expires_at| {
        server
            .call_as(&key, "POST", "/auth/keys")
            .json(&body(expires_at))
            .send()
    };
    make(Some("2100-01-01T00:00:01Z")).await.expect_error(403, "forbidden");
    let without = make(None).await.expect_status(201).json();
    assert_eq!(text_of(&without, "expires_at"), end);
    let sooner = make(Some("2099-01-01T00:00:00Z")).await.expect_status(201).json();
    assert_eq!(text_of(&sooner, "expires_at"), "2099-01-01T00:00:00Z");
}

#[tokio::test]
async fn nobody_but_a_trusted_proxy_may_choose_his_address() {
    let server = TestServer::start().await;
    for from in 1..=10 {
        login(&server, "admin", "wrong", &format!("192.0.2.{from}"))
            .await
            .expect_status(401);
    }
    login(&server, "admin", ADMIN_PASSWORD, "192.0.2.99")
        .await
        .expect_error(429, "rate_limited");
}

#[tokio::test]
async fn an_inactive_user_is_refused_with_every_credential() {
    let server = TestServer::start().await;
    let (id, token) = server.member("ada").await;
    let key = server
        .call_as(&token, "POST", "/auth/keys")
        .json(&json!({"name": "k", "scope": "read"}))
        .send()
        .await;
    let key = text_of(&key.expect_status(201).json(), "key");
    let body = json!({"is_active": false});
    server
        .call("PUT", &format!("/users/{id}"))
        .json(&body)
        .send()
        .await
        .expect_status(200);
    for credential in [&token, &key] {
        let message = server
            .call_as(credential, "GET", "/users/me")
            .send()
            .await
            .expect_error(401, "unauthorized");
        assert_eq!(message, "user is inactive");
    }
    let message = login(&server, "ada", ADMIN_PASSWORD, "")
        .await
        .expect_error(401, "unauthorized");
    assert_eq!(message, "user is inactive");
    server
        .call_as(&token, "POST", "/auth/refresh")
        .send()
        .await
        .expect_status(401);
}

#[tokio::test]
async fn a_refresh_gives_another_token_and_a_key_gets_none() {
    let server = TestServer::start().await;
    let token = server.login("admin", ADMIN_PASSWORD).await;
    let answer = server.call_as(&token, "POST", "/auth/refresh").send().await;
    let other = text_of(&answer.expect_status(200).json(), "access_token");
    assert_ne!(token, other);
    server
        .call_as(&other, "GET", "/users/me")
        .send()
        .await
        .expect_status(200);
    server
        .call("POST", "/auth/refresh")
        .send()
        .await
        .expect_error(403, "forbidden");
}

#[tokio::test]
async fn a_key_is_shown_once_and_ends_with_its_revocation() {
    let server = TestServer::start().await;
    let made = server
        .call("POST", "/auth/keys")
        .json(&json!({"name": "ci", "scope": "read"}))
        .send()
        .await;
    let made = made.expect_status(201).json();
    let (key, id) = (text_of(&made, "key"), text_of(&made, "id"));
    let listed = server.call("GET", "/auth/keys").send().await;
    assert!(!listed.text().contains(&key));
    assert!(
        listed.json()["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["id"] == id.as_str())
    );
    server.call_as(&key, "GET", "/bots").send().await.expect_status(200);
    server
        .call_as(&key, "POST", "/bots")
        .send()
        .await
        .expect_error(403, "forbidden");
    server
        .call("DELETE", &format!("/auth/keys/{id}"))
        .send()
        .await
        .expect_status(204);
    server
        .call("DELETE", &format!("/auth/keys/{id}"))
        .send()
        .await
        .expect_error(404, "not_found");
    server
        .call_as(&key, "GET", "/bots")
        .send()
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn an_unknown_name_takes_as_long_as_a_wrong_password() {
    let server = TestServer::start().await;
    // The hash that unknown names are checked against is made at the first check.
    login(&server, "admin", "wrong", "").await;
    let mut taken = [Vec::new(), Vec::new()];
    // In turn, so that whatever else the machine does slows both.
    for round in 0..10 {
        let begun = std::time::Instant::now();
        login(&server, ["admin", "nobody"][round % 2], "wrong", "")
            .await
            .expect_error(401, "invalid_credentials");
        taken[round % 2].push(begun.elapsed().as_secs_f64());
    }
    // What else the machine does makes any of them slower and none faster.
    let fastest = taken.map(|taken| taken.into_iter().fold(f64::INFINITY, f64::min));
    // An early answer would take a hundredth.
    assert!(fastest[1] > fastest[0] / 3.0, "{fastest:?} s");
}

#[tokio::test]
async fn an_admins_key_for_the_bot_of_somebody_else_lists_it() {
    let server = TestServer::start().await;
    let (_, ada) = server.member("ada").await;
    let (theirs, _other) = (server.bare_bot(&ada).await, server.bare_bot(&ada).await);
    let _mine = server.bare_bot(server.admin_key()).await;
    let body = json!({"name": "one", "scope": "read", "bots": [theirs]});
    let key = server.call("POST", "/auth/keys").json(&body).send().await;
    let key = text_of(&key.expect_status(201).json(), "key");
    let listed = server.call_as(&key, "GET", "/bots").send().await;
    let listed = listed.expect_status(200).json();
    let ids: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bot| &bot["id"])
        .collect();
    assert_eq!(ids, [&json!(theirs)]);
}

#[tokio::test]
async fn a_key_for_one_bot_opens_no_other_and_makes_none() {
    let server = TestServer::start().await;
    let (mine, other) = (
        server.bare_bot(server.admin_key()).await,
        server.bare_bot(server.admin_key()).await,
    );
    let body = json!({"name": "one", "scope": "manage", "bots": [mine]});
    let key = text_of(
        &server
            .call("POST", "/auth/keys")
            .json(&body)
            .send()
            .await
            .expect_status(201)
            .json(),
        "key",
    );
    server
        .call_as(&key, "GET", &format!("/bots/{mine}"))
        .send()
        .await
        .expect_status(200);
    server
        .call_as(&key, "GET", &format!("/bots/{other}"))
        .send()
        .await
        .expect_error(403, "bot_access_denied");
    server
        .call_as(&key, "POST", "/bots")
        .send()
        .await
        .expect_error(403, "forbidden");
    server
        .call_as(&key, "GET", "/users")
        .send()
        .await
        .expect_error(403, "forbidden");
    let items = server.call_as(&key, "GET", "/bots").send().await.json();
    assert_eq!(items["items"].as_array().unwrap().len(), 1, "{items}");
}

#[tokio::test]
async fn the_first_admin_and_his_key_last() {
    let mut server = TestServer::start().await;
    let path = server.directory().join("data/admin.key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let token = server.login("admin", ADMIN_PASSWORD).await;
    server.restart().await;
    server.call("GET", "/users/me").send().await.expect_status(200);
    server
        .call_as(&token, "GET", "/users/me")
        .send()
        .await
        .expect_status(200);
    let users = server.call("GET", "/users").send().await.json();
    assert_eq!(users["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_ticket_needs_the_right_to_what_it_opens() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (_, stranger) = server.member("stranger").await;
    let body = json!({"bot_id": bot, "use": "terminal"});
    let made = server.call("POST", "/auth/tickets").json(&body).send().await;
    assert!(!text_of(&made.expect_status(200).json(), "ticket").is_empty());
    let refused = server
        .call_as(&stranger, "POST", "/auth/tickets")
        .json(&body)
        .send()
        .await;
    refused.expect_error(403, "bot_access_denied");
    let malformed = json!({"bot_id": "x", "use": "terminal"});
    server
        .call("POST", "/auth/tickets")
        .json(&malformed)
        .send()
        .await
        .expect_error(400, "invalid_id");
    let unknown = json!({"bot_id": bot, "use": "everything"});
    server
        .call("POST", "/auth/tickets")
        .json(&unknown)
        .send()
        .await
        .expect_error(400, "invalid_body");
}
