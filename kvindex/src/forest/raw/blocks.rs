//! How do the blocks of a strand lie in its words?

use super::{Owned, Word, Words};
use crate::forest::sync::Ordering;

/// A strand's blocks: lanes of `cap` words each, of which the first `len` are there.
///
/// `[count, cap | lanes << 32 | checks << 48, len, claimed, lane 0 …, lane 1 …, checks …]`
///
/// Words below `len` are never written again, so readers see them as plain slices.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'g>(Words<'g>);

const HEADER: usize = 4;
/// Blocks from one check to the next.
pub(crate) const CHECK_EVERY: usize = 16;

impl<'g> Blocks<'g> {
    /// Empty blocks with room for `cap`, in `lanes` lanes, with a check every [`CHECK_EVERY`] or none.
    pub fn with_room(cap: usize, lanes: usize, checks: bool) -> Owned {
        let n = HEADER - 1 + cap * lanes + if checks { cap.div_ceil(CHECK_EVERY) } else { 0 };
        let words = Owned::unwritten(n);
        words.0.write(1, cap as u64 | (lanes as u64) << 32 | u64::from(checks) << 48);
        words.0.write(2, 0);
        words.0.write(3, 0);
        words
    }

    /// The blocks in words made by [`with_room`](Self::with_room).
    #[inline]
    pub fn of(words: Words<'g>) -> Blocks<'g> {
        Blocks(words)
    }

    #[inline]
    fn word(self, i: usize) -> &'g Word {
        // SAFETY: header words are always there and written before anyone else sees them.
        unsafe { self.0.at.add(i).as_ref() }
    }

    /// Blocks there is room for.
    #[inline]
    pub fn cap(self) -> usize {
        self.word(1).load(Ordering::Relaxed) as u32 as usize
    }

    fn lanes(self) -> usize {
        (self.word(1).load(Ordering::Relaxed) >> 32) as u16 as usize
    }

    /// Blocks that are there.
    #[inline]
    pub fn len(self) -> usize {
        self.word(2).load(Ordering::Acquire) as usize
    }

    /// The first lane's words of the first `len` blocks.
    #[inline]
    pub fn first_lane(self, len: usize) -> &'g [u64] {
        debug_assert!(len <= self.len());
        // SAFETY: as in `lane`.
        unsafe { self.plain(HEADER, len) }
    }

    /// One lane's words of the first `len` blocks, of those that are there.
    #[inline]
    pub fn lane(self, lane: usize, len: usize) -> &'g [u64] {
        debug_assert!(lane < self.lanes() && len <= self.len());
        // SAFETY: below `len` every word of a lane was written before `len` was published and is not
        // written again: `append` writes only what it has claimed, from `len` on.
        unsafe { self.plain(HEADER + lane * self.cap(), len) }
    }

    /// The checks of the first `len` blocks: the canonical hash of every [`CHECK_EVERY`]th.
    #[inline]
    pub fn checks(self, len: usize) -> &'g [u64] {
        debug_assert!(len <= self.len());
        // SAFETY: as for a lane; the check of a block is written with it.
        unsafe { self.plain(HEADER + self.lanes() * self.cap(), len.div_ceil(CHECK_EVERY)) }
    }

    /// # Safety
    /// Words `from..from + n` are written and will not be again.
    #[inline]
    unsafe fn plain(self, from: usize, n: usize) -> &'g [u64] {
        // SAFETY: as promised; an atomic has the layout of its number.
        unsafe { std::slice::from_raw_parts(self.0.at.add(from).as_ptr().cast(), n) }
    }

    /// Adds blocks: each lane's words, as many in all, and the checks that are due among them.
    /// Panics where there is no room or another writer is at it.
    pub fn append(self, words: &[&[u64]], checks: &[u64]) {
        let (cap, n) = (self.cap(), words[0].len());
        // A claim makes sure that no word is written twice, whoever calls.
        let from = self.word(3).fetch_add(n as u64, Ordering::Relaxed) as usize;
        assert!(
            from == self.len() && from + n <= cap && words.len() == self.lanes(),
            "one writer, who made room"
        );
        for (lane, words) in words.iter().enumerate() {
            assert_eq!(words.len(), n, "a word of every block");
            // SAFETY: within the allocation, claimed, and not looked at before `len` says so.
            unsafe {
                let to = self.0.at.add(HEADER + lane * cap + from).as_ptr().cast::<u64>();
                to.copy_from_nonoverlapping(words.as_ptr(), n);
            }
        }
        let first = from.div_ceil(CHECK_EVERY);
        for (i, check) in checks.iter().enumerate().take((from + n).div_ceil(CHECK_EVERY) - first) {
            self.0.write(HEADER + self.lanes() * cap + first + i, *check);
        }
        self.word(2).store((from + n) as u64, Ordering::Release);
    }
}

impl Owned {
    /// The blocks in it.
    pub fn blocks(&mut self) -> Blocks<'_> {
        Blocks(self.0)
    }
}
