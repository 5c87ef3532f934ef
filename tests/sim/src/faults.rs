//! What goes wrong, and how often.

use crate::rng::Rng;
use crate::world::{MS, SECOND, Time};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An engine starts anew.
    Restart,
    /// An engine's cache is emptied.
    Reset,
    /// A connection breaks; what was under way is lost.
    Cut,
    /// All of a node's connections break.
    Partition,
    /// Nothing comes through for a while; what does not fit is dropped.
    Stall,
    /// The next messages are lost.
    Lose,
    /// The next message comes twice.
    Repeat,
    /// A node's process is killed.
    Kill,
    /// A node applies nothing for a while.
    Busy,
    /// A node's disk loses or changes something of a snapshot.
    Damage,
    /// A node's disk is full, or has room again.
    Full,
}

const ALL: [Fault; 11] = [
    Fault::Restart,
    Fault::Reset,
    Fault::Cut,
    Fault::Partition,
    Fault::Stall,
    Fault::Lose,
    Fault::Repeat,
    Fault::Kill,
    Fault::Busy,
    Fault::Damage,
    Fault::Full,
];

/// The kinds of one run: few of them together show what all of them would drown.
#[derive(Clone, Debug)]
pub struct Menu {
    kinds: Vec<Fault>,
    /// Mean time between two.
    mean: Time,
    skewed: bool,
}

impl Menu {
    pub fn new(rng: &mut Rng) -> Menu {
        let skewed = rng.one_in(3);
        if rng.one_in(5) {
            // Short lives on both sides: what one life told often nearly fits the next.
            return Menu { kinds: vec![Fault::Restart, Fault::Kill], mean: SECOND, skewed };
        }
        let mut kinds: Vec<Fault> = ALL.into_iter().filter(|_| rng.one_in(2)).collect();
        if kinds.is_empty() {
            kinds.push(rng.pick(&ALL));
        }
        Menu { kinds, mean: rng.pick(&[SECOND / 2, SECOND, 4 * SECOND]), skewed }
    }

    pub fn choose(&self, rng: &mut Rng) -> Fault {
        rng.pick(&self.kinds)
    }

    /// Time to the next.
    pub fn pause(&self, rng: &mut Rng) -> Time {
        rng.between(MS, 2 * self.mean)
    }

    /// How much another host's clock differs, seconds: less than passes between two lives.
    pub fn skew(&self, rng: &mut Rng) -> f64 {
        if self.skewed { rng.below(1_000) as f64 / 10.0 } else { 0.0 }
    }
}
