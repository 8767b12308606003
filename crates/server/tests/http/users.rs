//! Users: who may see and change whom.

use serde_json::json;
use skep_testkit::server::{ADMIN_PASSWORD, TestServer};

#[tokio::test]
async fn a_user_has_the_fields_of_the_contract() {
    let server = TestServer::start().await;
    let body =
        json!({"username": "ada", "password": "a password", "email": "ada@example.org", "timezone": "Europe/London"});
    let user = server
        .call("POST", "/users")
        .json(&body)
        .send()
        .await
        .expect_status(201)
        .json();
    assert_eq!(user["role"], "member");
    assert_eq!(
        (&user["display_name"], &user["is_active"]),
        (&json!("ada"), &json!(true))
    );
    assert_eq!(user["last_login_at"], "0001-01-01T00:00:00Z");
    assert!(user.get("password_hash").is_none());
}

#[tokio::test]
async fn doubles_are_409_and_bad_roles_zones_and_addresses_400() {
    let server = TestServer::start().await;
    server.member("ada").await;
    let make = |body: serde_json::Value| server.call("POST", "/users").json(&body).send();
    make(json!({"username": "ADA", "password": "p"}))
        .await
        .expect_error(409, "already_exists");
    for body in [
        json!({"username": "bob", "password": "p", "role": "king"}),
        json!({"username": "bob", "password": "p", "timezone": "Mars/Base"}),
        json!({"username": "bob", "password": "p", "timezone": "../../etc/passwd"}),
        json!({"username": "bob", "password": "p", "email": "nowhere"}),
        json!({"username": "b b", "password": "p"}),
        json!({"username": "", "password": "p"}),
    ] {
        make(body).await.expect_error(400, "invalid_argument");
    }
}

#[tokio::test]
async fn members_see_themselves_alone() {
    let server = TestServer::start().await;
    let (id, token) = server.member("ada").await;
    server
        .call_as(&token, "GET", "/users/me")
        .send()
        .await
        .expect_status(200);
    let message = server
        .call_as(&token, "GET", "/users")
        .send()
        .await
        .expect_error(403, "forbidden");
    assert_eq!(message, "admin role required");
    server
        .call_as(&token, "GET", &format!("/users/{id}"))
        .send()
        .await
        .expect_error(403, "forbidden");
    server
        .call("GET", &format!("/users/{id}"))
        .send()
        .await
        .expect_status(200);
    server
        .call("GET", "/users/no-such-user")
        .send()
        .await
        .expect_error(404, "not_found");
    server
        .call("GET", "/users/bad%20id")
        .send()
        .await
        .expect_error(400, "invalid_id");
}

#[tokio::test]
async fn a_password_is_changed_by_who_knows_it_and_reset_by_admins() {
    let server = TestServer::start().await;
    let (id, token) = server.member("ada").await;
    let change = |current: &str| {
        let body = json!({"current_password": current, "new_password": "another"});
        server.call_as(&token, "PUT", "/users/me/password").json(&body).send()
    };
    let other = server.login("ada", ADMIN_PASSWORD).await;
    change("wrong").await.expect_error(403, "forbidden");
    change(ADMIN_PASSWORD).await.expect_status(204);
    // Whoever has the old password may be signed in with it.
    let me = async |token: &str| server.call_as(token, "GET", "/users/me").send().await;
    me(&other).await.expect_error(401, "unauthorized");
    me(&token).await.expect_status(200);
    let again = server.login("ada", "another").await;
    let path = format!("/users/{id}/password");
    server
        .call("PUT", &path)
        .json(&json!({"new_password": "third"}))
        .send()
        .await
        .expect_status(204);
    for ended in [&token, &again] {
        me(ended).await.expect_error(401, "unauthorized");
    }
    server.login("ada", "third").await;
    server
        .call("PUT", &path)
        .send()
        .await
        .expect_error(400, "invalid_argument");
}

#[tokio::test]
async fn the_last_admin_cannot_be_taken_away() {
    let server = TestServer::start().await;
    let me = server.call("GET", "/users/me").send().await.json();
    let path = format!("/users/{}", me["id"].as_str().unwrap());
    for body in [json!({"role": "member"}), json!({"is_active": false})] {
        server
            .call("PUT", &path)
            .json(&body)
            .send()
            .await
            .expect_error(409, "conflict");
    }
}

#[tokio::test]
async fn the_command_line_of_the_host_outlives_the_admin_whose_key_it_had() {
    let server = TestServer::start().await;
    let me = server.call("GET", "/users/me").send().await.json();
    let grace = json!({"username": "grace", "password": "a password", "role": "admin"});
    let made = server.call("POST", "/users").json(&grace).send().await;
    let made = made.expect_status(201).json();
    let token = server.login("grace", "a password").await;
    let path = format!("/users/{}", me["id"].as_str().unwrap());
    let disable = server.call_as(&token, "PUT", &path).json(&json!({"is_active": false}));
    disable.send().await.expect_status(200);
    let file = server.directory().join("data/admin.key");
    let kept = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let whose = async |key: &str| {
        let answer = server.call_as(key, "GET", "/users/me").send().await;
        answer.expect_status(200).json()["id"].clone()
    };
    let key = kept();
    assert_eq!(whose(&key).await, made["id"]);
    // Revoked, it is renewed just the same.
    let keys = server.call_as(&token, "GET", "/auth/keys").send().await.json();
    let id = keys["items"][0]["id"].as_str().unwrap().to_owned();
    let revoke = server.call_as(&token, "DELETE", &format!("/auth/keys/{id}"));
    revoke.send().await.expect_status(204);
    server.call_as(&key, "GET", "/users/me").send().await.expect_status(401);
    assert_eq!(whose(&kept()).await, made["id"]);
}
