//! How kvd and kvctl reach a kvd: by TLS where a CA is named, showing a token where there is one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Request, Status};
use tower::{Service, service_fn};

use super::tokens::Tokens;
use super::{LoadError, Reloaded, SecurityConfig, tls};

/// A connection that shows its token with every call.
pub type Link = InterceptedService<Channel, Bearer>;

/// How others are reached.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    tls: Option<Arc<Reloaded<Arc<ClientConfig>>>>,
    name: Option<String>,
    token: Option<Arc<Reloaded<Tokens>>>,
}

/// Files that say how others are reached.
#[derive(Clone, Debug, Default)]
pub struct DialConfig {
    /// Who signs their certificates.
    pub ca: Option<PathBuf>,
    /// A certificate to show, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The name in their certificates, where it is not the one they are reached by.
    pub name: Option<String>,
    /// The first token of this file is shown.
    pub token: Option<PathBuf>,
}

impl DialConfig {
    /// How replicas reach one another.
    pub fn of_peers(config: &SecurityConfig) -> DialConfig {
        DialConfig {
            ca: config.peer_ca.clone(),
            own: config.certificate.clone().zip(config.key.clone()),
            name: config.peer_name.clone(),
            token: config.peer_token.clone(),
        }
    }

    /// How nodes' tiers are reached.
    pub fn of_tiers(config: &SecurityConfig) -> DialConfig {
        DialConfig {
            ca: config.tier_ca.clone(),
            own: config.certificate.clone().zip(config.key.clone()),
            name: config.tier_name.clone(),
            token: config.tier_token.clone(),
        }
    }
}

impl Dialer {
    /// Reads what `config` names.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(config: DialConfig) -> Result<Dialer, LoadError> {
        let DialConfig { ca, own, name, token } = config;
        let tls = match ca {
            None => None,
            Some(ca) => {
                let own = own.into_iter().flat_map(|(certificate, key)| [certificate, key]);
                let files = [ca].into_iter().chain(own).collect();
                let read = |files: &[Vec<u8>]| tls::client(files).map(Arc::new);
                Some(Arc::new(Reloaded::load(files, read)?))
            }
        };
        let token = token.map(|path| Reloaded::load(vec![path], Tokens::read).map(Arc::new)).transpose()?;
        Ok(Dialer { tls, name, token })
    }

    /// Connects.
    ///
    /// # Errors
    /// If nobody is there, or not who should be.
    pub async fn connect(&self, endpoint: &Endpoint, patience: Duration) -> Result<Link, Error> {
        let channel = match self.by_tls(patience) {
            None => endpoint.connect().await?,
            Some(dial) => endpoint.connect_with_connector(dial).await?,
        };
        Ok(InterceptedService::new(channel, self.bearer()))
    }

    /// The same when it is first needed, and whenever it is lost.
    pub fn connect_lazily(&self, endpoint: &Endpoint, patience: Duration) -> Link {
        let channel = match self.by_tls(patience) {
            None => endpoint.connect_lazy(),
            Some(dial) => endpoint.connect_with_connector_lazy(dial),
        };
        InterceptedService::new(channel, self.bearer())
    }

    /// What connects by TLS, where a CA is named.
    fn by_tls(
        &self,
        patience: Duration,
    ) -> Option<impl Service<Uri, Response = TokioIo<Tls>, Error = io::Error, Future: Send> + Send + use<>>
    {
        let (tls, name) = (self.tls.clone()?, self.name.clone());
        Some(service_fn(move |uri| shake_hands(uri, Arc::clone(&tls), name.clone(), patience)))
    }

    /// A connection to speak HTTP/1.1 on.
    ///
    /// # Errors
    /// If nobody is there, or not who should be.
    pub async fn wire(&self, address: &str, patience: Duration) -> io::Result<Box<dyn Stream>> {
        let uri: Uri = format!("http://{address}").parse().map_err(io::Error::other)?;
        let Some(tls) = &self.tls else {
            let (host, port) = place(&uri)?;
            let dial = TcpStream::connect((host, port));
            let tcp = tokio::time::timeout(patience, dial).await;
            let tcp = tcp.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            tcp.set_nodelay(true)?;
            return Ok(Box::new(tcp));
        };
        let mut config = ClientConfig::clone(&tls.now());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Box::new(shake_hands_by(&uri, Arc::new(config), self.name.as_deref(), patience).await?))
    }

    /// The header that shows the token.
    pub fn token(&self) -> Option<http::HeaderValue> {
        self.token.as_ref().and_then(|t| t.now().header())
    }

    fn bearer(&self) -> Bearer {
        Bearer { token: self.token.clone() }
    }

    /// Reads files again when they change, until dropped.
    pub async fn keep_current(self) {
        loop {
            tokio::time::sleep(super::LOOK).await;
            self.tls.iter().for_each(|tls| tls.look());
            self.token.iter().for_each(|token| token.look());
        }
    }
}

/// What is spoken on, either way.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

async fn shake_hands(
    uri: Uri,
    tls: Arc<Reloaded<Arc<ClientConfig>>>,
    name: Option<String>,
    patience: Duration,
) -> io::Result<TokioIo<Tls>> {
    let config = Arc::clone(&*tls.now());
    shake_hands_by(&uri, config, name.as_deref(), patience).await.map(TokioIo::new)
}

async fn shake_hands_by(
    uri: &Uri,
    config: Arc<ClientConfig>,
    name: Option<&str>,
    patience: Duration,
) -> io::Result<Tls> {
    let (bare, port) = place(uri)?;
    let name = ServerName::try_from(name.unwrap_or(bare).to_owned()).map_err(|_| wrong(uri, "no name"))?;
    let dial = async {
        let tcp = TcpStream::connect((bare, port)).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, tcp).await
    };
    tokio::time::timeout(patience, dial).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The host, without the brackets of an IPv6 address, and the port.
fn place(uri: &Uri) -> io::Result<(&str, u16)> {
    let host = uri.host().ok_or_else(|| wrong(uri, "no host"))?;
    let port = uri.port_u16().ok_or_else(|| wrong(uri, "no port"))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
}

fn wrong(uri: &Uri, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{uri}: {what}"))
}

/// Shows a token, as it is when the call is made.
#[derive(Clone, Debug, Default)]
pub struct Bearer {
    token: Option<Arc<Reloaded<Tokens>>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = self.token.as_ref().and_then(|t| t.now().header());
        if let Some(header) = header
            && let Ok(mut value) = MetadataValue::try_from(header.as_bytes())
        {
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// What lies at the bottom of an error: "Connection refused" rather than "transport error".
pub fn innermost(e: &dyn std::error::Error) -> String {
    let mut e = e;
    while let Some(source) = e.source() {
        e = source;
    }
    e.to_string()
}
