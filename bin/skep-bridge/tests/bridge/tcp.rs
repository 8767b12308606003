//! The bridge on the network: whom it serves there, and with what it refuses to start.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use skep_bridge_protocol::workspace::InfoRequest;
use skep_bridge_protocol::workspace::workspace_client::WorkspaceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::calls::{command, run, until};
use crate::start_and_end::own_memory_kib;
use crate::workspace::{Layout, Workspace};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STRICT: [(&str, &str); 4] = [
    ("BRIDGE_TLS_MODE", "strict"),
    ("BRIDGE_TLS_CERT_FILE", "/etc/tls/server.crt"),
    ("BRIDGE_TLS_KEY_FILE", "/etc/tls/server.key"),
    ("BRIDGE_TLS_CLIENT_CA_FILE", "/etc/tls/clients.crt"),
];

/// Two authorities, a client of each, a server of the first, and what the bridge is to have in the workspace.
const CERTIFICATES: &str = r#"
new() { name=$1; shift; openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$name.key" "$@"; }
for ca in clients others; do
    new $ca -x509 -days 2 -out $ca.crt -subj "/CN=$ca" -addext basicConstraints=critical,CA:TRUE
done
signed() { # name, authority, use
    new "$1" -out "$1.csr" -subj "/CN=$1"
    printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 2 -extfile "$1.ext" -out "$1.crt"
}
signed server clients serverAuth
signed good clients clientAuth
signed stranger others clientAuth
signed both clients serverAuth,clientAuth
cp server.crt server.key clients.crt both.crt both.key stranger.key ../root/etc/tls
echo 'no PEM' > ../root/etc/tls/broken
"#;

fn certificates(root: &Path) {
    let place = root.with_file_name("tls");
    fs::create_dir_all(&place).expect("a directory");
    fs::create_dir_all(root.join("etc/tls")).expect("another");
    let made = Command::new("sh")
        .args(["-ec", CERTIFICATES])
        .current_dir(&place)
        .output();
    let made = made.expect("a shell can be run");
    let errors = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl is needed (Debian: openssl): {errors}");
}

fn layout(address: &'static str, changed: &[(&'static str, &'static str)]) -> Layout {
    let mut environment = vec![("BRIDGE_TCP_ADDR", address)];
    environment.extend(STRICT);
    for (name, value) in changed {
        environment.retain(|(present, _)| present != name);
        environment.push((name, value));
    }
    Layout {
        environment,
        prepare: certificates,
        ..Layout::default()
    }
}

/// Where the bridge says it listens, on this host.
fn address(workspace: &Workspace) -> SocketAddr {
    let log = fs::read_to_string(workspace.path("run/memoh/bridge.log")).expect("the log");
    let told = log.split(" listens on ").nth(1).expect("it listens");
    let address: SocketAddr = told.split(' ').next().expect("an address").parse().expect("an address");
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

/// A caller that trusts the bridge's authority and shows this certificate.
async fn caller(workspace: &Workspace, shown: Option<&str>) -> Result<Channel, String> {
    let read = |name: &str| CertificateDer::from_pem_file(workspace.outside(&format!("tls/{name}.crt"))).expect(name);
    let mut authorities = RootCertStore::empty();
    authorities.add(read("clients")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(authorities);
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(workspace.outside(&format!("tls/{name}.key"))).expect(name);
            config.with_client_auth_cert(vec![read(name)], key).expect(name)
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (connector, address) = (TlsConnector::from(Arc::new(config)), address(workspace));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let name = ServerName::try_from("127.0.0.1").expect("a name");
            let stream = connector.connect(name, TcpStream::connect(address).await?).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://bridge")
        .connect_with_connector(connect)
        .await;
    channel.map_err(|error| format!("{error:?}"))
}

async fn version(channel: Result<Channel, String>) -> Result<String, String> {
    let info = WorkspaceClient::new(channel?).info(InfoRequest {}).await;
    info.map(|info| info.into_inner().version)
        .map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn on_the_loopback_it_answers_in_the_clear() {
    let layout = Layout {
        environment: vec![("BRIDGE_TCP_ADDR", "127.0.0.1:0")],
        ..Layout::default()
    };
    let workspace = Workspace::with(layout).await;
    let channel = Endpoint::from_shared(format!("http://{}", address(&workspace))).expect("an address");
    let channel = channel.connect().await.map_err(|error| error.to_string());
    assert_eq!(version(channel).await.as_deref(), Ok(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn with_mutual_tls_it_answers_on_any_address_those_it_knows() {
    let workspace = Workspace::with(layout("0.0.0.0:0", &[])).await;
    // Somebody who says nothing holds up nobody.
    let silent = TcpStream::connect(address(&workspace)).await.expect("a connection");
    for _ in 0..2 {
        for shown in [None, Some("stranger"), Some("server")] {
            let answer = version(caller(&workspace, shown).await).await;
            assert!(answer.is_err(), "{shown:?} was served: {answer:?}");
        }
        let known = version(caller(&workspace, Some("good")).await).await;
        assert_eq!(known.as_deref(), Ok(env!("CARGO_PKG_VERSION")));
    }
    let log = fs::read_to_string(workspace.path("run/memoh/bridge.log")).expect("the log");
    for why in ["sent no certificates", "UnknownIssuer", "extended key usage"] {
        let told = log
            .lines()
            .filter(|line| line.contains("a caller was refused: ") && line.contains(why));
        assert!(told.count() >= 2, "{why}: {log}");
    }
    drop(silent);
    let channel = caller(&workspace, Some("good")).await.expect("a connection");
    let client = skep_bridge_protocol::bridgepb::container_service_client::ContainerServiceClient::new(channel);
    let outcome = run(&client, command("seq 1 200000 | md5sum; exit 7")).await;
    assert_eq!(outcome.exit_code, 7);
    let told = run(&client, command("env | grep -c BRIDGE_T")).await;
    assert_eq!(told.text(), "0\n", "that is meant for the bridge alone");
}

#[tokio::test]
async fn however_many_say_nothing_an_honest_caller_is_served() {
    let workspace = Workspace::with(layout("127.0.0.1:0", &[])).await;
    let address = address(&workspace);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    let begun = Instant::now();
    let known = version(caller(&workspace, Some("good")).await).await;
    assert_eq!(known.as_deref(), Ok(env!("CARGO_PKG_VERSION")));
    // Each of them has ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_caller_in_the_clear_gets_no_answer_where_tls_is_asked_for() {
    let workspace = Workspace::with(layout("127.0.0.1:0", &[])).await;
    let mut stream = TcpStream::connect(address(&workspace)).await.expect("a connection");
    stream.write_all(PREFACE).await.expect("written");
    let mut answer = Vec::new();
    // A reset ends it as well as an end.
    drop(stream.read_to_end(&mut answer).await);
    // At most an alert of TLS: the frame of an answer begins with its length.
    assert!(
        answer.is_empty() || (answer[0] == 0x15 && answer.len() == 7),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_process_of_the_workspace_is_refused_where_tls_is_asked_for() {
    let workspace = Workspace::with(layout("127.0.0.1:0", &[])).await;
    let client = workspace.reference().await;
    let call = format!(
        r"printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' | nc -w 2 127.0.0.1 {} | wc -c",
        address(&workspace).port()
    );
    let bytes: usize = run(&client, command(&call))
        .await
        .text()
        .trim()
        .parse()
        .expect("a number");
    assert!(bytes <= 7, "at most an alert: {bytes}");
    // All that it can read is what the bridge reads; that makes it no client.
    let readable = run(&client, command("cat /etc/tls/server.key /etc/tls/server.crt | wc -l")).await;
    assert_ne!(readable.text().trim(), "0");
    assert!(version(caller(&workspace, Some("server")).await).await.is_err());
}

#[tokio::test]
async fn without_what_mutual_tls_needs_it_does_not_start() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("BRIDGE_TLS_CERT_FILE", "")], "BRIDGE_TLS_CERT_FILE: not set"),
        (&[("BRIDGE_TLS_KEY_FILE", "")], "BRIDGE_TLS_KEY_FILE: not set"),
        (
            &[("BRIDGE_TLS_CLIENT_CA_FILE", "")],
            "BRIDGE_TLS_CLIENT_CA_FILE: not set",
        ),
        (
            &[("BRIDGE_TLS_CERT_FILE", "/etc/tls/none")],
            "BRIDGE_TLS_CERT_FILE: /etc/tls/none: ",
        ),
        (
            &[("BRIDGE_TLS_KEY_FILE", "/etc/tls/broken")],
            "BRIDGE_TLS_KEY_FILE: /etc/tls/broken: ",
        ),
        (
            &[("BRIDGE_TLS_CLIENT_CA_FILE", "/etc/tls/broken")],
            "BRIDGE_TLS_CLIENT_CA_FILE: /etc/tls/broken: no certificate",
        ),
        (
            &[("BRIDGE_TLS_KEY_FILE", "/etc/tls/stranger.key")],
            "BRIDGE_TLS_KEY_FILE: not the key of",
        ),
        (
            &[
                ("BRIDGE_TLS_CERT_FILE", "/etc/tls/both.crt"),
                ("BRIDGE_TLS_KEY_FILE", "/etc/tls/both.key"),
            ],
            "BRIDGE_TLS_CERT_FILE: BRIDGE_TLS_CLIENT_CA_FILE takes it for a client's",
        ),
        (
            &[("BRIDGE_TLS_MODE", "")],
            "BRIDGE_TCP_ADDR: 0.0.0.0:0 is not of the loopback",
        ),
    ];
    for (changed, why) in cases {
        let said = Workspace::refused(layout("0.0.0.0:0", changed)).await;
        assert!(said.contains(why), "{changed:?}: {said}");
    }
}

#[tokio::test]
async fn with_mutual_tls_an_idle_bridge_is_small_too() {
    let workspace = Workspace::with(layout("127.0.0.1:0", &[])).await;
    version(caller(&workspace, Some("good")).await)
        .await
        .expect("an answer");
    let mut last = 0;
    until("less than 2 MiB of private memory", || {
        last = own_memory_kib(&workspace);
        last < 2048
    })
    .await;
    println!("{last} KiB of its own");
}
