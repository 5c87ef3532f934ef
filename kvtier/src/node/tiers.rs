//! A node, asked by engines.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use super::api::{Loads, OwnersFull, PoolError, PoolId, Stored, Tiers, Where};
use super::node::Node;
use crate::Lease;
use crate::policy::BlockId;
use crate::policy::{Owner, PinError, PinId};
use crate::slot::lock;
use crate::store::{Get, Put, Read, StoreKey};

impl Tiers for Node {
    fn pool(&self, block_bytes: usize) -> Result<PoolId, PoolError> {
        self.make(block_bytes)
    }

    fn owner(&self, model: &str, salt: &str) -> Result<Owner, OwnersFull> {
        let mut owners = lock(&self.owners);
        if let Some(at) = owners.iter().position(|o| o.0 == model && o.1 == salt) {
            return Ok(Owner(at as u16));
        }
        let owner = u16::try_from(owners.len()).map(Owner).map_err(|_| OwnersFull(owners.len()))?;
        // Without being written down it would name somebody else after a restart.
        if model.contains('\0') || self.catalog.add_owner(owner, model, salt).is_err() {
            return Err(OwnersFull(owners.len()));
        }
        owners.push((model.to_owned(), salt.to_owned()));
        Ok(owner)
    }

    fn expect(&self, model: &str, fingerprint: u128) {
        // Not written down, it is named when the first block is stored.
        let _ = self.streams.name(fingerprint, model);
    }

    fn lookup(&self, pool: PoolId, keys: &[StoreKey]) -> Vec<Where> {
        self.at(pool).map_or_else(|| vec![Where::Nowhere; keys.len()], |pool| pool.lookup(keys))
    }

    fn touch(&self, pool: PoolId, chain: &[StoreKey]) {
        if let Some(pool) = self.at(pool) {
            let ids: Vec<BlockId> = chain.iter().map(StoreKey::id).collect();
            pool.touch(self.now(), &ids);
            self.ring();
        }
    }

    fn load(&self, pool: PoolId, blocks: &mut [Get<'_>]) -> Vec<Read> {
        match self.at(pool) {
            Some(pool) => pool.load(blocks),
            None => vec![Read::Miss; blocks.len()],
        }
    }

    fn lease(&self, pool: PoolId, key: StoreKey) -> Option<Lease> {
        self.at(pool)?.lease(key)
    }

    fn arena(&self, pool: PoolId) -> Option<(OwnedFd, u64)> {
        let pool = self.at(pool)?;
        let arena = pool.arena.as_ref()?;
        Some((arena.file().try_clone_to_owned().ok()?, arena.file_bytes()))
    }

    fn loads(&self, pool: PoolId) -> Loads {
        let Some(pool) = self.at(pool) else { return Loads::default() };
        let moves = lock(&pool.state).moves;
        let copied_on_disk = pool.disk().map_or(0, |disk| disk.stats().copied);
        Loads { blocks: moves.loaded, copied_bytes: moves.copied_bytes + copied_on_disk }
    }

    fn store(&self, pool: PoolId, blocks: &[Put<'_>]) -> Vec<Stored> {
        let refused = || vec![Stored::Refused; blocks.len()];
        let Some(pool) = self.at(pool) else { return refused() };
        if self.is_draining() {
            return refused();
        }
        for of_model in blocks.chunk_by(|a, b| (a.key.model, a.owner) == (b.key.model, b.owner)) {
            let (key, owner) = (of_model[0].key, of_model[0].owner);
            let named = lock(&self.owners).get(usize::from(owner.0)).map(|o| o.0.clone());
            // Blocks that cannot be told of are kept all the same: engines find them by asking.
            let _ = named.map(|model| self.streams.name(key.model, &model));
        }
        let stored = pool.store(self.now(), blocks);
        self.ring();
        stored
    }

    fn disown(&self, pool: PoolId, keys: &[StoreKey]) {
        self.evict(pool, keys);
    }

    fn prefetch(&self, pool: PoolId, chain: &[BlockId], most: u32, ttl: u64) -> Result<PinId, PinError> {
        self.prefetch_and_pin(pool, chain, most, ttl)
    }

    fn pin(&self, pool: PoolId, chain: &[BlockId], ttl: u64) -> Result<PinId, PinError> {
        self.pin_and_write(pool, chain, ttl)
    }

    fn renew(&self, pool: PoolId, pin: PinId, ttl: u64) -> Result<(), PinError> {
        self.renew_pin(pool, pin, ttl)
    }

    fn unpin(&self, pool: PoolId, pin: PinId) -> Result<(), PinError> {
        self.take_pin_back(pool, pin)
    }

    fn flush(&self, pool: PoolId) -> bool {
        let Some(pool) = self.at(pool) else { return true };
        while !self.closed.load(Ordering::Acquire) && pool.is_moving() {
            // Made here if no thread makes them.
            if !self.step() {
                pool.wait();
            }
        }
        self.commit().is_ok()
    }
}
