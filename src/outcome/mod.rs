//! Is what kvd says true? Schedulers report what engines really had cached.
//!
//! ```text
//! Score ──▶ predictions ──┐
//! events ─▶ trail, heard ─┼─▶ judge ─▶ account ─▶ diagnose ─▶ findings (kvctl doctor)
//! report ─────────────────┘              └──▶ distrust ─▶ Score (blocks that do not count)
//! ```
//!
//! Read `judge` first: it says when a report is an error of the index and when not. An [`Account`] per
//! publisher lies in its lane and takes in events and judged reports. `diagnose` and `health` are
//! pure functions from what is known to [`Finding`]s; `distrust` decides which blocks do not count any
//! more. Nothing here reads a clock: `serve/outcome/` does, and asks the index.

pub mod account;
pub mod diagnose;
pub mod distrust;
pub mod finding;
pub mod health;
pub mod heard;
pub mod judge;
pub mod predictions;
pub mod tally;
pub mod trail;

pub use account::Account;
pub use finding::{Finding, Problem, Severity, Who};
pub use judge::Verdict;
