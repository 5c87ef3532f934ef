//! What has become of every transfer, and what does it take up until it is over?
//!
//! ```text
//! event ─▶ machine::step ─▶ Book ─▶ Outbox: what to write, what to tell
//!             record          │ reservations, deadlines, keys
//! ```
//!
//! Read [`record`], then [`machine`], then [`book`]. Nothing in here reads a clock, writes or
//! waits.

pub mod book;
pub mod machine;
pub mod record;
pub mod reserve;
pub mod store;
#[cfg(test)]
mod tests;
pub mod timers;

pub use book::{Book, Bounds, News, NotApplied, NotPlanned, Outbox, Write};
pub use machine::{Event, Notice, Refused, Replan};
pub use record::{Cause, Enforcement, Millis, Record, State, Strand, TransferId};
pub use reserve::{Full, Reservations};
pub use timers::Timers;
