//! Blocks that will be asked for soon, as somebody says who knows 64 bits of their names.
//!
//! A hint is a wish: blocks that are not known are left out, and it takes at most half of RAM, so that
//! no number of hints keeps engines from being served. To hold blocks is a promise: they are pinned where they
//! are, and it is said how many.

use super::api::PoolId;
use super::node::Node;
use super::pool::Pool;
use crate::policy::{BlockId, PinError, PinId, Tier};
use crate::slot::lock;

/// What hints came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hinted {
    /// Hashes that a block was found by.
    pub known: u64,
    /// Hashes that no block, or more than one, goes by.
    pub unknown: u64,
    /// Blocks that are copied up.
    pub copied: u64,
    /// Blocks that are not, because hints had their part of RAM.
    pub refused: u64,
}

/// What is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Pins, and the pools they are in.
    pub pins: Vec<(PoolId, PinId)>,
    /// Hashes whose blocks are pinned. Where they are there under several fingerprints, as ranks have them: under that
    /// which has least.
    pub held: u64,
}

impl Node {
    /// Copies up to `most` blocks of a model's chain, root first, to RAM and keeps them there for `ttl`
    /// ms: they are going to be asked for. `hashes` are the 64 bits that events call them by.
    pub fn hint(&self, model: &str, hashes: &[u64], most: u32, ttl: u64) -> Hinted {
        let mut hinted = Hinted::default();
        let mut found = vec![false; hashes.len()];
        for fingerprint in self.fingerprints(model) {
            for (at, (pool, _)) in self.all().into_iter().enumerate() {
                let id = PoolId(at as u32);
                let mut chain = pool.meant(fingerprint, hashes, &mut found);
                let there = chain.len();
                chain.truncate(pool.room_for_hints());
                hinted.refused += (there - chain.len()) as u64;
                if chain.is_empty() {
                    continue;
                }
                let below = pool.count_below(&chain).min(most as usize);
                match self.prefetch_and_pin(id, &chain, most, ttl) {
                    Ok(_) => hinted.copied += below as u64,
                    Err(_) => hinted.refused += chain.len() as u64,
                }
            }
        }
        hinted.known = found.iter().filter(|found| **found).count() as u64;
        hinted.unknown = hashes.len() as u64 - hinted.known;
        let all = &mut *lock(&self.hinted);
        all.known += hinted.known;
        all.unknown += hinted.unknown;
        all.copied += hinted.copied;
        all.refused += hinted.refused;
        hinted
    }

    /// Pins the blocks of a model's chain where they are for `ttl` ms; `hashes` are the 64 bits that events call them
    /// by, root first. What is not here is left out, and so is all after it under the same fingerprint.
    ///
    /// # Errors
    ///
    /// [`PinError`] where nothing is pinned.
    pub fn hold(&self, model: &str, hashes: &[u64], ttl: u64) -> Result<Holding, PinError> {
        let (mut holding, mut held) = (Holding::default(), None);
        for fingerprint in self.fingerprints(model) {
            for (at, (pool, _)) in self.all().into_iter().enumerate() {
                let chain = pool.meant(fingerprint, hashes, &mut vec![false; hashes.len()]);
                if chain.is_empty() {
                    continue;
                }
                let id = PoolId(at as u32);
                match self.pin_and_write(id, &chain, ttl) {
                    Ok(pin) => {
                        let count = lock(&pool.state).planner.pinned(pin).min(hashes.len()) as u64;
                        held = Some(held.map_or(count, |held: u64| held.min(count)));
                        holding.pins.push((id, pin));
                    }
                    Err(error) => {
                        // All of it or nothing: who asked gets no numbers to take these back by.
                        for (pool, pin) in holding.pins {
                            let _ = self.take_pin_back(pool, pin);
                        }
                        return Err(error);
                    }
                }
            }
        }
        holding.held = held.unwrap_or(0);
        Ok(holding)
    }

    /// What all hints came to.
    pub fn hinted(&self) -> Hinted {
        *lock(&self.hinted)
    }
}

impl Pool {
    /// The blocks that `hashes` mean, in their order; notes which of those mean any.
    fn meant(&self, model: u128, hashes: &[u64], found: &mut [bool]) -> Vec<BlockId> {
        let state = lock(&self.state);
        let mut chain = Vec::new();
        for (hash, found) in hashes.iter().zip(found) {
            for id in state.names.find(model, *hash) {
                *found = true;
                chain.push(id);
            }
        }
        chain
    }

    fn count_below(&self, chain: &[BlockId]) -> usize {
        let state = lock(&self.state);
        chain.iter().filter(|id| !state.planner.has(**id, Tier::Cpu)).count()
    }

    /// Blocks that hints may still pin: half of RAM less what is pinned.
    pub fn room_for_hints(&self) -> usize {
        let state = lock(&self.state);
        (state.planner.ram_blocks() as usize / 2).saturating_sub(state.planner.stats().pinned)
    }
}
