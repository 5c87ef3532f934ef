//! Blocks that are given to another node, and taken from one.
//!
//! What is given comes from RAM or disk and was verified; shared storage is within the other's reach
//! by itself. What is taken is offered to the policy as an engine would offer it.

use super::api::{PoolId, Stored, Tiers, Where};
use super::node::Node;
use super::pool::{Pool, short};
use crate::Lease;
use crate::policy::{Owner, Tier};
use crate::pull::{Lendable, MOST_SALT};
use crate::slot::lock;
use crate::store::{Buffer, Get, Put, Read, StoreKey, TOGETHER, slot_bytes};

/// A block that another node has and this one lacks, and where it is to go.
#[derive(Clone, Debug)]
pub(crate) struct Lacking {
    pub pool: PoolId,
    pub owner: Owner,
    pub found: Lendable,
}

impl Node {
    /// Up to `most` blocks in RAM or on disk that `shorts`, 64 bits of their hashes, mean for these
    /// fingerprints, in the order of the hashes.
    pub(crate) fn lendable(&self, models: &[u128], shorts: &[u64], most: usize) -> Vec<Lendable> {
        let salts: Vec<String> = lock(&self.owners).iter().map(|(_, salt)| salt.clone()).collect();
        let mut found = Vec::new();
        for (pool, _) in self.all() {
            for hash in shorts {
                // Held for one hash at a time: engines are served in between.
                let state = lock(&pool.state);
                for id in models.iter().flat_map(|model| state.names.find(*model, *hash)) {
                    let key =
                        [Tier::Cpu, Tier::Disk].into_iter().find_map(|tier| pool.held_in(&state, id, tier));
                    let (after, owner) = state.planner.origin(id).unwrap_or_default();
                    let salt = salts.get(usize::from(owner.0)).cloned().unwrap_or_default();
                    if let Some(key) = key.filter(|_| salt.len() <= MOST_SALT && found.len() < most) {
                        found.push(Lendable { key, block_bytes: pool.block_bytes as u32, after, salt });
                    }
                }
            }
        }
        found
    }

    /// Gives each of `keys`, in their order: the payload, or nothing where it is neither in RAM nor on
    /// disk.
    pub(crate) fn lend<E>(
        &self,
        block_bytes: usize,
        keys: &[StoreKey],
        mut give: impl FnMut(usize, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.of_size(block_bytes) {
            Some(pool) => pool.lend(keys, give),
            None => (0..keys.len()).try_for_each(|at| give(at, None)),
        }
    }

    /// Those of `found` that this node has room for and neither in RAM nor on disk, and how many it has
    /// no room for: `coming` blocks are on their way already, and half of a pool is for what engines
    /// bring. No pool is made for what another node says.
    pub(crate) fn lacking(&self, model: &str, found: &[Lendable], coming: usize) -> (Vec<Lacking>, usize) {
        let (mut lacking, mut refused) = (Vec::new(), 0);
        for (at, (pool, row)) in self.all().into_iter().enumerate() {
            let id = PoolId(at as u32);
            let of_pool: Vec<&Lendable> =
                found.iter().filter(|f| f.block_bytes as usize == pool.block_bytes).collect();
            let keys: Vec<StoreKey> = of_pool.iter().map(|f| f.key).collect();
            let room = if row.ram == 0 { row.layout.slots as usize / 2 } else { pool.room_for_hints() };
            let mut room = room.saturating_sub(coming);
            for (found, place) in of_pool.into_iter().zip(self.lookup(id, &keys)) {
                if matches!(place, Where::In(Tier::Cpu | Tier::Disk) | Where::Unknown) {
                    continue;
                }
                let owner = self.owner(model, &found.salt).ok().filter(|_| room > 0);
                let Some(owner) = owner else {
                    refused += 1;
                    continue;
                };
                room -= 1;
                lacking.push(Lacking { pool: id, owner, found: found.clone() });
            }
        }
        (lacking, refused)
    }

    /// Takes verified blocks of one pool. How many were kept.
    pub(crate) fn take(&self, pool: PoolId, puts: &[Put<'_>]) -> usize {
        let kept = self.store(pool, puts).iter().filter(|stored| **stored == Stored::Kept).count();
        if let Some(pool) = self.at(pool) {
            lock(&pool.state).moves.pulled += kept as u64;
        }
        kept
    }
}

impl Pool {
    fn lend<E>(
        &self,
        keys: &[StoreKey],
        mut give: impl FnMut(usize, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let stride = slot_bytes(self.block_bytes);
        let together = (TOGETHER / stride).max(1);
        for (nth, keys) in keys.chunks(together).enumerate() {
            let leases: Vec<Option<Lease>> = keys.iter().map(|key| self.verified(*key)).collect();
            let below = leases.iter().filter(|lease| lease.is_none()).count();
            // Without memory for it, what is on disk is as good as not there.
            let mut bytes = Buffer::new((below * stride).max(1)).ok();
            let mut from_disk = self.read_into(keys, &leases, bytes.as_deref_mut()).into_iter();
            let lent = leases.iter().map(|lease| match lease {
                Some(lease) => lease.get(..self.block_bytes),
                None => from_disk.next().flatten(),
            });
            let lent: Vec<Option<&[u8]>> = lent.collect();
            lock(&self.state).moves.lent += lent.iter().flatten().count() as u64;
            for (at, payload) in lent.into_iter().enumerate() {
                give(nth * together + at, payload)?;
            }
        }
        Ok(())
    }

    /// A block in RAM that is what was put there.
    fn verified(&self, key: StoreKey) -> Option<Lease> {
        self.lease(key).filter(|lease| lease.verify(short(key.id())).is_ok())
    }

    /// Reads those of `keys` that are not leased from disk, in their order.
    fn read_into<'b>(
        &self,
        keys: &[StoreKey],
        leases: &[Option<Lease>],
        bytes: Option<&'b mut [u8]>,
    ) -> Vec<Option<&'b [u8]>> {
        let Some(bytes) = bytes else { return Vec::new() };
        let stride = slot_bytes(self.block_bytes);
        let wanted = keys.iter().zip(leases).filter(|(_, lease)| lease.is_none());
        let mut gets: Vec<Get<'b>> = wanted
            .zip(bytes.chunks_mut(stride))
            .map(|((key, _), into)| Get { key: *key, into: &mut into[..self.block_bytes] })
            .collect();
        let reads = self.read_own_disk(&mut gets);
        let payload = |(get, read): (Get<'b>, Read)| (read == Read::Hit).then_some(&*get.into);
        gets.into_iter().zip(reads).map(payload).collect()
    }
}
