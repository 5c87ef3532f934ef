//! What goes with a holder when it is written down, and how it is put back.
//!
//! Blocks that lie in the forest go as stretches of strands; what is kept here is told node by node.
//! Putting back goes the ways that events take, so that a holder put back is one that got the same
//! blocks by events.

use kvproto::hash::canonical::Seed;
use kvproto::{EngineHash, LocalHash, Removed, Tier};

use super::odd::{Copies, Known};
use super::store::Copy;
use super::{Desk, Holder};
use crate::forest::{How, Piece, Place, Stretch, Told};
use crate::pool::CANONICAL;
use crate::profile::Profile;
use crate::types::Applied;

/// What a holder has besides blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    /// Whether it has called another engine's block by the same name.
    pub agreed: bool,
    pub profile: Profile,
    pub refused: u64,
    pub dropped: u64,
}

/// An odd block, and how often it lies in each tier and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OddBlock {
    pub hash: EngineHash,
    pub known: OddKnown,
    pub copies: Vec<(Tier, u32, u32)>,
}

/// What is known of an odd block; a place is in the holder's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OddKnown {
    Nothing,
    Orphan { parent: EngineHash, seed: u64, local: LocalHash, block_size: u32 },
    Placed(Place),
}

/// Consecutive blocks that cannot be put back where they were.
#[derive(Debug)]
pub(crate) struct Misfits {
    /// Which block of its strand the first one was.
    pub from: u32,
    /// What the block before the first is called.
    pub before: Option<u64>,
    /// Whether the first has another name there, so that they can be told again as an event would. Else
    /// they are held and lie nowhere.
    pub renamed: bool,
    pub seed: u64,
    pub block_size: u32,
    pub locals: Vec<u64>,
    pub names: Vec<u64>,
    pub keys: Vec<u64>,
}

impl Holder {
    /// A pair that changes with every batch, and that no other holder ever has.
    pub fn stamp(&self) -> (u32, u64) {
        (self.creator, self.applied)
    }

    /// Whether nothing was ever told of it since it was attached or cleared.
    pub fn is_fresh(&self) -> bool {
        self.applied == 0
            && self.stats.blocks == 0
            && self.odd.is_empty()
            && self.strands.iter().all(|s| s.all.is_empty())
    }

    /// Blocks that it may hold.
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// Whether it holds more than it may.
    pub fn is_over(&self) -> bool {
        self.stats.blocks > self.max_blocks as u64
    }

    /// Its hash domain.
    pub fn domain(&self) -> usize {
        self.domain
    }

    /// What it has besides blocks.
    pub fn learnt(&self) -> Learnt {
        let (refused, dropped) = (self.stats.refused, self.stats.dropped);
        Learnt { agreed: self.agreed, profile: self.profile.clone(), refused, dropped }
    }

    /// Strands that it holds or held something of, in no order and possibly twice: those of blocks that
    /// stand for themselves, or those of its domain.
    pub fn strands_in(&self, canonical: bool) -> &[u32] {
        &self.strands[usize::from(!canonical)].all
    }

    /// What it has of a strand, but for what [`odd_block`](Self::odd_block) tells; `odd_places` is what
    /// [`odd_places`](Self::odd_places) gave.
    pub fn stretches(
        &self,
        domain: usize,
        strand: u32,
        odd_places: &[(usize, Place)],
        desk: &mut Desk<'_>,
        out: &mut Vec<Stretch>,
    ) {
        desk.pen(domain).stretches(self.slot, strand, out);
        let first = odd_places.partition_point(|(d, p)| (*d, p.strand) < (domain, strand));
        let here = odd_places[first..].iter().take_while(|(d, p)| (*d, p.strand) == (domain, strand));
        let mut cut = false;
        for at in here.map(|(_, p)| p.offset) {
            cut = true;
            for i in 0..out.len() {
                let s = out[i];
                if s.span.0 <= at && at < s.span.1 {
                    out[i].span.1 = at;
                    out.push(Stretch { span: (at + 1, s.span.1), ..s });
                }
            }
        }
        if cut {
            out.retain(|s| s.span.0 < s.span.1);
            out.sort_unstable_by_key(|s| (s.bit, s.span));
        }
    }

    /// Where blocks lie that it has second names for, in ascending order.
    pub fn odd_places(&self) -> Vec<(usize, Place)> {
        let mut places: Vec<_> = self.odd.at_places().collect();
        places.sort_unstable_by_key(|(d, p)| (*d, p.strand, p.offset));
        places
    }

    /// The names of its odd blocks; those that wait for one parent in the order they will be woken.
    pub fn odd_hashes(&self) -> Vec<EngineHash> {
        self.odd.hashes()
    }

    /// Odd block `h`.
    pub fn odd_block(&self, h: EngineHash, desk: &Desk<'_>) -> Option<OddBlock> {
        let node = self.odd.node(h)?;
        let known = match node.known {
            Known::Orphan { parent, seed, local, block_size } => {
                OddKnown::Orphan { parent, seed: seed.0, local, block_size }
            }
            Known::Placed { .. } => match self.odd.place(h, self.domain, desk) {
                Some(place) => OddKnown::Placed(place),
                None => OddKnown::Nothing,
            },
            Known::Nothing => OddKnown::Nothing,
        };
        let copies = node.copies.iter().map(|(c, n)| (c.tier, c.group, *n)).collect();
        Some(OddBlock { hash: h, known, copies })
    }

    /// Odd blocks that lost their last copy, those that go first at the front.
    pub fn odd_ghosts(&self) -> impl Iterator<Item = EngineHash> + '_ {
        self.odd.ghosts()
    }

    /// Begins to be put back: in `domain`, as who told of what `creator` told. Until
    /// [`put_back`](Self::put_back) it stays in that domain whatever it is told.
    pub fn settle_in(&mut self, domain: usize, creator: u32, desk: &mut Desk<'_>) {
        desk.join(domain);
        desk.part(self.domain);
        self.domain = domain;
        self.creator = creator;
        self.agreed = true;
    }

    /// Takes a stretch that lies at `place` of a domain.
    pub fn take(&mut self, domain: usize, place: Place, stretch: &Stretch, desk: &mut Desk<'_>) {
        let copy = Copy::of_bit(stretch.bit);
        let mut done = Applied::default();
        let (from, to) = stretch.span;
        let span = (place.offset, place.offset + to - from);
        for _ in 0..stretch.copies {
            if self.odd.is_empty() {
                let piece = Piece { strand: place.strand, span, how: How::Found };
                self.hold(domain, piece, copy, desk, &mut done);
                continue;
            }
            for i in span.0..span.1 {
                let forest = desk.forests.get(domain);
                let name = forest.look(desk.guard, place.strand).map(|l| forest.names(l)[i as usize]);
                let piece = Piece { strand: place.strand, span: (i, i + 1), how: How::Found };
                match name {
                    Some(name) if domain != CANONICAL => {
                        self.hold_at(EngineHash(name), piece, copy, desk, &mut done);
                    }
                    Some(_) | None => self.hold(domain, piece, copy, desk, &mut done),
                }
            }
        }
    }

    /// Takes what it has of blocks that do not fit.
    pub fn take_misfits(&mut self, m: &Misfits, stretches: &[Stretch], desk: &mut Desk<'_>) {
        let (mut pieces, mut done) = (Vec::new(), Applied::default());
        let told = Told {
            locals: &m.locals,
            names: &m.names,
            keys: &m.keys,
            seed: m.seed,
            block_size: m.block_size,
            creator: self.creator,
            slot: self.slot,
            device: false,
            unnamed: &[],
        };
        let mut parent = m.before.map(EngineHash);
        for (i, name) in m.names.iter().enumerate() {
            let (hash, at) = (EngineHash(*name), m.from + i as u32);
            let held = stretches.iter().filter(|s| s.span.0 <= at && at < s.span.1);
            if m.renamed {
                // What it has not it had when it told of what comes after that.
                let device = Copy { tier: Tier::Gpu, group: 0 };
                self.tell_one(parent, &told.one(i), device, &mut pieces, desk, &mut done);
                for s in held {
                    (0..s.copies).for_each(|_| self.stored_name(hash, Copy::of_bit(s.bit), desk, &mut done));
                }
                self.removed(&Removed { hashes: &[hash], tier: Tier::Gpu, group: 0 }, desk, &mut done);
            } else {
                let copies: Vec<_> = held
                    .map(|s| (Copy::of_bit(s.bit), u32::from(s.copies)))
                    .map(|(c, n)| (c.tier, c.group, n))
                    .collect();
                let (seed, local, block_size) = (m.seed, LocalHash(m.locals[i]), m.block_size);
                let known = parent.map_or(OddKnown::Nothing, |parent| OddKnown::Orphan {
                    parent,
                    seed,
                    local,
                    block_size,
                });
                if !copies.is_empty() {
                    self.take_odd(OddBlock { hash, known, copies }, desk);
                }
            }
            parent = Some(hash);
        }
    }

    /// Takes an odd block. A place must be in its domain.
    pub fn take_odd(&mut self, block: OddBlock, desk: &mut Desk<'_>) {
        let OddBlock { hash, known, copies } = block;
        let old: Copies = self.odd.take(hash).map(|n| self.forget_odd(n)).unwrap_or_default();
        let copies = copies.into_iter().map(|(tier, group, n)| (Copy { tier, group }, n));
        let copies: Copies = old.into_iter().chain(copies).collect();
        match known {
            OddKnown::Placed(place) => return self.odd_named(hash, place, copies, desk),
            OddKnown::Nothing => self.odd.insert(hash, Known::Nothing),
            OddKnown::Orphan { parent, seed, local, block_size } => {
                self.odd.insert_orphan(hash, parent, Seed(seed), local, block_size);
            }
        }
        copies.into_iter().for_each(|(copy, n)| self.odd_add(hash, copy, n, desk));
    }

    /// Ends being put back.
    pub fn put_back(&mut self, learnt: Learnt, ghosts: Vec<EngineHash>) {
        let Learnt { agreed, profile, refused, dropped } = learnt;
        self.agreed = agreed;
        self.profile = profile;
        self.profile_changed = true;
        self.stats.refused = refused;
        self.stats.dropped = dropped;
        self.odd.set_ghosts(ghosts);
    }
}
