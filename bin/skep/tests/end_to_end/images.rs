//! Images that were made to do harm, or by somebody who did not think of us.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use skep_testkit::images::{Compression, Image, ImageBuilder, ImageFormat, Layer, busybox_layer};

use crate::installation::{Installation, OciRuntime};

fn image(layer: Layer) -> Image {
    with_settings(layer, &[])
}

fn with_settings(layer: Layer, settings: &[(&str, Value)]) -> Image {
    let builder = ImageBuilder::new(ImageFormat::Oci)
        .layer(busybox_layer(), Compression::Gzip)
        .layer(layer, Compression::Gzip);
    let builder = settings
        .iter()
        .fold(builder, |builder, (name, value)| builder.setting(name, value.clone()));
    builder.build()
}

/// The sentence a create of a new workspace ends with; nothing of it is left then.
async fn refusal(skep: &Installation, image: &str) -> String {
    let bot = skep.client.bot("refused").await;
    let events = skep.client.create(&bot, json!({"image": image})).await;
    let last = events.last().expect("a create tells something");
    assert_eq!(last["type"], "error", "{events:?}");
    let (status, _) = skep
        .client
        .call(Method::GET, &format!("/bots/{bot}/container"), None)
        .await;
    assert_eq!(status, reqwest::StatusCode::NOT_FOUND, "a half of it is left");
    skep.client.delete_bot(&bot).await;
    last["message"].as_str().expect("a sentence").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_data_is_a_directory_or_the_create_is_refused() {
    let skep = Installation::start(OciRuntime::Found).await;
    for (name, layer) in [
        ("file", Layer::new().file("data", 0o644, b"no directory")),
        ("dangling", Layer::new().symlink("data", "/nowhere/at/all")),
        ("loop", Layer::new().symlink("data", "data")),
    ] {
        let image = skep.push(&image(layer), &format!("test/data-{name}")).await;
        let sentence = refusal(&skep, &image).await;
        assert_eq!(
            sentence, "container start failed: the image has something at /data that is no directory",
            "{name}"
        );
    }
    let kept = Layer::new()
        .directory("data", 0o700)
        .file("data/from-image", 0o640, b"kept");
    let kept = skep.push(&image(kept), "test/data-kept").await;
    let bot = skep.client.workspace("kept", Some(&kept)).await;
    let seen = skep
        .client
        .output(&bot, "cat /data/from-image; stat -c ' %a' /data")
        .await;
    assert_eq!(seen, "kept 700\n", "the image's own content and mode are kept");
    for (name, target) in [("etc", "/etc"), ("root", "/"), ("above", "../../../../srv/../srv")] {
        let layer = Layer::new().directory("srv", 0o755).symlink("data", target);
        let image = skep.push(&image(layer), &format!("test/data-to-{name}")).await;
        let bot = skep.client.workspace(name, Some(&image)).await;
        let mark = format!("written-{bot}");
        skep.client
            .output(&bot, &format!("echo x > /data/{mark} && test -e {target}/{mark}"))
            .await;
        for outside in ["/", "/etc", "/srv"] {
            assert!(
                !Path::new(outside).join(&mark).exists(),
                "{outside} of the host was written"
            );
        }
        skep.client.delete_bot(&bot).await;
    }
    skep.client.delete_bot(&bot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_place_of_mounts_lead_nowhere_outside() {
    for runtime in [OciRuntime::Found, OciRuntime::Runc] {
        let skep = Installation::start(runtime).await;
        let outside = tempfile::TempDir::with_prefix("skep-outside-").expect("a directory");
        std::fs::create_dir(outside.path().join("memoh")).expect("a directory");
        let listed = || std::fs::read_dir(outside.path()).expect("listed").count();
        let up = format!("../../../../../../../..{}", outside.path().display());
        let file = format!("{up}/file");
        for (name, layer) in [
            ("opt", Layer::new().symlink("opt", &up)),
            (
                "opt-memoh",
                Layer::new().directory("opt", 0o755).symlink("opt/memoh", &up),
            ),
            ("run", Layer::new().symlink("run", &up)),
            (
                "run-memoh",
                Layer::new().directory("run", 0o755).symlink("run/memoh", &up),
            ),
            ("resolv", Layer::new().symlink("etc/resolv.conf", &file)),
            ("etc", Layer::new().whiteout("etc").symlink("etc", &up)),
            ("dev", Layer::new().symlink("dev", &up)),
            ("sys", Layer::new().symlink("sys", &up)),
            ("proc", Layer::new().symlink("proc", &up)),
            (
                "exec",
                Layer::new().directory("var/lib", 0o755).symlink("var/lib/skep", &up),
            ),
        ] {
            let image = skep.push(&image(layer), &format!("test/link-{name}")).await;
            let bot = skep.client.bot(name).await;
            let events = skep.client.create(&bot, json!({"image": image})).await;
            let last = events.last().expect("a create tells something");
            if last["type"] == "complete" {
                let detached = json!({"command": "echo x", "detach": true});
                let path = format!("/bots/{bot}/container/exec");
                skep.client.call(reqwest::Method::POST, &path, Some(detached)).await;
                skep.client
                    .exec(&bot, "echo x > /opt/memoh/x; echo x > /run/memoh/x; echo x > /etc/x")
                    .await;
            } else {
                let sentence = last["message"].as_str().expect("a sentence");
                assert!(sentence.starts_with("container start failed: "), "{name}: {sentence}");
            }
            skep.client.delete_bot(&bot).await;
            assert_eq!(listed(), 1, "{name} under {runtime:?} reached outside");
            let inner = std::fs::read_dir(outside.path().join("memoh")).expect("listed").count();
            assert_eq!(inner, 0, "{name} under {runtime:?} reached outside");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_images_configuration_is_obeyed_but_its_environment() {
    let skep = Installation::start(OciRuntime::Found).await;
    let mut environment: Vec<String> = (0..3000).map(|number| format!("FILLER_{number}=x")).collect();
    environment.push(format!("LONG={}", "x".repeat(100_000)));
    environment.extend(
        [
            "LD_PRELOAD=/evil.so",
            "BRIDGE_TCP_ADDR=0.0.0.0:9090",
            "HOME=/root",
            "=nothing",
            "GREETING=hello",
        ]
        .map(str::to_owned),
    );
    // What comes first is what is taken when there is too much.
    environment.rotate_right(6);
    let settings = [
        ("Env", json!(environment)),
        ("User", json!("nobody-of-that-name:no-group")),
        ("WorkingDir", json!("../../nowhere")),
        ("Entrypoint", json!(["/nonexistent", "--evil"])),
        ("Cmd", json!(["/bin/false"])),
        ("Volumes", json!({"/": {}, "/data": {}, "/opt/memoh": {}})),
        ("ExposedPorts", json!({"22/tcp": {}, "nonsense": {}})),
        ("StopSignal", json!("SIGKILL; reboot")),
        (
            "Healthcheck",
            json!({"Test": ["CMD-SHELL", "touch /healthcheck"], "Interval": 1}),
        ),
        ("OnBuild", json!(["RUN touch /onbuild"])),
        (
            "Hooks",
            json!({"prestart": [{"path": "/bin/touch", "args": ["touch", "/hook"]}]}),
        ),
        (
            "Labels",
            json!({"containerd.io/gc.expire": "2000-01-01T00:00:00Z", "skep.data_root": "x"}),
        ),
    ];
    let hostile = with_settings(Layer::new().file("evil.so", 0o755, b"no library"), &settings);
    let name = skep.push(&hostile, "test/settings").await;
    let bot = skep.client.workspace("settings", Some(&name)).await;
    let seen = skep
        .client
        .output(
            &bot,
            "id -u; pwd; echo $HOME $GREETING; ls / | grep -E 'healthcheck|onbuild|hook' | wc -l; env | wc -l",
        )
        .await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(&lines[..4], ["0", "/data", "/data hello", "0"]);
    let entries: usize = lines[4].parse().expect("a number");
    assert!(entries < 300, "{entries} variables of 3000 were taken");
    let first = skep
        .client
        .output(
            &bot,
            "tr '\\0' ' ' < /proc/1/cmdline; netstat -ltn | grep -c 9090; true",
        )
        .await;
    assert_eq!(
        first, "/opt/memoh/bridge 0\n",
        "process 1 is not the bridge, or it listens"
    );
    for (name, settings) in [("number", ("Env", json!(42))), ("numbers", ("Env", json!([1, 2])))] {
        let broken = with_settings(Layer::new(), &[settings]);
        let name = skep.push(&broken, &format!("test/env-{name}")).await;
        let sentence = refusal(&skep, &name).await;
        assert!(sentence.contains("the configuration cannot be read"), "{sentence}");
    }
    skep.client.delete_bot(&bot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_owners_that_no_workspace_has_are_told_and_are_nobodys() {
    let skep = Installation::start(OciRuntime::Found).await;
    let foreign = Layer::new()
        .owned_file("last", 0o644, (65_535, 65_535), b"kept")
        .owned_file("by-user", 0o644, (65_536, 0), b"kept")
        .owned_file("by-group", 0o644, (0, 100_000), b"kept");
    let image = image(foreign);
    let name = skep.push(&image, "test/foreign").await;
    let bot = skep.client.workspace("foreign", Some(&name)).await;
    let log = std::fs::read_to_string(skep.data_root().join("server.log")).expect("the server's log");
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("ids of 65536 or more"))
        .collect();
    let [told] = told[..] else {
        panic!("one layer has such files: {told:?}");
    };
    for part in ["WARN", &image.layers[1].digest, "files=2", "example=/by-"] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    let owners = skep
        .client
        .output(&bot, "stat -c '%n %u %g' /last /by-user /by-group")
        .await;
    assert_eq!(owners, "/last 65535 65535\n/by-user 65534 0\n/by-group 0 65534\n");
    for file in ["/by-user", "/by-group"] {
        for command in ["echo x >> $1", "rm -f $1", "mv $1 /moved"] {
            let command = command.replace("$1", file);
            let ended = skep.client.exec(&bot, &command).await;
            assert_ne!(ended.exit_code, 0, "{command}: {ended:?}");
        }
        assert_eq!(skep.client.output(&bot, &format!("cat {file}")).await, "kept");
    }
    skep.client
        .output(&bot, "echo x >> /last && chown 0:0 /last && rm /last")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_one_file_has_files_and_says_that_it_has_no_shell() {
    for runtime in [OciRuntime::Found, OciRuntime::Runc] {
        let skep = Installation::start(runtime).await;
        let builder = ImageBuilder::new(ImageFormat::Oci);
        let scratch = builder.layer(Layer::new().file("only", 0o644, b"this"), Compression::Gzip);
        let scratch = skep.push(&scratch.build(), "test/scratch").await;
        let bot = skep.client.workspace("scratch", Some(&scratch)).await;
        let path = |route: &str| format!("/bots/{bot}/container{route}");
        let written = json!({"path": "/data/below/file", "content": "text"});
        skep.client.good(Method::POST, &path("/fs/write"), Some(written)).await;
        skep.client.act(&bot, "restart").await;
        for (file, content) in [("/data/below/file", "text"), ("/only", "this")] {
            let read = path(&format!("/fs/read?path={file}"));
            assert_eq!(skep.client.good(Method::GET, &read, None).await["content"], content);
        }
        let (status, refused) = skep
            .client
            .call(Method::POST, &path("/exec"), Some(json!({"command": "true"})))
            .await;
        assert_eq!(
            (status.as_u16(), &refused["code"]),
            (400, &json!("exec_not_started")),
            "{refused}"
        );
    }
}
