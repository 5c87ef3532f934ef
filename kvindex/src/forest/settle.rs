//! Which blocks does nobody need any more?
//!
//! Blocks that lost their last holder stay a while as *ghosts*: an offload tier may announce them by
//! name alone after the device dropped them, and prompts come back. The oldest go when there are too
//! many. Only the end of a strand can go, and only where nothing hangs on it.

use smallvec::SmallVec;

use super::raw::Loaded;
use super::store::AHEAD;
use super::table::Hash;
use super::*;

impl Pen<'_> {
    /// Looks whether a strand has blocks that nobody holds, after someone let go of some.
    pub fn let_go(&mut self, strand: u32) {
        let Some(look) = self.forest.look(self.guard, strand) else { return };
        let dead = look.len - look.end();
        if dead == 0 || self.w.meta[strand as usize].ghost {
            return;
        }
        self.w.meta[strand as usize].ghost = true;
        let generation = self.generation(strand);
        self.w.ghosts.push_back((strand, generation, dead));
        self.w.ghost_blocks += dead as usize;
        while self.w.ghost_blocks > self.w.max_ghosts {
            if !self.settle_oldest() {
                return;
            }
        }
    }

    /// Lets the oldest ghosts go. False where there are none.
    pub fn settle_oldest(&mut self) -> bool {
        let Some((strand, generation, dead)) = self.w.ghosts.pop_front() else { return false };
        self.w.ghost_blocks -= dead as usize;
        if generation == self.generation(strand) {
            self.w.meta[strand as usize].ghost = false;
            self.settle(strand);
        }
        true
    }

    /// Lets all ghosts go and gives back what tables do not need.
    pub fn settle_all(&mut self) {
        while self.settle_oldest() {}
        for table in [&self.forest.children, &self.forest.firsts, &self.forest.names, &self.forest.keys] {
            table.shrink(self.guard, &mut self.w.bin);
        }
        self.w.bin.limbo.collect(&mut self.w.bin.strands);
    }

    pub(super) fn generation(&self, strand: u32) -> u32 {
        self.forest.generation(strand)
    }

    /// Drops what nobody holds at a strand's end, and the strand if that is all of it; then looks at
    /// the one it hung on.
    pub(super) fn settle(&mut self, mut strand: u32) {
        loop {
            let Some(head) = self.forest.head(strand) else { return };
            let Some(look) = head.look(self.guard) else { return };
            let meta = self.w.meta[strand as usize];
            let end = look.end();
            if meta.children > 0 || end == look.len || strand == ROOT {
                return;
            }
            self.forget_names(strand, look, end);
            if end > 0 {
                self.cut_off(strand, head, look, end);
                return;
            }
            let parent = head.parent();
            if self.forest.kind == Kind::Chained {
                let place = Place { strand, offset: 0 };
                let local = look.locals()[0];
                self.forest.children.remove(self.guard, child_key(parent, local), place);
                self.forest.firsts.remove(self.guard, look.checks()[0], place);
                self.w.meta[parent.strand as usize].children -= 1;
            }
            self.bury(strand, head);
            // A ghost that still waits is settled when its turn comes.
            if self.forest.kind == Kind::Canonical || self.w.meta[parent.strand as usize].ghost {
                return;
            }
            strand = parent.strand;
        }
    }

    /// Makes a name free that led to `place`.
    pub fn forget_name(&mut self, name: u64, place: Place) {
        self.w.renamed = true;
        self.forest.names.remove(self.guard, name, place);
    }

    fn forget_names(&mut self, strand: u32, look: Look<'_>, end: u32) {
        let names = self.forest.names(look).get(end as usize..).unwrap_or_default();
        let mut ahead = [Hash::default(); AHEAD];
        for (hash, name) in ahead.iter_mut().zip(names) {
            *hash = self.forest.names.prefetch(self.guard, *name);
        }
        for i in 0..names.len() {
            let hash = ahead[i % AHEAD];
            if let Some(later) = names.get(i + AHEAD) {
                ahead[i % AHEAD] = self.forest.names.prefetch(self.guard, *later);
            }
            self.forest.names.remove_hashed(self.guard, hash, Place { strand, offset: end + i as u32 });
        }
        if self.forest.keyed {
            for (i, key) in look.keys().iter().enumerate().skip(end as usize) {
                if *key != 0 {
                    self.forest.keys.remove(self.guard, *key, Place { strand, offset: i as u32 });
                }
            }
        }
    }

    fn cut_off(&mut self, strand: u32, head: &Head, look: Look<'_>, end: u32) {
        let chained = self.forest.kind == Kind::Chained;
        let tip = if chained { self.forest.seq_at(look, strand, end - 1).map_or(0, |s| s.0) } else { 0 };
        let mut new = Blocks::with_room(end as usize, self.forest.lanes(), chained);
        let checks = if chained { look.checks() } else { &[] };
        let old: SmallVec<[&[u64]; 3]> =
            (0..self.forest.lanes()).map(|l| &look.lane(l)[..end as usize]).collect();
        new.blocks().append(&old, checks);
        // The blocks first: a reader that sees holders of the shorter strand looks at its blocks again.
        self.publish(head, new);
        self.truncate_cover(head, look, end);
        let meta = &mut self.w.meta[strand as usize];
        meta.sealed = true;
        meta.tip = tip;
    }

    fn bury(&mut self, strand: u32, head: &Head) {
        let bin = &mut self.w.bin;
        bin.retire(head.blocks.replace_number(0));
        bin.retire(head.cover.replace_number(0));
        bin.retire(head.planes.replace_number(0));
        bin.retire(head.copies.replace_number(0));
        head.generation.store(head.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        bin.retire(Retired::number(strand));
        let meta = std::mem::take(&mut self.w.meta[strand as usize]);
        if meta.live {
            self.discount_teller(meta.creator);
        }
    }
}

impl Forest {
    /// Counts how often a strand's number was given to another strand.
    pub fn generation(&self, strand: u32) -> u32 {
        self.head(strand).map_or(0, |h| h.generation.load(Ordering::Relaxed))
    }

    /// Whether a strand of that number and generation has block `offset`.
    pub fn is_there(&self, guard: &Guard, place: Place, generation: u32) -> bool {
        let Some(head) = self.head(place.strand) else { return false };
        let Loaded::Words(words) = head.blocks.load(guard) else { return false };
        self.generation(place.strand) == generation && (place.offset as usize) < Blocks::of(words).len()
    }
}
