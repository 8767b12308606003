//! What a workspace's own code sees, can do and must not do: with a Debian userland, under both OCI runtimes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::client::whole_answer;
use crate::installation::{Installation, OciRuntime};
use crate::model::amount;

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_userland_works_under_the_runtime_that_is_found() {
    a_debian_userland_works(OciRuntime::Found).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_userland_works_under_runc() {
    a_debian_userland_works(OciRuntime::Runc).await;
}

async fn a_debian_userland_works(runtime: OciRuntime) {
    let skep = Installation::start(runtime).await;
    let debian = skep.debian().await;
    let bot = skep.client.workspace("debian", Some(&debian)).await;

    let map = skep.client.output(&bot, "cat /proc/self/uid_map").await;
    let fields: Vec<u64> = map
        .split_whitespace()
        .map(|field| field.parse().expect("a number"))
        .collect();
    assert_eq!(
        (fields[0], fields[2]),
        (0, 65_536),
        "one range of 65,536 ids from 0: {map:?}"
    );
    assert!(fields[1] >= 0x1000_0000, "the host's root is not among them: {map:?}");

    packages_install(&skep, &bot).await;
    a_server_on_a_low_port_answers_from_the_host(&skep, &bot).await;
    owners_on_disk_are_those_seen_inside(&skep, &bot).await;
    a_file_without_a_size_is_downloaded_whole(&skep, &bot).await;
    what_is_forbidden_stays_forbidden(&skep, &bot).await;
}

async fn packages_install(skep: &Installation, bot: &str) {
    let install = "export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -yq --no-install-recommends git gcc libc6-dev python3-pip iputils-ping";
    skep.client.output_within(bot, install, 600).await;
    skep.client
        .output_within(
            bot,
            "pip install --break-system-packages -q six && python3 -c 'import six; print(six.__version__)'",
            300,
        )
        .await;
    let compiled = "cd /tmp && printf 'int main(){return 42;}' > a.c && gcc a.c -o a && ./a; echo $?";
    assert_eq!(skep.client.output_within(bot, compiled, 60).await, "42\n");
    let git = "cd /data && git init -q repo && cd repo && echo x > f && git add f && git -c user.name=a -c user.email=a@b commit -qm m && git rev-list --count HEAD";
    assert_eq!(skep.client.output(bot, git).await, "1\n");
    skep.client.output(bot, "ping -c1 -W2 127.0.0.1").await;
}

/// What agents do for themselves: a program in a language of theirs; in the long form a package of that language's own
/// registry, a build, and a browser.
#[tokio::test(flavor = "multi_thread")]
async fn what_agents_work_with_is_installed_and_works() {
    let skep = Installation::start(OciRuntime::Found).await;
    let debian = skep.debian().await;
    let bot = skep.client.workspace("agent", Some(&debian)).await;
    let all: [(&str, &str, &str); 4] = [
        ("nodejs", "node -p '6 * 7'", "42\n"),
        (
            "npm",
            // The registry's certificate may be by an authority that only this host's image knows.
            "cd /data && mkdir node && cd node && export npm_config_cafile=/etc/ssl/certs/ca-certificates.crt && \
             npm install --silent --no-fund --no-audit is-odd@3.0.1 && node -p 'require(\"is-odd\")(3)'",
            "true\n",
        ),
        (
            "cargo",
            "cd /data && cargo new --quiet --vcs none built && cd built && cargo run --quiet --release",
            "Hello, world!\n",
        ),
        (
            "chromium",
            "cd /data && echo '<p></p><script>document.querySelector(\"p\").textContent = 6 * 7</script>' > page.html && \
             chromium --headless --no-sandbox --disable-gpu --dump-dom file:///data/page.html 2>/dev/null | \
             grep -o '<p>.*</p>'",
            "<p>42</p>\n",
        ),
    ];
    skep.client.output_within(&bot, "apt-get update -q", 300).await;
    for (package, command, expected) in &all[..amount(1, all.len())] {
        let begun = Instant::now();
        let install = format!("DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends {package}");
        skep.client.output_within(&bot, &install, 1200).await;
        println!("{package} is installed after {:?}", begun.elapsed());
        let ran = skep.skep(&["exec", "agent", "--", "sh", "-c", command]);
        let (out, errors) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert_eq!((ran.status.code(), &*out), (Some(0), *expected), "{package}: {errors}");
        println!("{package} has done its work after {:?}", begun.elapsed());
    }
}

async fn a_server_on_a_low_port_answers_from_the_host(skep: &Installation, bot: &str) {
    let start = "cd /data && echo served > index.html && (setsid python3 -m http.server 80 >/dev/null 2>&1 &)";
    skep.client.output(bot, start).await;
    let address = skep.client.info(bot).await["ip"]
        .as_str()
        .expect("it has an address")
        .to_owned();
    let url = format!("http://{address}/index.html");
    for _ in 0..600 {
        if let Ok(answer) = skep_testkit::images::http_client().get(&url).send().await {
            assert_eq!(answer.text().await.expect("the answer is whole"), "served\n");
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing answered at {url}");
}

async fn a_file_without_a_size_is_downloaded_whole(skep: &Installation, bot: &str) {
    let path = format!("/bots/{bot}/container/fs/download?path=/proc/version");
    let got = whole_answer(skep.client.request(Method::GET, &path)).await;
    let (status, bytes) = got.expect("an answer");
    let wanted = skep.client.output(bot, "cat /proc/version").await;
    assert_eq!(
        (status, String::from_utf8_lossy(&bytes).as_ref()),
        (StatusCode::OK, wanted.as_str())
    );
}

async fn owners_on_disk_are_those_seen_inside(skep: &Installation, bot: &str) {
    skep.client
        .output(
            bot,
            "echo r > /data/by-root; echo u > /data/by-user; chown 1000:1001 /data/by-user",
        )
        .await;
    let snapshots = skep
        .containerd()
        .config()
        .root
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let layer = find_upper(&snapshots, "data/by-root");
    let root = std::fs::symlink_metadata(layer.join("data/by-root")).expect("it is in the layer");
    assert_eq!((root.uid(), root.gid()), (0, 0));
    let user = std::fs::symlink_metadata(layer.join("data/by-user")).expect("it is in the layer");
    assert_eq!((user.uid(), user.gid()), (1000, 1001));
}

fn find_upper(snapshots: &Path, file: &str) -> PathBuf {
    std::fs::read_dir(snapshots)
        .expect("the snapshotter has a directory")
        .flatten()
        .map(|entry| entry.path().join("fs"))
        .find(|layer| layer.join(file).symlink_metadata().is_ok())
        .expect("a layer on disk has the file")
}

async fn what_is_forbidden_stays_forbidden(skep: &Installation, bot: &str) {
    for command in [
        "mount -t tmpfs none /mnt",
        "unshare -U true",
        "unshare -n true",
        "mknod /tmp/disk b 254 0",
        "chown 65536 /data/by-root",
        "echo 1 > /proc/sys/kernel/sysrq",
        "touch /opt/memoh/x",
        "echo x > /etc/resolv.conf",
        "dmesg",
        "chroot / unshare -m true",
    ] {
        let ended = skep.client.exec(bot, command).await;
        assert_ne!(ended.exit_code, 0, "{command:?} is allowed inside: {ended:?}");
    }
    let status = skep.client.output(bot, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().nth(1).expect("it has a value").to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!(field("CapAmb:"), "0000000000000000");
    let info: Value = skep.client.info(bot).await;
    assert_eq!(info["isolation"]["user_namespace"], true, "{info}");
    assert_eq!(info["isolation"]["seccomp"], true, "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_reaches_neither_host_nor_neighbour() {
    let skep = Installation::start(OciRuntime::Found).await;
    let (one, two) = (
        skep.client.workspace("one", None).await,
        skep.client.workspace("two", None).await,
    );
    skep.client
        .output(&two, "(setsid nc -l -p 8000 -e echo reached >/dev/null 2>&1 &)")
        .await;
    let neighbour = skep.client.info(&two).await["ip"]
        .as_str()
        .expect("it has an address")
        .to_owned();
    let gateway = skep
        .client
        .output(&one, "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'")
        .await;
    let listener = std::net::TcpListener::bind((gateway.trim(), 0)).expect("the host listens on the gateway's address");
    let port = listener.local_addr().expect("it has an address").port();
    // The neighbour's server is there: the host reaches it, so a refusal below is the isolation's.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = std::net::TcpStream::connect((neighbour.as_str(), 8000)) {
        assert!(
            Instant::now() < deadline,
            "the host does not reach the workspace: {error}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    skep.client
        .output(&two, "(setsid nc -l -p 8001 -e echo reached >/dev/null 2>&1 &)")
        .await;
    for (what, address, port) in [
        ("the neighbour", neighbour.as_str(), 8001),
        ("the host", gateway.trim(), port),
        ("the metadata address", "169.254.169.254", 80),
    ] {
        let ended = skep
            .client
            .exec(&one, &format!("nc -w 2 {address} {port} </dev/null"))
            .await;
        assert_ne!(ended.exit_code, 0, "{what} is reached from a workspace: {ended:?}");
    }
}
