//! How much of a prompt does each candidate already hold? The client a scheduler asks kvd with.
//!
//! ```text
//! Prompt ─▶ ScoreCall ─▶ ScorerClient::score ──gRPC──▶ kvd
//!                             Scores or ScoreError ◀────┘
//! ```
//!
//! Ask before routing, tell kvd afterwards where the request went ([`ScorerClient::record_routing`]),
//! so that the next one counts on blocks that are not there yet but will be, and when it is done what its
//! engine had cached ([`ScorerClient::report_outcome`]), so that kvd finds out when it is wrong. Every call ends
//! within its deadline (5 ms unless set otherwise): a scheduler that gets
//! [`ScoreError::Deadline`] or [`ScoreError::Unavailable`] routes without kvd.
//!
//! ```no_run
//! # async fn route() -> Result<(), Box<dyn std::error::Error>> {
//! use scorer_client::{Prompt, RoutingCall, ScoreCall, ScoreError, ScorerClient};
//!
//! let kvd = ScorerClient::connect("http://127.0.0.1:50051").await?;
//! let tokens: Vec<u32> = vec![1, 2, 3];
//! let call = ScoreCall::new("llama-3", Prompt::tokens(&tokens)).candidates(["10.0.0.1:8000", "10.0.0.2:8000"]);
//! match kvd.score(call).await {
//!     Ok(scores) => {
//!         if let Some(best) = scores.endpoints.iter().max_by_key(|e| e.cached_tokens) {
//!             println!("{} has {} tokens cached", best.endpoint.instance, best.cached_tokens);
//!             let routed = RoutingCall::new("request-1", "llama-3", Prompt::tokens(&tokens));
//!             kvd.record_routing(routed.to([best.endpoint.clone()])).await?;
//!         }
//!     }
//!     Err(ScoreError::Deadline { .. } | ScoreError::Unavailable { .. }) => { /* route without kvd */ }
//!     Err(other) => return Err(other.into()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Sending tokens is simplest. [`PromptHasher`] hashes on the client instead, which is an eighth
//! of the bytes at blocks of 16 and shares the hashing between several questions about one prompt.
//!
//! Where kvd runs as several replicas, [`Replicas`] asks them as if they were one: it finds them by name, asks a
//! second one where the first is late, leaves alone those that are silent, and always has an answer within the
//! deadline, which says whether it is kvd's or was made from memory. [`MatchInfo`] is the form that llm-d's endpoint
//! picker needs, [`EppParameters`] its configuration (`docs/epp.md`).
//!
//! ```no_run
//! # async fn route() -> Result<(), Box<dyn std::error::Error>> {
//! use scorer_client::{Prompt, ReplicaSettings, Replicas, RoutingCall, ScoreCall};
//!
//! let kvd = Replicas::start(ReplicaSettings::new(["http://kvd-headless:50051"])).await?;
//! let tokens: Vec<u32> = vec![1, 2, 3];
//! let call = ScoreCall::new("llama-3", Prompt::tokens(&tokens)).candidates(["10.0.0.1:8000", "10.0.0.2:8000"]);
//! let answer = kvd.score(call).await;
//! if let Some((endpoint, _)) = answer.scores.match_infos().max_by_key(|(_, info)| info.match_blocks) {
//!     let routed = RoutingCall::new("request-1", "llama-3", Prompt::tokens(&tokens));
//!     kvd.record_routing(routed.to([endpoint.clone()]));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A kvd that is guarded (`docs/security.md`) is reached with [`Security`]: a CA, a certificate to show, a token.
//!
//! [`ScorerClient::plan`] asks how a prompt is to be served where prefill and decode are apart, and
//! [`ScorerClient::report`] says what became of it.
//!
//! Read [`ScorerClient`] first, then [`Prompt`] and [`Scores`].

mod call;
mod client;
mod connect;
mod error;
mod hasher;
mod match_info;
mod outcome;
mod prompt;
mod replicas;
mod scores;
mod security;
mod stream;
mod transfer;

pub use call::{HashSpecCall, RoutingCall, ScoreCall};
pub use client::{Builder, ScorerClient};
pub use error::{ConnectError, ScoreError};
pub use hasher::{HashSpec, HashVector, HasherError, PromptHasher};
pub use match_info::MatchInfo;
pub use outcome::{Outcome, OutcomeCall, Outcomes, Verdict};
pub use prompt::Prompt;
pub use replicas::{
    Answer, BreakerRule, EppError, EppParameters, HedgeAfter, Origin, PrefixMemory, ReplicaSettings,
    ReplicaStats, ReplicaStatus, Replicas,
};
pub use scores::{Endpoint, EndpointScore, Freshness, PublisherState, Routed, Scores};
pub use security::{Security, Token};
pub use stream::{ScoreReceiver, ScoreSender, StreamAnswer};
pub use transfer::{PlanCall, Planned, ReportCall, Retry};

pub use kvproto::hash::canonical::MmItem;
/// The messages of transfers: pods, phases, decisions.
pub use kvproto::rpc::kv;
pub use kvproto::{EngineHash, SeqHash, Tier};
