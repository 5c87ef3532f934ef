//! Connections that come in, plain or encrypted, and who is at their other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::tls::ServerTls;

/// How long a handshake may take, and how many are under way at a time.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 256;
/// Connections that may wait to be served.
const WAITING: usize = 64;
/// Before the next attempt where the system has no more sockets to give.
const RETRY: Duration = Duration::from_millis(100);

/// A connection.
#[derive(Debug)]
pub enum Wire {
    /// Anybody on the way can read and change it.
    Plain(TcpStream),
    /// Nobody can.
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// Who is at the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Where.
    pub address: Option<SocketAddr>,
    /// The SHA-256 of its certificate, in hex, where it has shown one.
    pub certificate: Option<Arc<str>>,
}

impl Wire {
    /// Who is at the other end.
    pub fn caller(&self) -> Caller {
        match self {
            Wire::Plain(tcp) => Caller { address: tcp.peer_addr().ok(), certificate: None },
            Wire::Tls(tls) => {
                let (tcp, session) = tls.get_ref();
                let shown = session.peer_certificates().and_then(|chain| chain.first());
                let hex =
                    |der: &[u8]| Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect::<String>();
                Caller {
                    address: tcp.peer_addr().ok(),
                    certificate: shown.map(|c| Arc::from(hex(c.as_ref()))),
                }
            }
        }
    }
}

/// Makes a connection what `tls` says.
///
/// # Errors
/// Where the other end speaks no TLS, shows no certificate though it must, or takes too long.
pub async fn shake_hands(tcp: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Wire> {
    let Some(config) = tls else { return Ok(Wire::Plain(tcp)) };
    let shaken = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(tcp)).await;
    let stream = shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Wire::Tls(Box::new(stream)))
}

/// The next connection. One that is gone before it is accepted is no reason to stop, nor is a system that
/// has no more sockets for the moment.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Answers are small; waiting to fill a packet would cost more than the answer.
                if let Err(error) = socket.set_nodelay(true) {
                    debug!(%error, "no TCP_NODELAY");
                }
                return socket;
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Connections for gRPC, until the stream is dropped. A slow handshake keeps nobody else waiting.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
) -> impl Stream<Item = io::Result<Wire>> + Send {
    let (ready, waiting) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let tcp = tokio::select! {
                () = ready.closed() => return,
                tcp = accept(&listener) => tcp,
            };
            let Some(tls) = &tls else {
                if ready.send(Ok(Wire::Plain(tcp))).await.is_err() {
                    return;
                }
                continue;
            };
            let (config, ready) = (tls.grpc(), ready.clone());
            tokio::spawn(async move {
                match shake_hands(tcp, Some(config)).await {
                    // Who does not want it any more has stopped.
                    Ok(wire) => drop(ready.send(Ok(wire)).await),
                    Err(error) => debug!(%error, "no handshake"),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(waiting)
}

impl Connected for Wire {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller()
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Wire::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
