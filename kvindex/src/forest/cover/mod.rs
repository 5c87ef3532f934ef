//! Who holds which blocks of a strand.
//!
//! A strand is cut into *segments*, each with a set of the holders that have all of it and *parts*,
//! intervals that lie within it, for the others. A hole costs a part and never a split of the strand;
//! where many parts end at one block, a segment boundary there takes their place. The usual strand
//! has one segment and up to three holders, which fit in the number that a cell holds instead of an
//! address.
//!
//! ```text
//! number   holders (2 bits) | holder 0 (16) | holder 1 (16) | holder 2 (16)
//! words    [words of a set (16) | segments (16) | parts (32)]
//!          [start (16) | first part (24) | end of parts (24)]…   one per segment
//!          [set…]…                                               one per segment
//!          [holder (16) | from (16) | to (16)]…                  parts, segment by segment
//! ```

mod edit;

use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

pub(crate) use edit::{Changed, Edit};

/// A holder's number among those of its pool.
pub(crate) type Slot = u16;
/// Blocks `.0..​.1` of a strand.
pub(crate) type Span = (u32, u32);
/// Spans in ascending order, none touching the next.
pub(crate) type Spans = SmallVec<[Span; 2]>;

/// Holders that fit into a number.
const FEW: u64 = 3;

/// A strand's coverage as it was when looked at.
#[derive(Clone, Copy)]
pub(crate) enum View<'g> {
    /// Up to three holders of all of it.
    Few(u64),
    /// Anything else.
    Many(&'g [AtomicU64]),
}

/// A segment of a [`View::Many`].
#[derive(Clone, Copy)]
pub(crate) struct Segment<'g> {
    pub start: u32,
    /// The next one's start; the strand's end for the last.
    pub end: u32,
    set: &'g [AtomicU64],
    parts: &'g [AtomicU64],
}

/// One holder's interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part(u64);

impl Part {
    fn new(slot: Slot, from: u32, to: u32) -> Part {
        Part(u64::from(slot) << 32 | u64::from(from) << 16 | u64::from(to))
    }
    pub fn slot(self) -> Slot {
        (self.0 >> 32) as Slot
    }
    pub fn from(self) -> u32 {
        (self.0 >> 16) as u32 & 0xFFFF
    }
    pub fn to(self) -> u32 {
        self.0 as u32 & 0xFFFF
    }
}

fn word(w: &AtomicU64) -> u64 {
    w.load(Ordering::Relaxed)
}

/// The holders in a number.
pub(crate) fn few(number: u64) -> impl Iterator<Item = Slot> {
    (0..number & 3).map(move |i| (number >> (2 + 16 * i)) as Slot)
}

fn of_few(slots: impl Iterator<Item = Slot>) -> u64 {
    slots.enumerate().fold(0, |n, (i, s)| (n & !3) | u64::from(s) << (2 + 16 * i) | (i as u64 + 1))
}

/// The number with `slot` added, where it has room.
pub(crate) fn and(number: u64, slot: Slot) -> Option<u64> {
    let n = number & 3;
    (n < FEW).then(|| (number & !3) | u64::from(slot) << (2 + 16 * n) | (n + 1))
}

/// The number of a strand that `slot` alone holds.
pub(crate) fn only(slot: Slot) -> u64 {
    of_few(std::iter::once(slot))
}

impl<'g> Segment<'g> {
    /// Words of the set of those who hold all of it.
    pub fn set(&self) -> impl Iterator<Item = u64> + 'g {
        self.set.iter().map(word)
    }
    pub fn set_word(&self, i: usize) -> u64 {
        self.set.get(i).map_or(0, word)
    }
    pub fn parts(&self) -> impl Iterator<Item = Part> + 'g {
        self.parts.iter().map(|p| Part(word(p)))
    }
    fn has(&self, slot: Slot) -> bool {
        self.set_word(slot as usize / 64) >> (slot % 64) & 1 != 0
    }
}

impl<'g> View<'g> {
    /// The segments of many, of a strand of `len` blocks.
    pub fn segments(words: &'g [AtomicU64], len: u32) -> impl Iterator<Item = Segment<'g>> {
        let meta = word(&words[0]);
        let (set_words, n) = (meta as usize & 0xFFFF, (meta >> 16) as usize & 0xFFFF);
        let (metas, rest) = words[1..].split_at(n);
        let (sets, parts) = rest.split_at(n * set_words);
        (0..n).map(move |i| {
            let m = word(&metas[i]);
            let end = metas.get(i + 1).map_or(len, |next| word(next) as u32 & 0xFFFF).min(len);
            Segment {
                start: m as u32 & 0xFFFF,
                end,
                set: &sets[i * set_words..(i + 1) * set_words],
                parts: &parts[(m >> 16) as usize & 0xFF_FFFF..(m >> 40) as usize],
            }
        })
    }

    /// What `slot` holds within `from..to`, of a strand of `len` blocks.
    pub fn held(self, slot: Slot, (from, to): Span, len: u32) -> Spans {
        let mut out = Spans::new();
        let to = to.min(len);
        match self {
            View::Few(number) => {
                if from < to && few(number).any(|s| s == slot) {
                    out.push((from, to));
                }
            }
            View::Many(words) => {
                for s in View::segments(words, len) {
                    if s.end <= from || s.start >= to {
                        continue;
                    }
                    if s.has(slot) {
                        join(&mut out, (s.start.max(from), s.end.min(to)));
                    } else {
                        let mut mine: Spans = s
                            .parts()
                            .filter(|p| p.slot() == slot && p.from() < to && p.to() > from)
                            .map(|p| (p.from().max(from), p.to().min(to)))
                            .collect();
                        mine.sort_unstable();
                        mine.into_iter().for_each(|span| join(&mut out, span));
                    }
                }
            }
        }
        out
    }

    /// Calls `each` with every holder's spans, a holder possibly several times and a span possibly
    /// in several touching pieces, but each block once.
    pub fn each(self, len: u32, mut each: impl FnMut(Slot, Span)) {
        match self {
            View::Few(number) => few(number).for_each(|s| each(s, (0, len))),
            View::Many(words) => {
                for s in View::segments(words, len) {
                    for (i, mut set) in s.set().enumerate() {
                        while set != 0 {
                            each((i * 64) as Slot + set.trailing_zeros() as Slot, (s.start, s.end));
                            set &= set - 1;
                        }
                    }
                    s.parts().filter(|p| p.from() < len).for_each(|p| {
                        each(p.slot(), (p.from(), p.to().min(len)));
                    });
                }
            }
        }
    }

    /// Where the last block that anyone holds ends.
    pub fn end(self, len: u32) -> u32 {
        match self {
            View::Few(0) => 0,
            View::Few(_) => len,
            View::Many(words) => View::segments(words, len)
                .filter_map(|s| {
                    let any = s.set().any(|w| w != 0);
                    if any { Some(s.end) } else { s.parts().map(Part::to).max() }
                })
                .max()
                .unwrap_or(0),
        }
    }
}

/// Adds a span that does not begin before the last one.
pub(crate) fn join(spans: &mut Spans, (from, to): Span) {
    match spans.last_mut() {
        Some(last) if last.1 >= from => last.1 = last.1.max(to),
        _ => spans.push((from, to)),
    }
}

/// Blocks in spans.
pub(crate) fn count(spans: &[Span]) -> u32 {
    spans.iter().map(|(from, to)| to - from).sum()
}

/// What of `span` is not in `spans`.
pub(crate) fn gaps((from, to): Span, spans: &[Span]) -> Spans {
    let mut out = Spans::new();
    let mut at = from;
    for &(a, b) in spans {
        if a > at {
            out.push((at, a.min(to)));
        }
        at = at.max(b);
    }
    if at < to {
        out.push((at, to));
    }
    out
}
