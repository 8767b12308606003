//! Bodies that are held back while the right to send them is taken away.

use serde_json::{Value, json};
use skep_testkit::server::{ADMIN_PASSWORD, TestServer, text_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request whose sender may send it, as the server has found, and whose body is still to come.
struct Held {
    connection: TcpStream,
    body: String,
}

impl Held {
    async fn begin(server: &TestServer, credential: &str, (method, path): (&str, &str), body: &Value) -> Self {
        let address = server.url().replace("http://", "");
        let mut connection = TcpStream::connect(&address).await.expect("the server listens");
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {credential}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        connection.write_all(head.as_bytes()).await.expect("the head is taken");
        // Comes when the body is asked for, which is after all that the head decides.
        let wanted = "HTTP/1.1 100 Continue\r\n\r\n";
        let mut told = vec![0; wanted.len()];
        connection.read_exact(&mut told).await.expect("the body is asked for");
        assert_eq!(String::from_utf8_lossy(&told), wanted);
        Self { connection, body }
    }

    /// The status of the answer.
    async fn finish(mut self) -> u16 {
        self.connection
            .write_all(self.body.as_bytes())
            .await
            .expect("the body is taken");
        let mut answer = String::new();
        self.connection
            .read_to_string(&mut answer)
            .await
            .expect("there is an answer");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {answer:?}"))
    }
}

async fn reset_password(server: &TestServer, user: &str, password: &str) {
    let reset = server.call("PUT", &format!("/users/{user}/password"));
    let reset = reset.json(&json!({"new_password": password})).send().await;
    reset.expect_status(204);
}

#[tokio::test]
async fn who_is_signed_out_meanwhile_makes_no_key_and_keeps_no_password() {
    let server = TestServer::start().await;
    let (ada, token) = server.member("ada").await;
    let key = Held::begin(
        &server,
        &token,
        ("POST", "/auth/keys"),
        &json!({"name": "k", "scope": "manage"}),
    )
    .await;
    let passwords = json!({"current_password": ADMIN_PASSWORD, "new_password": "mine again"});
    let password = Held::begin(&server, &token, ("PUT", "/users/me/password"), &passwords).await;
    reset_password(&server, &ada, "another").await;
    assert_eq!((key.finish().await, password.finish().await), (401, 401));
    let again = server.login("ada", "another").await;
    let keys = server.call_as(&again, "GET", "/auth/keys").send().await;
    assert_eq!(keys.expect_status(200).json()["items"], json!([]));
}

#[tokio::test]
async fn a_manager_who_is_removed_meanwhile_does_not_come_back() {
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let (ada, token) = server.member("ada").await;
    let path = format!("/bots/{bot}/members/{ada}");
    let manager = json!({"role": "manager"});
    let added = server.call("PUT", &path).json(&manager).send().await;
    added.expect_status(200);
    let held = Held::begin(&server, &token, ("PUT", &path), &manager).await;
    server.call("DELETE", &path).send().await.expect_status(204);
    assert_eq!(held.finish().await, 403);
    let members = server.call("GET", &format!("/bots/{bot}/members")).send().await;
    assert_eq!(members.expect_status(200).json()["items"], json!([]));
}

#[tokio::test]
async fn an_admin_who_is_none_any_more_does_not_become_one_again() {
    let server = TestServer::start().await;
    let (ada, token) = server.member("ada").await;
    let path = format!("/users/{ada}");
    let role = |role: &str| server.call("PUT", &path).json(&json!({"role": role})).send();
    role("admin").await.expect_status(200);
    let held = Held::begin(&server, &token, ("PUT", &path), &json!({"role": "admin"})).await;
    role("member").await.expect_status(200);
    assert_eq!(held.finish().await, 403);
    let user = server.call("GET", &path).send().await.expect_status(200).json();
    assert_eq!(text_of(&user, "role"), "member");
}
