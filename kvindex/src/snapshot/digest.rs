//! Do two replicas have the same of a holder?
//!
//! Every copy adds a hash to a sum, so order does not matter, nor how blocks lie in strands. What is summed is
//! what the holder's own events told: the engine's hash, tier, group and number of copies. Tiers
//! below the device are not told apart by group.

use kvproto::EngineHash;
use xxhash_rust::xxh3::xxh3_128;

use crate::Index;
use crate::forest::{MAX_LEVEL, Place, Stretch};
use crate::holder::{Desk, Holder, OddKnown};
use crate::pool::CANONICAL;
use crate::profile::Mask;
use crate::types::HolderId;

/// Parts that a digest is broken down into, by the engine's hash.
pub const BUCKETS: usize = 256;
/// Strands looked at before others may write.
const AT_ONCE: usize = 512;

/// What a holder has, in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Copies, each block counted once in every tier and group.
    pub entries: u64,
    /// Of engine hash, tier, group and number of copies of all that is held. Equal wherever the same
    /// batches of this holder were applied, whatever other holders told.
    pub held: u128,
    /// Of engine hash, block size and own hash of all blocks held whose content is known. Equal too, but
    /// for blocks that this engine only ever named and another one described: those are known where
    /// that was heard first. A difference here alone is a reason to look, not to repair.
    pub content: u128,
    /// `held` by a byte that the engine's hash tells ([`Digest::bucket_of`]), shortened.
    pub buckets: Box<[u64; BUCKETS]>,
}

impl Default for Digest {
    fn default() -> Digest {
        Digest { entries: 0, held: 0, content: 0, buckets: Box::new([0; BUCKETS]) }
    }
}

impl Digest {
    /// The bucket that a block is in.
    pub fn bucket_of(hash: EngineHash) -> usize {
        // Engines' hashes need not be even: any 64 bits of theirs are taken.
        (hash.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize
    }

    /// The buckets that differ.
    pub fn differing<'d>(&'d self, other: &'d Digest) -> impl Iterator<Item = usize> + 'd {
        (0..BUCKETS).filter(|b| self.buckets[*b] != other.buckets[*b])
    }

    fn add_held(&mut self, name: u64, bit: u8, copies: u32) {
        let sum = hash([name, u64::from(bit) << 32 | u64::from(copies)]);
        self.entries += 1;
        self.held = self.held.wrapping_add(sum);
        let bucket = &mut self.buckets[Digest::bucket_of(EngineHash(name))];
        *bucket = bucket.wrapping_add(sum as u64);
    }

    fn add_content(&mut self, name: u64, block_size: u32, local: u64) {
        let sum = hash([name, local ^ u64::from(block_size).rotate_left(40)]);
        self.content = self.content.wrapping_add(sum);
    }
}

fn hash(words: [u64; 2]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_le_bytes());
    bytes[8..].copy_from_slice(&words[1].to_le_bytes());
    xxh3_128(&bytes)
}

impl Index {
    /// What a holder has, to be compared with another replica's. `None` where it is not attached, or
    /// something was applied to it meanwhile.
    ///
    /// Looks at all that it holds; other holders' batches go on between.
    pub fn digest(&self, id: HolderId) -> Option<Digest> {
        let (pool, member) = self.member(id)?;
        let slot = member.slot as usize;
        let (stamp, domain, lists, odd_places) = pool.write(|holders, _| {
            let h = holders.get(slot)?.as_ref()?;
            let lists = [true, false].map(|canonical| h.strands_in(canonical).to_vec());
            Some((h.stamp(), h.domain(), lists, h.odd_places()))
        })?;
        let mut digest = Digest::default();
        for (domain, mut strands) in [CANONICAL, domain].into_iter().zip(lists) {
            strands.sort_unstable();
            strands.dedup();
            for some in strands.chunks(AT_ONCE) {
                pool.write(|holders, desk| {
                    let h = holders.get(slot)?.as_ref().filter(|h| h.stamp() == stamp)?;
                    some.iter().for_each(|s| digest.add_strand(h, domain, *s, &odd_places, desk));
                    Some(())
                })?;
            }
        }
        pool.write(|holders, desk| {
            let h = holders.get(slot)?.as_ref().filter(|h| h.stamp() == stamp)?;
            digest.add_odd(h, desk);
            Some(digest)
        })
    }
}

impl Digest {
    fn add_strand(
        &mut self,
        holder: &Holder,
        domain: usize,
        strand: u32,
        odd_places: &[(usize, Place)],
        desk: &mut Desk<'_>,
    ) {
        let mut stretches: Vec<Stretch> = Vec::new();
        holder.stretches(domain, strand, odd_places, desk, &mut stretches);
        let Some(facts) = desk.forests.get(domain).facts(desk.guard, strand) else { return };
        for s in &stretches {
            for i in s.span.0..s.span.1 {
                self.add_held(facts.names[i as usize], s.bit, u32::from(s.copies));
            }
        }
        // Each block once, however many tiers have it.
        stretches.sort_unstable_by_key(|s| s.span);
        let mut next = 0;
        for s in &stretches {
            for i in s.span.0.max(next)..s.span.1 {
                self.add_content(facts.names[i as usize], facts.block_size, facts.locals[i as usize]);
            }
            next = next.max(s.span.1);
        }
    }

    fn add_odd(&mut self, holder: &Holder, desk: &Desk<'_>) {
        for hash in holder.odd_hashes() {
            let Some(block) = holder.odd_block(hash, desk).filter(|b| !b.copies.is_empty()) else { continue };
            // As the forest counts: by bit, and no further than it can.
            let mut by_bit: Vec<(u8, u32)> = Vec::new();
            for (tier, group, n) in &block.copies {
                let bit = Mask::bit(*tier, *group).0.trailing_zeros() as u8;
                match by_bit.iter_mut().find(|(b, _)| *b == bit) {
                    Some((_, sum)) => *sum = sum.saturating_add(*n),
                    None => by_bit.push((bit, *n)),
                }
            }
            for (bit, n) in by_bit {
                self.add_held(hash.0, bit, n.min(u32::from(MAX_LEVEL) + 1));
            }
            match block.known {
                OddKnown::Nothing => {}
                OddKnown::Orphan { local, block_size, .. } => self.add_content(hash.0, block_size, local.0),
                OddKnown::Placed(place) => {
                    let facts = desk.forests.get(holder.domain()).facts(desk.guard, place.strand);
                    if let Some(f) = facts {
                        self.add_content(hash.0, f.block_size, f.locals[place.offset as usize]);
                    }
                }
            }
        }
    }
}
