//! What do a publisher's events change of what is written?
//!
//! Pure: works on the records that were read and says which are still missing, or what to write. Who calls
//! reads those and asks again from the beginning, until nothing is missing.

use std::collections::hash_map::Entry;

use kvindex::Applied;
use kvindex::remote::{Change, Engine, Store, Tells, bit_is_of, mask_bit};
use kvproto::{EngineHash, SeqHash, Tier};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::record::{Held, Name, Place, Waiters};

/// Records that were read; those that are not there as what stands for nothing.
#[derive(Debug, Default)]
pub struct Shelf {
    /// By name; `None` where there is no such record.
    pub names: FxHashMap<EngineHash, Option<Name>>,
    /// By who is waited for.
    pub waiters: FxHashMap<EngineHash, Waiters>,
    /// By canonical hash.
    pub blocks: FxHashMap<SeqHash, Held>,
    /// Whether `names` has all that there are.
    pub all: bool,
}

/// Records that must be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Of these names.
    pub names: FxHashSet<EngineHash>,
    /// Of who waits for these.
    pub waiters: FxHashSet<EngineHash>,
    /// Of these blocks.
    pub blocks: FxHashSet<SeqHash>,
    /// Of all names.
    pub all: bool,
}

impl Missing {
    fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.waiters.is_empty() && self.blocks.is_empty()
    }
}

/// What to write.
#[derive(Debug, Default)]
pub struct Plan {
    /// What was learnt of the engine.
    pub engine: Vec<u8>,
    /// The incarnation that counts from now on.
    pub incarnation: u32,
    /// Names that have copies.
    pub held: u64,
    /// Whether something was refused since the last clear.
    pub partial: bool,
    /// Records of names; `None` to delete.
    pub names: Vec<(EngineHash, Option<Name>)>,
    /// Who waits for whom; nobody to delete.
    pub waiters: Vec<(EngineHash, Waiters)>,
    /// Blocks; held by no name to delete.
    pub blocks: Vec<(SeqHash, Held)>,
    /// For the caller.
    pub applied: Applied,
}

/// Where a publisher stands before the changes.
#[derive(Clone, Debug)]
pub struct Before {
    /// What was learnt of it.
    pub engine: Engine,
    /// Which incarnation counts.
    pub incarnation: u32,
    /// Names that have copies.
    pub held: u64,
    /// Whether something was refused since the last clear.
    pub partial: bool,
    /// Names that may still be added.
    pub room: usize,
    /// Names that may have copies at a time.
    pub most: u64,
    /// Seconds since 1970.
    pub now: u32,
}

/// What the changes, in order, come to.
///
/// # Errors
/// What must be on the shelf to tell.
pub fn apply(before: Before, changes: &[Change], shelf: &Shelf) -> Result<Plan, Missing> {
    let mut work = Work {
        now: before,
        cleared: false,
        shelf,
        missing: Missing::default(),
        names: FxHashMap::default(),
        waiters: FxHashMap::default(),
        blocks: FxHashMap::default(),
        applied: Applied::default(),
    };
    for change in changes {
        match change {
            Change::Store(s) => work.stored(s),
            Change::Remove { names, tier, group } => work.removed(names, *tier, *group),
            Change::Clear(tier) => work.clear(*tier),
        }
    }
    if !work.missing.is_empty() {
        return Err(work.missing);
    }
    let now = work.now.now;
    let keep =
        |n: Name| (!n.copies.is_empty() || n.place != Place::Bare).then_some(Name { touched: now, ..n });
    Ok(Plan {
        engine: work.now.engine.encode(),
        incarnation: work.now.incarnation,
        held: work.now.held,
        partial: work.now.partial,
        names: work.names.into_iter().map(|(h, n)| (h, keep(n))).collect(),
        waiters: work
            .waiters
            .into_iter()
            .filter(|(h, w)| shelf.waiters.get(h).is_none_or(|old| old.names != w.names))
            .map(|(h, w)| (h, Waiters { touched: now, ..w }))
            .collect(),
        blocks: work.blocks.into_iter().collect(),
        applied: work.applied,
    })
}

struct Work<'s> {
    now: Before,
    /// Whether all blocks were cleared on the way.
    cleared: bool,
    shelf: &'s Shelf,
    missing: Missing,
    names: FxHashMap<EngineHash, Name>,
    waiters: FxHashMap<EngineHash, Waiters>,
    blocks: FxHashMap<SeqHash, Held>,
    applied: Applied,
}

impl Work<'_> {
    fn stored(&mut self, s: &Store) {
        let tells = self.now.engine.learn(s);
        let Some(bit) = mask_bit(s.tier(), s.group()).filter(|_| tells != Tells::Nothing) else {
            self.applied.refused += s.names.len() as u32;
            return;
        };
        let mut parent = s.parent;
        for (i, &h) in s.names.iter().enumerate() {
            if !self.has_room_for(h) {
                self.refuse();
                continue;
            }
            match tells {
                Tells::Blocks => self.told(h, parent, s, i),
                Tells::Canonical => {
                    let depth = parent.and_then(|p| self.known(p)).map_or(0, |(_, depth)| depth + 1);
                    self.put(h, SeqHash(h.0), depth, s.block_size());
                }
                Tells::Names | Tells::Nothing => {}
            }
            self.add(h, bit);
            parent = Some(h);
        }
        if s.tier() != Tier::Gpu {
            for h in &s.names {
                if let Some((_, depth)) = self.known(*h) {
                    self.now.engine.learn_depth(depth);
                }
            }
        }
    }

    /// What is in block `i` of a store and where it stands. What was first told of a name stays, but for a
    /// block of another size, which is what a full-attention group says of a window group's.
    fn told(&mut self, h: EngineHash, parent: Option<EngineHash>, s: &Store, i: usize) {
        match self.name(h).place {
            Place::Known { block_size, .. } if block_size == s.block_size() => return,
            Place::Known { seq, .. } => {
                self.name(h).place = Place::Bare;
                self.hold(seq, h, 0);
            }
            Place::Waiting { .. } | Place::Bare => {}
        }
        let place = self.name(h).place;
        let before = match parent {
            None => Some(None),
            Some(p) => self.known(p).map(Some),
        };
        let local = s.locals[i];
        match (before, parent) {
            (Some(before), _) => {
                let seq = s.seed.chain(before.map(|(seq, _)| seq), local);
                let depth = before.map_or(0, |(_, depth)| depth.saturating_add(1));
                self.put(h, seq, depth, s.block_size());
            }
            (None, Some(parent)) if place == Place::Bare => {
                self.name(h).place =
                    Place::Waiting { parent, local, seed: s.seed, block_size: s.block_size() };
                self.waiting(parent).names.push(h);
                self.applied.orphans += 1;
            }
            (None, _) => {}
        }
    }

    /// Puts a name, and those that waited for it, where they stand.
    fn put(&mut self, h: EngineHash, seq: SeqHash, depth: u32, block_size: u32) {
        let mut line = vec![(h, seq, depth, block_size)];
        while let Some((h, seq, depth, block_size)) = line.pop() {
            let name = self.name(h);
            if let Place::Known { .. } = name.place {
                continue;
            }
            name.place = Place::Known { seq, depth, block_size };
            let mask = name.mask();
            if mask != 0 {
                self.hold(seq, h, mask);
                if (0..32).any(|bit| mask & 1 << bit != 0 && !bit_is_of(bit, Tier::Gpu)) {
                    self.now.engine.learn_depth(depth);
                }
            }
            if self.waiting(h).names.is_empty() {
                continue;
            }
            for child in std::mem::take(&mut self.waiting(h).names) {
                if let Place::Waiting { parent, local, seed, block_size } = self.name(child).place
                    && parent == h
                {
                    line.push((child, seed.chain(Some(seq), local), depth.saturating_add(1), block_size));
                }
            }
        }
    }

    fn add(&mut self, h: EngineHash, bit: u8) {
        let name = self.name(h);
        let before = name.mask();
        if before == 0 {
            if self.now.held >= self.now.most {
                return self.refuse();
            }
            self.now.held += 1;
        }
        self.applied.stored += 1;
        let name = self.name(h);
        name.add(bit);
        self.moved(h, before);
    }

    fn removed(&mut self, names: &[EngineHash], tier: Tier, group: u32) {
        for &h in names {
            let before = self.known_name(h).map_or(0, |n| n.mask());
            let bit = mask_bit(tier, group).filter(|bit| before & 1 << bit != 0);
            match bit {
                Some(bit) => {
                    self.name(h).take(bit);
                    self.applied.removed += 1;
                    self.moved(h, before);
                }
                None => self.applied.unknown_removed += 1,
            }
        }
    }

    fn clear(&mut self, tier: Option<Tier>) {
        self.applied.cleared += 1;
        let Some(tier) = tier else {
            // Copies are known to be of another incarnation by their number.
            self.now.incarnation = self.now.incarnation.wrapping_add(1);
            self.now.held = 0;
            self.now.partial = false;
            self.cleared = true;
            self.blocks.clear();
            return;
        };
        if !self.shelf.all {
            self.missing.all = true;
            return;
        }
        let all: FxHashSet<EngineHash> = self.shelf.names.keys().chain(self.names.keys()).copied().collect();
        for h in all {
            let Some(before) = self.known_name(h).map(|n| n.mask()).filter(|m| *m != 0) else { continue };
            let name = self.name(h);
            name.copies.retain(|(bit, _)| !bit_is_of(*bit, tier));
            self.moved(h, before);
        }
    }

    /// After the copies of a name changed.
    fn moved(&mut self, h: EngineHash, before: u32) {
        let name = self.name(h);
        let (mask, place) = (name.mask(), name.place);
        if mask == 0 && before != 0 {
            self.now.held = self.now.held.saturating_sub(1);
        }
        if mask != before
            && let Place::Known { seq, .. } = place
        {
            self.hold(seq, h, mask);
        }
    }

    /// Notes that block `seq` is held under name `h` in `mask`.
    fn hold(&mut self, seq: SeqHash, h: EngineHash, mask: u32) {
        let held = match self.blocks.entry(seq) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) if self.cleared => e.insert(Held::new()),
            Entry::Vacant(e) => match self.shelf.blocks.get(&seq) {
                Some(held) => e.insert(held.clone()),
                None => {
                    self.missing.blocks.insert(seq);
                    e.insert(Held::new())
                }
            },
        };
        held.retain(|(name, _)| *name != h);
        if mask != 0 {
            held.push((h, mask));
        }
    }

    /// Where a name stands: canonical hash and depth.
    fn known(&mut self, h: EngineHash) -> Option<(SeqHash, u32)> {
        match self.known_name(h)?.place {
            Place::Known { seq, depth, .. } => Some((seq, depth)),
            Place::Waiting { .. } | Place::Bare => None,
        }
    }

    /// The record of a name, where there is one.
    fn known_name(&mut self, h: EngineHash) -> Option<&Name> {
        if self.names.contains_key(&h) || self.on_shelf(h).is_some() {
            return Some(self.name(h));
        }
        None
    }

    fn on_shelf(&mut self, h: EngineHash) -> Option<&Name> {
        let found = self.shelf.names.get(&h);
        if found.is_none() && !self.shelf.all {
            self.missing.names.insert(h);
        }
        found.and_then(Option::as_ref)
    }

    /// The record of a name, a new one where there was none.
    fn name(&mut self, h: EngineHash) -> &mut Name {
        let incarnation = self.now.incarnation;
        if !self.names.contains_key(&h) {
            let name = self.on_shelf(h).cloned().unwrap_or_else(|| Name::new(incarnation));
            self.names.insert(h, name);
        }
        let name = self.names.get_mut(&h).expect("just put there");
        if name.incarnation != incarnation {
            name.incarnation = incarnation;
            name.copies.clear();
        }
        name
    }

    fn waiting(&mut self, h: EngineHash) -> &mut Waiters {
        let (shelf, missing) = (self.shelf, &mut self.missing);
        self.waiters.entry(h).or_insert_with(|| match shelf.waiters.get(&h) {
            Some(waiters) => waiters.clone(),
            None => {
                missing.waiters.insert(h);
                Waiters::default()
            }
        })
    }

    fn has_room_for(&mut self, h: EngineHash) -> bool {
        if self.known_name(h).is_some() {
            return true;
        }
        let has = self.now.room > 0;
        self.now.room = self.now.room.saturating_sub(1);
        has
    }

    fn refuse(&mut self) {
        self.applied.refused += 1;
        self.now.partial = true;
    }
}
