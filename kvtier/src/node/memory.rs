//! Tiers of RAM alone that keep what they are given until they are full: to test what talks to
//! engines.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use super::api::{OwnersFull, PoolError, PoolId, Stored, Tiers, Where};
use crate::policy::{BlockId, Owner, PinError, PinId, Tier};
use crate::slot::lock;
use crate::store::{Get, Put, Read, StoreKey};
use crate::{Arena, Key, Lease, SlotId};

/// Largest block taken.
const MOST_BYTES: usize = 1 << 26;

#[derive(Debug)]
struct Pool {
    arena: Arena,
    held: HashMap<StoreKey, SlotId>,
}

#[derive(Debug, Default)]
struct Inner {
    pools: Vec<Pool>,
    owners: Vec<(String, String)>,
    /// Pins hold nothing here, but are known.
    pins: HashMap<PinId, PoolId>,
    next_pin: u64,
    touched: Vec<StoreKey>,
}

/// Tiers of RAM alone: nothing is evicted or moved.
#[derive(Debug)]
pub struct MemoryTiers {
    slots: u32,
    inner: Mutex<Inner>,
}

impl MemoryTiers {
    /// Tiers with `slots` slots in each pool.
    pub fn new(slots: u32) -> MemoryTiers {
        MemoryTiers { slots, inner: Mutex::default() }
    }

    /// Makes a block vanish, as an eviction would. False where it is not there.
    pub fn forget(&self, pool: PoolId, key: StoreKey) -> bool {
        let mut inner = lock(&self.inner);
        let Some(pool) = inner.pools.get_mut(pool.0 as usize) else { return false };
        pool.held.remove(&key).is_some_and(|id| pool.arena.free(id))
    }

    /// All blocks touched so far, in order.
    pub fn touched(&self) -> Vec<StoreKey> {
        lock(&self.inner).touched.clone()
    }

    /// Pins that hold.
    pub fn pins(&self) -> usize {
        lock(&self.inner).pins.len()
    }
}

/// The arena's name of a block.
fn short(key: &StoreKey) -> Key {
    Key(key.id().0 as u64)
}

impl Tiers for MemoryTiers {
    fn pool(&self, block_bytes: usize) -> Result<PoolId, PoolError> {
        let mut inner = lock(&self.inner);
        if let Some(at) = inner.pools.iter().position(|p| p.arena.slot_bytes() == block_bytes) {
            return Ok(PoolId(at as u32));
        }
        if block_bytes == 0 || block_bytes > MOST_BYTES {
            return Err(PoolError::Size { block_bytes, most: MOST_BYTES });
        }
        let no_room = |error: crate::ArenaError| PoolError::NoRoom { block_bytes, reason: error.to_string() };
        let arena = Arena::new(block_bytes, self.slots).map_err(no_room)?;
        inner.pools.push(Pool { arena, held: HashMap::new() });
        Ok(PoolId(inner.pools.len() as u32 - 1))
    }

    fn owner(&self, model: &str, salt: &str) -> Result<Owner, OwnersFull> {
        let owners = &mut lock(&self.inner).owners;
        let at = owners.iter().position(|o| o.0 == model && o.1 == salt).unwrap_or_else(|| {
            owners.push((model.to_owned(), salt.to_owned()));
            owners.len() - 1
        });
        u16::try_from(at).map(Owner).map_err(|_| OwnersFull(at))
    }

    fn lookup(&self, pool: PoolId, keys: &[StoreKey]) -> Vec<Where> {
        let inner = lock(&self.inner);
        let pool = inner.pools.get(pool.0 as usize);
        let held = |key| pool.is_some_and(|p| p.held.contains_key(key));
        keys.iter().map(|key| if held(key) { Where::In(Tier::Cpu) } else { Where::Nowhere }).collect()
    }

    fn touch(&self, _pool: PoolId, chain: &[StoreKey]) {
        lock(&self.inner).touched.extend(chain);
    }

    fn load(&self, pool: PoolId, blocks: &mut [Get<'_>]) -> Vec<Read> {
        let read = |get: &mut Get<'_>| match self.lease(pool, get.key) {
            None => Read::Miss,
            Some(lease) if lease.len() != get.into.len() => Read::Size,
            Some(lease) => {
                get.into.copy_from_slice(&lease);
                Read::Hit
            }
        };
        blocks.iter_mut().map(read).collect()
    }

    fn lease(&self, pool: PoolId, key: StoreKey) -> Option<Lease> {
        let inner = lock(&self.inner);
        let pool = inner.pools.get(pool.0 as usize)?;
        pool.arena.lease(*pool.held.get(&key)?)
    }

    fn arena(&self, pool: PoolId) -> Option<(OwnedFd, u64)> {
        let inner = lock(&self.inner);
        let arena = &inner.pools.get(pool.0 as usize)?.arena;
        Some((arena.file().try_clone_to_owned().ok()?, arena.file_bytes()))
    }

    fn store(&self, pool: PoolId, blocks: &[Put<'_>]) -> Vec<Stored> {
        let mut inner = lock(&self.inner);
        let Some(pool) = inner.pools.get_mut(pool.0 as usize) else {
            return vec![Stored::Refused; blocks.len()];
        };
        let store = |put: &Put<'_>| {
            if put.payload.len() != pool.arena.slot_bytes() {
                return Stored::Size;
            }
            if pool.held.contains_key(&put.key) {
                return Stored::Known;
            }
            let Some(mut slot) = pool.arena.reserve() else { return Stored::Refused };
            slot.copy_from_slice(put.payload);
            pool.held.insert(put.key, slot.commit(short(&put.key)));
            Stored::Kept
        };
        blocks.iter().map(store).collect()
    }

    fn disown(&self, pool: PoolId, keys: &[StoreKey]) {
        for key in keys {
            self.forget(pool, *key);
        }
    }

    fn prefetch(&self, pool: PoolId, chain: &[BlockId], _most: u32, ttl: u64) -> Result<PinId, PinError> {
        self.pin(pool, chain, ttl)
    }

    fn pin(&self, pool: PoolId, _chain: &[BlockId], _ttl: u64) -> Result<PinId, PinError> {
        let mut inner = lock(&self.inner);
        let pin = PinId(inner.next_pin);
        inner.next_pin += 1;
        inner.pins.insert(pin, pool);
        Ok(pin)
    }

    fn renew(&self, _pool: PoolId, pin: PinId, _ttl: u64) -> Result<(), PinError> {
        lock(&self.inner).pins.get(&pin).map(drop).ok_or(PinError::Unknown(pin))
    }

    fn unpin(&self, _pool: PoolId, pin: PinId) -> Result<(), PinError> {
        lock(&self.inner).pins.remove(&pin).map(drop).ok_or(PinError::Unknown(pin))
    }

    fn flush(&self, _pool: PoolId) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_until_it_is_forgotten() {
        let tiers = MemoryTiers::new(1);
        let pool = tiers.pool(8).unwrap();
        assert_eq!(tiers.pool(8), Ok(pool));
        assert!(matches!(tiers.pool(0), Err(PoolError::Size { .. })));
        let key = |n| StoreKey::new(1, 0, &[n]).unwrap();
        let put = |n, payload| Put { key: key(n), after: None, owner: Owner(0), payload };
        let bytes = [7; 8];
        let stored =
            tiers.store(pool, &[put(1, &bytes), put(1, &bytes), put(2, &bytes), put(3, &bytes[..7])]);
        assert_eq!(stored, [Stored::Kept, Stored::Known, Stored::Refused, Stored::Size]);
        assert_eq!(tiers.lookup(pool, &[key(1), key(2)]), [Where::In(Tier::Cpu), Where::Nowhere]);
        let mut into = [0; 8];
        assert_eq!(tiers.load(pool, &mut [Get { key: key(1), into: &mut into }]), [Read::Hit]);
        assert_eq!(into, bytes);
        assert_eq!(&tiers.lease(pool, key(1)).unwrap()[..], bytes);
        assert!(tiers.forget(pool, key(1)) && !tiers.forget(pool, key(1)));
        assert_eq!(tiers.load(pool, &mut [Get { key: key(1), into: &mut into }]), [Read::Miss]);
    }

    #[test]
    fn owners_are_numbered_once_and_pins_are_known_until_taken_back() {
        let tiers = MemoryTiers::new(1);
        let pool = tiers.pool(8).unwrap();
        assert_eq!(tiers.owner("llama", ""), Ok(Owner(0)));
        assert_eq!(tiers.owner("llama", "salt"), Ok(Owner(1)));
        assert_eq!(tiers.owner("llama", ""), Ok(Owner(0)));
        let pin = tiers.pin(pool, &[], 10).unwrap();
        assert_eq!((tiers.renew(pool, pin, 10), tiers.unpin(pool, pin)), (Ok(()), Ok(())));
        assert_eq!(tiers.unpin(pool, pin), Err(PinError::Unknown(pin)));
    }
}
