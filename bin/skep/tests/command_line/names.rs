//! What a person calls a bot, where several users have some.

use std::process::Output;

use serde_json::json;

use super::setting::{Setting, code, run};

/// A bot of whoever has this token, shared with the user `shared_with`: its id.
async fn bot(setting: &Setting, token: &str, name: &str, shared_with: Option<&str>) -> String {
    let server = &setting.server;
    let call = server.call_as(token, "POST", "/bots?workspace=false");
    let made = call.json(&json!({"display_name": name})).send().await;
    let id = made.expect_status(201).json()["id"].as_str().expect("an id").to_owned();
    if let Some(user) = shared_with {
        let call = server.call_as(token, "PUT", &format!("/bots/{id}/members/{user}"));
        call.json(&json!({"role": "manager"})).send().await.expect_status(200);
    }
    id
}

/// What is said when bots of these ids are meant by one name.
fn assert_ambiguous(output: &Output, ids: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(output), 2, "{said}");
    assert!(ids.iter().all(|id| said.contains(id)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_that_is_shared_with_an_administrator_takes_the_place_of_no_other() {
    let setting = Setting::new().await;
    let me = setting.server.call("GET", "/users/me").send().await.json();
    let me = me["id"].as_str().expect("an id");
    let (_, ada) = setting.server.member("ada").await;
    let (_, mallory) = setting.server.member("mallory").await;
    let hers = bot(&setting, &ada, "prod", None).await;
    let named = bot(&setting, &mallory, "prod", Some(me)).await;
    let begun = bot(&setting, &mallory, &hers[..35], Some(me)).await;
    let alone = bot(&setting, &mallory, "alone", Some(me)).await;
    assert_ambiguous(&setting.run(&["bots", "rm", "--force", "prod"]).await, &[&hers, &named]);
    let refused = setting.run(&["bots", "rm", "--force", &hers[..35]]).await;
    assert_ambiguous(&refused, &[&hers, &begun]);
    // One of our own goes before all of them.
    let own = bot(&setting, setting.server.admin_key(), "prod", None).await;
    for (name, id) in [("prod", &own), ("alone", &alone), (&hers[..], &hers)] {
        let removed = setting.prints(&["bots", "rm", "--force", name, "-o", "name"]).await;
        assert_eq!(removed.trim(), id);
    }
    for id in [&named, &begun] {
        let shown = setting.server.call("GET", &format!("/bots/{id}")).send().await;
        assert_ne!(shown.expect_status(200).json()["status"], "deleting");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_means_a_shared_bot_by_its_name() {
    let setting = Setting::new().await;
    let (id, ada) = setting.server.member("ada").await;
    let (_, other) = setting.server.member("other").await;
    bot(&setting, &other, "shared", Some(&id)).await;
    let shared = async |name: &str| {
        let mut command = setting.command(&["bots", "rm", "--force", name]);
        command.env("SKEP_TOKEN", &ada);
        code(&run(command, String::new()).await)
    };
    assert_eq!(shared("none").await, 3);
    assert_eq!(shared("shared").await, 0);
}
