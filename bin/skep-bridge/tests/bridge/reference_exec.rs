//! `Exec` of the reference's service.

use crate::calls::{command, run};
use crate::workspace::Workspace;

#[tokio::test]
async fn exit_codes_are_those_of_the_process() {
    let workspace = Workspace::start().await;
    let client = workspace.reference().await;
    for (text, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        assert_eq!(run(&client, command(text)).await.exit_code, code, "{text}");
    }
}
