//! Which KV blocks move between pods, and what has become of it?
//!
//! ```text
//! Question ─▶ plan/ ─▶ Plan ─▶ artefacts/   what to send to the engines
//!              ▲         │
//!            cost/       └▶ ledger/ ─▶ Outbox   what to write, what to tell
//!              ▲              ▲
//!              └── Lesson ── reports
//! ```
//!
//! [`types`] are the values that planner, ledger and transports share; [`plans`] is what the
//! service asks of a planner, [`learned`] the one it has. [`token`] and [`home`] are how several
//! replicas share the ledger, [`clock`] is its time. Sockets are in [`crate::serve::transfer`].

pub mod artefacts;
pub mod clock;
pub mod cost;
pub mod home;
pub mod key;
pub mod learned;
pub mod ledger;
pub mod plan;
pub mod plans;
pub mod token;
pub mod types;
