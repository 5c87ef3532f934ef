//! Whose is a token that no file has? The Kubernetes cluster knows its service accounts'.
//!
//! ```text
//! token ─▶ verdicts.rs  what was said of it a moment ago ─▶ right
//!              │ nothing
//!              └▶ the API server (TokenReview) ─▶ grants.rs  what such a user may ─▶ right
//! ```
//!
//! Only the call that shows such a token waits for the cluster, and never long. Calls that show one token
//! wait for one review. What was accepted is reviewed again while it still holds, so that who calls all the
//! time never waits. Strangers are bounded: whoever invents tokens keeps neither the API server busy nor
//! those out whose tokens are known.

mod grants;
#[cfg(test)]
mod tests;
mod verdicts;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::warn;

use super::access::Access;
use super::tokens::Digest;
use crate::cluster::said;
pub use grants::{Grants, Subjects};
use verdicts::{Age, Verdicts};

/// How long a review may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// After one that failed, strangers are refused this long without asking.
const AWAY: Duration = Duration::from_secs(1);
/// Reviews under way, and those of strangers among them.
const MOST: usize = 64;
const MOST_OF_STRANGERS: usize = 32;
/// Strangers reviewed per second, and at once.
const STRANGERS_PER_SECOND: f64 = 50.0;
const STRANGERS_AT_ONCE: f64 = 100.0;
/// The longest token, in bytes. Those of service accounts have one or two thousand.
const LONGEST: usize = 16 << 10;

/// Which tokens of the cluster are accepted.
#[derive(Clone, Debug)]
pub struct ReviewConfig {
    /// How the cluster is reached; `None` = as discovery reaches it.
    pub kubeconfig: Option<PathBuf>,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// Who may do what.
    pub grants: Grants,
    /// How long what the cluster says of a token holds.
    pub ttl: Duration,
}

/// What is known of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its user is known, and may do this; `None` = nothing.
    Known(Option<Access>),
    /// It is nobody's, or is not meant for kvd.
    Unknown,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// A user's.
    User {
        /// `system:serviceaccount:NAMESPACE:NAME`.
        name: String,
        /// Groups that the user is in.
        groups: Vec<String>,
    },
    /// Nobody's, or it is not meant for kvd.
    Nobody,
}

/// Why a token cannot be reviewed now.
pub type Away = Arc<str>;
type Outcome = Result<Verdict, Away>;
type Ask = Box<dyn Fn(String) -> BoxFuture<'static, Result<Reviewed, String>> + Send + Sync>;

/// What is known of a token now, or will be.
pub enum Standing {
    /// It is known.
    Now(Outcome),
    /// The cluster is asked.
    Later(BoxFuture<'static, Outcome>),
}

/// Asks the cluster whose tokens are.
pub struct Reviewer {
    grants: Grants,
    ask: Ask,
    state: Mutex<State>,
    /// Reviews made, and those of them that the cluster did not answer.
    pub counts: Counts,
}

/// What happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Reviews asked for.
    pub asked: AtomicU64,
    /// Those that were not answered.
    pub failed: AtomicU64,
}

struct State {
    verdicts: Verdicts,
    under_way: HashMap<Digest, Shared<BoxFuture<'static, Outcome>>>,
    strangers_under_way: usize,
    /// Strangers that may be reviewed, as of then.
    strangers: (f64, Instant),
    /// The cluster did not answer; until when nobody new asks it.
    away: Option<(Instant, Away)>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("grants", &self.grants).finish_non_exhaustive()
    }
}

impl Reviewer {
    /// By the cluster that `client` reaches.
    pub fn new(config: &ReviewConfig, client: Client) -> Arc<Reviewer> {
        let audiences = config.audiences.clone();
        let ask = move |token| {
            let (client, audiences) = (client.clone(), audiences.clone());
            async move { review(client, token, audiences).await }.boxed()
        };
        Reviewer::asking(config, Box::new(ask))
    }

    /// By what `ask` says.
    fn asking(config: &ReviewConfig, ask: Ask) -> Arc<Reviewer> {
        let state = State {
            verdicts: Verdicts::new(config.ttl),
            under_way: HashMap::new(),
            strangers_under_way: 0,
            strangers: (STRANGERS_AT_ONCE, Instant::now()),
            away: None,
        };
        let grants = config.grants.clone();
        Arc::new(Reviewer { grants, ask, state: Mutex::new(state), counts: Counts::default() })
    }

    /// What is known of `token`.
    pub fn standing(self: &Arc<Self>, token: &[u8], digest: Digest, now: Instant) -> Standing {
        let mut state = self.state.lock();
        match state.verdicts.get(&digest, now) {
            Some((verdict, Age::Young)) => Standing::Now(Ok(verdict)),
            Some((verdict, Age::Old)) => {
                // It holds while the cluster is asked again, and if it cannot be.
                let is_away = state.away.as_ref().is_some_and(|(until, _)| now < *until);
                if !is_away && state.under_way.len() < MOST && !state.under_way.contains_key(&digest) {
                    drop(self.begin(&mut state, token, digest, false));
                }
                Standing::Now(Ok(verdict))
            }
            None => self.of_a_stranger(&mut state, token, digest, now),
        }
    }

    fn of_a_stranger(
        self: &Arc<Self>,
        state: &mut State,
        token: &[u8],
        digest: Digest,
        now: Instant,
    ) -> Standing {
        if !is_jwt(token) {
            return Standing::Now(Ok(Verdict::Unknown));
        }
        if let Some(review) = state.under_way.get(&digest) {
            return Standing::Later(review.clone().boxed());
        }
        if let Some((_, why)) = state.away.as_ref().filter(|(until, _)| now < *until) {
            return Standing::Now(Err(Arc::clone(why)));
        }
        let (left, at) = state.strangers;
        let since = now.saturating_duration_since(at).as_secs_f64();
        let left = (left + since * STRANGERS_PER_SECOND).min(STRANGERS_AT_ONCE);
        state.strangers = (left, now);
        if left < 1.0 || state.strangers_under_way >= MOST_OF_STRANGERS || state.under_way.len() >= MOST {
            return Standing::Now(Err("too many unknown tokens are shown".into()));
        }
        state.strangers.0 -= 1.0;
        Standing::Later(self.begin(state, token, digest, true).boxed())
    }

    /// Begins a review. It goes on when nobody waits for it any more.
    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        token: &[u8],
        digest: Digest,
        of_a_stranger: bool,
    ) -> Shared<BoxFuture<'static, Outcome>> {
        self.counts.asked.fetch_add(1, Relaxed);
        let (tell, told) = oneshot::channel();
        let review =
            told.map(|told| told.unwrap_or_else(|_| Err("kvd is being stopped".into()))).boxed().shared();
        state.under_way.insert(digest, review.clone());
        state.strangers_under_way += usize::from(of_a_stranger);
        let asked = (self.ask)(String::from_utf8_lossy(token).into_owned());
        let reviewer = Arc::clone(self);
        tokio::spawn(async move {
            let reviewed = match tokio::time::timeout(PATIENCE, asked).await {
                Ok(reviewed) => reviewed,
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            let outcome = reviewer.end(digest, of_a_stranger, reviewed, Instant::now());
            // Perhaps nobody waits any more.
            let _ = tell.send(outcome);
        });
        review
    }

    fn end(
        &self,
        digest: Digest,
        of_a_stranger: bool,
        reviewed: Result<Reviewed, String>,
        now: Instant,
    ) -> Outcome {
        let mut state = self.state.lock();
        state.under_way.remove(&digest);
        state.strangers_under_way -= usize::from(of_a_stranger);
        match reviewed {
            Ok(reviewed) => {
                let verdict = match reviewed {
                    Reviewed::User { name, groups } => Verdict::Known(self.grants.right_of(&name, &groups)),
                    Reviewed::Nobody => Verdict::Unknown,
                };
                state.away = None;
                state.verdicts.put(digest, verdict, now);
                Ok(verdict)
            }
            Err(why) => {
                self.counts.failed.fetch_add(1, Relaxed);
                if state.away.is_none() {
                    warn!(error = why, "tokens cannot be reviewed by the cluster");
                }
                let why: Away = why.into();
                state.away = Some((now + AWAY, Arc::clone(&why)));
                Err(why)
            }
        }
    }
}

/// Whether it could be a service account's: those are JSON Web Tokens. Nothing in it is believed.
fn is_jwt(token: &[u8]) -> bool {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let parts: Vec<_> = token.split(|b| *b == b'.').collect();
    token.len() <= LONGEST && parts.len() == 3 && parts.iter().all(|p| !p.is_empty() && p.iter().all(is_word))
}

/// Asks the cluster.
async fn review(client: Client, token: String, audiences: Vec<String>) -> Result<Reviewed, String> {
    let spec = TokenReviewSpec { token: Some(token), audiences: Some(audiences.clone()) };
    let question = TokenReview { spec, ..TokenReview::default() };
    let answer = Api::<TokenReview>::all(client).create(&PostParams::default(), &question).await;
    let status = answer.map_err(|e| said(&e))?.status.unwrap_or_default();
    let user = status.user.filter(|_| status.authenticated == Some(true));
    // A server that knows of no audiences accepts tokens that are meant for others.
    let meant = status.audiences.iter().flatten().any(|a| audiences.contains(a));
    let name = user.as_ref().and_then(|u| u.username.clone()).filter(|name| !name.is_empty());
    Ok(match name {
        Some(name) if meant => {
            Reviewed::User { name, groups: user.and_then(|u| u.groups).unwrap_or_default() }
        }
        Some(_) | None => Reviewed::Nobody,
    })
}
