//! Which KV blocks move between pods, and what has become of it?
//!
//! [`types`] are the values that planner, ledger and transports share; [`plans`] is what the
//! service asks of a planner.

pub mod clock;
pub mod home;
pub mod ledger;
pub mod plans;
pub mod token;
pub mod types;
