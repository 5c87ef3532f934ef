//! Tiers whose loads and stores wait at a gate, so that a test decides what happens meanwhile.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex};

use crate::Lease;
use crate::node::{MemoryTiers, OwnersFull, PoolError, PoolId, Stored, Tiers, Where};
use crate::policy::{BlockId, Owner, PinError, PinId};
use crate::slot::lock;
use crate::store::{Get, Put, Read, StoreKey};

#[derive(Debug, Default)]
struct State {
    open: bool,
    inside: usize,
}

#[derive(Debug)]
pub struct Gate {
    pub tiers: MemoryTiers,
    state: Mutex<State>,
    change: Condvar,
}

impl Gate {
    pub fn closed(slots: u32) -> Gate {
        Gate { tiers: MemoryTiers::new(slots), state: Mutex::default(), change: Condvar::new() }
    }

    pub fn set(&self, open: bool) {
        lock(&self.state).open = open;
        self.change.notify_all();
    }

    /// How many loads and stores have come to the gate and not left.
    pub fn inside(&self) -> usize {
        lock(&self.state).inside
    }

    fn pass<T>(&self, then: impl FnOnce() -> T) -> T {
        let mut state = lock(&self.state);
        state.inside += 1;
        while !state.open {
            state = self.change.wait(state).unwrap();
        }
        drop(state);
        let result = then();
        lock(&self.state).inside -= 1;
        result
    }
}

impl Tiers for Gate {
    fn pool(&self, block_bytes: usize) -> Result<PoolId, PoolError> {
        self.tiers.pool(block_bytes)
    }

    fn owner(&self, model: &str, salt: &str) -> Result<Owner, OwnersFull> {
        self.tiers.owner(model, salt)
    }

    fn lookup(&self, pool: PoolId, keys: &[StoreKey]) -> Vec<Where> {
        self.tiers.lookup(pool, keys)
    }

    fn touch(&self, pool: PoolId, chain: &[StoreKey]) {
        self.tiers.touch(pool, chain);
    }

    fn load(&self, pool: PoolId, blocks: &mut [Get<'_>]) -> Vec<Read> {
        self.pass(|| self.tiers.load(pool, blocks))
    }

    fn lease(&self, pool: PoolId, key: StoreKey) -> Option<Lease> {
        self.tiers.lease(pool, key)
    }

    fn arena(&self, pool: PoolId) -> Option<(OwnedFd, u64)> {
        self.tiers.arena(pool)
    }

    fn store(&self, pool: PoolId, blocks: &[Put<'_>]) -> Vec<Stored> {
        self.pass(|| self.tiers.store(pool, blocks))
    }

    fn disown(&self, pool: PoolId, keys: &[StoreKey]) {
        self.tiers.disown(pool, keys);
    }

    fn prefetch(&self, pool: PoolId, chain: &[BlockId], most: u32, ttl: u64) -> Result<PinId, PinError> {
        self.tiers.prefetch(pool, chain, most, ttl)
    }

    fn pin(&self, pool: PoolId, chain: &[BlockId], ttl: u64) -> Result<PinId, PinError> {
        self.tiers.pin(pool, chain, ttl)
    }

    fn renew(&self, pool: PoolId, pin: PinId, ttl: u64) -> Result<(), PinError> {
        self.tiers.renew(pool, pin, ttl)
    }

    fn unpin(&self, pool: PoolId, pin: PinId) -> Result<(), PinError> {
        self.tiers.unpin(pool, pin)
    }

    fn flush(&self, pool: PoolId) -> bool {
        self.tiers.flush(pool)
    }
}
