//! Who may ask for what, how much of it, and can anybody listen in?
//!
//! ```text
//! wire.rs ─▶ connections, plain or by tls.rs ─▶ gate.rs ─▶ the services
//!                                                 │ access.rs  which right a call needs
//!                                                 │ tokens.rs  which rights a token gives
//!                                                 └ limits.rs  how much one client may ask
//! dial.rs: the same from the other side, towards other replicas
//! ```
//!
//! Certificates and tokens are files that are read again when they change (`reload.rs`). Nothing is guarded
//! unless it is set; docs/security.md says against whom, and what is not defended.

pub mod access;
pub mod dial;
mod gate;
mod limits;
mod reload;
#[cfg(test)]
mod tests;
pub mod tls;
mod tokens;
pub mod wire;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;

use access::Access;
use limits::{Limit, Used};
use tokens::{Digest, Tokens};
use wire::Caller;

pub use dial::Dialer;
pub use gate::GateLayer;
pub use reload::{LoadError, Reloaded};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What kvd is guarded by. Paths name files.
#[derive(Clone, Debug, Default)]
pub struct SecurityConfig {
    /// The certificate chain to show, PEM; with it, everything but health is answered by TLS alone.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Who signs clients' certificates, PEM; with it, nobody is answered without one.
    pub client_ca: Option<PathBuf>,
    /// Tokens that give a right and those below it, one a line.
    pub read_tokens: Option<PathBuf>,
    /// The same.
    pub route_tokens: Option<PathBuf>,
    /// The same.
    pub write_tokens: Option<PathBuf>,
    /// Who signs other replicas' certificates, PEM; with it, they are spoken to by TLS, with the
    /// certificate above as this one's own.
    pub peer_ca: Option<PathBuf>,
    /// The name in their certificates, where it is not the one they are reached by.
    pub peer_name: Option<String>,
    /// The token that is shown to other replicas: the first of the file.
    pub peer_token: Option<PathBuf>,
    /// What one client may ask.
    pub limit: Limit,
}

/// Decides about calls.
#[derive(Debug, Default)]
pub struct Guard {
    /// By right, the least first.
    tokens: [Option<Arc<Reloaded<Tokens>>>; 3],
    limit: Limit,
    used: Mutex<Used>,
    /// What was refused.
    pub refused: Refused,
}

/// Calls refused, counted.
#[derive(Debug, Default)]
pub struct Refused {
    /// Without a token, or with one that nobody knows.
    pub unknown: AtomicU64,
    /// With a token that does not give the right.
    pub forbidden: AtomicU64,
    /// Over a client's limit.
    pub limited: AtomicU64,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It shows no token.
    #[error("authorization: a bearer token is required")]
    NoToken,
    /// It shows one that nobody knows.
    #[error("authorization: the token is not known here")]
    Unknown,
    /// Its token gives less.
    #[error("authorization: the token does not give the right to {}", .0.name())]
    Forbidden(Access),
    /// Its client has too many calls under way.
    #[error("too many requests of this client at a time")]
    TooManyAtATime,
    /// Its client calls too often.
    #[error("too many requests of this client")]
    TooOften,
}

/// Whose calls are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// Whoever shows this token.
    Token(Digest),
    /// Whoever shows this certificate.
    Certificate(Arc<str>),
    /// Whoever is there.
    Address(Option<IpAddr>),
}

/// A call under way.
#[derive(Debug)]
pub struct Permit {
    guard: Arc<Guard>,
    client: Client,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.guard.used.lock().leave(&self.client);
    }
}

impl Guard {
    /// Reads what `config` names.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(config: &SecurityConfig) -> Result<Guard, LoadError> {
        let files = [&config.read_tokens, &config.route_tokens, &config.write_tokens];
        let mut guard = Guard { limit: config.limit, ..Guard::default() };
        for (place, file) in guard.tokens.iter_mut().zip(files) {
            if let Some(path) = file {
                *place = Some(Arc::new(Reloaded::load(vec![path.clone()], Tokens::read)?));
            }
        }
        Ok(guard)
    }

    /// Whether there is nothing to decide.
    pub fn is_open(&self) -> bool {
        self.tokens.iter().all(Option::is_none) && self.limit.is_none()
    }

    /// Whether a call may go on, and what is to be kept until it is over.
    ///
    /// # Errors
    /// Says why not.
    pub fn admit(
        self: &Arc<Self>,
        access: Access,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> Result<Option<Permit>, Refusal> {
        let admitted = self.decide(access, headers, caller, Instant::now());
        let counter = match admitted {
            Ok(_) => return admitted,
            Err(Refusal::NoToken | Refusal::Unknown) => &self.refused.unknown,
            Err(Refusal::Forbidden(_)) => &self.refused.forbidden,
            Err(Refusal::TooManyAtATime | Refusal::TooOften) => &self.refused.limited,
        };
        counter.fetch_add(1, Relaxed);
        admitted
    }

    fn decide(
        self: &Arc<Self>,
        access: Access,
        headers: &HeaderMap,
        caller: &Caller,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        let Some(needed) = access.place() else {
            // Whether kvd is well may be asked always.
            return Ok(None);
        };
        let token = self.has_right(access, needed, headers)?;
        if self.limit.is_none() {
            return Ok(None);
        }
        let client = match (token, &caller.certificate) {
            (Some(token), _) => Client::Token(token),
            (None, Some(certificate)) => Client::Certificate(Arc::clone(certificate)),
            (None, None) => Client::Address(caller.address.map(|a| a.ip())),
        };
        self.used.lock().enter(&client, &self.limit, now)?;
        Ok(Some(Permit { guard: Arc::clone(self), client }))
    }

    /// The token that gives the right; `None` where none is needed.
    fn has_right(
        &self,
        access: Access,
        needed: usize,
        headers: &HeaderMap,
    ) -> Result<Option<Digest>, Refusal> {
        // Whoever asks tokens for less asks them for more.
        if self.tokens[..=needed].iter().all(Option::is_none) {
            return Ok(None);
        }
        let shown = headers.get(AUTHORIZATION).map(|v| v.as_bytes()).ok_or(Refusal::NoToken)?;
        let shown = match shown.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return Err(Refusal::NoToken),
        };
        let digest = tokens::digest(shown);
        let is_in = |files: &[Option<Arc<Reloaded<Tokens>>>]| {
            files.iter().flatten().any(|tokens| tokens.now().knows(&digest))
        };
        if is_in(&self.tokens[needed..]) {
            return Ok(Some(digest));
        }
        Err(if is_in(&self.tokens[..needed]) { Refusal::Forbidden(access) } else { Refusal::Unknown })
    }

    /// Reads files again when they change, until dropped.
    pub async fn keep_current(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.tokens.iter().flatten().for_each(|tokens| tokens.look());
        }
    }
}
