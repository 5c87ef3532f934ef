//! How a node stands, what it is called, and what it has told.

use std::sync::Arc;

use super::api::PoolId;
use super::catalog::PoolRow;
use super::node::{Node, NodeError};
use super::pool::{Moves, Pool};
use super::schedule::Lane;
use super::streams::{Numbered, StreamStats};
use crate::policy::{self, Tier};
use crate::slot::lock;
use crate::store::{self, StoreKey};

/// One pool, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// Which.
    pub pool: PoolId,
    /// Bytes per block.
    pub block_bytes: usize,
    /// Blocks that RAM is to hold.
    pub ram_blocks: u32,
    /// Blocks that the disk is to hold.
    pub disk_blocks: u32,
    /// What the policy knows and has decided.
    pub policy: policy::Stats,
    /// What the disk holds and has done; `None` where there is none or it is not open yet.
    pub disk: Option<store::Stats>,
    /// Blocks known to be in shared storage.
    pub shared: usize,
    /// What was moved.
    pub moves: Moves,
    /// Moves decided and not made yet: to RAM, to disk, to shared storage.
    pub waiting: [usize; 3],
    /// The policy knows all that the disk holds.
    pub restored: bool,
}

impl Node {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What engines of a model have called it in their blocks' names.
    pub fn fingerprints(&self, model: &str) -> Vec<u128> {
        self.streams.fingerprints(model)
    }

    /// How all pools stand.
    pub fn usage(&self) -> Vec<PoolUsage> {
        let usage = |(at, (pool, row)): (usize, (Arc<Pool>, PoolRow))| {
            let state = lock(&pool.state);
            PoolUsage {
                pool: PoolId(at as u32),
                block_bytes: pool.block_bytes,
                ram_blocks: row.ram,
                disk_blocks: row.layout.slots,
                policy: state.planner.stats(),
                disk: pool.disk().map(store::Store::stats),
                shared: state.shared.len(),
                moves: state.moves,
                waiting: Lane::IO.map(|lane| state.schedule.len(lane)),
                restored: state.restored,
            }
        };
        self.all().into_iter().enumerate().map(usage).collect()
    }

    /// What every model's stream has told.
    pub fn streams(&self) -> Vec<StreamStats> {
        self.streams.stats()
    }

    /// Models and salts, by owner.
    pub fn owners(&self) -> Vec<(String, String)> {
        lock(&self.owners).clone()
    }

    /// Batches of a stream from `seq` on, up to `most` at a time. Where that one is not kept: what
    /// stands for all before, in any number of batches.
    ///
    /// # Errors
    ///
    /// Where the log cannot be read.
    pub fn replay(&self, stream: u32, seq: u64, most: usize) -> Result<Vec<Numbered>, NodeError> {
        if let Some(batches) = self.streams.replay(stream, seq, most)? {
            return Ok(batches);
        }
        let pools = self.all();
        let states: Vec<_> = pools.iter().map(|(pool, _)| lock(&pool.state)).collect();
        let blocks: Vec<(StoreKey, Tier)> =
            pools.iter().zip(&states).flat_map(|((pool, _), state)| pool.all(state)).collect();
        Ok(self.streams.snapshot(stream, &blocks))
    }

    /// The number of a model's stream.
    ///
    /// # Errors
    ///
    /// Where it is new and cannot be written down.
    pub fn stream_of(&self, model: &str) -> Result<u32, NodeError> {
        Ok(self.streams.open_stream(model)?)
    }

    /// Says which model a fingerprint in block names is of, so that its blocks are told of.
    ///
    /// # Errors
    ///
    /// Where it cannot be written down.
    pub fn name_model(&self, fingerprint: u128, model: &str) -> Result<u32, NodeError> {
        Ok(self.streams.name(fingerprint, model)?)
    }
}
