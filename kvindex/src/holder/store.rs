//! What a store tells: blocks by what is in them, or by name alone.

use kvproto::event::Content;
use kvproto::{EngineHash, ExtraKey, GroupKind, Stored, Tier};

use super::odd::Known;
use super::{Desk, Holder};
use crate::forest::{Clash, How, Piece, Place, Plane, ROOT, Told, count, words};
use crate::pool::CANONICAL;
use crate::profile::{MAX_GROUPS, Mask};
use crate::types::Applied;

/// Room that stores use again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    locals: Vec<u64>,
    keys: Vec<u64>,
    pieces: Vec<Piece>,
}

/// What one store's blocks have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub tier: Tier,
    pub group: u32,
}

impl Copy {
    /// The copy that a bit of a mask stands for.
    pub fn of_bit(bit: u8) -> Copy {
        match Tier::ALL.get(usize::from(bit) + 1) {
            Some(tier) => Copy { tier: *tier, group: 0 },
            None => Copy { tier: Tier::Gpu, group: u32::from(bit) - 4 },
        }
    }
    pub fn plane(self) -> Plane {
        Plane::of(Mask::bit(self.tier, self.group))
    }
    fn on_device(self) -> bool {
        self.tier == Tier::Gpu && self.group == 0
    }
}

impl Holder {
    pub(super) fn stored(&mut self, s: &Stored<'_>, desk: &mut Desk<'_>, done: &mut Applied) {
        if s.group >= MAX_GROUPS {
            done.refused += s.hashes.len() as u32;
            return;
        }
        let kind = self.learn(s);
        let copy = Copy { tier: s.tier, group: s.group };
        // A full-attention group has the last word on what a block is: others' events may leave
        // blocks out, or count in blocks of their own.
        let tells = kind == GroupKind::Full || !self.profile.has_full_group();
        match s.content {
            Content::Complete if s.is_dense() && tells => self.stored_blocks(s, copy, desk, done),
            Content::Hashed if s.locals.len() == s.hashes.len() && tells => {
                self.stored_blocks(s, copy, desk, done);
            }
            Content::Canonical => self.stored_canonical(s, copy, desk, done),
            Content::Complete | Content::Hashed | Content::HashOnly => {
                for &h in s.hashes {
                    self.stored_name(h, copy, desk, done);
                }
            }
        }
        if s.tier != Tier::Gpu {
            self.learn_chunks(s, desk);
        }
    }

    /// Blocks whose content is told.
    fn stored_blocks(&mut self, s: &Stored<'_>, copy: Copy, desk: &mut Desk<'_>, done: &mut Applied) {
        let lora = s.lora.or(self.spec.lora.as_deref()).map(str::to_owned);
        let seed = self.seed(lora);
        let mut room = std::mem::take(&mut self.told);
        room.locals.clear();
        let names = words(s.hashes);
        // What the tables say of them comes while the content is hashed.
        desk.forests.get(self.domain).expect(desk.guard, s.parent.map(|p| p.0), names);
        if s.content != Content::Hashed {
            let n = s.block_size as usize;
            let mut keys: Vec<ExtraKey<'_>> = Vec::new();
            for (i, tokens) in s.tokens.chunks_exact(n).enumerate() {
                keys.clear();
                keys.extend_from_slice(s.extras(i));
                if let (0, None, Some(salt)) = (i, s.parent, s.cache_salt) {
                    keys.push(ExtraKey::Text(salt));
                }
                room.locals.push(seed.local(tokens, &keys).0);
            }
        }
        self.llmd_keys(s, desk, &mut room.keys);
        let told = Told {
            locals: if s.content == Content::Hashed { words(s.locals) } else { &room.locals },
            names,
            keys: &room.keys,
            seed: seed.0,
            block_size: s.block_size,
            creator: self.creator,
            slot: self.slot,
            device: copy.on_device(),
            unnamed: &[],
        };
        let full = self.stats.blocks as usize + s.hashes.len() > self.max_blocks;
        if self.odd.is_empty() && !full {
            self.tell(s.parent, &told, copy, &mut room.pieces, desk, done);
        } else {
            let mut parent = s.parent;
            for i in 0..told.names.len() {
                self.tell_one(parent, &told.one(i), copy, &mut room.pieces, desk, done);
                parent = Some(s.hashes[i]);
            }
        }
        self.told = room;
    }

    /// Blocks that stand for themselves.
    fn stored_canonical(&mut self, s: &Stored<'_>, copy: Copy, desk: &mut Desk<'_>, done: &mut Applied) {
        let mut room = std::mem::take(&mut self.told);
        let names = words(s.hashes);
        let (held, n) = (self.stats.blocks as usize, names.len());
        let fits = if held + n > self.max_blocks {
            // Which of them are new is not looked at: near its limit a holder's stores are cut.
            self.max_blocks.saturating_sub(held).min(n)
        } else {
            n
        };
        done.refused += (n - fits) as u32;
        let parent = s.parent.and_then(|p| desk.forests.get(CANONICAL).find_name(desk.guard, p.0));
        let at = parent.map_or(Place { strand: ROOT, offset: 0 }, after);
        room.pieces.clear();
        let told = Told {
            locals: &names[..fits],
            names: &names[..fits],
            keys: &[],
            seed: 0,
            block_size: s.block_size,
            creator: self.creator,
            slot: self.slot,
            device: copy.on_device(),
            unnamed: &[],
        };
        let (mut i, mut at) = (0, at);
        while i < fits {
            let rest = told.from(i);
            let (n, clash) = desk.pen(CANONICAL).store(at, &rest, &mut room.pieces);
            i += n;
            match clash {
                None => break,
                // The same hash twice in one event.
                Some(Clash::NameTaken(p) | Clash::OtherName(p)) => {
                    let span = (p.offset, p.offset + 1);
                    room.pieces.push(Piece { strand: p.strand, span, how: How::Found });
                    at = after(p);
                    i += 1;
                }
                Some(Clash::Full) => {
                    done.refused += (fits - i) as u32;
                    break;
                }
            }
        }
        if parent.is_none()
            && let Some(first) = room.pieces.first()
            && first.span.0 == 0
        {
            let depth = s.base_block.or(s.parent.is_none().then_some(0));
            if let Some(depth) = depth.or(Some(crate::forest::UNKNOWN_DEPTH)) {
                desk.pen(CANONICAL).stands_at(first.strand, depth, s.parent.map(|p| p.0));
            }
        }
        let pieces = std::mem::take(&mut room.pieces);
        for p in &pieces {
            self.hold(CANONICAL, *p, copy, desk, done);
        }
        room.pieces = pieces;
        self.told = room;
    }

    /// Blocks at once, of a holder of which nothing is odd.
    fn tell(
        &mut self,
        parent: Option<EngineHash>,
        told: &Told<'_>,
        copy: Copy,
        pieces: &mut Vec<Piece>,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) {
        let mut i = 0;
        let mut before = parent;
        while i < told.names.len() {
            let at = match before {
                None => Place { strand: ROOT, offset: 0 },
                Some(p) => match desk.forests.get(self.domain).find_name(desk.guard, p.0) {
                    Some(place) => after(place),
                    None => break,
                },
            };
            pieces.clear();
            let (n, clash) = desk.pen(self.domain).store(at, &told.from(i), pieces);
            let domain = self.domain;
            let found = std::mem::take(pieces);
            found.iter().for_each(|p| self.hold(domain, *p, copy, desk, done));
            *pieces = found;
            i += n;
            match clash {
                None => return,
                Some(Clash::Full) => {
                    done.refused += (told.names.len() - i) as u32;
                    return;
                }
                Some(clash) => {
                    if self.moves(clash, told.locals[i], told.names[i], desk) {
                        before = i.checked_sub(1).map(|j| EngineHash(told.names[j])).or(parent);
                        continue;
                    }
                    break;
                }
            }
        }
        // What is left is odd in some way: one at a time.
        for j in i..told.names.len() {
            let parent = j.checked_sub(1).map(|j| EngineHash(told.names[j])).or(parent);
            self.tell_one(parent, &told.one(j), copy, pieces, desk, done);
        }
    }

    /// One block, with regard to everything that may be odd about it.
    pub(super) fn tell_one(
        &mut self,
        parent: Option<EngineHash>,
        told: &Told<'_>,
        copy: Copy,
        pieces: &mut Vec<Piece>,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) {
        let h = EngineHash(told.names[0]);
        if self.is_full_for(h, desk) {
            done.refused += 1;
            return;
        }
        if self.odd.knows(h) && self.odd.is_placed(h, self.domain, desk) {
            self.odd_stored(h, copy, desk, done);
            return;
        }
        let at = self.place_after(parent, desk);
        let known = if at.is_none() { self.named_place(h, told.block_size, desk) } else { None };
        if at.is_none() && known.is_none() {
            let fresh = self.odd.wait(h, parent, told);
            done.orphans += u32::from(fresh);
            self.odd_gathers(h, desk);
            self.odd_stored(h, copy, desk, done);
            return;
        }
        let waited = self.odd.take(h);
        let copies = waited.map(|k| self.forget_odd(k)).unwrap_or_default();
        let put = match (at, known) {
            (Some(at), _) => self.put_one(at, told, copies.is_empty(), pieces, desk, done),
            // What was first said of a name stays, whatever comes before it is called now.
            (None, place) => place.map(|p| {
                let span = (p.offset, p.offset + 1);
                Put::At(Piece { strand: p.strand, span, how: How::Found })
            }),
        };
        if let Some(place) = put {
            match place {
                Put::At(piece) => {
                    self.hold_at(h, piece, copy, desk, done);
                    self.hold_copies(h, Piece { how: How::Found, ..piece }, &copies, desk);
                }
                Put::SecondName(place) => {
                    self.odd_named(h, place, copies, desk);
                    self.odd_stored(h, copy, desk, done);
                }
                Put::Nowhere => {
                    self.odd_waits(h, parent, told, copies, desk);
                    self.odd_stored(h, copy, desk, done);
                    return;
                }
            }
            self.wake(h, desk, done);
        }
    }

    /// Finds or adds one block; `None` where it is refused.
    pub(super) fn put_one(
        &mut self,
        mut at: Place,
        told: &Told<'_>,
        grow: bool,
        pieces: &mut Vec<Piece>,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) -> Option<Put> {
        let told = Told { device: told.device && grow, ..*told };
        loop {
            pieces.clear();
            let (_, clash) = desk.pen(self.domain).store(at, &told, pieces);
            let clash = match clash {
                None => return pieces.first().copied().map(Put::At),
                Some(Clash::Full) => {
                    done.refused += 1;
                    return None;
                }
                Some(clash) => clash,
            };
            let parent = desk.forests.get(self.domain);
            let parent = (at.strand != ROOT)
                .then(|| parent.look(desk.guard, at.strand))
                .flatten()
                .and_then(|l| parent.names(l).get(at.offset.checked_sub(1)? as usize).copied());
            if self.moves(clash, told.locals[0], told.names[0], desk) {
                at = match parent.map(|p| desk.forests.get(self.domain).find_name(desk.guard, p)) {
                    None => at,
                    Some(Some(place)) => after(place),
                    Some(None) => return Some(Put::Nowhere),
                };
                continue;
            }
            return match clash {
                Clash::OtherName(place) => Some(Put::SecondName(place)),
                Clash::NameTaken(place) => {
                    let other = desk.forests.get(self.domain).block_size(place.strand) != told.block_size;
                    if !other {
                        // What was first said of a name stays.
                        let span = (place.offset, place.offset + 1);
                        return Some(Put::At(Piece { strand: place.strand, span, how: How::Found }));
                    }
                    self.rename(place, EngineHash(told.names[0]), desk);
                    let copies = self.copies_at(place, desk);
                    self.drop_at(place, desk);
                    let put = self.put_one(at, &told, false, pieces, desk, done)?;
                    let Put::At(piece) = put else { return Some(put) };
                    self.hold_copies(EngineHash(told.names[0]), piece, &copies, desk);
                    let how = if copies.is_empty() { piece.how } else { How::Found };
                    Some(Put::At(Piece { how, ..piece }))
                }
                Clash::Full => None,
            };
        }
    }

    /// A copy of a block told by name alone.
    pub(super) fn stored_name(&mut self, h: EngineHash, copy: Copy, desk: &mut Desk<'_>, done: &mut Applied) {
        if self.is_full_for(h, desk) {
            done.refused += 1;
            return;
        }
        if self.odd.knows(h) {
            self.odd_stored(h, copy, desk, done);
            return;
        }
        match self.find(h, desk) {
            Some((domain, p)) if !self.odd.is_at(domain, p) => {
                let piece = Piece { strand: p.strand, span: (p.offset, p.offset + 1), how: How::Found };
                self.hold(domain, piece, copy, desk, done);
            }
            Some((_, p)) => {
                self.odd_named(h, p, Vec::new(), desk);
                self.odd_stored(h, copy, desk, done);
            }
            None => {
                self.odd.insert(h, Known::Nothing);
                self.odd_stored(h, copy, desk, done);
            }
        }
    }

    /// One more copy of blocks at a place.
    pub(super) fn hold(
        &mut self,
        domain: usize,
        piece: Piece,
        copy: Copy,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) {
        let Piece { strand, span, how } = piece;
        let n = span.1 - span.0;
        done.stored += n;
        let plane = copy.plane();
        if how == How::Grown || (how == How::Fresh && copy.on_device()) {
            if how == How::Fresh {
                desk.pen(domain).hold_fresh(self.slot, strand);
                self.strands[usize::from(domain != CANONICAL)].all.push(strand);
            }
            self.stats.blocks += u64::from(n);
            self.stats.by_tier[0] += u64::from(n);
            return;
        }
        if !self.agreed && domain == self.domain && desk.pen(domain).creator(strand) != self.creator {
            self.agreed = true;
            if !self.spec.tiers {
                desk.pen(domain).agree_with(strand);
            }
        }
        let Some(look) = desk.forests.get(domain).look(desk.guard, strand) else { return };
        if !look.has(self.slot) {
            self.strands[usize::from(domain != CANONICAL)].all.push(strand);
        }
        let over = if copy.on_device() && look.planes.is_none() && self.odd.is_empty() {
            // By far the most often: nothing but the device's one group.
            let more = n - count(&look.cover.held(self.slot, span, look.len));
            self.stats.blocks += u64::from(more);
            self.stats.by_tier[0] += u64::from(more);
            desk.pen(domain).hold(self.slot, plane, strand, span)
        } else {
            self.changing(domain, strand, span, desk, |pen, slot| pen.hold(slot, plane, strand, span))
        };
        done.stored -= over;
        done.refused += over;
    }

    /// One more copy of block `h` at a place that may have other names of this holder.
    pub(super) fn hold_at(
        &mut self,
        h: EngineHash,
        piece: Piece,
        copy: Copy,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) {
        let place = Place { strand: piece.strand, offset: piece.span.0 };
        if piece.how != How::Grown && self.odd.is_at(self.domain, place) {
            self.odd_named(h, place, Vec::new(), desk);
            self.odd_stored(h, copy, desk, done);
        } else {
            self.hold(self.domain, piece, copy, desk, done);
        }
    }

    /// Whether a copy of `h` would be one block too many.
    fn is_full_for(&self, h: EngineHash, desk: &Desk<'_>) -> bool {
        if (self.stats.blocks as usize) < self.max_blocks {
            return false;
        }
        if self.odd.knows(h) {
            return !self.odd.holds(h);
        }
        let held = |(domain, p): (usize, Place)| {
            let look = desk.forests.get(domain).look(desk.guard, p.strand);
            look.is_some_and(|l| l.held(self.slot, (p.offset, p.offset + 1)).any > 0)
        };
        !self.find(h, desk).is_some_and(held)
    }

    /// Where the block called `h` stands, where it has `block_size` tokens.
    fn named_place(&self, h: EngineHash, block_size: u32, desk: &Desk<'_>) -> Option<Place> {
        let forest = desk.forests.get(self.domain);
        forest.find_name(desk.guard, h.0).filter(|p| forest.block_size(p.strand) == block_size)
    }

    /// Where the block after `parent` stands; `None` where that is not known.
    pub(super) fn place_after(&self, parent: Option<EngineHash>, desk: &Desk<'_>) -> Option<Place> {
        let Some(p) = parent else { return Some(Place { strand: ROOT, offset: 0 }) };
        if self.odd.knows(p) {
            return self.odd.place(p, self.domain, desk).map(after);
        }
        desk.forests.get(self.domain).find_name(desk.guard, p.0).map(after)
    }
}

/// Where a block that was told of is.
#[derive(Clone, Copy)]
pub(super) enum Put {
    /// By its name.
    At(Piece),
    /// There, but the forest has another name for it.
    SecondName(Place),
    /// In the domain that this holder went to, what comes before it is not known.
    Nowhere,
}

pub(super) fn after(p: Place) -> Place {
    Place { offset: p.offset + 1, ..p }
}

impl<'a> Told<'a> {
    /// The blocks from the `i`th on.
    fn from(&self, i: usize) -> Told<'a> {
        let keys = if self.keys.is_empty() { &[] } else { &self.keys[i..] };
        Told { locals: &self.locals[i..], names: &self.names[i..], keys, ..*self }
    }
    /// The `i`th block alone.
    pub(super) fn one(&self, i: usize) -> Told<'a> {
        let keys = if self.keys.is_empty() { &[] } else { &self.keys[i..i + 1] };
        Told { locals: &self.locals[i..i + 1], names: &self.names[i..i + 1], keys, ..*self }
    }
}
