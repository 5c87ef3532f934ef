//! What does kvd know again after a restart, and what can another replica have of it?
//!
//! ```text
//! lanes ─ hold still, one at a time ─▶ write ─▶ file ─▶ load ─▶ lanes go on from there
//!                                       ▲ runner: when          └─▶ or stays aside, marked bad
//! ```
//!
//! A snapshot is kvindex's ([`kvindex::snapshot`]); its labels are registrations and positions. [`mod@write`]
//! and [`mod@load`] know neither files nor time, [`files`] keeps them, [`runner`] makes them now and then.

pub mod files;
mod label;
pub mod load;
pub mod runner;
pub mod write;

pub use files::Files;
pub use load::{LoadError, Loaded, load};
pub use runner::{Runner, Schedule, Shown};
pub use write::{Pace, WriteError, Written, write};
