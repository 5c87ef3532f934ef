//! Pins: kept by the planner, and written down, because they hold until their end and not until the
//! end of this process.
//!
//! What is prefetched is pinned in RAM, which does not outlive the process either: such pins are not
//! written down.

use super::api::PoolId;
use super::catalog::{Catalog, CatalogError, PinRow};
use super::node::Node;
use super::pool::Pool;
use crate::policy::{BlockId, Move, PinError, PinId, Planner};
use crate::slot::lock;

impl Node {
    pub(super) fn prefetch_and_pin(
        &self,
        pool: PoolId,
        chain: &[BlockId],
        most: u32,
        ttl: u64,
    ) -> Result<PinId, PinError> {
        let now = self.now();
        let until = now.saturating_add(ttl);
        let pool = self.at(pool).ok_or(PinError::Unknown(PinId(0)))?;
        let (pin, _) = pool.pinning(|planner, moves| planner.prefetch(now, chain, most, until, moves))?;
        self.ring();
        Ok(pin)
    }

    pub(super) fn pin_and_write(&self, pool: PoolId, chain: &[BlockId], ttl: u64) -> Result<PinId, PinError> {
        let now = self.now();
        let until = now.saturating_add(ttl);
        let pool = self.at(pool).ok_or(PinError::Unknown(PinId(0)))?;
        let (pin, count) = pool.pinning(|planner, _| planner.pin(now, chain, until))?;
        let row = PinRow { pin, until, blocks: chain[..count].to_vec() };
        if self.catalog.set_pin(pool.block_bytes, &row).is_err() {
            let _ = lock(&pool.state).planner.unpin(pin);
            return Err(PinError::Unwritten);
        }
        Ok(pin)
    }

    pub(super) fn renew_pin(&self, pool: PoolId, pin: PinId, ttl: u64) -> Result<(), PinError> {
        let now = self.now();
        let until = now.saturating_add(ttl);
        let pool = self.at(pool).ok_or(PinError::Unknown(pin))?;
        lock(&pool.state).planner.renew(now, pin, until)?;
        match self.catalog.move_pin(pool.block_bytes, pin, until) {
            Ok(_written_down_or_of_a_prefetch) => Ok(()),
            Err(_) => Err(PinError::Unwritten),
        }
    }

    pub(super) fn take_pin_back(&self, pool: PoolId, pin: PinId) -> Result<(), PinError> {
        let pool = self.at(pool).ok_or(PinError::Unknown(pin))?;
        lock(&pool.state).planner.unpin(pin)?;
        // Where this fails, a restart before its end brings it back until then.
        let _ = self.catalog.drop_pins(pool.block_bytes, &[pin]);
        Ok(())
    }
}

impl Pool {
    /// A new pin, and how many blocks it holds.
    fn pinning(
        &self,
        pin: impl FnOnce(&mut Planner, &mut Vec<Move>) -> Result<PinId, PinError>,
    ) -> Result<(PinId, usize), PinError> {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        let pin = pin(&mut state.planner, &mut moves)?;
        self.plan(&mut state, moves);
        Ok((pin, state.planner.pinned(pin)))
    }

    /// Takes up the pins from before, to hold blocks as they are restored. `life` is the node's: no
    /// number of an earlier one is given again.
    pub fn expect_pins(&self, catalog: &Catalog, life: u32, now: u64) -> Result<(), CatalogError> {
        let (pins, over): (Vec<PinRow>, Vec<PinRow>) =
            catalog.pins(self.block_bytes)?.into_iter().partition(|row| row.until > now);
        let over: Vec<PinId> = over.iter().map(|row| row.pin).collect();
        catalog.drop_pins(self.block_bytes, &over)?;
        let mut state = lock(&self.state);
        state.planner.number_pins(u64::from(life) << 32);
        for PinRow { pin, until, blocks } in pins {
            state.planner.expect_pin(pin, until, &blocks);
        }
        Ok(())
    }

    /// Forgets pins whose time is over at `now`.
    pub fn end_pins(&self, catalog: &Catalog, now: u64) {
        let over = lock(&self.state).planner.ended_pins(now);
        if !over.is_empty() {
            // What is left is dropped at the next start.
            let _ = catalog.drop_pins(self.block_bytes, &over);
        }
    }
}
