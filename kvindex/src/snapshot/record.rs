//! What a snapshot consists of, record by record: how each is written, and what is believed of what is
//! read.
//!
//! `docs/formats.md` has the bytes. Strands are numbered forest by forest in the order they come; whatever
//! speaks of a strand, a block or a forest that did not come before is refused here, so that who
//! applies records need not look again.

use kvproto::hash::canonical::MmForm;
use kvproto::{EngineHash, GroupKind, GroupSpec, LocalHash, Tier};
use smallvec::SmallVec;

use super::frame::word;
use super::{Cursor, FormatError};
use crate::forest::{DEVICE, Kind, MAX_LEN, MAX_LEVEL, Place, Stretch};
use crate::holder::{Learnt, OddBlock, OddKnown};
use crate::profile::{Group, MAX_GROUPS, Profile};

/// Bytes of a name in a snapshot.
pub(super) const MAX_TEXT: usize = 1 << 14;
/// Stretches in one record.
pub(super) const MAX_STRETCHES: usize = 1 << 12;
/// Names in one record of ghosts.
pub(super) const MAX_GHOSTS: usize = 1 << 14;

const POOL: u8 = 1;
const FOREST: u8 = 2;
const IN: u8 = 3;
const HOLDER: u8 = 4;
const MORE: u8 = 5;
const HELD: u8 = 6;
const ODD: u8 = 7;
const GHOSTS: u8 = 8;
const HOLDER_END: u8 = 9;
const VOID: u8 = 10;
const END: u8 = 11;
/// A strand; the other bits say what is told of it.
const STRAND: u8 = 0x80;
const HAS_PARENT: u8 = 0x01;
const NEW_KIN: u8 = 0x02;
const NEW_CREATOR: u8 = 0x04;
const UNNAMED: u8 = 0x08;
const ALL_HELD: u8 = 0x10;
const KEYS: u8 = 0x20;
const DEPTH: u8 = 0x40;

/// How much a snapshot has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Holders whose part is complete.
    pub holders: u64,
    /// Strands.
    pub strands: u64,
    /// Distinct blocks.
    pub blocks: u64,
    /// Stretches of blocks that a holder has.
    pub stretches: u64,
    /// Blocks that holders keep beside the forest.
    pub odd: u64,
}

/// Numbers as they lie in the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane<'a>(&'a [u8]);

impl Lane<'_> {
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.chunks_exact(8).map(word)
    }
    pub fn copy_to(&self, to: &mut Vec<u64>) {
        to.clear();
        to.extend(self.iter());
    }
    pub fn len(&self) -> usize {
        self.0.len() / 8
    }
}

/// What the blocks of a strand are. Own hashes are empty in a forest of canonical blocks, request keys
/// where it has none or knows none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lanes<'a> {
    pub locals: Lane<'a>,
    pub names: Lane<'a>,
    pub keys: Lane<'a>,
    /// Blocks whose name is another's by now, counted from the first of these.
    pub unnamed: SmallVec<[u32; 2]>,
}

/// What the blocks of a strand have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kin {
    pub seed: u64,
    pub block_size: u32,
    pub creator: u32,
}

/// Whose part of the snapshot begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head<'a> {
    pub label: &'a [u8],
    pub cursor: Cursor,
    /// The forest of its domain, and that of blocks that stand for themselves where it has some.
    pub chained: u32,
    pub canonical: Option<u32>,
    pub creator: u32,
    /// Tells whether blocks are named as in the deployment, model and adapter of then.
    pub seed: u64,
}

/// What is said of a holder when all its blocks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub learnt: Learnt,
    pub partial: bool,
    /// Blocks it has, to be compared.
    pub blocks: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record<'a> {
    Pool { tenant: &'a str, model: &'a str },
    Forest { pool: u32, kind: Kind, domain: u32 },
    In { forest: u32 },
    Holder(Head<'a>),
    Strand { at: Option<Place>, kin: Kin, depth: Option<u32>, lanes: Lanes<'a>, held: bool },
    More { strand: u32, lanes: Lanes<'a> },
    Held { strand: u32, stretches: Vec<Stretch> },
    Odd(OddBlock),
    Ghosts(Lane<'a>),
    HolderEnd(Box<Tail>),
    Void,
    End(Totals),
}

/// What a strand to be written is; slices as the forest has them.
pub(super) struct Blocks<'a> {
    pub locals: &'a [u64],
    pub names: &'a [u64],
    pub keys: &'a [u64],
    pub unnamed: &'a [u32],
}

/// Writes records into a payload.
#[derive(Debug, Default)]
pub(super) struct Encoder {
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

/// Kinds of groups, by their number in the format less one.
const KINDS: [GroupKind; 5] =
    [GroupKind::Full, GroupKind::SlidingWindow, GroupKind::Mamba, GroupKind::ChunkedLocal, GroupKind::Other];

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}
fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

/// Reads payloads, and remembers what later ones may speak of.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    keyed: bool,
    pools: u32,
    forests: Vec<ForestSeen>,
    current: Option<u32>,
    section: Option<Section>,
    totals: Totals,
    ended: bool,
}

#[derive(Debug)]
struct ForestSeen {
    pool: u32,
    kind: Kind,
    domain: u32,
    kin: Kin,
    /// Blocks of each strand.
    lens: Vec<u16>,
}

/// The part of one holder.
#[derive(Debug)]
struct Section {
    forests: [Option<u32>; 2],
    last: u32,
}

/// A payload being read.
struct Bytes<'a> {
    rest: &'a [u8],
    /// Where the rest ends in the snapshot.
    end: u64,
}

type Result<T> = std::result::Result<T, FormatError>;

impl<'a> Bytes<'a> {
    fn bad<T>(&self, what: &'static str) -> Result<T> {
        Err(FormatError::Malformed { at: self.end - self.rest.len() as u64, what })
    }
    fn ok(&self, is: bool, what: &'static str) -> Result<()> {
        if is { Ok(()) } else { self.bad(what) }
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(n) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => self.bad("a record goes on after its chunk"),
        }
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn word(&mut self) -> Result<u64> {
        Ok(word(self.take(8)?))
    }
    fn number(&mut self) -> Result<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7F);
            self.ok(bits << shift >> shift == bits, "a number of more than 64 bits")?;
            n |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        self.bad("a number of more than 64 bits")
    }
    /// A number of at most `most`.
    fn upto(&mut self, most: u64, what: &'static str) -> Result<u32> {
        let n = self.number()?;
        self.ok(n <= most.min(u32::MAX.into()), what)?;
        Ok(n as u32)
    }
    fn text(&mut self) -> Result<&'a [u8]> {
        let n = self.upto(MAX_TEXT as u64, "a text that is too long")?;
        self.take(n as usize)
    }
    fn utf8(&mut self) -> Result<&'a str> {
        let text = self.text()?;
        std::str::from_utf8(text).or_else(|_| self.bad("a text that is not UTF-8"))
    }
    fn lane(&mut self, n: u32) -> Result<Lane<'a>> {
        Ok(Lane(self.take(n as usize * 8)?))
    }
}

impl Decoder {
    pub fn new(keyed: bool) -> Decoder {
        Decoder { keyed, ..Decoder::default() }
    }

    /// Whether the end was read.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// What was read so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The records of a payload that begins at byte `at` of the snapshot.
    pub fn read<'a>(&mut self, payload: &'a [u8], at: u64) -> Result<Vec<Record<'a>>> {
        let mut b = Bytes { rest: payload, end: at + payload.len() as u64 };
        let mut out = Vec::new();
        while !b.rest.is_empty() {
            if self.ended {
                return Err(FormatError::Trailing { at: b.end - b.rest.len() as u64 });
            }
            out.push(self.record(&mut b)?);
        }
        Ok(out)
    }

    fn record<'a>(&mut self, b: &mut Bytes<'a>) -> Result<Record<'a>> {
        let tag = b.byte()?;
        match tag {
            POOL => {
                let (tenant, model) = (b.utf8()?, b.utf8()?);
                self.pools += 1;
                Ok(Record::Pool { tenant, model })
            }
            FOREST => self.forest(b),
            IN => {
                let most = (self.forests.len() as u64).checked_sub(1);
                let forest = match most {
                    Some(most) => b.upto(most, "a forest that did not come")?,
                    None => return b.bad("a forest before the first"),
                };
                self.current = Some(forest);
                self.section.iter_mut().for_each(|s| s.last = 0);
                Ok(Record::In { forest })
            }
            HOLDER => self.holder(b).map(Record::Holder),
            MORE => self.more(b),
            HELD => self.held(b),
            ODD => self.odd(b).map(Record::Odd),
            GHOSTS => {
                b.ok(self.section.is_some(), "a holder's blocks outside its part")?;
                let n = b.upto(MAX_GHOSTS as u64, "too many names")?;
                Ok(Record::Ghosts(b.lane(n)?))
            }
            HOLDER_END => {
                b.ok(self.section.take().is_some(), "the end of a holder's part that did not begin")?;
                self.totals.holders += 1;
                Ok(Record::HolderEnd(Box::new(tail(b)?)))
            }
            VOID => {
                b.ok(self.section.take().is_some(), "the end of a holder's part that did not begin")?;
                Ok(Record::Void)
            }
            END => {
                b.ok(self.section.is_none(), "the end within a holder's part")?;
                let mut n = [0; 5];
                for n in &mut n {
                    *n = b.word()?;
                }
                let [holders, strands, blocks, stretches, odd] = n;
                let said = Totals { holders, strands, blocks, stretches, odd };
                if said != self.totals {
                    return Err(FormatError::Totals { said: said.into(), found: self.totals.into() });
                }
                self.ended = true;
                Ok(Record::End(said))
            }
            _ if tag & STRAND != 0 => self.strand(tag, b),
            _ => b.bad("a record of no known kind"),
        }
    }

    fn forest<'a>(&mut self, b: &mut Bytes<'a>) -> Result<Record<'a>> {
        let pool = b.upto(u64::from(self.pools).wrapping_sub(1), "a pool that did not come")?;
        b.ok(self.pools > 0, "a forest before the first pool")?;
        let kind = match b.byte()? {
            0 => Kind::Canonical,
            1 => Kind::Chained,
            _ => return b.bad("a forest of no known kind"),
        };
        let domain = b.upto(u16::MAX.into(), "a domain's number that is too large")?;
        // Forests of one pool are told apart by their numbers; a pool has one of canonical blocks.
        let same = |f: &ForestSeen| (f.pool, f.kind, f.domain) == (pool, kind, domain);
        b.ok(!self.forests.iter().any(same), "a forest that came before")?;
        b.ok((kind == Kind::Canonical) == (domain == 0), "a domain's number of another kind")?;
        self.forests.push(ForestSeen { pool, kind, domain, kin: Kin::default(), lens: Vec::new() });
        Ok(Record::Forest { pool, kind, domain })
    }

    fn holder<'a>(&mut self, b: &mut Bytes<'a>) -> Result<Head<'a>> {
        b.ok(self.section.is_none(), "a holder's part within another's")?;
        let label = b.text()?;
        let has_seq = b.byte()?;
        b.ok(has_seq <= 1, "a flag that is neither 0 nor 1")?;
        let (seq, ts) = (b.word()?, f64::from_bits(b.word()?));
        let forest = |b: &Bytes<'a>, n: u32, kind: Kind| match self.forests.get(n as usize) {
            Some(f) if f.kind == kind => Ok(f.pool),
            _ => b.bad("a holder in a forest that did not come, or of another kind"),
        };
        let chained = b.upto(u32::MAX.into(), "a forest that did not come")?;
        let pool = forest(b, chained, Kind::Chained)?;
        let canonical = b.upto(u32::MAX.into(), "a forest that did not come")?.checked_sub(1);
        if let Some(c) = canonical {
            let same = forest(b, c, Kind::Canonical)? == pool;
            b.ok(same, "a holder in two pools")?;
        }
        let creator = b.upto(u32::MAX.into(), "a creator's number that is too large")?;
        let seed = b.word()?;
        self.section = Some(Section { forests: [Some(chained), canonical], last: 0 });
        let cursor = Cursor { seq: (has_seq == 1).then_some(seq), ts };
        Ok(Head { label, cursor, chained, canonical, creator, seed })
    }

    fn current(&mut self, b: &Bytes<'_>) -> Result<&mut ForestSeen> {
        match self.current {
            Some(f) => Ok(&mut self.forests[f as usize]),
            None => b.bad("blocks in no forest"),
        }
    }

    /// The section, where the current forest is the holder's.
    fn section(&mut self, b: &Bytes<'_>) -> Result<&mut Section> {
        let current = self.current;
        match &mut self.section {
            Some(s) if current.is_some() && s.forests.contains(&current) => Ok(s),
            _ => b.bad("a holder's blocks outside its part or its forests"),
        }
    }

    fn strand<'a>(&mut self, flags: u8, b: &mut Bytes<'a>) -> Result<Record<'a>> {
        let keyed = self.keyed;
        let f = self.current(b)?;
        let chained = f.kind == Kind::Chained;
        b.ok(f.lens.len() < u32::MAX as usize >> 8, "too many strands")?;
        let n = b.upto(MAX_LEN as u64, "a strand that is too long")?;
        b.ok(n > 0, "a strand of no blocks")?;
        let mut at = None;
        if flags & HAS_PARENT != 0 {
            b.ok(chained, "a parent where there are none")?;
            let back = b.upto(f.lens.len() as u64, "a parent that did not come")?;
            b.ok(back > 0, "a strand that hangs on itself")?;
            let strand = f.lens.len() as u32 - back;
            let offset = b.upto(f.lens[strand as usize].into(), "a block that its strand has not")?;
            b.ok(offset > 0, "a strand that hangs on no block")?;
            at = Some(Place { strand, offset });
        }
        let mut kin = f.kin;
        if flags & NEW_KIN != 0 {
            kin.seed = b.word()?;
            kin.block_size = b.upto(u32::MAX.into(), "a block size that is too large")?;
        }
        if flags & NEW_CREATOR != 0 {
            kin.creator = b.upto(u32::MAX.into(), "a creator's number that is too large")?;
        }
        let mut depth = None;
        if flags & DEPTH != 0 {
            b.ok(!chained, "a depth that the parent tells")?;
            depth = Some(b.upto(u64::from(u32::MAX) - 1, "a depth that is too large")?);
        }
        let lanes = lanes(b, flags, n, chained, keyed)?;
        f.kin = kin;
        f.lens.push(n as u16);
        let number = f.lens.len() as u32 - 1;
        let held = flags & ALL_HELD != 0;
        if held {
            self.section(b)?.last = number;
            self.totals.stretches += 1;
        }
        self.totals.strands += 1;
        self.totals.blocks += u64::from(n);
        Ok(Record::Strand { at, kin, depth, lanes, held })
    }

    fn more<'a>(&mut self, b: &mut Bytes<'a>) -> Result<Record<'a>> {
        let keyed = self.keyed;
        let flags = b.byte()?;
        b.ok(flags & !(UNNAMED | KEYS) == 0, "flags that no writer sets")?;
        let f = self.current(b)?;
        let strand = b.upto(u32::MAX.into(), "a strand that did not come")?;
        let Some(len) = f.lens.get(strand as usize).copied() else {
            return b.bad("a strand that did not come");
        };
        let n = b.upto(MAX_LEN as u64 - u64::from(len), "a strand that is too long")?;
        b.ok(n > 0, "no blocks more")?;
        let lanes = lanes(b, flags, n, f.kind == Kind::Chained, keyed)?;
        f.lens[strand as usize] = len + n as u16;
        self.totals.blocks += u64::from(n);
        Ok(Record::More { strand, lanes })
    }

    fn held<'a>(&mut self, b: &mut Bytes<'a>) -> Result<Record<'a>> {
        let last = i64::from(self.section(b)?.last);
        let f = self.current(b)?;
        let strand = last.checked_add(unzigzag(b.number()?)).and_then(|s| usize::try_from(s).ok());
        let Some(len) = strand.and_then(|s| f.lens.get(s)).map(|n| u32::from(*n)) else {
            return b.bad("a strand that did not come");
        };
        let strand = strand.unwrap_or_default() as u32;
        self.section(b)?.last = strand;
        let n = b.upto(MAX_STRETCHES as u64, "too many stretches")?;
        let mut stretches = Vec::with_capacity((n as usize).clamp(1, b.rest.len() / 4 + 1));
        if n == 0 {
            stretches.push(Stretch { bit: DEVICE, copies: 1, span: (0, len) });
        }
        for _ in 0..n {
            let bit = b.byte()?;
            b.ok(u32::from(bit) < 4 + MAX_GROUPS, "a group that is too large")?;
            let copies = b.upto(u64::from(MAX_LEVEL) + 1, "too many copies")? as u8;
            b.ok(copies > 0, "no copies")?;
            let from = b.upto(len.into(), "a block that its strand has not")?;
            let n = b.upto((len - from).into(), "a block that its strand has not")?;
            b.ok(n > 0, "a stretch of no blocks")?;
            stretches.push(Stretch { bit, copies, span: (from, from + n) });
        }
        self.totals.stretches += stretches.len() as u64;
        Ok(Record::Held { strand, stretches })
    }

    fn odd(&mut self, b: &mut Bytes<'_>) -> Result<OddBlock> {
        let hash = EngineHash(b.word()?);
        let known = match b.byte()? {
            0 => OddKnown::Nothing,
            1 => {
                let (parent, seed, local) = (EngineHash(b.word()?), b.word()?, LocalHash(b.word()?));
                let block_size = b.upto(u32::MAX.into(), "a block size that is too large")?;
                OddKnown::Orphan { parent, seed, local, block_size }
            }
            2 => {
                self.section(b)?;
                let f = self.current(b)?;
                b.ok(f.kind == Kind::Chained, "a second name of a canonical block")?;
                let strand = b.upto(u32::MAX.into(), "a strand that did not come")?;
                let Some(len) = f.lens.get(strand as usize) else {
                    return b.bad("a strand that did not come");
                };
                let offset = b.upto(u64::from(*len) - 1, "a block that its strand has not")?;
                OddKnown::Placed(Place { strand, offset })
            }
            _ => return b.bad("a block of which no known kind of thing is known"),
        };
        b.ok(self.section.is_some(), "a holder's blocks outside its part")?;
        let n = b.upto(Tier::ALL.len() as u64 * u64::from(MAX_GROUPS), "too many kinds of copies")?;
        let mut copies: Vec<(Tier, u32, u32)> = Vec::new();
        for _ in 0..n {
            let Some(tier) = Tier::ALL.get(usize::from(b.byte()?)).copied() else {
                return b.bad("a tier of no known kind");
            };
            let group = b.upto(u64::from(MAX_GROUPS) - 1, "a group that is too large")?;
            let n = b.upto(u32::MAX.into(), "too many copies")?;
            let new = copies.iter().all(|(t, g, _)| (*t, *g) != (tier, group));
            b.ok(n > 0 && new, "copies that are none, or were told before")?;
            copies.push((tier, group, n));
        }
        self.totals.odd += 1;
        Ok(OddBlock { hash, known, copies })
    }
}

fn lanes<'a>(b: &mut Bytes<'a>, flags: u8, n: u32, chained: bool, keyed: bool) -> Result<Lanes<'a>> {
    let mut lanes = Lanes::default();
    if flags & UNNAMED != 0 {
        let unnamed = b.upto(n.into(), "more blocks without a name than there are")?;
        let mut next = 0;
        for _ in 0..unnamed {
            let at = next + b.upto(n.into(), "a block that its strand has not")?;
            b.ok(at < n, "a block that its strand has not")?;
            lanes.unnamed.push(at);
            next = at + 1;
        }
    }
    if chained {
        lanes.locals = b.lane(n)?;
    }
    lanes.names = b.lane(n)?;
    if flags & KEYS != 0 {
        b.ok(keyed && chained, "request keys where there are none")?;
        lanes.keys = b.lane(n)?;
    }
    Ok(lanes)
}

fn tail(b: &mut Bytes<'_>) -> Result<Tail> {
    let flags = b.byte()?;
    b.ok(flags < 16, "flags that no writer sets")?;
    let (blocks, refused, dropped) = (b.number()?, b.number()?, b.number()?);
    let number = |b: &mut Bytes<'_>| b.upto(u32::MAX.into(), "a number of more than 32 bits");
    let mut profile = Profile {
        block_size: number(b)?,
        chunk_described: number(b)?,
        chunk_by_depth: number(b)?,
        block_size_is_full: flags & 4 != 0,
        form: if flags & 8 != 0 { MmForm::Bare } else { MmForm::Placed },
        ..Profile::default()
    };
    for _ in 0..b.upto(16, "too many block sizes")? {
        profile.sizes.push(number(b)?);
    }
    for _ in 0..b.upto(MAX_GROUPS.into(), "too many groups")? {
        let group = match b.byte()? {
            0 => None,
            n => {
                let Some(kind) = KINDS.get(usize::from(n) - 1).copied() else {
                    return b.bad("a group of no known kind");
                };
                let window = b.number()?;
                b.ok(window <= 1 << 32, "a window that is too large")?;
                let window = window.checked_sub(1).map(|w| w as u32);
                Some(Group { spec: GroupSpec { kind, window }, block_size: number(b)? })
            }
        };
        profile.groups.push(group);
    }
    let learnt = Learnt { agreed: flags & 1 != 0, profile, refused, dropped };
    Ok(Tail { learnt, partial: flags & 2 != 0, blocks })
}
