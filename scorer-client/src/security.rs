//! Whom a client trusts, and what it shows: a CA, a certificate, a token.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Request, Status};

use crate::ConnectError;

/// How often a token's file is read again.
const LOOK: Duration = Duration::from_secs(10);

/// What a kvd that is guarded asks for (`docs/security.md`). Without any of it the connection is plain and
/// nothing is shown.
#[derive(Clone, Default, PartialEq)]
pub struct Security {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    name: Option<String>,
    token: Option<Token>,
}

impl Security {
    /// Encrypts, and trusts a kvd whose certificate one of these signed (PEM).
    pub fn ca(self, pem: impl Into<Vec<u8>>) -> Security {
        Security { ca: Some(pem.into()), ..self }
    }

    /// Shows a certificate, with its key (both PEM).
    pub fn identity(self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Security {
        Security { identity: Some((certificate.into(), key.into())), ..self }
    }

    /// The name in kvd's certificate, where it is not the host name of its address.
    pub fn server_name(self, name: impl Into<String>) -> Security {
        Security { name: Some(name.into()), ..self }
    }

    /// Shows a token with every call.
    pub fn token(self, token: Token) -> Security {
        Security { token: Some(token), ..self }
    }

    /// Whether connections are encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.ca.is_some()
    }

    /// For a connection to `host`.
    pub(crate) fn tls(&self, host: &str) -> Option<ClientTlsConfig> {
        let ca = Certificate::from_pem(self.ca.as_ref()?);
        let name = self.name.as_deref().unwrap_or(host);
        let config = ClientTlsConfig::new().ca_certificate(ca).domain_name(name);
        Some(match &self.identity {
            None => config,
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        })
    }

    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(self.token.clone())
    }
}

/// Says what there is, and nothing of what is in it.
impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .field("name", &self.name)
            .field("token", &self.token.is_some())
            .finish()
    }
}

/// A bearer token.
#[derive(Clone)]
pub struct Token {
    file: Option<PathBuf>,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    value: MetadataValue<Ascii>,
    read: Instant,
}

impl Token {
    /// This one.
    ///
    /// # Errors
    /// [`ConnectError::Token`] where it cannot be sent.
    pub fn new(text: &str) -> Result<Token, ConnectError> {
        let value = header(text).map_err(|why| ConnectError::Token { what: "the token".into(), why })?;
        Ok(Token::of(None, value))
    }

    /// The first one of a file, which is read again now and then: tokens that a cluster mounts are changed
    /// under way.
    ///
    /// # Errors
    /// [`ConnectError::Token`] where the file cannot be read or holds none.
    pub fn file(path: impl Into<PathBuf>) -> Result<Token, ConnectError> {
        let path = path.into();
        let value = read(&path)
            .map_err(|e| ConnectError::Token { what: path.display().to_string(), why: e.to_string() })?;
        Ok(Token::of(Some(path), value))
    }

    fn of(file: Option<PathBuf>, value: MetadataValue<Ascii>) -> Token {
        Token { file, shown: Arc::new(Mutex::new(Shown { value, read: Instant::now() })) }
    }

    fn value(&self, now: Instant) -> MetadataValue<Ascii> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.file
            && now.saturating_duration_since(shown.read) >= LOOK
        {
            shown.read = now;
            // One that cannot be read at the moment is being changed: the one before is shown once more.
            if let Ok(value) = read(path) {
                shown.value = value;
            }
        }
        shown.value.clone()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        Arc::ptr_eq(&self.shown, &other.shown)
    }
}

fn read(path: &Path) -> io::Result<MetadataValue<Ascii>> {
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let line = lines.next().ok_or_else(|| io::Error::other("it holds no token"))?;
    header(line).map_err(io::Error::other)
}

fn header(token: &str) -> Result<MetadataValue<Ascii>, String> {
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| "it cannot be sent: not printable ASCII".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Shows the token, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<Token>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bearer").field(&self.0.is_some()).finish()
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.value(Instant::now()));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_token_is_read_again_and_the_last_good_one_is_kept() {
        let folder = std::env::temp_dir().join(format!("scorer-client-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("token");
        std::fs::write(&path, "# mine\n\n first-token \nsecond\n").unwrap();
        let token = Token::file(&path).unwrap();
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(token.value(at(0)).to_str().unwrap(), "Bearer first-token");
        std::fs::write(&path, "another").unwrap();
        assert_eq!(token.value(at(1)).to_str().unwrap(), "Bearer first-token", "not looked at yet");
        assert_eq!(token.value(at(11)).to_str().unwrap(), "Bearer another");
        std::fs::write(&path, "").unwrap();
        assert_eq!(token.value(at(22)).to_str().unwrap(), "Bearer another");
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(token.value(at(33)).to_str().unwrap(), "Bearer another");
        let missing = Token::file(&path).err().unwrap().to_string();
        assert!(missing.contains("token") && missing.contains("No such file"), "{missing}");
        assert!(Token::new("a\nb").is_err());
    }

    #[test]
    fn nothing_secret_is_shown_by_mistake() {
        let security = Security::default()
            .ca("the ca")
            .identity("cert", "a key")
            .token(Token::new("secret-token").unwrap());
        let shown = format!("{security:?} {:?}", security.bearer());
        assert!(!shown.contains("secret") && !shown.contains("a key"), "{shown}");
    }
}
