//! A terminal as a web page has it: xterm.js in a headless Chromium, signed in by a ticket.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use futures::{SinkExt, StreamExt};
use reqwest::Method;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::installation::{Installation, OciRuntime};

const LIMIT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Put there by `scripts/install test`.
const XTERM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/xterm/package");
const PAGE: &str = include_str!("browser.html");

/// A page with a terminal, on an address of its own.
struct Site {
    origin: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Site {
    async fn start() -> Self {
        let file = |name: &str| {
            let path = PathBuf::from(XTERM).join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let (script, style) = (file("lib/xterm.js"), file("css/xterm.css"));
        let site = Router::new()
            .route("/", get(async || Html(PAGE)))
            .route("/xterm.js", get(async move || script.clone()))
            .route(
                "/xterm.css",
                get(async move || ([("content-type", "text/css")], style.clone())),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let origin = format!("http://{}", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move { axum::serve(listener, site).await.expect("it serves") });
        Self { origin, serving }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A Chromium of our own; it ends with this.
struct Chromium {
    process: Child,
    profile: TempDir,
}

/// A page in it, driven by its debugging protocol.
struct Browser {
    _chromium: Chromium,
    page: WebSocketStream<MaybeTlsStream<TcpStream>>,
    calls: u64,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a directory can be made");
        let process = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            // What it leaves there goes with the profile.
            .env("TMPDIR", profile.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("chromium is needed");
        let chromium = Chromium { process, profile };
        let address = debugging_address(chromium.profile.path()).await;
        let page = page_socket(&address, url).await;
        let (page, _) = tokio_tungstenite::connect_async(page)
            .await
            .expect("the page can be driven");
        Self {
            _chromium: chromium,
            page,
            calls: 0,
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({"id": self.calls, "method": method, "params": params});
        self.page
            .send(Message::Text(call.to_string().into()))
            .await
            .expect("the browser lives");
        loop {
            let message = tokio::time::timeout(LIMIT, self.page.next())
                .await
                .expect("the browser answers");
            let message = message.expect("the browser lives").expect("the browser lives");
            let Message::Text(text) = message else { continue };
            let answer: Value = serde_json::from_str(&text).expect("it speaks JSON");
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// What a line of the page's own script comes to.
    async fn value_of(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", params).await;
        assert!(answer.get("exceptionDetails").is_none(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// As keys, one after the other.
    async fn type_keys(&mut self, text: &str) {
        for key in text.chars() {
            let name = match key {
                '\r' => "Enter".to_owned(),
                '\u{1b}' => "Escape".to_owned(),
                key => key.to_string(),
            };
            let code = match key {
                '\r' => 13,
                '\u{1b}' => 27,
                _ => 0,
            };
            let mut press = json!({"type": "keyDown", "key": name, "windowsVirtualKeyCode": code});
            if key != '\u{1b}' {
                press["text"] = json!(key.to_string());
            }
            self.call("Input.dispatchKeyEvent", press).await;
            let release = json!({"type": "keyUp", "key": name, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", release).await;
        }
    }

    async fn until(&mut self, script: &str) {
        let deadline = Instant::now() + LIMIT;
        while self.value_of(script).await != json!(true) {
            if Instant::now() > deadline {
                let shown = self.value_of("shown()").await;
                panic!(
                    "not so: {script}; the terminal shows\n{}",
                    shown.as_str().unwrap_or_default()
                );
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn until_shown(&mut self, text: &str) {
        self.until(&format!("shown().includes({})", json!(text))).await;
    }

    async fn connect(&mut self, skep: &Installation, bot: &str) {
        let ticket = json!({"bot_id": bot, "use": "terminal"});
        let ticket = skep.client.good(Method::POST, "/auth/tickets", Some(ticket)).await;
        let url = format!(
            "{}/bots/{bot}/container/terminal/ws?session=page&cols=100&rows=30&ticket={}",
            skep.client.url.replace("http://", "ws://"),
            ticket["ticket"].as_str().expect("a ticket")
        );
        assert_eq!(self.value_of(&format!("connect({})", json!(url))).await, json!("open"));
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Of its many processes some would outlive the first for a while, and write into what is removed.
        let all = rustix::process::kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        let first = self.process.wait();
        if all.is_err() || first.is_err() {
            eprintln!("a browser could not be ended: {all:?}, {first:?}");
        }
    }
}

async fn debugging_address(profile: &Path) -> String {
    let file = profile.join("DevToolsActivePort");
    let deadline = Instant::now() + LIMIT;
    loop {
        let told = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some((port, _)) = told.split_once('\n') {
            return format!("127.0.0.1:{port}");
        }
        assert!(Instant::now() < deadline, "the browser does not start");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn page_socket(address: &str, url: &str) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let pages = reqwest::get(format!("http://{address}/json/list"))
            .await
            .expect("the browser answers");
        let pages: Vec<Value> = serde_json::from_slice(&pages.bytes().await.expect("whole")).expect("a list");
        let page = pages
            .iter()
            .find(|page| page["url"].as_str().is_some_and(|at| at.starts_with(url)));
        if let Some(page) = page {
            return page["webSocketDebuggerUrl"].as_str().expect("an address").to_owned();
        }
        assert!(Instant::now() < deadline, "{url} is not opened: {pages:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn xterm_js_types_resizes_scrolls_and_connects_again() {
    let site = Site::start().await;
    let origins = [("SKEP_SERVER__ALLOWED_ORIGINS", site.origin.clone())];
    let skep = Installation::start_with(OciRuntime::Found, &origins).await;
    let bot = skep.client.workspace("page", None).await;
    let mut browser = Browser::open(&site.origin).await;
    browser.until("typeof connect === 'function'").await;
    browser.connect(&skep, &bot).await;
    browser.type_keys("kept=value; echo he''llo-$kept\r").await;
    browser.until_shown("hello-value").await;
    browser.value_of("resize(77, 20)").await;
    browser
        .type_keys("until [ \"$(stty size)\" = '20 77' ]; do sleep 0.1; done; echo re''sized\r")
        .await;
    browser.until_shown("resized").await;
    // A program that takes the whole screen, and gives it back as it was.
    browser.type_keys("vi /data/note\r").await;
    browser.until("isWholeScreen()").await;
    browser.type_keys("iwritten").await;
    browser.until_shown("I /data/note").await;
    // What follows the escape key at once would be taken for a part of the same key.
    browser.type_keys("\u{1b}").await;
    browser.until_shown("- /data/note").await;
    browser.type_keys(":wq\r").await;
    browser.until("!isWholeScreen()").await;
    browser.until_shown("resized").await;
    assert_eq!(skep.client.output(&bot, "cat /data/note").await, "written\n");
    browser.type_keys("seq 100000; echo fin''ished\r").await;
    browser.until_shown("finished").await;
    assert_eq!(browser.value_of("longestCount()").await, json!(100_000));
    // In more frames than one.
    let line = "stty raw -echo; echo pas''te; head -c 307200 > /data/pasted; stty sane; echo who''le\r";
    browser.type_keys(line).await;
    browser.until_shown("paste").await;
    browser
        .value_of("terminal.paste('0123456789abcdef'.repeat(19200))")
        .await;
    browser.until_shown("whole").await;
    let sums = "sha256sum < /data/pasted; yes 0123456789abcdef | tr -d '\\n' | head -c 307200 | sha256sum";
    let sums = skep.client.output(&bot, sums).await;
    let (pasted, expected) = sums.split_once('\n').expect("two lines");
    assert_eq!(pasted, expected.trim_end());
    browser.value_of("disconnect()").await;
    browser.connect(&skep, &bot).await;
    browser.until_shown("finished").await;
    browser.type_keys("echo again-$kept; exit 3\r").await;
    browser.until("JSON.stringify(closed) === '[1000,\"exit 3\"]'").await;
    browser.until_shown("again-value").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_gets_no_terminal() {
    let site = Site::start().await;
    let skep = Installation::start(OciRuntime::Found).await;
    let bot = skep.client.workspace("page", None).await;
    let mut browser = Browser::open(&site.origin).await;
    browser.until("typeof connect === 'function'").await;
    let ticket = json!({"bot_id": bot, "use": "terminal"});
    let ticket = skep.client.good(Method::POST, "/auth/tickets", Some(ticket)).await;
    let url = format!(
        "{}/bots/{bot}/container/terminal/ws?ticket={}",
        skep.client.url.replace("http://", "ws://"),
        ticket["ticket"].as_str().expect("a ticket")
    );
    assert_eq!(
        browser.value_of(&format!("connect({})", json!(url))).await,
        json!("refused")
    );
}
