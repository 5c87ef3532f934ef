//! Several replicas of kvd, asked as if they were one, and an answer whatever happens to them.
//!
//! | file | question |
//! | --- | --- |
//! | `settings.rs`, `epp.rs` | what can be set, in our words and in those of llm-d's endpoint picker? |
//! | `set.rs` | how does a question get its answer? |
//! | `board.rs` | what is known of every replica? |
//! | `pick.rs` | who is asked first, and who next? |
//! | `hedge.rs` | when is a second one asked the same? |
//! | `breaker.rs` | when is one left alone, and when tried again? |
//! | `recall.rs`, `prefix.rs` | what is said when none answers? |
//! | `places.rs`, `follow.rs` | where are they, and how are they? |
//! | `routing.rs` | how is kvd told where requests went? |
//! | `hashing.rs`, `chain.rs` | what are a prompt's blocks called? |
//!
//! Everything but `set.rs`, `follow.rs` and `routing.rs` is pure: it decides, and is told the time.

mod answer;
mod board;
mod breaker;
mod chain;
mod epp;
mod follow;
mod hashing;
mod hedge;
mod pick;
mod places;
mod prefix;
mod recall;
mod routing;
mod set;
mod settings;

pub use answer::{Answer, Origin, ReplicaStats};
pub use board::ReplicaStatus;
pub use breaker::BreakerRule;
pub use epp::{EppError, EppParameters};
pub use hedge::HedgeAfter;
pub use prefix::PrefixMemory;
pub use set::Replicas;
pub use settings::ReplicaSettings;
