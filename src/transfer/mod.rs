//! Which KV blocks move between pods, and what has become of it?
//!
//! ```text
//! Question ─▶ plan/ ─▶ Plan ─▶ artefacts/   what to send to the engines
//!              ▲
//!            cost/ ◀── Lesson                what reports teach
//! ```
//!
//! [`types`] are the values that planner, ledger and transports share; [`plans`] is what the
//! service asks of a planner, [`learned`] the one it has.

pub mod artefacts;
pub mod cost;
pub mod learned;
pub mod plan;
pub mod plans;
pub mod types;
