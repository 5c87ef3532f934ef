//! Who holds a strand's blocks: in which tier, in which cache group, and how many copies.
//!
//! A *plane* is one bit of a [`Mask`](crate::profile::Mask) at one level: level 0 is held at all, level
//! n is held in more than n copies. Copies are counted so because an engine that stores a sequence
//! again announces the coming and going of every copy. The device's group 0 at level 0 is the head's
//! own `cover`; other planes of level 0 lie together in its `planes`, all further levels in its `copies`,
//! which no reader needs:
//!
//! ```text
//! [planes] [key (16) | at (24) | words (24), or 0 for a number]… [coverage as in `cover`]…
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use super::cover::{Changed, and, only};
use super::raw::Owned;
use super::*;
use crate::profile::Mask;
use kvproto::Tier;

/// The bit of the device's group 0.
pub(crate) const DEVICE: u8 = 4;
/// Copies of one block in one tier and group that are told apart.
pub(crate) const MAX_LEVEL: u8 = 63;

/// A bit of a mask and a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Plane {
    pub bit: u8,
    pub level: u8,
}

impl Plane {
    /// The plane of the first copy in `mask`'s one bit.
    pub fn of(mask: Mask) -> Plane {
        Plane { bit: mask.0.trailing_zeros() as u8, level: 0 }
    }
    pub fn mask(self) -> Mask {
        Mask(1 << self.bit)
    }
    fn key(self) -> u64 {
        u64::from(self.bit) | u64::from(self.level) << 8
    }
    fn is_inline(self) -> bool {
        self == Plane { bit: DEVICE, level: 0 }
    }
}

/// Consecutive blocks of a strand that a holder has equally often in one bit of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub bit: u8,
    pub copies: u8,
    pub span: Span,
}

/// How many blocks a holder has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// In any tier.
    pub any: u32,
    /// By [`Tier::ALL`]'s order.
    pub by_tier: [u32; 5],
}

/// The planes in words, in no order.
fn in_words(words: &[AtomicU64]) -> impl Iterator<Item = (Plane, View<'_>)> {
    let word = |i: usize| words[i].load(Ordering::Relaxed);
    let n = word(0) as usize;
    (1..=n).map(move |i| {
        let m = word(i);
        let plane = Plane { bit: m as u8, level: (m >> 8) as u8 };
        let (at, len) = ((m >> 16) as usize & 0xFF_FFFF, (m >> 40) as usize);
        let view = if len == 0 { View::Few(word(at)) } else { View::Many(&words[at..at + len]) };
        (plane, view)
    })
}

impl<'g> Look<'g> {
    /// Every plane of level 0 that anyone has anything in.
    pub fn planes(self) -> impl Iterator<Item = (Plane, View<'g>)> {
        let inline = (Plane { bit: DEVICE, level: 0 }, self.cover);
        std::iter::once(inline).chain(self.planes.into_iter().flat_map(in_words))
    }

    /// Calls `each` with plane, holder and span of everything held, copies counted once.
    pub fn each(self, mut each: impl FnMut(Plane, Slot, Span)) {
        for (plane, view) in self.planes() {
            view.each(self.len, |slot, span| each(plane, slot, span));
        }
    }

    /// How much of `span` `slot` holds.
    pub fn held(self, slot: Slot, span: Span) -> Held {
        if self.planes.is_none() {
            let n = count(&self.cover.held(slot, span, self.len));
            return Held { any: n, by_tier: [n, 0, 0, 0, 0] };
        }
        let mut all: Vec<(usize, Span)> = Vec::new();
        for (plane, view) in self.planes() {
            let tier = Tier::ALL.iter().position(|t| plane.mask().has_tier(*t)).unwrap_or(0);
            all.extend(view.held(slot, span, self.len).into_iter().map(|s| (tier, s)));
        }
        all.sort_unstable_by_key(|(_, span)| *span);
        let union = |tier: Option<usize>| {
            let mut spans = Spans::new();
            let those = all.iter().filter(|(t, _)| tier.is_none_or(|want| want == *t));
            those.for_each(|(_, s)| join(&mut spans, *s));
            count(&spans)
        };
        Held { any: union(None), by_tier: std::array::from_fn(|t| union(Some(t))) }
    }

    /// Whether `slot` holds any block in any plane.
    pub fn has(self, slot: Slot) -> bool {
        self.planes().any(|(_, v)| !v.held(slot, (0, self.len), self.len).is_empty())
    }

    /// Where the last block that anyone holds ends.
    pub fn end(self) -> u32 {
        self.planes().map(|(_, v)| v.end(self.len)).max().unwrap_or(0)
    }

    /// Whether `slot` alone holds anything, and that is all of it on the device.
    pub fn is_only(self, slot: Slot) -> bool {
        self.planes.is_none() && matches!(self.cover, View::Few(n) if n == only(slot))
    }
}

impl Pen<'_> {
    fn view<'p>(&'p self, head: &'p Head, look: Look<'_>, plane: Plane) -> View<'p> {
        let found = match plane {
            _ if plane.is_inline() => return view(head.cover.load(self.guard)),
            Plane { level: 0, .. } => in_cell(&head.planes, self.guard, plane),
            Plane { .. } => in_cell(&head.copies, self.guard, plane),
        };
        debug_assert!(look.len > 0, "a strand has blocks");
        found.unwrap_or(View::Few(0))
    }

    /// One more copy of `span` for `slot`. Returns the blocks whose copies are more than can be
    /// counted; those stay as they were.
    pub fn hold(&mut self, slot: Slot, plane: Plane, strand: u32, span: Span) -> u32 {
        let Some(head) = self.forest.head(strand) else { return 0 };
        let Some(look) = head.look(self.guard) else { return 0 };
        if plane.level == 0 {
            self.touch(strand);
        }
        let already = self.view(head, look, plane).held(slot, span, look.len);
        if already.is_empty() {
            // By far the most often: all of a strand that few hold.
            if plane.is_inline()
                && span == (0, look.len)
                && let View::Few(number) = look.cover
                && let Some(number) = and(number, slot)
            {
                self.w.bin.retire(head.cover.replace_number(number));
                return 0;
            }
            self.change(head, look, plane, slot, |edit| edit.cover(slot, span));
            return 0;
        }
        if count(&already) < span.1 - span.0 {
            self.change(head, look, plane, slot, |edit| edit.cover(slot, span));
        }
        if plane.level == MAX_LEVEL {
            return count(&already);
        }
        let above = Plane { level: plane.level + 1, ..plane };
        already.into_iter().map(|s| self.hold(slot, above, strand, s)).sum()
    }

    /// One copy of each block of `span` less for `slot`. Returns how many blocks it had, and of how
    /// many that was the last copy in this plane.
    pub fn drop_copy(&mut self, slot: Slot, plane: Plane, strand: u32, span: Span) -> (u32, u32) {
        let Some(head) = self.forest.head(strand) else { return (0, 0) };
        let Some(look) = head.look(self.guard) else { return (0, 0) };
        let of_bit = |p: &Plane| p.bit == plane.bit;
        let mut levels: SmallPlanes = self.copy_planes(head).filter(of_bit).collect();
        levels.push(Plane { level: 0, ..plane });
        levels.sort_unstable();
        // The last copy that came goes first: what is left of the span is looked for further down.
        let mut left: Spans = smallvec::smallvec![span];
        let (mut dropped, mut last) = (0, 0);
        for plane in levels.into_iter().rev() {
            let mut next = Spans::new();
            for part in left {
                let here = self.view(head, look, plane).held(slot, part, look.len);
                dropped += count(&here);
                last += if plane.level == 0 { count(&here) } else { 0 };
                if !here.is_empty() {
                    self.change(head, look, plane, slot, |edit| {
                        here.iter().for_each(|s| edit.uncover(slot, *s));
                    });
                }
                next.extend(gaps(part, &here));
            }
            left = next;
        }
        (dropped, last)
    }

    fn copy_planes<'p>(&'p self, head: &'p Head) -> impl Iterator<Item = Plane> + 'p {
        planes(head.copies.load(self.guard)).into_iter().flat_map(in_words).map(|(p, _)| p)
    }

    /// How often `slot` has block `i` in the plane's bit.
    pub fn copies(&self, slot: Slot, strand: u32, bit: u8, i: u32) -> u32 {
        let Some(head) = self.forest.head(strand) else { return 0 };
        let Some(look) = head.look(self.guard) else { return 0 };
        let first = look.planes().map(|(p, _)| p);
        let has = |p: &Plane| {
            p.bit == bit && !self.view(head, look, *p).held(slot, (i, i + 1), look.len).is_empty()
        };
        first.chain(self.copy_planes(head)).filter(has).count() as u32
    }

    /// Takes all copies of `slot` within `span` out of a strand, in planes that `which` says.
    pub fn drop_all(&mut self, slot: Slot, strand: u32, span: Span, which: impl Fn(Plane) -> bool) {
        let Some(head) = self.forest.head(strand) else { return };
        let Some(look) = head.look(self.guard) else { return };
        let all = look.planes().map(|(p, _)| p).chain(self.copy_planes(head));
        let planes: SmallPlanes = all.filter(|p| which(*p)).collect();
        for plane in planes {
            if !self.view(head, look, plane).held(slot, span, look.len).is_empty() {
                self.change(head, look, plane, slot, |edit| edit.uncover(slot, span));
            }
        }
    }

    /// What `slot` has in every plane of a strand, further copies too, the first ones first.
    pub fn holdings(&self, slot: Slot, strand: u32) -> Vec<(Plane, Span)> {
        let Some(head) = self.forest.head(strand) else { return Vec::new() };
        let Some(look) = head.look(self.guard) else { return Vec::new() };
        let mut all: SmallPlanes = look.planes().map(|(p, _)| p).chain(self.copy_planes(head)).collect();
        all.sort_unstable_by_key(|p| p.level);
        let held = |p: Plane| self.view(head, look, p).held(slot, (0, look.len), look.len);
        all.into_iter().flat_map(|p| held(p).into_iter().map(move |s| (p, s))).collect()
    }

    /// The same with copies counted: ascending within a bit, each block once.
    pub fn stretches(&self, slot: Slot, strand: u32, out: &mut Vec<Stretch>) {
        out.clear();
        let Some(head) = self.forest.head(strand) else { return };
        let Some(look) = head.look(self.guard) else { return };
        if look.planes.is_none() && planes(head.copies.load(self.guard)).is_none() {
            // By far the most often: nothing but the device's one group.
            let spans = look.cover.held(slot, (0, look.len), look.len);
            out.extend(spans.iter().map(|span| Stretch { bit: DEVICE, copies: 1, span: *span }));
            return;
        }
        let mut all = self.holdings(slot, strand);
        all.sort_unstable_by_key(|(p, _)| p.bit);
        for of_bit in all.chunk_by(|a, b| a.0.bit == b.0.bit) {
            let mut cuts: Vec<u32> = of_bit.iter().flat_map(|(_, s)| [s.0, s.1]).collect();
            cuts.sort_unstable();
            cuts.dedup();
            for cut in cuts.windows(2) {
                let span = (cut[0], cut[1]);
                let copies = of_bit.iter().filter(|(_, s)| s.0 <= span.0 && span.1 <= s.1).count() as u8;
                let bit = of_bit[0].0.bit;
                match out.last_mut() {
                    _ if copies == 0 => {}
                    Some(l) if (l.bit, l.copies, l.span.1) == (bit, copies, span.0) => l.span.1 = span.1,
                    _ => out.push(Stretch { bit, copies, span }),
                }
            }
        }
    }

    /// `slot` holds all of a new strand on the device.
    pub fn hold_fresh(&mut self, slot: Slot, strand: u32) {
        if let Some(head) = self.forest.head(strand) {
            self.w.bin.retire(head.cover.replace_number(only(slot)));
        }
    }

    fn change(&mut self, head: &Head, look: Look<'_>, plane: Plane, slot: Slot, how: impl FnOnce(&mut Edit)) {
        let mut edit = std::mem::take(&mut self.w.edit);
        edit.begin(self.view(head, look, plane), look.len, slot);
        how(&mut edit);
        self.put(head, plane, &mut edit);
        self.w.edit = edit;
    }

    /// Stores a changed coverage.
    fn put(&mut self, head: &Head, plane: Plane, edit: &mut Edit) {
        let mut words = std::mem::take(&mut self.w.words);
        match edit.end(&mut words) {
            Changed::Number(n) => {
                words.clear();
                words.push(n);
                match plane.is_inline() {
                    true => self.w.bin.retire(head.cover.replace_number(n)),
                    false => self.put_plane(head, plane, true, &words),
                }
            }
            Changed::Words if plane.is_inline() => self.publish_to(&head.cover, &words),
            Changed::Words => self.put_plane(head, plane, false, &words),
        }
        self.w.words = words;
    }

    fn publish_to(&mut self, cell: &Cell, words: &[u64]) {
        let owned = Owned::of(words);
        self.w.bin.grew(owned.bytes());
        self.w.bin.retire(cell.replace(owned));
    }

    /// Puts a changed plane among the others of its cell; `coverage` is a number or words.
    fn put_plane(&mut self, head: &Head, plane: Plane, number: bool, coverage: &[u64]) {
        let cell = if plane.level == 0 { &head.planes } else { &head.copies };
        let mut others: smallvec::SmallVec<[(Plane, View<'_>); 4]> =
            planes(cell.load(self.guard)).into_iter().flat_map(in_words).collect();
        others.retain(|(p, _)| *p != plane);
        let gone = number && coverage == [0];
        let n = others.len() + usize::from(!gone);
        if n == 0 {
            self.w.bin.retire(cell.replace_number(0));
            return;
        }
        let mut words: Vec<u64> = vec![0; 1 + n];
        words[0] = n as u64;
        let mut add = |i: usize, plane: Plane, number: bool, coverage: &mut dyn Iterator<Item = u64>| {
            let at = words.len();
            words.extend(coverage);
            let len = if number { 0 } else { words.len() - at };
            words[1 + i] = plane.key() | (at as u64) << 16 | (len as u64) << 40;
        };
        for (i, (p, v)) in others.into_iter().enumerate() {
            match v {
                View::Few(n) => add(i, p, true, &mut std::iter::once(n)),
                View::Many(w) => add(i, p, false, &mut w.iter().map(|w| w.load(Ordering::Relaxed))),
            }
        }
        if !gone {
            add(n - 1, plane, number, &mut coverage.iter().copied());
        }
        self.publish_to(cell, &words);
    }

    /// The strand ends after `len` blocks now.
    pub(super) fn truncate_cover(&mut self, head: &Head, look: Look<'_>, len: u32) {
        let planes: SmallPlanes = look.planes().map(|(p, _)| p).chain(self.copy_planes(head)).collect();
        let mut edit = std::mem::take(&mut self.w.edit);
        for plane in planes {
            edit.begin(self.view(head, look, plane), look.len, 0);
            edit.truncate(len);
            self.put(head, plane, &mut edit);
        }
        self.w.edit = edit;
    }
}

/// One plane's coverage among those in a cell.
fn in_cell<'g>(cell: &'g Cell, guard: &'g Guard, plane: Plane) -> Option<View<'g>> {
    planes(cell.load(guard)).into_iter().flat_map(in_words).find(|(p, _)| *p == plane).map(|p| p.1)
}

type SmallPlanes = smallvec::SmallVec<[Plane; 4]>;
