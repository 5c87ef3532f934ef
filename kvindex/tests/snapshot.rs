//! Snapshots: what is put back is what was there, and goes on the same under all that comes.

#[path = "support/engines.rs"]
mod engines;
#[path = "support/reframe.rs"]
mod reframe;
#[path = "support/replant.rs"]
mod replant;

#[path = "snapshot/digest.rs"]
mod digest;
#[path = "snapshot/fixture.rs"]
mod fixture;
#[path = "snapshot/hostile.rs"]
mod hostile;
#[path = "snapshot/parts.rs"]
mod parts;
#[path = "snapshot/random.rs"]
mod random;
#[path = "snapshot/rich.rs"]
mod rich;
