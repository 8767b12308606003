//! The command line as a person has it: the program itself, against a real server on the fake runtime.

mod copies;
mod execs;
mod names;
mod progress;
mod setting;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sqlx::SqlitePool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use setting::{LIMIT, Setting, code, pass_environment, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_default_image_that_was_built_here_is_shown_as_what_is_in_force() {
    let setting = Setting::new().await;
    let shown = async || {
        let mut command = setting.command(&["-o", "json", "config", "show"]);
        command.env("SKEP_WORKSPACE__DATA_ROOT", setting.server.directory().join("data"));
        let output = run(command, String::new()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let row = rows.into_iter().find(|row| row["key"] == "workspace.default_image");
        row.expect("the key is shown")
    };
    assert_eq!(shown().await["from"], "default");
    let built = "skep.local/debian:bookworm".parse().expect("an image");
    setting.server.running().keep_default_image(&built).await.expect("kept");
    let row = shown().await;
    assert_eq!(row["value"], "skep.local/debian:bookworm");
    assert!(
        row["from"].as_str().is_some_and(|from| from.starts_with("built here")),
        "{row}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_made_used_and_deleted() {
    let setting = Setting::new().await;
    let id = setting
        .prints(&["create", "first", "-o", "name", "-e", "GREETING=hello"])
        .await
        .trim()
        .to_owned();
    assert_eq!(setting.prints(&["ls", "-o", "name"]).await, "first\n");
    let listed: Value = serde_json::from_str(&setting.prints(&["ls", "-o", "json"]).await).unwrap();
    assert_eq!(listed[0]["container"]["task_running"], true);
    let greeting = setting
        .prints(&["exec", "first", "--", "sh", "-c", "echo $GREETING"])
        .await;
    assert_eq!(greeting, "hello\n");
    // The beginning of its id is a name too.
    assert_eq!(setting.prints(&["exec", &id[..8], "--", "echo", "-n", "x"]).await, "x");
    let printed = setting.prints(&["metrics", "first"]).await;
    assert!(
        printed.starts_with("TIME ") && printed.lines().count() == 2,
        "{printed}"
    );
    let metrics: Value = serde_json::from_str(&setting.prints(&["metrics", "first", "-o", "json"]).await).unwrap();
    assert_eq!(metrics["status"]["task_running"], true);
    setting.prints(&["stop", "first"]).await;
    let printed = setting.prints(&["metrics", "first"]).await;
    assert!(
        printed.lines().nth(1).is_some_and(|line| line.starts_with("stopped")),
        "{printed}"
    );
    let refused = setting.run(&["exec", "first", "--", "true"]).await;
    assert_eq!(code(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stopped"));
    setting.prints(&["start", "first"]).await;
    setting.prints(&["bots", "rm", "--force", "first"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_metrics_go_on_until_the_bot_is_deleted() {
    let setting = Setting::new().await;
    setting.prints(&["create", "watched"]).await;
    let mut command = setting.command(&["metrics", "watched", "--watch", "--interval", "1s", "-o", "json"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("its output")).lines();
    let mut next = move || lines.next().map(|line| line.expect("a line"));
    let two = tokio::task::spawn_blocking(move || ([next(), next()], next));
    let (two, mut next) = tokio::time::timeout(LIMIT, two)
        .await
        .expect("in time")
        .expect("two samples");
    for sample in two {
        let sample: Value = serde_json::from_str(&sample.expect("it goes on")).expect("JSON");
        assert_eq!(sample["status"]["task_running"], true);
    }
    setting.prints(&["bots", "rm", "--force", "watched"]).await;
    let rest = tokio::task::spawn_blocking(move || while next().is_some() {});
    tokio::time::timeout(LIMIT, rest)
        .await
        .expect("it ends in time")
        .expect("its end");
    assert_eq!(
        watching.wait().expect("it ended").code(),
        Some(1),
        "the end was not what was asked for"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_those_of_the_command_or_of_the_failure() {
    let setting = Setting::new().await;
    setting.prints(&["create", "one"]).await;
    assert_eq!(
        code(&setting.run(&["exec", "one", "--", "sh", "-c", "exit 77"]).await),
        77
    );
    assert_eq!(
        code(&setting.run(&["exec", "one", "--", "sh", "-c", "kill -9 $$"]).await),
        137
    );
    assert_eq!(code(&setting.run(&["exec", "one", "--", "no-such-program"]).await), 1);
    assert_eq!(code(&setting.run(&["exec", "nobody", "--", "true"]).await), 3);
    assert_eq!(code(&setting.run(&["exec", "one"]).await), 2);
    assert_eq!(code(&setting.run(&["rm", "one"]).await), 2);
    let mut stranger = setting.command(&["ls"]);
    stranger.env("SKEP_TOKEN", "wrong");
    assert_eq!(code(&run(stranger, String::new()).await), 4);
    let mut nowhere = setting.command(&["ls"]);
    nowhere.env("SKEP_SERVER", "http://127.0.0.1:1");
    assert_eq!(code(&run(nowhere, String::new()).await), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_something_prints_one_json_document_when_asked_to() {
    let setting = Setting::new().await;
    let id = setting.prints(&["create", "box", "-o", "name"]).await;
    let json = async |arguments: &[&str]| {
        let printed = setting.prints(&[&["-o", "json"], arguments].concat()).await;
        serde_json::from_str::<Value>(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    };
    assert_eq!(json(&["files", "mkdir", "box:/data/a"]).await["path"], "/data/a");
    assert_eq!(
        json(&["files", "mv", "box:/data/a", "/data/b"]).await["moved_from"],
        "/data/a"
    );
    assert_eq!(json(&["files", "rm", "box:/data/b"]).await["deleted"], true);
    let exec = json(&["exec", "-d", "box", "--", "true"]).await;
    assert!(exec["exec_id"].is_string(), "{exec}");
    let key = json(&["keys", "create", "key"]).await["id"].clone();
    assert_eq!(json(&["keys", "rm", key.as_str().unwrap()]).await["id"], key);
    for _ in 0..2 {
        json(&["snapshot", "create", "box"]).await;
    }
    let gone = json(&["snapshot", "rm", "box", "1", "2"]).await;
    assert_eq!((&gone[0]["version"], &gone[1]["version"]), (&1.into(), &2.into()));
    json(&["rm", "box", "--preserve-data", "--force"]).await;
    let backup = setting.prints(&["backups", "ls", id.trim(), "-o", "name"]).await;
    let got = json(&["backups", "get", id.trim(), backup.trim(), "--to", "kept.tar"]).await;
    assert_eq!(got["file"], "kept.tar");
    assert_eq!(
        json(&["backups", "rm", id.trim(), backup.trim(), "--force"]).await["name"],
        backup.trim()
    );
    assert_eq!(json(&["config", "check", "--config", "/dev/null"]).await["valid"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_an_active_admin_starts_all_the_same() {
    let mut setting = Setting::new().await;
    setting.server.stop().await;
    let url = format!("sqlite://{}/data/skep.db", setting.server.directory().display());
    let database = SqlitePool::connect(&url).await.unwrap();
    sqlx::query("UPDATE users SET is_active = 0")
        .execute(&database)
        .await
        .unwrap();
    database.close().await;
    setting.server.restart().await;
    let refused = setting.run(&["ls"]).await;
    assert_eq!(code(&refused), 4, "{}", String::from_utf8_lossy(&refused.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused_and_shows_its_bot() {
    let setting = Setting::new().await;
    let id = setting
        .prints(&["bots", "create", "twin", "--no-workspace", "-o", "name"])
        .await;
    let refused = setting.run(&["create", "twin"]).await;
    assert_eq!(code(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains(id.trim()));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_reaches_a_command_and_its_end_too() {
    let setting = Setting::new().await;
    setting.prints(&["create", "pipe"]).await;
    let input = "line\n".repeat(100_000);
    let output = setting
        .run_with(&["exec", "-i", "pipe", "--", "wc", "-c"], &input)
        .await;
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), input.len().to_string());
    let early = setting
        .run_with(&["exec", "-i", "pipe", "--", "sh", "-c", "exit 5"], &input)
        .await;
    assert_eq!(code(&early), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_outputs_arrive_whole_and_apart() {
    let setting = Setting::new().await;
    setting.prints(&["create", "loud"]).await;
    let script = "i=0; while [ $i -lt 20000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done";
    let output = setting.run(&["exec", "loud", "--", "sh", "-c", script]).await;
    let expected = |word: &str| (0..20_000).map(|at| format!("{word}{at}\n")).collect::<String>();
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected("out"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected("err"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_directories_come_back_as_they_went() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let here = setting.home();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    std::fs::create_dir_all(here.join("tree/deep")).unwrap();
    std::fs::write(here.join("tree/deep/data"), &bytes).unwrap();
    std::os::unix::fs::symlink("deep/data", here.join("tree/link")).unwrap();
    setting.prints(&["cp", "tree/deep/data", "box:/data/one"]).await;
    setting.prints(&["cp", "box:/data/one", "one"]).await;
    assert!(std::fs::read(here.join("one")).unwrap() == bytes);
    setting.prints(&["cp", "tree", "box:/data/"]).await;
    setting.prints(&["cp", "box:/data/tree", "back"]).await;
    assert!(std::fs::read(here.join("back/deep/data")).unwrap() == bytes);
    assert_eq!(
        std::fs::read_link(here.join("back/link")).unwrap(),
        Path::new("deep/data")
    );
    let listed = setting.prints(&["files", "ls", "box:/data/tree", "-o", "name"]).await;
    assert_eq!(listed, "deep\nlink\n");
    assert_eq!(code(&setting.run(&["cp", "box:/data/none", "x"]).await), 3);
    assert_eq!(code(&setting.run(&["cp", "one", "two"]).await), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_walks_through_no_link_of_an_earlier_one_and_steers_no_terminal() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let here = setting.home();
    let script =
        r#"mkdir /data/out && cd /data/out && echo key > authorized_keys && mkfifo "$(printf 'a\033]52;c;eA==\007')""#;
    setting.prints(&["exec", "box", "--", "sh", "-c", script]).await;
    std::fs::create_dir_all(here.join("data")).unwrap();
    std::fs::create_dir(here.join("secrets")).unwrap();
    std::os::unix::fs::symlink("../secrets", here.join("data/out")).unwrap();
    let refused = setting.run(&["cp", "box:/data/out", "data"]).await;
    assert_eq!(code(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("data/out is a link"));
    assert_eq!(std::fs::read_dir(here.join("secrets")).unwrap().count(), 0);
    std::fs::remove_file(here.join("data/out")).unwrap();
    let copied = setting.run(&["cp", "box:/data/out", "data"]).await;
    let said = String::from_utf8_lossy(&copied.stderr);
    assert_eq!(code(&copied), 0, "{said}");
    assert!(
        said.contains("left out a\u{fffd}]52") && !said.contains('\u{1b}'),
        "{said:?}"
    );
    assert_eq!(std::fs::read(here.join("data/out/authorized_keys")).unwrap(), b"key\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_kept_for_its_server_alone() {
    let setting = Setting::new().await;
    let password = skep_testkit::server::ADMIN_PASSWORD;
    let mut login = setting.command(&["login", "-u", "admin", "--password-stdin"]);
    login.env_remove("SKEP_TOKEN");
    let output = run(login, format!("{password}\n")).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let kept = setting.home().join(".config/skep/login.json");
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&kept.metadata().unwrap()) & 0o777,
        0o600
    );
    let mut list = setting.command(&["bots", "ls"]);
    list.env_remove("SKEP_TOKEN");
    assert!(run(list, String::new()).await.status.success());
    let mut elsewhere = setting.command(&["bots", "ls"]);
    elsewhere
        .env_remove("SKEP_TOKEN")
        .env("SKEP_SERVER", "http://127.0.0.1:1");
    assert_eq!(code(&run(elsewhere, String::new()).await), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_can_be_watched_after_its_end() {
    let setting = Setting::new().await;
    setting.prints(&["create", "seen"]).await;
    let operations: Value = serde_json::from_str(&setting.prints(&["ops", "ls", "seen", "-o", "json"]).await).unwrap();
    let create = operations
        .as_array()
        .unwrap()
        .iter()
        .find(|operation| operation["kind"] == "create")
        .unwrap();
    let watched = setting
        .prints(&["ops", "watch", create["id"].as_str().unwrap(), "-o", "json"])
        .await;
    assert_eq!(serde_json::from_str::<Value>(&watched).unwrap()["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_images_and_operations_are_managed_by_name() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    setting.prints(&["files", "mkdir", "box:/data/dir/below"]).await;
    setting
        .prints(&["exec", "box", "--", "sh", "-c", "echo text > /data/old"])
        .await;
    setting.prints(&["files", "mv", "box:/data/old", "/data/new"]).await;
    assert_eq!(setting.prints(&["files", "cat", "box:new"]).await, "text\n");
    let listed = setting.prints(&["files", "ls", "box:/data", "-o", "name"]).await;
    assert!(
        listed.lines().any(|line| line.contains("new")) && !listed.contains("old"),
        "{listed}"
    );
    assert_eq!(code(&setting.run(&["files", "rm", "box:/data/dir"]).await), 1);
    setting.prints(&["files", "rm", "-r", "box:/data/dir"]).await;
    let missing = setting.run(&["files", "ls", "box:/data/dir"]).await;
    assert_eq!(code(&missing), 3, "{missing:?}");

    let images = setting.prints(&["images", "ls", "-o", "name"]).await;
    let image = images.trim();
    assert_eq!(images.lines().count(), 1, "{images}");
    assert_eq!(code(&setting.run(&["images", "rm", image]).await), 1, "it is in use");
    assert_eq!(code(&setting.run(&["images", "pull", "registry.test/none"]).await), 3);

    setting.prints(&["restart", "box"]).await;
    let inspected: Value = serde_json::from_str(&setting.prints(&["inspect", "box", "-o", "json"]).await).unwrap();
    assert!(inspected.to_string().contains("\"task_running\":true"), "{inspected}");
    let operations: Value = serde_json::from_str(&setting.prints(&["ops", "ls", "box", "-o", "json"]).await).unwrap();
    let kinds: Vec<_> = operations
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["kind"])
        .collect();
    assert_eq!(kinds, ["restart", "create"]);

    setting.prints(&["rm", "--force", "box"]).await;
    assert_eq!(code(&setting.run(&["exec", "box", "--", "true"]).await), 3);
    // The next workspace is made from it.
    setting.prints(&["images", "prune"]).await;
    assert_eq!(setting.prints(&["images", "ls", "-o", "name"]).await, images);
    setting.prints(&["images", "rm", image]).await;
    assert_eq!(setting.prints(&["images", "ls", "-o", "name"]).await, "");
    setting.prints(&["bots", "rm", "--force", "box"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_made_with_a_device_of_the_list() {
    let setting = Setting::new().await;
    assert_eq!(setting.prints(&["gpus", "-o", "name"]).await, "");
    let specification = "cdiVersion: 0.6.0\nkind: example.com/gpu\ndevices:\n\
        - {name: '0', containerEdits: {env: [FIRST=0]}}\n- {name: '1', containerEdits: {env: [SECOND=1]}}\n";
    let file = setting.server.runtime().cdi_directory().join("example.yaml");
    std::fs::write(file, specification).expect("write a specification");
    let (first, second) = ("example.com/gpu=0", "example.com/gpu=1");
    let names = setting.prints(&["gpus", "-o", "name"]).await;
    assert_eq!(names, format!("{first}\n{second}\n"));
    let table = setting.prints(&["gpus"]).await;
    assert!(table.contains("ALLOWED") && table.contains("true"), "{table}");
    let refused = setting.run(&["create", "other", "--gpu", "nvidia.com/gpu=0"]).await;
    assert_eq!(code(&refused), 1, "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains(&format!("there are {first}, {second}")), "{told}");
    let both = format!("{first},{second}");
    setting.prints(&["create", "box", "--gpu", &both]).await;
    let seen = setting
        .prints(&["exec", "box", "--", "sh", "-c", "echo $FIRST $SECOND"])
        .await;
    assert_eq!(seen, "0 1\n");
    let inspected: Value = serde_json::from_str(&setting.prints(&["inspect", "box", "-o", "json"]).await).unwrap();
    assert!(
        inspected.to_string().contains(&format!("[\"{first}\",\"{second}\"]")),
        "{inspected}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_and_keys_are_made_used_and_taken_back() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let made = setting
        .run_with(&["users", "create", "ada"], "the password of ada\n")
        .await;
    assert_eq!(code(&made), 0, "{made:?}");
    assert!(setting.prints(&["users", "ls"]).await.contains("ada"));
    setting.prints(&["users", "disable", "ada"]).await;
    let mut login = setting.command(&["login", "-u", "ada", "--password-stdin"]);
    login.env_remove("SKEP_TOKEN");
    let refused = run(login, "the password of ada\n".to_owned()).await;
    assert_eq!(code(&refused), 4, "{refused:?}");

    let make = [
        "keys", "create", "looks", "--scope", "read", "--bot", "box", "-o", "json",
    ];
    let key: Value = serde_json::from_str(&setting.prints(&make).await).unwrap();
    let with_key = |arguments: &[&str]| {
        let mut command = setting.command(arguments);
        command.env("SKEP_TOKEN", key["key"].as_str().expect("it is shown once"));
        run(command, String::new())
    };
    assert_eq!(code(&with_key(&["inspect", "box"]).await), 0);
    let refused = with_key(&["stop", "box"]).await;
    assert_eq!(code(&refused), 4, "{refused:?}");
    let id = key["id"].as_str().expect("it has an id");
    assert!(setting.prints(&["keys", "ls"]).await.contains(id));
    setting.prints(&["keys", "rm", id]).await;
    assert_eq!(code(&with_key(&["inspect", "box"]).await), 4);

    let nobody_there = {
        let mut command = setting.command(&["ls"]);
        command.env("SKEP_SERVER", "http://127.0.0.1:9");
        run(command, String::new()).await
    };
    assert_eq!(code(&nobody_there), 5, "{nobody_there:?}");
}

/// What `skep` does at a terminal of its own, which `script` makes.
async fn at_a_terminal(setting: &Setting, line: &str, typed: &str) -> (i32, String) {
    let mut command = setting.command(&[]);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut script = Command::new("script");
    script.args([
        "-q",
        "-e",
        "-c",
        &format!("stty rows 33 cols 99; {program} {line}"),
        "/dev/null",
    ]);
    pass_environment(&command, &mut script);
    command = script;
    let output = run(command, typed.to_owned()).await;
    (code(&output), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_handed_through_with_its_size_and_its_end() {
    let setting = Setting::new().await;
    setting.prints(&["create", "box"]).await;
    let (ended, shown) = at_a_terminal(&setting, "exec -it box -- sh -c 'stty size; exit 5'", "").await;
    assert_eq!(ended, 5, "{shown}");
    assert!(shown.contains("33 99"), "{shown}");
    let (ended, shown) = at_a_terminal(&setting, "shell box", "echo in-$((40 + 2)); exit 3\n").await;
    assert_eq!(ended, 3, "{shown}");
    assert!(shown.contains("in-42"), "{shown}");
    let without = setting.run(&["shell", "box"]).await;
    assert_eq!(code(&without), 2, "{without:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_a_workspace_is_reached_from_here_until_ctrl_c() {
    let setting = Setting::new().await;
    setting.prints(&["create", "porter"]).await;
    // The fake runtime's workspaces share the loopback of the tests.
    let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let remote = inside.local_addr().expect("an address").port();
    let mut command = setting.command(&["port-forward", "porter", &format!(":{remote}")]);
    let mut forwarding = command.stdout(Stdio::piped()).spawn().expect("the program");
    let stdout = forwarding.stdout.take().expect("its output");
    let (line, mut forwarding) = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        (line, forwarding)
    })
    .await
    .expect("a line");
    let (here, there) = line.trim().split_once(" -> ").expect("where it listens");
    assert_eq!(there, format!("porter:{remote}"));
    let mut from = tokio::net::TcpStream::connect(here).await.expect("it listens");
    let (mut to, _) = inside.accept().await.expect("it came through");
    from.write_all(b"question").await.expect("sent");
    from.shutdown().await.expect("ended");
    let mut got = Vec::new();
    to.read_to_end(&mut got).await.expect("read");
    to.write_all(b"answer").await.expect("sent");
    drop(to);
    let mut answered = Vec::new();
    from.read_to_end(&mut answered).await.expect("read");
    assert_eq!((&got[..], &answered[..]), (&b"question"[..], &b"answer"[..]));
    drop(inside);
    let mut refused = tokio::net::TcpStream::connect(here).await.expect("it listens");
    let reset = refused
        .read(&mut [0])
        .await
        .expect_err("nothing listens there any more");
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let process = rustix::process::Pid::from_child(&forwarding);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("it runs");
    let status = tokio::task::spawn_blocking(move || forwarding.wait()).await;
    assert!(status.expect("waited for").expect("its end").success());
}

#[tokio::test]
async fn down_goes_on_when_nobody_reads_along() {
    let home = tempfile::tempdir().expect("a directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command
        .arg("down")
        .env("HOME", home.path())
        .env("SKEP_WORKSPACE__DATA_ROOT", home.path().join("none"))
        .current_dir(home.path())
        .stdout(writer);
    let status = tokio::task::spawn_blocking(move || command.status())
        .await
        .expect("it is waited for")
        .expect("skep runs");
    assert_eq!(status.code(), Some(0));
}
