//! What is believed of records that come?

use kvproto::hash::canonical::MmForm;
use kvproto::{EngineHash, GroupSpec, LocalHash, Tier};

use super::bytes::{Bytes, Result};
use super::{
    ALL_HELD, DEPTH, END, FOREST, GHOSTS, HAS_PARENT, HELD, HOLDER, HOLDER_END, Head, IN, KEYS, KINDS, Kin,
    Lanes, MAX_GHOSTS, MAX_STRETCHES, MORE, NEW_CREATOR, NEW_KIN, ODD, POOL, Record, STRAND, Tail, Totals,
    UNNAMED, VOID,
};
use crate::forest::{DEVICE, Kind, MAX_LEN, MAX_LEVEL, Place, Stretch};
use crate::holder::{Learnt, OddBlock, OddKnown};
use crate::profile::{Group, MAX_GROUPS, Profile};
use crate::snapshot::{Cursor, FormatError};

/// Reads payloads, and remembers what later ones may speak of.
#[derive(Debug, Default)]
pub(in crate::snapshot) struct Decoder {
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

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}
