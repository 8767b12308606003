//! A key typed in a terminal until it is shown, over the socket and by the bridge's own calls.

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::Result;
use crate::bridge::{Bridge, BridgeTerminal};
use crate::samples::{Goal, Row, Samples};
use crate::stage::Stage;

const ROUNDS: usize = 500;
/// Shows what is typed and nothing more: a shell would draw its line anew.
const SHOWS_KEYS: &[&str] = &["/bin/sh", "-c", "stty -icanon -echo; echo ready; exec cat"];

pub(crate) async fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let bot = stage.skep.bot().await?;
    stage.skep.create(&bot).await?;
    let bridge = Bridge::connect(stage.skep.bridge_socket(&bot)).await?;
    let mut window = Window::open(stage, &bot).await?;
    let mut bare = bridge.terminal("bench-terminal".to_owned(), SHOWS_KEYS).await?;
    window
        .type_keys(b"stty -icanon -echo; echo re''ady; exec cat\n")
        .await?;
    window.until_shown(b"ready\r\n").await?;
    bare.until_shown(b"ready\r\n").await?;
    let (mut ours, mut by_bridge) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        ours.time(window.echo(b"x")).await?;
        by_bridge.time(echo_of(&mut bare, b"x")).await?;
    }
    stage.skep.remove(&bot).await?;
    let beside = ("the bridge's gRPC calls", &by_bridge);
    Ok(vec![Row::times(
        "echo of a key in a terminal",
        &ours,
        beside,
        Goal::AtMost(2.0),
    )])
}

async fn echo_of(terminal: &mut BridgeTerminal, key: &'static [u8]) -> Result<()> {
    terminal.type_keys(key).await?;
    terminal.until_shown(key).await
}

struct Window(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Window {
    async fn open(stage: &Stage, bot: &str) -> Result<Self> {
        let request = stage
            .skep
            .socket_request(&format!("/bots/{bot}/container/terminal/ws"))?;
        Ok(Self(tokio_tungstenite::connect_async(request).await?.0))
    }

    async fn echo(&mut self, key: &'static [u8]) -> Result<()> {
        self.type_keys(key).await?;
        self.until_shown(key).await
    }

    async fn type_keys(&mut self, keys: &'static [u8]) -> Result<()> {
        Ok(self.0.send(Message::Binary(keys.into())).await?)
    }

    async fn until_shown(&mut self, text: &[u8]) -> Result<()> {
        let mut shown = Vec::new();
        while !shown.ends_with(text) {
            match self.0.next().await.ok_or("the terminal ended")?? {
                Message::Binary(piece) => shown.extend_from_slice(&piece),
                Message::Ping(_) | Message::Pong(_) => {}
                other => return Err(format!("the terminal answered {other:?}").into()),
            }
        }
        Ok(())
    }
}
