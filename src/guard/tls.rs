//! Certificates, of both ends.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{LoadError, Reloaded, SecurityConfig};

/// What kvd shows to clients, and asks of them.
#[derive(Debug)]
pub struct ServerTls {
    files: Reloaded<Shown>,
}

/// The same for each transport.
#[derive(Debug)]
struct Shown {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

impl ServerTls {
    /// Reads what `config` names; `None` where that is no certificate.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(config: &SecurityConfig) -> Result<Option<Arc<ServerTls>>, LoadError> {
        let (Some(certificate), Some(key)) = (&config.certificate, &config.key) else { return Ok(None) };
        let files = [certificate, key].into_iter().chain(&config.client_ca).cloned().collect();
        Ok(Some(Arc::new(ServerTls { files: Reloaded::load(files, Shown::read)? })))
    }

    /// For the next gRPC connection.
    pub fn grpc(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.now().grpc)
    }

    /// For the next HTTP connection.
    pub fn http(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.files.now().http)
    }

    /// Reads the files again when they change, until dropped. Connections that there are stay as they are.
    pub async fn keep_current(self: Arc<Self>) {
        loop {
            tokio::time::sleep(super::LOOK).await;
            self.files.look();
        }
    }
}

impl Shown {
    fn read(files: &[Vec<u8>]) -> Result<Shown, String> {
        let [certificate, key, ca @ ..] = files else { return Err("no key".to_owned()) };
        let (chain, key) = (certificates(certificate)?, private_key(key)?);
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?;
        let builder = match ca {
            [] => builder.with_no_client_auth(),
            [ca, ..] => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| format!("client_ca: {e}"))?)
            }
        };
        // Also finds out whether the key is the certificate's.
        let mut grpc = builder.with_single_cert(chain, key).map_err(|e| e.to_string())?;
        let mut http = grpc.clone();
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        http.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Shown { grpc: Arc::new(grpc), http: Arc::new(http) })
    }
}

/// What is asked of a server, and shown to it: from a CA, and perhaps a certificate and its key.
///
/// # Errors
/// Says what cannot be used.
pub fn client(files: &[Vec<u8>]) -> Result<ClientConfig, String> {
    let [ca, own @ ..] = files else { return Err("no CA".to_owned()) };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider()).build();
    let verifier = verifier.map_err(|e| e.to_string())?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?.with_webpki_verifier(verifier);
    let mut config = match own {
        [certificate, key, ..] => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|e| e.to_string())?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all.map_err(|e| format!("certificate: {e}"))? {
        none if none.is_empty() => Err("it has no certificate in PEM".to_owned()),
        some => Ok(some),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| format!("key: {e}"))
}

fn roots(pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    Ok(Arc::new(roots))
}
