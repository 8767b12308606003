//! Users, keys, tickets and the audit trail, on a real database.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use chrono::{TimeDelta, Utc};
use skep_store::{
    AuditFilter, NewApiKey, NewAudit, NewTicket, NewUser, Scope, Store, StoreError, TicketPurpose, UserRole, UserUpdate,
};

struct Fixture {
    store: Store,
    _directory: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("skep.db")).await.unwrap();
    Fixture {
        store,
        _directory: directory,
    }
}

fn user(id: &str, username: &str, email: Option<&str>) -> NewUser {
    NewUser {
        id: id.into(),
        username: username.into(),
        email: email.map(str::to_owned),
        password_hash: "$argon2id$".into(),
        role: UserRole::Member,
        display_name: username.into(),
        avatar_url: None,
        timezone: None,
        is_active: true,
    }
}

#[tokio::test]
async fn the_database_is_its_owners_alone_from_the_start_and_after_an_older_release() {
    let directory = tempfile::tempdir().unwrap();
    let modes = || {
        ["skep.db", "skep.db-wal", "skep.db-shm"].map(|name| {
            let file = directory.path().join(name);
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777
        })
    };
    let file = directory.path().join("skep.db");
    let store = Store::open(&file).await.unwrap();
    assert_eq!(modes(), [0o600; 3]);
    store.close().await;
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let again = Store::open(&file).await.unwrap();
    assert_eq!(modes(), [0o600; 3]);
    again.close().await;
}

#[tokio::test]
async fn names_and_addresses_are_unique_in_any_case() {
    let fixture = fixture().await;
    fixture
        .store
        .insert_user(user("1", "Ada", Some("ada@example.org")))
        .await
        .unwrap();
    for other in [user("2", "ADA", None), user("3", "bob", Some("ADA@example.org"))] {
        let refused = fixture.store.insert_user(other).await;
        assert!(matches!(refused, Err(StoreError::Exists { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_login_is_a_name_before_it_is_an_address() {
    let fixture = fixture().await;
    fixture
        .store
        .insert_user(user("1", "ada", Some("x@example.org")))
        .await
        .unwrap();
    fixture
        .store
        .insert_user(user("2", "x@example.org", None))
        .await
        .unwrap();
    for (login, id) in [("ADA", "1"), ("x@example.org", "2")] {
        let found = fixture.store.user_by_login(login).await.unwrap();
        assert_eq!(found.map(|user| user.id).as_deref(), Some(id), "{login}");
    }
    assert!(fixture.store.user_by_login("nobody").await.unwrap().is_none());
}

#[tokio::test]
async fn an_update_changes_only_what_it_names() {
    let fixture = fixture().await;
    let before = fixture
        .store
        .insert_user(user("1", "ada", Some("a@example.org")))
        .await
        .unwrap();
    let update = UserUpdate {
        timezone: Some(Some("Europe/London".into())),
        ..UserUpdate::default()
    };
    let after = fixture.store.update_user("1", update).await.unwrap().unwrap();
    assert_eq!(after.timezone.as_deref(), Some("Europe/London"));
    assert_eq!(
        (after.email, after.display_name, after.role),
        (before.email, before.display_name, before.role)
    );
    assert!(
        fixture
            .store
            .update_user("2", UserUpdate::default())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_revoked_token_is_told_with_its_user() {
    let fixture = fixture().await;
    fixture.store.insert_user(user("1", "ada", None)).await.unwrap();
    let expires_at = Utc::now() + TimeDelta::hours(1);
    fixture.store.revoke_token("gone", expires_at).await.unwrap();
    fixture.store.revoke_token("gone", expires_at).await.unwrap();
    let is_revoked = async |jti: &str, generation| {
        let found = fixture.store.token_user("1", jti, generation).await.unwrap();
        found.unwrap().revoked
    };
    assert!(is_revoked("gone", 0).await && !is_revoked("other", 0).await && !is_revoked("third", 0).await);
    // In the place of one that it is not: nothing is changed.
    let other = fixture.store.set_user_password(("1", Some("stale")), "hash", None);
    assert!(!other.await.unwrap() && !is_revoked("third", 0).await);
    // Another password ends all but the one that is named.
    assert!(
        fixture
            .store
            .set_user_password(("1", None), "hash", Some("other"))
            .await
            .unwrap()
    );
    assert!(is_revoked("third", 0).await && !is_revoked("other", 0).await && !is_revoked("new", 1).await);
    assert!(
        fixture
            .store
            .set_user_password(("1", None), "hash", None)
            .await
            .unwrap()
    );
    assert!(is_revoked("other", 0).await && is_revoked("new", 1).await && !is_revoked("newer", 2).await);
    assert!(is_revoked("gone", 2).await);
}

#[tokio::test]
async fn a_ticket_is_taken_once_and_only_for_its_use() {
    let fixture = fixture().await;
    fixture.store.insert_user(user("1", "ada", None)).await.unwrap();
    let ticket = |name: &str, seconds| NewTicket {
        ticket_sha256: name.into(),
        user_id: "1".into(),
        bot_id: "b".into(),
        purpose: TicketPurpose::Terminal,
        scope: Scope::Operate,
        expires_at: Utc::now() + TimeDelta::seconds(seconds),
    };
    fixture.store.insert_ticket(ticket("good", 30)).await.unwrap();
    fixture.store.insert_ticket(ticket("late", -1)).await.unwrap();
    let take = |name: &'static str, purpose| fixture.store.take_ticket(name, purpose);
    assert!(take("good", TicketPurpose::Download).await.unwrap().is_none());
    assert!(take("late", TicketPurpose::Terminal).await.unwrap().is_none());
    assert_eq!(
        take("good", TicketPurpose::Terminal).await.unwrap().unwrap().bot_id,
        "b"
    );
    assert!(take("good", TicketPurpose::Terminal).await.unwrap().is_none());
}

/// Of user 1, found by `digest`.
async fn with_a_key() -> Fixture {
    let fixture = fixture().await;
    fixture.store.insert_user(user("1", "ada", None)).await.unwrap();
    let key = NewApiKey {
        id: "k".into(),
        user_id: "1".into(),
        name: "ci".into(),
        key_sha256: "digest".into(),
        scope: Scope::Read,
        bots: Some(vec!["b".into()]),
        expires_at: None,
    };
    fixture.store.insert_api_key(key).await.unwrap();
    fixture
}

#[tokio::test]
async fn a_key_is_found_by_its_digest_and_removed_by_its_owner_only() {
    let fixture = with_a_key().await;
    let (key, owner) = fixture.store.api_key("digest").await.unwrap().unwrap();
    assert_eq!((key.bots, owner.id.as_str()), (Some(vec!["b".to_owned()]), "1"));
    assert!(!fixture.store.delete_api_key("2", "k").await.unwrap());
    assert!(fixture.store.delete_api_key("1", "k").await.unwrap());
    assert!(fixture.store.api_key("digest").await.unwrap().is_none());
}

#[tokio::test]
async fn the_use_of_a_key_is_noted_once_a_minute_however_many_use_it_at_once() {
    let fixture = with_a_key().await;
    let used = async || fixture.store.api_key("digest").await.unwrap().unwrap().0;
    let unused = used().await;
    fixture.store.note_key_used(&unused).await.unwrap();
    let first = used().await;
    assert!(first.last_used_at.is_some());
    // Another call that read the key before it was noted.
    fixture.store.note_key_used(&unused).await.unwrap();
    assert_eq!(used().await.last_used_at, first.last_used_at);
}

#[tokio::test]
async fn the_audit_trail_is_paged_newest_first() {
    let fixture = fixture().await;
    let line = |n: usize| NewAudit {
        at: Utc::now(),
        user_id: "1".into(),
        action: format!("a{n}"),
        bot_id: n.is_multiple_of(2).then(|| "b".to_owned()),
        address: "127.0.0.1".into(),
        outcome: "200".into(),
        request_id: "r".into(),
    };
    fixture
        .store
        .append_audit(&(0..5).map(line).collect::<Vec<_>>())
        .await
        .unwrap();
    let first = fixture.store.audit(&AuditFilter::default(), None, 3).await.unwrap();
    let rest = fixture
        .store
        .audit(&AuditFilter::default(), first.next_before, 3)
        .await
        .unwrap();
    let actions: Vec<_> = first
        .rows
        .iter()
        .chain(&rest.rows)
        .map(|row| row.line.action.clone())
        .collect();
    assert_eq!(actions, ["a4", "a3", "a2", "a1", "a0"]);
    assert_eq!(rest.next_before, None);
    let of_bot = AuditFilter {
        bot_id: Some("b".into()),
        user_id: None,
    };
    assert_eq!(fixture.store.audit(&of_bot, None, 9).await.unwrap().rows.len(), 3);
}

#[tokio::test]
async fn the_last_active_admin_stays_one_whoever_asks() {
    let fixture = fixture().await;
    for (id, name) in [("1", "ada"), ("2", "bob")] {
        let admin = NewUser {
            role: UserRole::Admin,
            ..user(id, name, None)
        };
        fixture.store.insert_user(admin).await.unwrap();
    }
    let inactive = UserUpdate {
        is_active: Some(false),
        ..UserUpdate::default()
    };
    let member = UserUpdate {
        role: Some(UserRole::Member),
        ..UserUpdate::default()
    };
    let first = fixture.store.update_user("1", inactive.clone()).await.unwrap();
    assert!(!first.unwrap().is_active);
    for change in [inactive.clone(), member] {
        assert_eq!(fixture.store.update_user("2", change).await.unwrap(), None);
    }
    let left = fixture.store.user("2").await.unwrap().unwrap();
    assert!(left.is_active && left.role == UserRole::Admin, "{left:?}");
    // Who is none already may be changed.
    assert!(fixture.store.update_user("1", inactive).await.unwrap().is_some());
}
