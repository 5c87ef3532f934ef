//! From what a holder has of a prompt to the numbers of its score.

use kvproto::Tier;
use kvproto::hash::canonical::MmItem;

use crate::hit::Hit;
use crate::profile::{Mask, Profile};
use crate::runs::Runs;
use crate::types::{HolderId, HolderSpec, Score, TierWeights};

/// What all scores of one query have in common.
pub(crate) struct Terms<'a> {
    /// Tokens per block to count in; `None` = the engine's own.
    pub block_size: Option<u32>,
    /// Tokens in the prompt, also those after the last whole block.
    pub prompt_tokens: u64,
    pub weights: &'a TierWeights,
    pub items: &'a [MmItem<'a>],
}

impl Terms<'_> {
    /// `blocks` of the engine in the blocks asked for.
    pub fn whole(&self, blocks: u32, engine_block: u32) -> u32 {
        whole_blocks(blocks, engine_block, self.block_size.unwrap_or(engine_block))
    }
}

/// Scores one holder. `engine_block` is the block size of `runs` and `announced`.
pub(crate) fn score(
    holder: HolderId,
    spec: &HolderSpec,
    profile: &Profile,
    engine_block: u32,
    runs: &Runs,
    announced: u32,
    terms: &Terms<'_>,
) -> Score {
    let device = profile.device_mask();
    let block_size = terms.block_size.unwrap_or(engine_block);
    let whole = |blocks: u32| whole_blocks(blocks, engine_block, block_size);
    let prefixes = Prefixes::of(runs, device);
    let cached = whole(prefixes.held);
    let hit = Hit {
        runs,
        profile,
        block_size: engine_block,
        prompt_tokens: terms.prompt_tokens,
        attention_chunk: spec.attention_chunk,
        offload_chunk: profile.chunk(spec.offload_chunk),
    };
    Score {
        holder,
        block_size,
        cached,
        by_tier: prefixes.by_tier.map(whole),
        cumulative: prefixes.cumulative.map(whole),
        below_ram: whole(prefixes.below_ram),
        weighted: weighted(runs, device, engine_block, block_size, cached, terms.weights),
        cached_tokens: hit.tokens(&mut |_| {}),
        speculative: whole(announced.max(prefixes.held)),
        mm_matched: with_items(cached, block_size, terms.items),
        suspect: cached,
        partial: false,
    }
}

/// Blocks from the root that are held in any tier without a gap.
pub(crate) fn held(runs: &Runs, device: Mask) -> u32 {
    Prefixes::of(runs, device).held
}

/// Contiguous blocks from the root that are held or announced.
pub(crate) fn held_or_announced(runs: &Runs, announced: &Runs, device: Mask) -> u32 {
    let mut end = 0;
    loop {
        let next = runs.contiguous(end, u32::MAX, |m| best_tier(m, device).is_some());
        let next = announced.contiguous(next, u32::MAX, |_| true);
        if next == end {
            return end;
        }
        end = next;
    }
}

/// How far each kind of holding goes from the root without a gap, in blocks of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prefixes {
    held: u32,
    by_tier: [u32; 5],
    cumulative: [u32; 5],
    below_ram: u32,
}

impl Prefixes {
    /// In one pass over the runs, because every candidate of every query comes through here.
    fn of(runs: &Runs, device: Mask) -> Prefixes {
        let mut p = Prefixes::default();
        let mut end = 0;
        // Tiers that have had every block so far, alone and together with those above.
        let (mut alone, mut together, mut below) = ([true; 5], [true; 5], true);
        for run in runs.iter() {
            if run.from > end {
                break;
            }
            let mut any = false;
            for tier in Tier::ALL {
                let i = tier as usize;
                let has = in_tier(run.mask, tier, device);
                any |= has;
                alone[i] &= has;
                together[i] &= any;
                p.by_tier[i] = if alone[i] { run.to } else { p.by_tier[i] };
                p.cumulative[i] = if together[i] { run.to } else { p.cumulative[i] };
            }
            below &= in_tier(run.mask, Tier::Disk, device) || in_tier(run.mask, Tier::Shared, device);
            p.below_ram = if below { run.to } else { p.below_ram };
            if !any {
                break;
            }
            p.held = run.to;
            end = run.to;
        }
        p
    }
}

/// Whether a block with `mask` lies in `tier`; on the device only if every group needed has it.
pub(crate) fn in_tier(mask: Mask, tier: Tier, device: Mask) -> bool {
    match tier {
        Tier::Gpu => mask.contains(device),
        Tier::Cpu | Tier::Disk | Tier::Shared | Tier::Unknown => mask.has_tier(tier),
    }
}

/// The fastest tier that has the block.
pub(crate) fn best_tier(mask: Mask, device: Mask) -> Option<Tier> {
    Tier::ALL.into_iter().find(|&t| in_tier(mask, t, device))
}

/// Whole blocks of `to` tokens in `blocks` blocks of `from` tokens.
fn whole_blocks(blocks: u32, from: u32, to: u32) -> u32 {
    if from == to || to == 0 {
        return blocks;
    }
    u32::try_from(u64::from(blocks) * u64::from(from) / u64::from(to)).unwrap_or(u32::MAX)
}

/// Sum of the weights of the first `cached` blocks of `block_size` tokens; a block that spans
/// several of the engine's counts as the least of them.
fn weighted(
    runs: &Runs,
    device: Mask,
    engine_block: u32,
    block_size: u32,
    cached: u32,
    weights: &TierWeights,
) -> f64 {
    let weight = |m: Mask| best_tier(m, device).map_or(0.0, |t| weights.of(t));
    if engine_block == block_size {
        return runs
            .iter()
            .take_while(|r| r.from < cached)
            .map(|r| f64::from(r.to.min(cached) - r.from) * weight(r.mask))
            .sum();
    }
    let (from, to) = (u64::from(engine_block), u64::from(block_size));
    (0..u64::from(cached))
        .map(|b| {
            let first = b * to / from;
            let last = ((b + 1) * to - 1) / from;
            (first..=last).map(|i| weight(runs.at(i as u32))).fold(f64::INFINITY, f64::min)
        })
        .sum()
}

/// How many of the first `blocks` blocks contain a token of an item.
fn with_items(blocks: u32, block_size: u32, items: &[MmItem<'_>]) -> u32 {
    // Also the only case in which there is no block size.
    if blocks == 0 {
        return 0;
    }
    let mut counted = 0;
    let mut next = 0;
    for item in items.iter().filter(|i| i.length > 0) {
        let first = (item.offset / block_size).max(next);
        let last = u64::from(item.offset) + u64::from(item.length) - 1;
        let end = u32::try_from(last / u64::from(block_size) + 1).unwrap_or(u32::MAX).min(blocks);
        if end > first {
            counted += end - first;
            next = end;
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_with_items_are_counted_once() {
        let item = |offset, length| MmItem { identifier: "i", offset, length };
        assert_eq!(with_items(4, 4, &[item(2, 3), item(6, 1), item(15, 9)]), 3);
        assert_eq!(with_items(1, 4, &[item(2, 3), item(6, 1)]), 1);
        assert_eq!(with_items(4, 4, &[item(3, 0)]), 0);
    }

    #[test]
    fn a_block_over_several_of_the_engines_weighs_as_its_least() {
        let mut runs = Runs::default();
        let gpu = Mask::bit(Tier::Gpu, 0);
        for (i, m) in [gpu, gpu, gpu, Mask::bit(Tier::Cpu, 0)].into_iter().enumerate() {
            runs.push(i as u32, m);
        }
        let w = TierWeights::default();
        assert_eq!(weighted(&runs, gpu, 16, 16, 4, &w), 3.8);
        assert_eq!(weighted(&runs, gpu, 16, 32, 2, &w), 1.8);
        assert_eq!(weighted(&runs, gpu, 32, 16, 8, &w), 7.6);
    }
}
