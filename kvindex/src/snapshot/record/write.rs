//! How is each record written?

use kvproto::hash::canonical::MmForm;

use super::{
    ALL_HELD, DEPTH, END, FOREST, GHOSTS, HAS_PARENT, HELD, HOLDER, HOLDER_END, Head, IN, KEYS, KINDS, Kin,
    MAX_GHOSTS, MAX_STRETCHES, MORE, NEW_CREATOR, NEW_KIN, ODD, POOL, STRAND, Tail, Totals, UNNAMED, VOID,
};
use crate::forest::{DEVICE, Kind, Place, Stretch};
use crate::holder::{OddBlock, OddKnown};

/// What a strand to be written is; slices as the forest has them.
pub(in crate::snapshot) struct Blocks<'a> {
    pub locals: &'a [u64],
    pub names: &'a [u64],
    pub keys: &'a [u64],
    pub unnamed: &'a [u32],
}

/// Writes records into a payload.
#[derive(Debug, Default)]
pub(in crate::snapshot) struct Encoder {
    pub payload: Vec<u8>,
    pub totals: Totals,
    /// By forest: what its last strand said.
    kin: Vec<Kin>,
    /// The strand spoken of last.
    last: u32,
}

impl Encoder {
    fn byte(&mut self, b: u8) {
        self.payload.push(b);
    }
    fn word(&mut self, w: u64) {
        self.payload.extend(w.to_le_bytes());
    }
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.payload.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.payload.push(n as u8);
    }
    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.payload.extend(text);
    }
    fn lane(&mut self, words: &[u64]) {
        self.payload.reserve(words.len() * 8);
        for w in words {
            self.payload.extend(w.to_le_bytes());
        }
    }

    pub fn pool(&mut self, tenant: &str, model: &str) {
        self.byte(POOL);
        self.text(tenant.as_bytes());
        self.text(model.as_bytes());
    }

    pub fn forest(&mut self, pool: u32, kind: Kind, domain: u32) {
        self.byte(FOREST);
        self.number(pool.into());
        self.byte(u8::from(kind == Kind::Chained));
        self.number(domain.into());
        self.kin.push(Kin::default());
    }

    pub fn go_to(&mut self, forest: u32) {
        self.byte(IN);
        self.number(forest.into());
        self.last = 0;
    }

    pub fn holder(&mut self, h: &Head<'_>) {
        self.byte(HOLDER);
        self.text(h.label);
        self.byte(u8::from(h.cursor.seq.is_some()));
        self.word(h.cursor.seq.unwrap_or(0));
        self.word(h.cursor.ts.to_bits());
        self.number(h.chained.into());
        self.number(h.canonical.map_or(0, |c| u64::from(c) + 1));
        self.number(h.creator.into());
        self.word(h.seed);
        self.last = 0;
    }

    /// The next strand of forest `forest`, numbered `number`, where `at` is by numbers too.
    pub fn strand(
        &mut self,
        (forest, number): (u32, u32),
        at: Option<Place>,
        kin: Kin,
        depth: Option<u32>,
        b: &Blocks<'_>,
        held: bool,
    ) {
        let last = std::mem::replace(&mut self.kin[forest as usize], kin);
        let mut flags = STRAND;
        let mut flag = |bit: u8, on: bool| flags |= if on { bit } else { 0 };
        flag(HAS_PARENT, at.is_some());
        flag(NEW_KIN, (last.seed, last.block_size) != (kin.seed, kin.block_size));
        flag(NEW_CREATOR, last.creator != kin.creator);
        flag(UNNAMED, !b.unnamed.is_empty());
        flag(ALL_HELD, held);
        let keyed = b.keys.iter().any(|k| *k != 0);
        flag(KEYS, keyed);
        flag(DEPTH, depth.is_some());
        self.byte(flags);
        self.number(b.names.len() as u64);
        if let Some(at) = at {
            self.number(u64::from(number - at.strand));
            self.number(at.offset.into());
        }
        if flags & NEW_KIN != 0 {
            self.word(kin.seed);
            self.number(kin.block_size.into());
        }
        if flags & NEW_CREATOR != 0 {
            self.number(kin.creator.into());
        }
        if let Some(depth) = depth {
            self.number(depth.into());
        }
        self.blocks(b, keyed);
        self.totals.strands += 1;
        if held {
            self.last = number;
            self.totals.stretches += 1;
        }
    }

    fn blocks(&mut self, b: &Blocks<'_>, keyed: bool) {
        if !b.unnamed.is_empty() {
            self.number(b.unnamed.len() as u64);
            let mut next = 0;
            for u in b.unnamed {
                self.number(u64::from(u - next));
                next = u + 1;
            }
        }
        self.lane(b.locals);
        self.lane(b.names);
        if keyed {
            self.lane(b.keys);
        }
        self.totals.blocks += b.names.len() as u64;
    }

    /// Blocks after those that strand `strand` had.
    pub fn more(&mut self, strand: u32, b: &Blocks<'_>) {
        let keyed = b.keys.iter().any(|k| *k != 0);
        self.byte(MORE);
        self.byte(if b.unnamed.is_empty() { 0 } else { UNNAMED } | if keyed { KEYS } else { 0 });
        self.number(strand.into());
        self.number(b.names.len() as u64);
        self.blocks(b, keyed);
    }

    /// What the holder has of a strand that has `len` blocks so far.
    pub fn held(&mut self, strand: u32, len: u32, stretches: &[Stretch]) {
        let all = [Stretch { bit: DEVICE, copies: 1, span: (0, len) }];
        for part in stretches.chunks(MAX_STRETCHES) {
            self.byte(HELD);
            self.number(zigzag(i64::from(strand) - i64::from(self.last)));
            self.last = strand;
            self.totals.stretches += part.len() as u64;
            if part == all {
                self.number(0);
                continue;
            }
            self.number(part.len() as u64);
            for s in part {
                self.byte(s.bit);
                self.number(s.copies.into());
                self.number(s.span.0.into());
                self.number(u64::from(s.span.1 - s.span.0));
            }
        }
    }

    /// A place in `known` is by the strand's number.
    pub fn odd(&mut self, block: &OddBlock) {
        self.byte(ODD);
        self.word(block.hash.0);
        match block.known {
            OddKnown::Nothing => self.byte(0),
            OddKnown::Orphan { parent, seed, local, block_size } => {
                self.byte(1);
                [parent.0, seed, local.0].into_iter().for_each(|w| self.word(w));
                self.number(block_size.into());
            }
            OddKnown::Placed(place) => {
                self.byte(2);
                self.number(place.strand.into());
                self.number(place.offset.into());
            }
        }
        self.number(block.copies.len() as u64);
        for (tier, group, n) in &block.copies {
            self.byte(*tier as u8);
            self.number((*group).into());
            self.number((*n).into());
        }
        self.totals.odd += 1;
    }

    pub fn ghosts(&mut self, hashes: &[u64]) {
        for part in hashes.chunks(MAX_GHOSTS) {
            self.byte(GHOSTS);
            self.number(part.len() as u64);
            self.lane(part);
        }
    }

    pub fn holder_end(&mut self, t: &Tail) {
        let p = &t.learnt.profile;
        let flag = |bit: u8, on: bool| if on { bit } else { 0 };
        self.byte(HOLDER_END);
        self.byte(
            flag(1, t.learnt.agreed)
                | flag(2, t.partial)
                | flag(4, p.block_size_is_full)
                | flag(8, p.form == MmForm::Bare),
        );
        for n in [t.blocks, t.learnt.refused, t.learnt.dropped] {
            self.number(n);
        }
        for n in [p.block_size, p.chunk_described, p.chunk_by_depth] {
            self.number(n.into());
        }
        self.number(p.sizes.len() as u64);
        p.sizes.iter().for_each(|n| self.number((*n).into()));
        self.number(p.groups.len() as u64);
        for g in &p.groups {
            let Some(g) = g else {
                self.byte(0);
                continue;
            };
            self.byte(KINDS.iter().position(|k| *k == g.spec.kind).map_or(1, |i| i as u8 + 1));
            self.number(g.spec.window.map_or(0, |w| u64::from(w) + 1));
            self.number(g.block_size.into());
        }
        self.totals.holders += 1;
    }

    pub fn void(&mut self) {
        self.byte(VOID);
    }

    pub fn end(&mut self) {
        let Totals { holders, strands, blocks, stretches, odd } = self.totals;
        self.byte(END);
        for n in [holders, strands, blocks, stretches, odd] {
            self.word(n);
        }
    }
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}
