//! A real server on the fake runtime, for programs that try it from outside. Prints one line of JSON
//! (`url`, `admin_key`, and a bot with a running workspace), then runs until its standard input ends.

use serde_json::json;
use skep_testkit::server::TestServer;
use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    println!(
        "{}",
        json!({"url": server.url(), "admin_key": server.admin_key(), "bot_id": bot})
    );
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await?;
    server.stop().await;
    Ok(())
}
