//! Who may stay connected, how many and for how long?

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tracing::debug;

use crate::guard::tls::ServerTls;
use crate::guard::wire::{accept, shake_hands};

/// Connections at a time; the next ones wait in the listener's queue.
const AT_A_TIME: usize = 4096;
/// How long a connection may stay without a whole request header, idle ones too.
const IDLE: Duration = Duration::from_secs(120);

/// Serves `router` until `shutdown` completes and the requests under way are answered.
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (accept(&listener).await, place)
        };
        let (socket, place) = tokio::select! {
            () = &mut shutdown => break,
            accepted = next => accepted,
        };
        let (router, http) = (router.clone(), http.clone());
        let (tls, watcher) = (tls.as_ref().map(|tls| tls.http()), graceful.watcher());
        tokio::spawn(async move {
            let wire = match shake_hands(socket, tls).await {
                Ok(wire) => wire,
                Err(error) => return debug!(%error, "no handshake"),
            };
            let caller = wire.caller();
            let service = router.map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(caller.clone());
                request
            });
            let connection = http.serve_connection(TokioIo::new(wire), TowerToHyperService::new(service));
            if let Err(error) = watcher.watch(connection).await {
                // Nonsense instead of HTTP, or a client that went away.
                debug!(%error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    async fn start() -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Router::new().route("/", get(|| async { "hello" }));
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(router, listener, None, stopped).await;
        });
        (address, stop, server)
    }

    /// Sends `bytes` and reads until `end` has arrived or the connection is closed.
    async fn exchange(socket: &mut TcpStream, bytes: &[u8], end: &str) -> String {
        socket.write_all(bytes).await.unwrap();
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(end) {
            match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(std::str::from_utf8(&buffer[..n]).unwrap()),
            }
        }
        text
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: kvd\r\n\r\n";

    #[tokio::test]
    async fn nonsense_on_one_connection_leaves_the_others_alone() {
        let (address, _stop, _server) = start().await;
        let mut good = TcpStream::connect(address).await.unwrap();
        let mut bad = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut good, REQUEST, "hello").await.starts_with("HTTP/1.1 200"));
        let refused = exchange(&mut bad, b"\x00\xff nonsense\r\n\r\n", "\0").await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 400"), "{refused}");
        assert!(exchange(&mut good, REQUEST, "hello").await.ends_with("hello"), "the connection is kept");
    }

    #[tokio::test]
    async fn a_stop_closes_idle_connections_and_the_listener() {
        let (address, stop, server) = start().await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert!(exchange(&mut idle, REQUEST, "hello").await.ends_with("hello"));
        stop.send(()).unwrap();
        server.await.unwrap();
        assert_eq!(exchange(&mut idle, b"", "\0").await, "", "closed");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
