//! Where do numbered things lie that readers find while more are made?

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Numbered things that are made once and never move, in chunks that double.
#[derive(Debug)]
pub(crate) struct Grown<T> {
    chunks: [OnceLock<Box<[T]>>; 32],
    len: AtomicUsize,
}

/// Things in the first chunk, as a power of two.
const FIRST: u32 = 6;

impl<T> Grown<T> {
    /// Nothing yet.
    pub fn new() -> Grown<T> {
        Grown { chunks: [const { OnceLock::new() }; 32], len: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The `i`th.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&T> {
        let at = i + (1 << FIRST);
        let chunk = at.ilog2() - FIRST;
        self.chunks.get(chunk as usize)?.get()?.get(at - (1 << (chunk + FIRST)))
    }

    /// Adds one; `make` fills a whole chunk when a new one is begun. One thread at a time.
    pub fn push(&self, make: impl FnMut() -> T) -> usize {
        let i = self.len.load(Ordering::Relaxed);
        let at = i + (1 << FIRST);
        let chunk = (at.ilog2() - FIRST) as usize;
        self.chunks[chunk].get_or_init(|| std::iter::repeat_with(make).take(1 << at.ilog2()).collect());
        self.len.store(i + 1, Ordering::Release);
        i
    }
}
