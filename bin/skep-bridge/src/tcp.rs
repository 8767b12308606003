//! The network's side: for backends that share no socket with their workspaces.
//!
//! Over TCP there is no pid that tells who calls. In the clear the bridge listens on the loopback alone, where every
//! process of the workspace reaches it and whoever set it up so trusts them all; on any address only with mutual TLS
//! ([`crate::tls`]), where the key of a client is what no process of the workspace has.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::listen::PAUSE_AFTER_FAILURE;
use crate::log;
use crate::tls::{self, CERTIFICATE_VARIABLE, CLIENT_AUTHORITY_VARIABLE, KEY_VARIABLE};

const ADDRESS_VARIABLE: &str = "BRIDGE_TCP_ADDR";
const MODE_VARIABLE: &str = "BRIDGE_TLS_MODE";
/// Meant for the bridge alone: what it starts does not get them.
pub(crate) const VARIABLES: [&str; 5] = [
    ADDRESS_VARIABLE,
    MODE_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    CLIENT_AUTHORITY_VARIABLE,
];
/// How long a caller may take to show who it is.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Callers that show at once who they are; when one more comes, the oldest is let go.
const MOST_HANDSHAKES: usize = 64;

/// Where the bridge listens on the network, and how.
pub(crate) struct Listener {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
}

/// What the environment asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Plain(SocketAddr),
    Strict(SocketAddr),
}

/// Listens on the address that `BRIDGE_TCP_ADDR` names, if it names one.
///
/// # Errors
/// InvalidInput when it is no address, or one of others than the loopback without `BRIDGE_TLS_MODE=strict`; what is
/// wrong with the files of TLS; the address cannot be listened on. The bridge must then not start: it would answer in
/// the clear, or not at all, where it was told to do otherwise.
pub(crate) async fn listen() -> io::Result<Option<Listener>> {
    let (address, acceptor) = match wanted(env::var_os(ADDRESS_VARIABLE), env::var_os(MODE_VARIABLE))? {
        Wanted::Nothing => return Ok(None),
        Wanted::Plain(address) => (address, None),
        Wanted::Strict(address) => (address, Some(tls::acceptor()?)),
    };
    let told = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(told)?;
    let how = if acceptor.is_some() {
        "with mutual TLS"
    } else {
        "in the clear"
    };
    log::tell!("listens on {} {how}", listener.local_addr()?);
    Ok(Some(Listener { listener, acceptor }))
}

fn wanted(address: Option<OsString>, mode: Option<OsString>) -> io::Result<Wanted> {
    let invalid = |variable: &str, why: String| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{variable}: {why}"),
        ))
    };
    let strict = match mode.unwrap_or_default().to_str() {
        Some("" | "off") => false,
        Some("strict") => true,
        other => return invalid(MODE_VARIABLE, format!("{other:?} is neither \"strict\" nor \"off\"")),
    };
    let Some(text) = address.filter(|text| !text.is_empty()) else {
        return Ok(Wanted::Nothing);
    };
    let Some(address) = text.to_str().and_then(|text| text.parse::<SocketAddr>().ok()) else {
        return invalid(
            ADDRESS_VARIABLE,
            format!("{text:?} is no address and port, as 127.0.0.1:9090"),
        );
    };
    match (strict, address.ip().is_loopback()) {
        (true, _) => Ok(Wanted::Strict(address)),
        (false, true) => Ok(Wanted::Plain(address)),
        (false, false) => {
            let why = format!("{address} is not of the loopback, which needs {MODE_VARIABLE}=strict");
            invalid(ADDRESS_VARIABLE, why)
        }
    }
}

impl Listener {
    /// The connections of callers that may call. Those that are slow to show it hold up nobody, however many they are.
    pub(crate) fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        let admitting = Admitting {
            callers: Box::pin(accepted(self.listener)),
            acceptor: self.acceptor,
            under_way: JoinSet::new(),
            oldest_first: VecDeque::new(),
        };
        stream::unfold(admitting, async |mut admitting| {
            Some((Ok(admitting.next().await), admitting))
        })
    }
}

/// Callers that have come, and are yet to show who they are.
struct Admitting<S> {
    callers: Pin<Box<S>>,
    acceptor: Option<TlsAcceptor>,
    under_way: JoinSet<Option<Connection>>,
    oldest_first: VecDeque<AbortHandle>,
}

impl<S: Stream<Item = TcpStream>> Admitting<S> {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                Some(caller) = self.callers.next() => match self.acceptor.clone() {
                    None => return Connection(Box::pin(caller)),
                    Some(acceptor) => {
                        self.begin(caller, acceptor);
                        // Those who have come before get on first.
                        tokio::task::yield_now().await;
                    }
                },
                admitted = self.under_way.join_next(), if !self.under_way.is_empty() => {
                    // One that was let go, or refused, is none.
                    if let Some(Ok(Some(connection))) = admitted {
                        return connection;
                    }
                }
            }
        }
    }

    fn begin(&mut self, caller: TcpStream, acceptor: TlsAcceptor) {
        self.oldest_first.retain(|one| !one.is_finished());
        if self.oldest_first.len() == MOST_HANDSHAKES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            log::tell!("a caller was refused: it did not show who it is before {MOST_HANDSHAKES} others came");
            oldest.abort();
        }
        self.oldest_first
            .push_back(self.under_way.spawn(admit(caller, acceptor)));
    }
}

fn accepted(listener: TcpListener) -> impl Stream<Item = TcpStream> {
    stream::unfold(listener, |listener| async move {
        loop {
            let accepted = listener.accept().await.and_then(|(connection, _)| {
                connection.set_nodelay(true)?;
                Ok(connection)
            });
            match accepted {
                Ok(connection) => return Some((connection, listener)),
                Err(error) => {
                    log::tell!("accept a connection: {error}");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    })
}

async fn admit(connection: TcpStream, acceptor: TlsAcceptor) -> Option<Connection> {
    match timeout(HANDSHAKE_WITHIN, acceptor.accept(connection)).await {
        Ok(Ok(encrypted)) => return Some(Connection(Box::pin(encrypted))),
        Ok(Err(error)) => log::tell!("a caller was refused: {error}"),
        Err(_) => log::tell!("a caller was refused: it did not show who it is in time"),
    }
    None
}

trait Wire: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// One type for both, so that the program holds the server once for them.
pub(crate) struct Connection(Pin<Box<dyn Wire>>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(address: &str, mode: &str) -> Result<Wanted, String> {
        wanted(Some(address.into()), Some(mode.into())).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_loopback_is_listened_on_in_the_clear() {
        for address in ["127.0.0.1:9090", "127.9.9.9:1", "[::1]:9090"] {
            let parsed = address.parse().expect("an address");
            assert_eq!(asked(address, ""), Ok(Wanted::Plain(parsed)));
            assert_eq!(asked(address, "off"), Ok(Wanted::Plain(parsed)));
            assert_eq!(asked(address, "strict"), Ok(Wanted::Strict(parsed)));
        }
        for address in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090", "[::ffff:127.0.0.1]:9090"] {
            let error = asked(address, "").expect_err(address);
            assert!(error.contains("BRIDGE_TLS_MODE=strict"), "{error}");
            assert!(matches!(asked(address, "strict"), Ok(Wanted::Strict(_))));
        }
    }

    #[test]
    fn what_is_no_address_and_no_mode_is_told_by_its_name() {
        for address in ["9090", ":9090", "localhost:9090", "127.0.0.1"] {
            let error = asked(address, "strict").expect_err(address);
            assert!(
                error.starts_with("BRIDGE_TCP_ADDR: ") && error.contains(address),
                "{error}"
            );
        }
        for mode in ["Strict", "on", "permissive"] {
            let error = asked("127.0.0.1:1", mode).expect_err(mode);
            assert!(
                error.starts_with("BRIDGE_TLS_MODE: ") && error.contains(mode),
                "{error}"
            );
        }
        assert_eq!(wanted(None, None).expect("nothing"), Wanted::Nothing);
        assert_eq!(asked("", "strict"), Ok(Wanted::Nothing));
    }
}
