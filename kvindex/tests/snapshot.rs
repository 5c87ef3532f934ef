//! Snapshots: what is put back is what was there, and goes on the same under all that comes.

#[path = "support/engines.rs"]
mod engines;
#[path = "support/replant.rs"]
mod replant;

#[path = "snapshot/random.rs"]
mod random;
