//! The server over real HTTP: its conventions, who may do what, and that nothing a caller sends is
//! our failure. One binary, so that it is linked once.

mod access;
mod auth;
mod backups;
mod bots;
mod conventions;
mod document;
mod examples;
mod gpus;
mod held;
mod operations;
mod sentences;
mod tickets;
mod users;
mod workspace;

use std::time::{Duration, Instant};

use serde_json::Value;
use skep_testkit::server::TestServer;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// How long anything that is waited for may take, on a busy machine; less than the minute after which a server looks at
/// everything by itself.
const LIMIT: Duration = Duration::from_secs(50);

/// The server's store, as another program opens it. What holds it on a busy disk is waited for.
async fn database_of(server: &TestServer) -> SqliteConnection {
    let file = server.directory().join("data/skep.db");
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(LIMIT);
    SqliteConnection::connect_with(&options).await.expect("a connection")
}

/// Waits until so many lines of the audit trail are as wanted: a server that ends gives those that wait only a moment.
async fn until_in_trail(server: &TestServer, query: &str, count: usize, wanted: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    loop {
        let trail = server.call("GET", &format!("/audit{query}")).send().await;
        let trail = trail.expect_status(200).json();
        let items = trail["items"].as_array().expect("a list");
        if items.iter().filter(|line| wanted(line)).count() >= count {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "not {count} of {items:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
