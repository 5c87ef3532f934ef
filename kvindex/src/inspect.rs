//! Looking inside: dumps, placements, explanations, counts.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::{EngineHash, SeqHash, Tier};

use crate::forest::pin;
use crate::hit::Hit;
use crate::pool::Member;
use crate::profile::Mask;
use crate::score::{best_tier, in_tier};
use crate::types::*;
use crate::walk::{Column, walk};
use crate::{Index, in_blocks, prompt_tokens};

impl Index {
    /// Rows of one holder in ascending (block, tier) order after `after`, at most `limit`.
    pub fn dump(&self, id: HolderId, after: Option<(EngineHash, Tier)>, limit: usize) -> Vec<DumpRow> {
        let Some((pool, member)) = self.member(id) else { return Vec::new() };
        pool.write(|holders, desk| {
            let holder = holders.get(member.slot as usize).and_then(Option::as_ref);
            holder.map(|h| h.dump(id, after, limit, desk)).unwrap_or_default()
        })
    }

    /// Block by block, who holds the prompt; ends with the last block that anyone holds.
    ///
    /// Tokens are cut into blocks of `query.block_size`, or the smallest block size among the
    /// candidates; holders of other block sizes are left out.
    pub fn locate(&self, query: &Query<'_>) -> Vec<Placement> {
        let query = &in_blocks(query);
        let Some(pool) = self.pool(query.tenant, query.model) else { return Vec::new() };
        let seats = pool.seats();
        let mut found = walk(&pool, &seats, query, &pin());
        let smallest = found.columns.iter().map(|c| c.block_size).filter(|&b| b > 0).min();
        let Some(block_size) = query.block_size.or(smallest) else { return Vec::new() };
        found.columns.retain(|c| c.block_size == block_size && c.member.suspect_of.is_none());
        let blocks = found.columns.iter().map(|c| c.runs.end()).max().unwrap_or(0);
        let seqs = found.columns.first().map(|c| seqs_for(query, c)).unwrap_or_default();
        (0..blocks)
            .map(|i| Placement {
                seq: seqs.get(i as usize).copied(),
                holders: found
                    .columns
                    .iter()
                    .map(|c| (c.member.id, tiers(c.runs.at(i), c.profile.device_mask())))
                    .filter(|(_, t)| *t != TierSet::default())
                    .collect(),
            })
            .collect()
    }

    /// How a holder came by its score. `None` where it is not a candidate of the query.
    pub fn explain(&self, query: &Query<'_>, holder: HolderId) -> Option<Explanation> {
        let query = &in_blocks(query);
        let pool = self.pool(query.tenant, query.model)?;
        let seats = pool.seats();
        let found = walk(&pool, &seats, query, &pin());
        let c = found.columns.iter().find(|c| c.member.id == holder && c.member.suspect_of.is_none())?;
        let score = self.query(query).scores.into_iter().find(|s| s.holder == holder)?;
        let device = c.profile.device_mask();
        let seqs = seqs_for(query, c);
        let whole = prompt_tokens(query, c.block_size) / u64::from(c.block_size.max(1));
        let whole = u32::try_from(whole).unwrap_or(u32::MAX);
        let shown = query.max_blocks.map_or(whole, |n| whole.min(n));
        let shown = if c.block_size == 0 { 0 } else { shown };
        let blocks = (0..shown)
            .map(|i| {
                let mask = c.runs.at(i);
                ExplainedBlock {
                    seq: seqs.get(i as usize).copied(),
                    tiers: tiers(mask, device),
                    gpu_groups: mask.groups().collect(),
                    speculative: !c.announced.at(i).is_empty(),
                }
            })
            .collect();
        Some(Explanation { score, blocks, steps: steps(query, c) })
    }

    /// What one holder has.
    pub fn holder_stats(&self, id: HolderId) -> Option<HolderStats> {
        let (pool, member) = self.member(id)?;
        let suspects = if member.doubted.load(Ordering::Relaxed) { self.suspects(id) } else { Vec::new() };
        pool.write(|holders, _| {
            let stats = |m: &Member| Some(holders.get(m.slot as usize)?.as_ref()?.stats());
            let suspect = suspects.iter().filter_map(|m| stats(m)).map(|s| s.blocks).sum();
            let partial = member.partial.load(Ordering::Relaxed);
            Some(HolderStats { partial, suspect, ..stats(&member)? })
        })
    }

    /// Memory of blocks, tables and holders, and the most that it may be. Cheap: looks at no block.
    pub fn memory(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.config.max_bytes)
    }

    /// What the whole index has. Looks at every strand.
    pub fn stats(&self) -> IndexStats {
        let dir = self.directory.read();
        let mut s = IndexStats { holders: dir.members.len() as u64, ..IndexStats::default() };
        for pool in dir.pools.values().flat_map(|m| m.values()) {
            let guard = pin();
            s.blocks += pool.forests.iter().map(|(_, f)| f.held_blocks(&guard)).sum::<u64>();
            s.bytes += pool.forests.bytes() as u64;
            s.domains += pool.forests.used_domains() as u64;
            s.entries += pool.write(|holders, _| holders.iter().flatten().map(|h| h.entries()).sum::<u64>());
        }
        s.dropped = self.dropped.load(Ordering::Relaxed);
        s.speculative = self.announcements.lock().pairs as u64;
        s
    }

    /// Block sizes seen in the events of this model's engines, ascending, once each.
    pub fn block_sizes(&self, tenant: &str, model: &str) -> Vec<u32> {
        let Some(pool) = self.pool(tenant, model) else { return Vec::new() };
        let members = pool.members.read();
        let sizes: BTreeSet<u32> =
            members.iter().flatten().flat_map(|m| m.profile.read().sizes.to_vec()).collect();
        sizes.into_iter().collect()
    }
}

/// The tiers that have a block; the device only if every group needed has it.
fn tiers(mask: Mask, device: Mask) -> TierSet {
    Tier::ALL.into_iter().filter(|&t| in_tier(mask, t, device)).fold(TierSet::default(), TierSet::with)
}

/// The canonical names of the prompt's blocks for one candidate, where they can be told.
fn seqs_for(query: &Query<'_>, c: &Column<'_>) -> Vec<SeqHash> {
    match query.prompt {
        Prompt::Tokens { tokens, lora, cache_salt, items } if c.block_size > 0 => {
            let seed = Namespace { salt: &c.member.spec.salt, model: query.model, lora }.seed();
            let extras = PromptExtras { cache_salt, items, form: c.profile.form };
            prompt_hashes(seed, tokens, c.block_size, extras).collect()
        }
        Prompt::Canonical(hashes) => hashes.to_vec(),
        Prompt::Tokens { .. } | Prompt::Local(_) | Prompt::Engine(_) | Prompt::Llmd(_) => Vec::new(),
    }
}

/// The way from the blocks to `cached_tokens`, a sentence each.
fn steps(query: &Query<'_>, c: &Column<'_>) -> Vec<String> {
    let mut out = Vec::new();
    if c.block_size == 0 {
        out.push("this engine has announced no block yet".to_owned());
        return out;
    }
    out.push(format!("blocks of {} tokens, as this engine announces them", c.block_size));
    let device = c.profile.device_mask();
    let held = c.runs.contiguous(0, u32::MAX, |m| best_tier(m, device).is_some());
    out.push(format!("{held} blocks from the root are held without a gap, in any tier"));
    let hit = Hit {
        runs: &c.runs,
        profile: c.profile,
        block_size: c.block_size,
        prompt_tokens: prompt_tokens(query, c.block_size),
        attention_chunk: c.member.spec.attention_chunk,
        offload_chunk: c.profile.chunk(c.member.spec.offload_chunk),
    };
    let tokens = hit.tokens(&mut |s| out.push(s.to_string()));
    out.push(format!("so the engine would report {tokens} tokens as cached"));
    out
}
