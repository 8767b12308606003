//! WebSockets to the server.

use reqwest::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Client;
use crate::failure::{Failure, Result};

pub(crate) type Socket = WebSocketStream<reqwest::Upgraded>;

/// Opens a socket through the same HTTP client, so that TLS and credentials are the same.
pub(crate) async fn open_socket(client: &Client, path: &str, doing: &'static str) -> Result<Socket> {
    let request = client
        .upgrade_request(path)?
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key());
    let answer = client.send(request).await?;
    if answer.status().as_u16() != 101 {
        return Err(Failure::Unexpected {
            doing,
            what: format!("status {}", answer.status()),
        });
    }
    let upgraded = answer.upgrade().await.map_err(|error| client.not_reachable(error))?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}
