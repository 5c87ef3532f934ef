//! kvd's HTTP interface: by TLS and with a token where they are set, as its gRPC is reached.

use std::time::Duration;

use axum::body::Body;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::Mutex;

use super::client::{ClientError, has_port};
use crate::guard::Dialer;
use crate::guard::dial::innermost;

/// How long a connection and an answer may take.
const CONNECT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers larger than this are refused, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// kvd, reached over HTTP.
pub struct HttpKvd {
    address: String,
    dialer: Dialer,
    /// The connection that was used last, while it is good.
    connection: Mutex<Option<SendRequest<Body>>>,
}

impl HttpKvd {
    /// kvd at `address`, `HOST:PORT`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn connect(address: &str, dialer: Dialer) -> Result<HttpKvd, ClientError> {
        let bare = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
        let address = bare.unwrap_or(address).trim_end_matches('/').to_owned();
        if !has_port(&address) {
            return Err(ClientError::Address { flag: "http", address });
        }
        let kvd = HttpKvd { address, dialer, connection: Mutex::default() };
        kvd.get("/publishers", || "list publishers".into()).await?;
        Ok(kvd)
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// If it cannot be had.
    pub async fn get(&self, path: &str, what: impl Fn() -> String) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, Body::empty, what).await
    }

    /// What `path` answers to `body`.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn post(
        &self,
        path: &str,
        body: &Value,
        what: impl Fn() -> String,
    ) -> Result<Value, ClientError> {
        let text = bytes::Bytes::from(body.to_string());
        self.ask(Method::POST, path, || Body::from(text.clone()), what).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Fn() -> Body,
        what: impl Fn() -> String,
    ) -> Result<Value, ClientError> {
        let request = || {
            let mut request = Request::builder().method(&method).uri(path).header(HOST, &self.address);
            if method == Method::POST {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            if let Some(token) = self.dialer.token() {
                request = request.header(AUTHORIZATION, token);
            }
            request.body(body()).map_err(|e| e.to_string())
        };
        let answer = tokio::time::timeout(PATIENCE, self.send(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        let (status, text) = answer.map_err(|reason| ClientError::Unreachable {
            protocol: "HTTP",
            flag: "http",
            address: self.address.clone(),
            reason,
        })?;
        if status.is_success() {
            // Some answers have no body; nothing is read from those.
            return Ok(serde_json::from_slice(&text).unwrap_or(Value::Null));
        }
        let message = format!("HTTP {}: {}", status.as_u16(), String::from_utf8_lossy(&text));
        Err(ClientError::BadRequest { what: what(), message })
    }

    /// Sends a request on the connection that there is, or on a new one where that has ended.
    async fn send(
        &self,
        request: impl Fn() -> Result<Request<Body>, String>,
    ) -> Result<(StatusCode, bytes::Bytes), String> {
        let mut connection = self.connection.lock().await;
        if let Some(kept) = connection.as_mut().filter(|kept| !kept.is_closed())
            && kept.ready().await.is_ok()
            && let Ok(answer) = kept.send_request(request()?).await
        {
            return read(answer).await;
        }
        let wire = self.dialer.wire(&self.address, CONNECT).await.map_err(|e| innermost(&e))?;
        let (mut made, driven) = handshake(TokioIo::new(wire)).await.map_err(|e| innermost(&e))?;
        // It ends when this end is dropped.
        tokio::spawn(driven);
        let answer = made.send_request(request()?).await.map_err(|e| innermost(&e))?;
        *connection = Some(made);
        read(answer).await
    }
}

async fn read(answer: http::Response<hyper::body::Incoming>) -> Result<(StatusCode, bytes::Bytes), String> {
    let status = answer.status();
    let body = axum::body::to_bytes(Body::new(answer.into_body()), MAX_ANSWER).await;
    Ok((status, body.map_err(|e| innermost(&e))?))
}
