//! Devices by CDI: who may have which, what is told before the stream, and what keeps them.

mod harness;

use harness::{LIMIT, World, admin, all, until};
use serde_json::json;
use skep_core::{BotChange, Code, CreateBot, CreateRequest, Outcome, Requester, WorkspaceStatus};
use skep_names::BotId;
use skep_runtime::Runtime;
use skep_store::{NewUser, UserRole};

const CARD: &str = "example.com/gpu=0";
const OTHER: &str = "example.com/gpu=1";

const SPECIFICATION: &str = "cdiVersion: 0.6.0\nkind: example.com/gpu\ndevices:\n\
    - {name: '0', containerEdits: {env: [CARD=0]}}\n\
    - {name: '1', containerEdits: {env: [CARD=1]}}\n";

fn offer(world: &World) {
    std::fs::write(world.runtime.cdi_directory().join("example.yaml"), SPECIFICATION).unwrap();
}

async fn offering() -> World {
    let world = World::with(|settings| settings.gpu_allow = vec![OTHER.to_owned()]).await;
    offer(&world);
    world
}

fn with(devices: &[&str]) -> CreateRequest {
    CreateRequest {
        gpu_devices: Some(devices.iter().map(|&device| device.to_owned()).collect()),
        ..CreateRequest::default()
    }
}

fn member() -> Requester {
    Requester {
        user_id: Some("member".to_owned()),
        may_manage: true,
        ..Requester::default()
    }
}

async fn create(world: &World, bot: &BotId, devices: &[&str]) -> Vec<String> {
    let create = world.skep.create_workspace(bot, with(devices), &admin()).await.unwrap();
    match create.outcome().await.unwrap() {
        Outcome::Workspace(workspace) => workspace.cdi_devices,
        other => panic!("a create that ends with {other:?}"),
    }
}

async fn refused(world: &World, bot: &BotId, (devices, requester): (&[&str], &Requester)) -> (Code, String) {
    let refused = world.skep.create_workspace(bot, with(devices), requester).await;
    let error = refused.expect_err("it is to be refused before the stream");
    (error.code(), error.to_string())
}

/// What the workspace says of the device it has.
async fn card(world: &World, bot: &BotId) -> String {
    let bridge = world.skep.usable_bridge(bot, None).await.unwrap();
    drop(bridge);
    let environment = world.read(bot, "/proc/1/environ").await;
    let found = environment.split('\0').find_map(|entry| entry.strip_prefix("CARD="));
    found.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn devices_are_tidied_given_and_remembered() {
    let world = offering().await;
    let bot = world.bot().await;
    let given = create(&world, &bot, &[" example.com/gpu=0 ", "", CARD]).await;
    assert_eq!(given, [CARD]);
    assert_eq!(card(&world, &bot).await, "0");
    assert_eq!(world.skep.workspace_info(&bot).await.unwrap().cdi_devices, [CARD]);
    let metadata = world.skep.bot(&bot).await.unwrap().row.metadata;
    assert_eq!(metadata["workspace"]["gpu"]["devices"], json!([CARD]));
}

#[tokio::test]
async fn an_unknown_device_is_refused_before_the_stream_with_what_there_is() {
    let world = offering().await;
    std::fs::write(world.runtime.cdi_directory().join("other.json"), "{").unwrap();
    let bot = world.bot().await;
    let (code, sentence) = refused(&world, &bot, (&[CARD, "nvidia.com/gpu=0"], &admin())).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        sentence.contains("no device nvidia.com/gpu=0; there are example.com/gpu=0, example.com/gpu=1"),
        "{sentence}"
    );
    // A broken specification of another vendor matters to nobody else.
    assert_eq!(create(&world, &bot, &[CARD]).await, [CARD]);
}

#[tokio::test]
async fn what_the_bot_remembers_is_given_and_a_present_empty_list_means_none() {
    let world = World::with(|settings| settings.gpu_allow = vec![CARD.to_owned()]).await;
    offer(&world);
    let bot = world.bot().await;
    create(&world, &bot, &[CARD]).await;
    delete(&world, &bot).await;
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    delete(&world, &bot).await;
    assert_eq!(create(&world, &bot, &[]).await, [""; 0]);
    assert_eq!(card(&world, &bot).await, "");
    delete(&world, &bot).await;
    world.create(&bot).await.outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "", "none was given and remembered");
}

async fn delete(world: &World, bot: &BotId) {
    let delete = world
        .skep
        .delete_workspace(bot, skep_core::DeleteData::Remove, &admin())
        .await
        .unwrap();
    delete.outcome().await.unwrap();
}

#[tokio::test]
async fn other_devices_for_a_workspace_are_refused_with_the_way() {
    let world = offering().await;
    let bot = world.bot().await;
    create(&world, &bot, &[CARD]).await;
    for other in [&[OTHER][..], &[CARD, OTHER], &[]] {
        let (code, sentence) = refused(&world, &bot, (other, &admin())).await;
        assert_eq!(code, Code::WorkspaceExists);
        assert!(
            sentence.contains("gpu") && sentence.contains("preserve_data=true"),
            "{sentence}"
        );
    }
    assert_eq!(create(&world, &bot, &[CARD]).await, [CARD]);
    assert_eq!(card(&world, &bot).await, "0");
}

#[tokio::test]
async fn members_may_use_what_is_allowed_and_administrators_all() {
    let world = offering().await;
    let bot = world.bot().await;
    let (code, sentence) = refused(&world, &bot, (&[OTHER, CARD], &member())).await;
    assert_eq!(code, Code::Forbidden);
    assert!(sentence.contains("gpu.allow") && sentence.contains(CARD), "{sentence}");
    let offered = |requester: Requester| {
        let skep = world.skep.clone();
        async move {
            let devices = skep.devices(&requester).await.unwrap();
            let pairs = devices.into_iter().map(|one| (one.device.name, one.allowed));
            pairs.collect::<Vec<_>>()
        }
    };
    let both = |first, second| vec![(CARD.to_owned(), first), (OTHER.to_owned(), second)];
    assert_eq!(offered(member()).await, both(false, true));
    assert_eq!(offered(admin()).await, both(true, true));
    let allowed = world.skep.create_workspace(&bot, with(&[OTHER]), &member()).await;
    allowed.unwrap().outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "1");
}

#[tokio::test]
async fn metadata_give_a_member_nothing_that_he_may_not_ask_for() {
    let world = offering().await;
    let metadata = json!({"workspace": {"gpu": {"devices": [CARD]}}});
    let new = CreateBot {
        owner_user_id: "member".to_owned(),
        display_name: "a bot".to_owned(),
        metadata: metadata.as_object().cloned(),
        ..CreateBot::default()
    };
    let (made, _) = world.skep.create_bot(new, &admin()).await.unwrap();
    let bot = made.row.id;
    let refused = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &member())
        .await;
    assert_eq!(refused.expect_err("not for members").code(), Code::Forbidden);
    // Nor does he give it unawares who may.
    let unawares = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &admin())
        .await;
    assert_eq!(unawares.expect_err("not for members").code(), Code::Forbidden);
    // An administrator may; then only the layer is left, and the server recovers it as what its owner may have.
    assert_eq!(create(&world, &bot, &[CARD]).await, [CARD]);
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    world.skep.store().delete_containers(&bot).await.unwrap();
    world.runtime.forget_container(&bot);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
    assert_eq!(card(&world, &bot).await, "");
}

#[tokio::test]
async fn whoever_may_create_gives_what_an_administrators_bot_remembers() {
    let world = offering().await;
    let owner = NewUser {
        id: "owner".to_owned(),
        username: "owner".to_owned(),
        email: None,
        password_hash: String::new(),
        role: UserRole::Admin,
        display_name: String::new(),
        avatar_url: None,
        timezone: None,
        is_active: true,
    };
    world.skep.store().insert_user(owner).await.unwrap();
    let bot = world.bot().await;
    create(&world, &bot, &[CARD]).await;
    delete(&world, &bot).await;
    let plain = world
        .skep
        .create_workspace(&bot, CreateRequest::default(), &member())
        .await;
    plain.unwrap().outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    // But he has it remember none that he may not ask for.
    let both = json!({"workspace": {"gpu": {"devices": [CARD, OTHER]}}});
    let change = |metadata: &serde_json::Value| BotChange {
        metadata: metadata.as_object().cloned(),
        ..BotChange::default()
    };
    world.skep.patch_bot(&bot, change(&both), &member()).await.unwrap();
    let none = json!({"workspace": {"gpu": null}});
    world.skep.patch_bot(&bot, change(&none), &member()).await.unwrap();
    let refused = world.skep.patch_bot(&bot, change(&both), &member()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Forbidden);
}

#[tokio::test]
async fn devices_outlive_stops_servers_versions_and_lost_records() {
    let mut world = offering().await;
    let bot = world.bot().await;
    create(&world, &bot, &[CARD]).await;
    world.stop(&bot).await.unwrap();
    world.start(&bot).await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    let taken = world.skep.take_snapshot(&bot, ("", ""), &admin()).await.unwrap();
    taken.outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    let back = world.skep.roll_back(&bot, 1, &admin()).await.unwrap();
    back.outcome().await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    world.restart_within(LIMIT).await;
    world.stop(&bot).await.unwrap();
    // The container is gone: the row knows.
    world.runtime.forget_container(&bot);
    world.start(&bot).await.unwrap();
    assert_eq!(card(&world, &bot).await, "0");
    // The row is gone: the container knows.
    world.skep.store().delete_containers(&bot).await.unwrap();
    world.restart_within(LIMIT).await;
    until(async || match world.skep.workspace_info(&bot).await {
        Ok(info) if info.status == WorkspaceStatus::Running => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(world.skep.workspace_info(&bot).await.unwrap().cdi_devices, [CARD]);
    assert_eq!(card(&world, &bot).await, "0");
}

#[tokio::test]
async fn a_device_that_is_gone_keeps_its_workspace_stopped_and_its_data() {
    let world = offering().await;
    let bot = world.bot().await;
    create(&world, &bot, &[CARD]).await;
    world.write(&bot, "/data/file", "kept").await;
    world.stop(&bot).await.unwrap();
    std::fs::remove_file(world.runtime.cdi_directory().join("example.yaml")).unwrap();
    let refused = world.start(&bot).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict);
    assert!(refused.to_string().contains(CARD), "{refused}");
    offer(&world);
    world.start(&bot).await.unwrap();
    assert_eq!(world.read(&bot, "/data/file").await, "kept");
}

#[tokio::test]
async fn a_backend_without_devices_says_so_and_gives_nothing_less() {
    let world = offering().await;
    let bot = world.bot().await;
    world.runtime.go_without_devices();
    let (code, sentence) = refused(&world, &bot, (&[CARD], &admin())).await;
    assert_eq!(code, Code::Unsupported);
    assert!(sentence.contains("fake"), "{sentence}");
    assert_eq!(
        world.skep.devices(&admin()).await.unwrap_err().code(),
        Code::Unsupported
    );
    assert!(!world.runtime.capabilities().gpu);
    let plain = all(&world.create(&bot).await).await;
    assert!(!plain.is_empty());
}
