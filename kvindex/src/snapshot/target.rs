//! Where do the strands of a snapshot lie in the index that they are put back into?
//!
//! In an empty index strand for strand as they were. Where other holders told of the same blocks before,
//! along theirs, in pieces.

use smallvec::SmallVec;

use super::record::{Kin, Lanes, Record};
use crate::forest::{Clash, How, Kind, Piece, Place, ROOT, Stretch, Told, UNKNOWN_DEPTH};
use crate::holder::{Desk, Holder, Misfits};
use crate::pool::CANONICAL;

/// One forest of a snapshot.
#[derive(Debug)]
pub(super) struct Target {
    pub pool: u32,
    kind: Kind,
    /// The domain's number when it was written.
    was: usize,
    /// The domain that it is put into, once there is reason to choose one.
    pub domain: Option<usize>,
    /// Whether others who call blocks alike were there before.
    pub joined: bool,
    strands: Vec<Strand>,
}

#[derive(Debug)]
struct Strand {
    len: u32,
    kin: Kin,
    parts: SmallVec<[Part; 1]>,
}

/// Some blocks of a strand, from the `from`th on. What is in no part is lost.
#[derive(Debug)]
enum Part {
    There { from: u32, n: u32, place: Place, generation: u32 },
    Misfits(Box<Misfits>),
}

/// Where the blocks after a block are to be put.
enum Start {
    At(Place),
    /// After a block of this name, which is at no place.
    Nowhere(u64),
    Lost,
}

/// Room that is used again.
#[derive(Debug, Default)]
pub(super) struct Room {
    locals: Vec<u64>,
    names: Vec<u64>,
    keys: Vec<u64>,
    pieces: Vec<Piece>,
}

impl Target {
    pub fn new(pool: u32, kind: Kind, was: u32) -> Target {
        let domain = (kind == Kind::Canonical).then_some(CANONICAL);
        Target { pool, kind, was: was as usize, domain, joined: false, strands: Vec::new() }
    }

    /// Chooses a domain of those not `taken` by other forests of the snapshot: one where a block of
    /// `coming` is known by the same name, or else one for itself. False where there are no more.
    pub fn choose(
        &mut self,
        coming: &[Record<'_>],
        taken: impl Fn(usize) -> bool,
        desk: &mut Desk<'_>,
    ) -> bool {
        if self.domain.is_some() {
            return true;
        }
        let here: Vec<usize> =
            desk.forests.domains().filter(|d| !taken(*d) && desk.forests.get(*d).is_used()).collect();
        let agrees = |d: &usize| {
            let forest = desk.forests.get(*d);
            let same = |(name, local): (u64, u64)| {
                let place = forest.find_name(desk.guard, name);
                let look = place.and_then(|p| Some((p, forest.look(desk.guard, p.strand)?)));
                look.is_some_and(|(p, l)| l.locals().get(p.offset as usize) == Some(&local))
            };
            coming.iter().any(|r| match r {
                Record::Strand { lanes, .. } => lanes.names.iter().zip(lanes.locals.iter()).any(same),
                _ => false,
            })
        };
        let agreeing = here.into_iter().find(agrees);
        self.joined = agreeing.is_some();
        self.domain = agreeing.or_else(|| {
            let domain = desk.forests.unclaimed(self.was, taken)?;
            // Of those who were there before may be left what nobody holds.
            desk.pen(domain).settle_all();
            Some(domain)
        });
        self.domain.is_some()
    }

    /// A strand that is not put anywhere.
    pub fn skip(&mut self, kin: Kin, lanes: &Lanes<'_>) {
        self.strands.push(Strand { len: lanes.names.len() as u32, kin, parts: SmallVec::new() });
    }

    /// Counts blocks of a strand that are not put anywhere.
    pub fn lengthen(&mut self, strand: u32, lanes: &Lanes<'_>) {
        self.strands[strand as usize].len += lanes.names.len() as u32;
    }

    /// Puts the next strand in after `at`.
    pub fn plant(
        &mut self,
        at: Option<Place>,
        kin: Kin,
        depth: Option<u32>,
        lanes: &Lanes<'_>,
        room: &mut Room,
        desk: &mut Desk<'_>,
    ) {
        let start = match at {
            None => Start::At(Place { strand: ROOT, offset: 0 }),
            Some(at) => self.after(at, desk),
        };
        self.strands.push(Strand { len: 0, kin, parts: SmallVec::new() });
        self.add(self.strands.len() - 1, start, depth, lanes, room, desk);
    }

    /// Puts in blocks that come after all of a strand.
    pub fn grow(&mut self, strand: u32, lanes: &Lanes<'_>, room: &mut Room, desk: &mut Desk<'_>) {
        let end = Place { strand, offset: self.strands[strand as usize].len };
        let start = self.after(end, desk);
        self.add(strand as usize, start, None, lanes, room, desk);
    }

    fn add(
        &mut self,
        strand: usize,
        start: Start,
        depth: Option<u32>,
        lanes: &Lanes<'_>,
        room: &mut Room,
        desk: &mut Desk<'_>,
    ) {
        let n = lanes.names.len();
        let first = self.strands[strand].len;
        self.strands[strand].len += n as u32;
        lanes.names.copy_to(&mut room.names);
        lanes.locals.copy_to(&mut room.locals);
        lanes.keys.copy_to(&mut room.keys);
        // Request keys that are not known are 0.
        room.keys.resize(n, 0);
        let kin = self.strands[strand].kin;
        let told = Told {
            locals: if self.kind == Kind::Canonical { &room.names } else { &room.locals },
            names: &room.names,
            keys: &room.keys,
            seed: kin.seed,
            block_size: kin.block_size,
            creator: kin.creator,
            slot: 0,
            device: false,
            unnamed: &lanes.unnamed,
        };
        let mut pieces = std::mem::take(&mut room.pieces);
        pieces.clear();
        let (put, clash) = match (start, self.kind) {
            (Start::At(_), Kind::Canonical) => (plant_canonical(&told, depth, &mut pieces, desk), None),
            (Start::At(at), Kind::Chained) => {
                desk.pen(self.domain.unwrap_or(CANONICAL)).store(at, &told, &mut pieces)
            }
            (Start::Nowhere(name), _) => {
                self.misfits(strand, first, 0, Some(name), false, &told);
                (n, None)
            }
            (Start::Lost, _) => (n, None),
        };
        let domain = self.domain.unwrap_or(CANONICAL);
        let mut from = first;
        for p in &pieces {
            let n = p.span.1 - p.span.0;
            let place = Place { strand: p.strand, offset: p.span.0 };
            let generation = desk.forests.get(domain).generation(p.strand);
            self.strands[strand].parts.push(Part::There { from, n, place, generation });
            from += n;
        }
        room.pieces = pieces;
        match clash {
            Some(Clash::OtherName(_) | Clash::NameTaken(_)) => {
                let before = put.checked_sub(1).map(|i| told.names[i]);
                let before = before.or_else(|| self.name_before(strand, first, desk));
                let renamed = matches!(clash, Some(Clash::OtherName(_)));
                self.misfits(strand, first, put, before, renamed, &told);
            }
            Some(Clash::Full) | None => {}
        }
    }

    /// Keeps the blocks from the `i`th of `told` on for those who hold them.
    fn misfits(
        &mut self,
        strand: usize,
        first: u32,
        i: usize,
        before: Option<u64>,
        renamed: bool,
        told: &Told<'_>,
    ) {
        self.strands[strand].parts.push(Part::Misfits(Box::new(Misfits {
            from: first + i as u32,
            before,
            renamed,
            seed: told.seed,
            block_size: told.block_size,
            locals: told.locals[i..].to_vec(),
            names: told.names[i..].to_vec(),
            keys: told.keys[i..].to_vec(),
        })));
    }

    /// What the block before block `first` of a strand is called, where that has to do with it.
    fn name_before(&self, strand: usize, first: u32, desk: &Desk<'_>) -> Option<u64> {
        let forest = desk.forests.get(self.domain?);
        match self.strands[strand].parts.iter().rev().find(|p| p.from() < first)? {
            Part::There { from, place, .. } => {
                let look = forest.look(desk.guard, place.strand)?;
                forest.names(look).get((place.offset + first - from - 1) as usize).copied()
            }
            Part::Misfits(m) => m.names.get((first - m.from - 1) as usize).copied(),
        }
    }

    /// Where the block after the first `end.offset` of a strand is to be put.
    fn after(&self, end: Place, desk: &Desk<'_>) -> Start {
        if self.kind == Kind::Canonical {
            return Start::At(Place { strand: ROOT, offset: 0 });
        }
        let last = end.offset - 1;
        let parts = &self.strands[end.strand as usize].parts;
        match parts.iter().find(|p| p.from() <= last && last < p.end()) {
            Some(Part::There { from, place, generation, .. }) => {
                let at = Place { offset: place.offset + last - from, ..*place };
                let forest = desk.forests.get(self.domain.unwrap_or(CANONICAL));
                match forest.is_there(desk.guard, at, *generation) {
                    true => Start::At(Place { offset: at.offset + 1, ..at }),
                    false => Start::Lost,
                }
            }
            Some(Part::Misfits(m)) => Start::Nowhere(m.names[(last - m.from) as usize]),
            None => Start::Lost,
        }
    }

    /// Gives `holder` its stretches of a strand. Returns how many of their blocks are lost.
    pub fn give(&self, holder: &mut Holder, strand: u32, stretches: &[Stretch], desk: &mut Desk<'_>) -> u64 {
        let Some(domain) = self.domain else { return 0 };
        let mut lost: u64 = stretches.iter().map(|s| u64::from(s.span.1 - s.span.0)).sum();
        for part in &self.strands[strand as usize].parts {
            let inside = |s: &Stretch| {
                let span = (s.span.0.max(part.from()), s.span.1.min(part.end()));
                (span.0 < span.1).then_some(Stretch { span, ..*s })
            };
            let mine: SmallVec<[Stretch; 2]> = stretches.iter().filter_map(inside).collect();
            match part {
                Part::There { from, place, generation, .. } => {
                    for s in mine {
                        let at = Place { offset: place.offset + s.span.0 - from, ..*place };
                        let last = Place { offset: place.offset + s.span.1 - 1 - from, ..*place };
                        if desk.forests.get(domain).is_there(desk.guard, last, *generation) {
                            holder.take(domain, at, &s, desk);
                            lost -= u64::from(s.span.1 - s.span.0);
                        }
                    }
                }
                Part::Misfits(m) if !mine.is_empty() => {
                    holder.take_misfits(m, &mine, desk);
                    lost -= mine.iter().map(|s| u64::from(s.span.1 - s.span.0)).sum::<u64>();
                }
                Part::Misfits(_) => {}
            }
        }
        lost
    }

    /// Blocks of a strand so far.
    pub fn len(&self, strand: u32) -> u32 {
        self.strands[strand as usize].len
    }

    /// Strands so far.
    pub fn count(&self) -> u32 {
        self.strands.len() as u32
    }

    /// Where block `place` lies, where it has a place of that name.
    pub fn place_of(&self, place: Place, desk: &Desk<'_>) -> Option<Place> {
        match self.after(Place { offset: place.offset + 1, ..place }, desk) {
            Start::At(p) if self.kind == Kind::Chained => Some(Place { offset: p.offset - 1, ..p }),
            Start::At(_) | Start::Nowhere(_) | Start::Lost => None,
        }
    }

    /// Lets go, among strands `from..to`, of what nobody took.
    pub fn let_go(&self, from: usize, to: usize, desk: &mut Desk<'_>) {
        let Some(domain) = self.domain else { return };
        for part in self.strands[from..to].iter().flat_map(|s| &s.parts) {
            if let Part::There { place, generation, .. } = part
                && desk.forests.get(domain).generation(place.strand) == *generation
            {
                desk.pen(domain).let_go(place.strand);
            }
        }
    }
}

impl Part {
    fn from(&self) -> u32 {
        match self {
            Part::There { from, .. } => *from,
            Part::Misfits(m) => m.from,
        }
    }
    fn end(&self) -> u32 {
        match self {
            Part::There { from, n, .. } => from + n,
            Part::Misfits(m) => m.from + m.names.len() as u32,
        }
    }
}

/// Blocks that stand for themselves: each is where it is found, or goes after the one before it.
fn plant_canonical(
    told: &Told<'_>,
    depth: Option<u32>,
    pieces: &mut Vec<Piece>,
    desk: &mut Desk<'_>,
) -> usize {
    let mut at = Place { strand: ROOT, offset: 0 };
    let mut i = 0;
    while i < told.names.len() {
        let rest =
            Told { locals: &told.locals[i..], names: &told.names[i..], keys: &[], unnamed: &[], ..*told };
        let (n, clash) = desk.pen(CANONICAL).store(at, &rest, pieces);
        i += n;
        match clash {
            None => break,
            Some(Clash::NameTaken(p) | Clash::OtherName(p)) => {
                pieces.push(Piece { strand: p.strand, span: (p.offset, p.offset + 1), how: How::Found });
                at = Place { offset: p.offset + 1, ..p };
                i += 1;
            }
            Some(Clash::Full) => break,
        }
    }
    let mut passed = 0;
    for (i, p) in pieces.iter().enumerate() {
        if p.how == How::Fresh {
            let depth = depth.map_or(UNKNOWN_DEPTH, |d| d.saturating_add(passed));
            let before = (i == 0 && told.seed != 0).then_some(told.seed);
            desk.pen(CANONICAL).stands_at(p.strand, depth, before);
        }
        passed += p.span.1 - p.span.0;
    }
    told.names.len()
}
