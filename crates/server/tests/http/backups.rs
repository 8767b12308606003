//! Preserved data over HTTP: what is answered, and to whom.

use serde_json::{Value, json};
use skep_testkit::server::{TestServer, text_of};

async fn write(server: &TestServer, bot: &str, content: &str) {
    let body = json!({"path": "/data/file", "content": content});
    let path = format!("/bots/{bot}/container/fs/write");
    server.call("POST", &path).json(&body).send().await.expect_status(200);
}

async fn read(server: &TestServer, bot: &str) -> Value {
    let path = format!("/bots/{bot}/container/fs/read?path=/data/file");
    server.call("GET", &path).send().await.expect_status(200).json()["content"].clone()
}

async fn preserve(server: &TestServer, bot: &str) {
    let path = format!("/bots/{bot}/container?preserve_data=true");
    server.call("DELETE", &path).send().await.expect_status(204);
}

async fn create(server: &TestServer, bot: &str, body: Value) -> Value {
    let call = server.call("POST", &format!("/bots/{bot}/container"));
    let answer = call.header("accept", "application/json").json(&body).send().await;
    answer.expect_status(200).json()
}

#[tokio::test]
async fn a_backup_is_listed_downloaded_put_back_and_removed() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    write(&server, &bot, "kept").await;
    preserve(&server, &bot).await;
    let listed = server
        .call("GET", &format!("/bots/{bot}/backups"))
        .send()
        .await
        .expect_status(200)
        .json();
    let item = listed["items"][0].clone();
    let name = text_of(&item, "name");
    assert_eq!(name, format!("{bot}.tar.gz"));
    assert_eq!((&item["entries"], &item["verified"]), (&json!(1), &json!(true)));
    assert_eq!(text_of(&item, "sha256").len(), 64);

    let path = format!("/bots/{bot}/backups/{name}");
    let answer = server.call("GET", &path).open().await;
    assert_eq!(answer.headers()["content-type"], "application/gzip");
    let disposition = format!("attachment; filename=\"{name}\"");
    assert_eq!(answer.headers()["content-disposition"], disposition.as_str());
    let bytes = answer.bytes().await.expect("the whole of it");
    assert_eq!(json!(bytes.len()), item["size_bytes"]);
    assert_eq!(&bytes[..2], [0x1f, 0x8b]);

    let created = create(&server, &bot, json!({"restore_data": false})).await;
    assert_eq!(
        (&created["data_restored"], &created["has_preserved_data"]),
        (&json!(false), &json!(true))
    );
    let restore = format!("/bots/{bot}/container/data/restore");
    let answer = server.call("POST", &restore).json(&json!({"name": name})).send().await;
    assert_eq!(answer.expect_status(200).json(), json!({"restored": true}));
    assert!(!answer.header("x-operation-id").is_empty());
    assert_eq!(read(&server, &bot).await, "kept");
    let other = "0".repeat(64);
    let body = json!({"name": name, "sha256": other});
    let answer = server.call("POST", &restore).json(&body).send().await;
    answer.expect_error(412, "precondition_failed");
    let delete = |digest: &str| {
        let call = server
            .call("DELETE", &path)
            .header("if-match", &format!("\"{digest}\""));
        call.send()
    };
    delete(&other).await.expect_error(412, "precondition_failed");
    delete(&text_of(&item, "sha256")).await.expect_status(204);
    server
        .call("DELETE", &path)
        .send()
        .await
        .expect_error(404, "backup_not_found");
    server
        .call("GET", &path)
        .send()
        .await
        .expect_error(404, "backup_not_found");
    let message = server
        .call("POST", &restore)
        .send()
        .await
        .expect_error(404, "backup_not_found");
    assert_eq!(message, "no preserved data found");
    let bad = json!({"mode": "sideways"});
    server
        .call("POST", &restore)
        .json(&bad)
        .send()
        .await
        .expect_error(400, "invalid_body");
}

#[tokio::test]
async fn names_of_nothing_and_of_other_bots_lead_nowhere() {
    let server = TestServer::start().await;
    let bot = server.bot_with_workspace().await;
    preserve(&server, &bot).await;
    let other = server.bare_bot(server.admin_key()).await;
    for name in [
        format!("{bot}.tar.gz"),
        format!("{other}.tar.gz"),
        "..%2Fadmin.key".to_owned(),
        "..%2F..%2Fetc%2Fshadow".to_owned(),
        format!(".{other}.partial"),
    ] {
        for method in ["GET", "DELETE"] {
            let path = format!("/bots/{other}/backups/{name}");
            server
                .call(method, &path)
                .send()
                .await
                .expect_error(404, "backup_not_found");
        }
    }
    assert_eq!(
        server.call("GET", &format!("/bots/{bot}/backups")).send().await.json()["items"][0]["verified"],
        true
    );
}

#[tokio::test]
async fn a_backup_of_a_bot_that_is_gone_is_its_owners_and_the_admins() {
    let server = TestServer::start().await;
    let (_, ada) = server.member("ada").await;
    let (_, bob) = server.member("bob").await;
    let bot = server.bare_bot(&ada).await;
    create(&server, &bot, json!({})).await;
    write(&server, &bot, "ada's").await;
    let path = format!("/bots/{bot}?preserve_data=true");
    let answer = server.call("DELETE", &path).send().await;
    let operation = answer.expect_status(202).header("x-operation-id").to_owned();
    let events = server
        .call("GET", &format!("/operations/{operation}/events"))
        .send()
        .await
        .events();
    assert_eq!(events.last().expect("an end")["type"], "complete", "{events:?}");

    let all = server.call("GET", "/backups").send().await.expect_status(200).json();
    let name = text_of(&all["items"][0], "name");
    assert_eq!(text_of(&all["items"][0], "bot_id"), bot);
    server
        .call_as(&ada, "GET", "/backups")
        .send()
        .await
        .expect_error(403, "forbidden");
    let at = format!("/bots/{bot}/backups/{name}");
    let refused = server.call_as(&ada, "GET", &at).send().await;
    refused.expect_error(404, "bot_not_found");
    server.call("GET", &at).send().await.expect_status(200);
    let listed = server.call("GET", &format!("/bots/{bot}/backups")).send().await;
    assert_eq!(text_of(&listed.expect_status(200).json()["items"][0], "name"), name);
    let body = json!({"display_name": "heir", "restore_backup": name});
    let ask_by = |who: &str, key: &str| {
        let call = server.call_as(who, "POST", "/bots?workspace=false").json(&body);
        call.header("idempotency-key", key).send()
    };
    let ask = |who: &str| ask_by(who, "the heir");
    ask(&bob).await.expect_error(404, "backup_not_found");
    let heir = ask(&ada).await.expect_status(201).json();
    let heir = text_of(&heir, "id");
    let created = create(&server, &heir, json!({})).await;
    assert_eq!(created["data_restored"], true);
    assert_eq!(read(&server, &heir).await, "ada's");
    // When it is gone, a repeat of the request gets the first answer all the same.
    std::fs::remove_file(server.directory().join("data/backups").join(&name)).unwrap();
    ask_by(&ada, "another heir").await.expect_error(404, "backup_not_found");
    let again = ask(&ada).await.expect_status(201).json();
    assert_eq!(text_of(&again, "id"), heir);
    let none = json!({"restore_backup": "none"});
    server
        .call("POST", "/bots")
        .json(&none)
        .send()
        .await
        .expect_error(404, "backup_not_found");
}

#[tokio::test]
async fn a_backup_of_a_bot_that_is_gone_is_removed_by_an_admin_alone() {
    let server = TestServer::start().await;
    let (_, ada) = server.member("ada").await;
    let gone = uuid::Uuid::new_v4().to_string();
    let name = format!("{gone}.tar.gz");
    let directory = server.directory().join("data/backups");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(&name), "kept").unwrap();
    let delete = |who: &str| {
        server
            .call_as(who, "DELETE", &format!("/bots/{gone}/backups/{name}"))
            .send()
    };
    delete(&ada).await.expect_error(404, "bot_not_found");
    assert!(directory.join(&name).exists());
    delete(server.admin_key()).await.expect_status(204);
    assert!(!directory.join(&name).exists());
    // Nothing is left of it.
    delete(server.admin_key()).await.expect_error(404, "bot_not_found");
}

#[tokio::test]
async fn a_backup_that_is_cut_short_while_it_is_downloaded_is_never_taken_for_whole() {
    const SIZE: u64 = 64 << 20;
    let server = TestServer::start().await;
    let bot = server.bare_bot(server.admin_key()).await;
    let name = format!("{bot}.tar.gz");
    let directory = server.directory().join("data/backups");
    std::fs::create_dir_all(&directory).unwrap();
    let file = std::fs::File::create(directory.join(&name)).unwrap();
    file.set_len(SIZE).unwrap();
    let mut answer = server.call("GET", &format!("/bots/{bot}/backups/{name}")).open().await;
    assert_eq!((answer.status().as_u16(), answer.content_length()), (200, Some(SIZE)));
    assert!(answer.chunk().await.unwrap().is_some());
    file.set_len(1).unwrap();
    let broke = loop {
        match answer.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broke, "it ended as if it were whole");
}
