//! Who may ask for what, how much of it, and can anybody listen in?
//!
//! ```text
//! wire.rs ─▶ connections, plain or by tls.rs ─▶ gate.rs ─▶ the services
//!                                                 │ access.rs  which right a call needs
//!                                                 │ tokens.rs  which rights a token of a file gives
//!                                                 │ review/    which a token of the cluster gives
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
pub mod review;
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

use futures::future::BoxFuture;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use kube::Client as ClusterClient;
use parking_lot::Mutex;

use access::Access;
use limits::{Limit, Used};
use review::{ReviewConfig, Reviewer, Standing, Verdict};
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
    /// Which tokens of the cluster are accepted besides.
    pub token_review: Option<ReviewConfig>,
    /// Who signs other replicas' certificates, PEM; with it, they are spoken to by TLS, with the
    /// certificate above as this one's own.
    pub peer_ca: Option<PathBuf>,
    /// The name in their certificates, where it is not the one they are reached by.
    pub peer_name: Option<String>,
    /// The token that is shown to other replicas: the first of the file.
    pub peer_token: Option<PathBuf>,
    /// The same of nodes' tiers, which are told what to prefetch.
    pub tier_ca: Option<PathBuf>,
    /// The same of nodes' tiers.
    pub tier_name: Option<String>,
    /// The same of nodes' tiers.
    pub tier_token: Option<PathBuf>,
    /// What one client may ask.
    pub limit: Limit,
}

/// Decides about calls.
#[derive(Debug, Default)]
pub struct Guard {
    /// By right, the least first.
    tokens: [Option<Arc<Reloaded<Tokens>>>; 3],
    /// Rights that the cluster's tokens give, by right.
    grants: [bool; 3],
    /// Knows the cluster's tokens.
    pub reviewer: Option<Arc<Reviewer>>,
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
    /// With a token that the cluster could not be asked about.
    pub unreviewed: AtomicU64,
    /// Over a client's limit.
    pub limited: AtomicU64,
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// It shows one that is in no file, and that the cluster cannot be asked about.
    #[error("authorization: the token is in no file, and the cluster cannot be asked about it: {0}")]
    Unreviewed(review::Away),
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

/// Whether a call may go on, and what is to be kept until it is over.
pub type Admitted = Result<Option<Permit>, Refusal>;

/// When that is known.
pub enum Admission {
    /// Now.
    Now(Admitted),
    /// When the cluster has said whose its token is.
    Later(BoxFuture<'static, Admitted>),
}

/// What a call's token comes to.
enum Shown {
    /// The token that gives the right; `None` where none is needed.
    Good(Option<Digest>),
    Bad(Refusal),
    /// The cluster is asked.
    Asked(Digest, BoxFuture<'static, Result<Verdict, review::Away>>),
}

impl Guard {
    /// Reads what `config` names. Its `token_review` needs a `cluster`.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(config: &SecurityConfig, cluster: Option<ClusterClient>) -> Result<Guard, LoadError> {
        let files = [&config.read_tokens, &config.route_tokens, &config.write_tokens];
        let mut guard = Guard { limit: config.limit, ..Guard::default() };
        for (place, file) in guard.tokens.iter_mut().zip(files) {
            if let Some(path) = file {
                *place = Some(Arc::new(Reloaded::load(vec![path.clone()], Tokens::read)?));
            }
        }
        if let Some(review) = &config.token_review {
            guard.grants = review.grants.by_right().map(|(_, subjects)| !subjects.is_empty());
            guard.reviewer = cluster.map(|client| Reviewer::new(review, client));
        }
        Ok(guard)
    }

    /// Whether there is nothing to decide.
    pub fn is_open(&self) -> bool {
        !self.is_guarded(2) && self.limit.is_none()
    }

    /// Whether the right of this place, or one before it, is asked for: whoever asks tokens for less asks
    /// them for more.
    fn is_guarded(&self, place: usize) -> bool {
        self.tokens[..=place].iter().any(Option::is_some) || self.grants[..=place].contains(&true)
    }

    /// Whether a call may go on, and what is to be kept until it is over.
    pub fn admit(self: &Arc<Self>, access: Access, headers: &HeaderMap, caller: &Caller) -> Admission {
        let Some(needed) = access.place() else {
            // Whether kvd is well may be asked always.
            return Admission::Now(Ok(None));
        };
        let now = Instant::now();
        match self.shown(access, needed, headers, now) {
            Shown::Good(token) => Admission::Now(self.count(self.enter(token, caller, now))),
            Shown::Bad(refusal) => Admission::Now(self.count(Err(refusal))),
            Shown::Asked(token, asked) => {
                let (guard, caller) = (Arc::clone(self), caller.clone());
                Admission::Later(Box::pin(async move {
                    let right = of_verdict(asked.await, access);
                    guard.count(right.and_then(|()| guard.enter(Some(token), &caller, Instant::now())))
                }))
            }
        }
    }

    fn count(&self, admitted: Admitted) -> Admitted {
        let counter = match &admitted {
            Ok(_) => return admitted,
            Err(Refusal::NoToken | Refusal::Unknown) => &self.refused.unknown,
            Err(Refusal::Forbidden(_)) => &self.refused.forbidden,
            Err(Refusal::Unreviewed(_)) => &self.refused.unreviewed,
            Err(Refusal::TooManyAtATime | Refusal::TooOften) => &self.refused.limited,
        };
        counter.fetch_add(1, Relaxed);
        admitted
    }

    /// Counts a call that may be made against what its client may ask.
    fn enter(self: &Arc<Self>, token: Option<Digest>, caller: &Caller, now: Instant) -> Admitted {
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

    fn shown(&self, access: Access, needed: usize, headers: &HeaderMap, now: Instant) -> Shown {
        if !self.is_guarded(needed) {
            return Shown::Good(None);
        }
        let Some(token) = bearer(headers) else { return Shown::Bad(Refusal::NoToken) };
        let digest = tokens::digest(token);
        let is_in = |files: &[Option<Arc<Reloaded<Tokens>>>]| {
            files.iter().flatten().any(|tokens| tokens.now().knows(&digest))
        };
        if is_in(&self.tokens[needed..]) {
            return Shown::Good(Some(digest));
        }
        if is_in(&self.tokens[..needed]) {
            return Shown::Bad(Refusal::Forbidden(access));
        }
        let Some(reviewer) = &self.reviewer else { return Shown::Bad(Refusal::Unknown) };
        match reviewer.standing(token, digest, now) {
            Standing::Later(asked) => Shown::Asked(digest, asked),
            Standing::Now(known) => match of_verdict(known, access) {
                Ok(()) => Shown::Good(Some(digest)),
                Err(refusal) => Shown::Bad(refusal),
            },
        }
    }

    /// Reads files again when they change, until dropped.
    pub async fn keep_current(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.tokens.iter().flatten().for_each(|tokens| tokens.look());
        }
    }
}

/// The token that a call shows.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let shown = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = shown.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Whether what the cluster says of a token is enough.
fn of_verdict(verdict: Result<Verdict, review::Away>, access: Access) -> Result<(), Refusal> {
    match verdict {
        Ok(Verdict::Known(Some(right))) if right >= access => Ok(()),
        Ok(Verdict::Known(_)) => Err(Refusal::Forbidden(access)),
        Ok(Verdict::Unknown) => Err(Refusal::Unknown),
        Err(why) => Err(Refusal::Unreviewed(why)),
    }
}
