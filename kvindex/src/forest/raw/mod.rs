//! Memory that readers look at while the writer replaces it. All `unsafe` of the crate is here and below.
//!
//! A reader [`pin`]s: its record shows the epoch it began in. The writer takes a piece of memory out
//! of where readers find it, puts it into its [`Limbo`] and frees it once every reader that could
//! have found it has gone. Readers take no lock, wait for nobody, and write only their own record.
//!
//! ```text
//! reader   record = epoch ── fence ── load pointer ── read ── record = idle
//! writer   swap pointer ── Limbo::add ── fence ── epoch + 1 ── all records idle or newer? free
//! ```
//!
//! Either the writer's look at the records sees the reader, or the reader's load sees the new
//! pointer: between each one's write and its read stands a sequentially consistent fence.

mod blocks;
mod plain;

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64 as Word;

use super::sync::{AtomicPtr, AtomicU64, Ordering, fence, first_record, global, spin};
pub(crate) use blocks::{Blocks, CHECK_EVERY};
pub(crate) use plain::{common, prefetch, words};

/// Records of readers; a thread finds a free one near where it last did.
const RECORDS: usize = if cfg!(loom) { 2 } else { 256 };
/// What a record shows while nobody reads.
const IDLE: u64 = 0;
/// Bytes that do not wait for more to go through limbo with.
const MANY_BYTES: usize = 1 << 16;
/// Pieces of memory that go through limbo together.
const BATCH: usize = if cfg!(loom) { 1 } else { 64 };

/// A reader's record on a cache line of its own.
#[repr(align(128))]
struct Record(AtomicU64);

global! {
    static EPOCH: AtomicU64 = AtomicU64::new(1);
    static READERS: [Record; RECORDS] = records();
}

#[cfg(not(loom))]
const fn records() -> [Record; RECORDS] {
    [const { Record(AtomicU64::new(IDLE)) }; RECORDS]
}
#[cfg(loom)]
fn records() -> [Record; RECORDS] {
    std::array::from_fn(|_| Record(AtomicU64::new(IDLE)))
}

/// While it lives, nothing that it lets one reach is freed.
pub(crate) struct Guard {
    record: usize,
}

/// Begins to read. Spins where more threads read at once than there are records.
#[inline]
pub(crate) fn pin() -> Guard {
    let mut i = first_record() % RECORDS;
    loop {
        let record = &READERS[i].0;
        // The exchange takes the record; being sequentially consistent it is also the fence.
        let epoch = EPOCH.load(Ordering::SeqCst);
        if record.load(Ordering::Relaxed) == IDLE
            && record.compare_exchange(IDLE, epoch, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            // Loom takes sequentially consistent accesses for acquire and release ones.
            if cfg!(any(loom, not(target_arch = "x86_64"))) {
                fence(Ordering::SeqCst);
            }
            return Guard { record: i };
        }
        i = (i + 1) % RECORDS;
        spin();
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        READERS[self.record].0.store(IDLE, Ordering::Release);
    }
}

/// Something that readers may still be looking at. Dropped outside a [`Limbo`] it is leaked.
#[must_use = "to be put into limbo"]
#[derive(Debug)]
pub(crate) struct Retired(Kind);

#[derive(Debug)]
enum Kind {
    /// Words at an address, and how many.
    Words(NonNull<Word>, usize),
    Number(u32),
    Nothing,
}

// SAFETY: the words are owned by whoever has this and nothing in them is bound to a thread.
unsafe impl Send for Retired {}

impl Retired {
    /// A number, which something else may get when nobody looks at what had it any more.
    pub fn number(id: u32) -> Retired {
        Retired(Kind::Number(id))
    }

    /// Bytes that will be free.
    pub fn bytes(&self) -> usize {
        match self.0 {
            Kind::Words(_, n) => n * size_of::<Word>(),
            Kind::Number(_) | Kind::Nothing => 0,
        }
    }
}

/// What waits for the last reader that may see it.
#[derive(Debug, Default)]
pub(crate) struct Limbo {
    now: Vec<Retired>,
    /// Bytes of those.
    bytes: usize,
    waiting: VecDeque<(u64, Vec<Retired>)>,
    spare: Vec<Vec<Retired>>,
}

impl Limbo {
    /// Takes in what readers cannot find any more, and frees what nobody looks at;
    /// numbers go to `free_numbers`.
    #[inline]
    pub fn add(&mut self, retired: Retired, free_numbers: &mut Vec<u32>) {
        if matches!(retired.0, Kind::Nothing) {
            return;
        }
        self.bytes += retired.bytes();
        self.now.push(retired);
        if self.now.len() >= BATCH || self.bytes >= MANY_BYTES {
            self.collect(free_numbers);
        }
    }

    /// Frees what nobody looks at any more.
    pub fn collect(&mut self, free_numbers: &mut Vec<u32>) {
        if !self.now.is_empty() {
            self.bytes = 0;
            fence(Ordering::SeqCst);
            let stamp = EPOCH.fetch_add(1, Ordering::SeqCst) + 1;
            let next = self.spare.pop().unwrap_or_default();
            self.waiting.push_back((stamp, std::mem::replace(&mut self.now, next)));
        }
        let active = READERS.iter().map(|r| r.0.load(Ordering::SeqCst)).filter(|&e| e != IDLE);
        let oldest = active.min().unwrap_or(u64::MAX);
        while self.waiting.front().is_some_and(|(stamp, _)| *stamp <= oldest) {
            let Some((_, mut batch)) = self.waiting.pop_front() else { return };
            for retired in batch.drain(..) {
                match retired.0 {
                    // SAFETY: every reader that could reach it had an older epoch and has gone.
                    Kind::Words(at, n) => unsafe { free(at, n) },
                    Kind::Number(id) => free_numbers.push(id),
                    Kind::Nothing => {}
                }
            }
            if self.spare.len() < 4 {
                self.spare.push(batch);
            }
        }
    }
}

impl Drop for Limbo {
    fn drop(&mut self) {
        let batches = self.waiting.drain(..).map(|(_, b)| b).chain([std::mem::take(&mut self.now)]);
        for retired in batches.flatten() {
            if let Kind::Words(at, n) = retired.0 {
                // SAFETY: the limbo is dropped with the structure that readers would have come
                // through, which they borrow while they read.
                unsafe { free(at, n) };
            }
        }
    }
}

fn layout(n: usize) -> Layout {
    let layout = Layout::array::<Word>(n).expect("far below the address space");
    // On cache lines, where more than one is taken anyway.
    if n < 8 { layout } else { layout.align_to(64).expect("a power of two") }
}

/// Room for `n` words, of any content.
fn allocate(n: usize) -> NonNull<Word> {
    // SAFETY: `n` is never 0: every user has a header.
    let at = unsafe { alloc(layout(n)) };
    NonNull::new(at.cast()).unwrap_or_else(|| handle_alloc_error(layout(n)))
}

/// Frees what [`allocate`] gave.
///
/// # Safety
/// `at` is from `allocate(n)` and nobody uses it any more.
unsafe fn free(at: NonNull<Word>, n: usize) {
    if cfg!(loom) {
        // Marked instead, so that a reader who still looks is seen to.
        for i in 1..n {
            // SAFETY: within the allocation, which is never freed under loom.
            unsafe { at.add(i).as_ref() }.store(FREED, std::sync::atomic::Ordering::Relaxed);
        }
        return;
    }
    // SAFETY: as promised by the caller.
    unsafe { dealloc(at.as_ptr().cast(), layout(n)) };
}

/// What loom's readers must never see.
const FREED: u64 = 0xF4EE_D000_0000_0000;

/// A pointer to words that readers load and one writer replaces, or a number in its place.
///
/// The words begin with their count. A number is marked by the lowest bit, which no address has.
#[derive(Debug)]
pub(crate) struct Cell(AtomicPtr<Word>);

/// What a [`Cell`] holds.
#[derive(Clone, Copy)]
pub(crate) enum Loaded<'g> {
    /// A number below 2^63.
    Number(u64),
    /// Words; the first is their count.
    Words(Words<'g>),
}

impl Cell {
    /// A cell with a number in it.
    pub fn new(number: u64) -> Cell {
        Cell(AtomicPtr::new(tagged(number)))
    }

    /// What is in it now.
    #[inline]
    pub fn load<'g>(&'g self, _guard: &'g Guard) -> Loaded<'g> {
        // SAFETY: the pointer is what `replace` put there; what it replaces goes through limbo, which
        // frees it only after this guard has gone.
        unsafe { view(self.0.load(Ordering::SeqCst)) }
    }

    /// Whether it still is what it was when `loaded` was taken.
    #[inline]
    pub fn is(&self, loaded: Loaded<'_>) -> bool {
        let then = match loaded {
            Loaded::Number(n) => tagged(n),
            Loaded::Words(words) => words.at.as_ptr(),
        };
        std::ptr::eq(self.0.load(Ordering::SeqCst), then)
    }

    /// Puts a number in; what was there is the caller's to retire.
    pub fn replace_number(&self, number: u64) -> Retired {
        retired(self.0.swap(tagged(number), Ordering::AcqRel))
    }

    /// Puts words in; what was there is the caller's to retire.
    pub fn replace(&self, words: Owned) -> Retired {
        let at = words.0.at.as_ptr();
        std::mem::forget(words);
        retired(self.0.swap(at, Ordering::AcqRel))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Kind::Words(at, n) = retired(self.0.load(Ordering::Acquire)).0 {
            // SAFETY: exclusive; readers borrow the cell while they look.
            unsafe { free(at, n) };
        }
    }
}

fn tagged(number: u64) -> *mut Word {
    debug_assert!(number < 1 << 63, "the lowest bit marks it");
    std::ptr::without_provenance_mut((number << 1 | 1) as usize)
}

/// # Safety
/// `at` is a tagged number or from `allocate` and not freed while the result lives.
#[inline]
unsafe fn view<'g>(at: *mut Word) -> Loaded<'g> {
    match NonNull::new(at) {
        Some(at) if at.addr().get() & 1 == 0 => Loaded::Words(Words { at, life: PhantomData }),
        _ => Loaded::Number(at.addr() as u64 >> 1),
    }
}

fn retired(at: *mut Word) -> Retired {
    // SAFETY: what was in a cell is alive until it has been through limbo.
    match unsafe { view(at) } {
        Loaded::Number(_) => Retired(Kind::Nothing),
        Loaded::Words(words) => Retired(Kind::Words(words.at, words.count())),
    }
}

/// Words, of which the first is their count.
#[derive(Clone, Copy)]
pub(crate) struct Words<'g> {
    at: NonNull<Word>,
    life: PhantomData<&'g Word>,
}

impl<'g> Words<'g> {
    /// Words in all, the first one included.
    #[inline]
    fn count(self) -> usize {
        // SAFETY: there always is a first word, and it is written once, before anyone else sees it.
        unsafe { self.at.as_ref() }.load(Ordering::Relaxed) as usize
    }

    /// All words after the count.
    #[inline]
    pub fn all(self) -> &'g [Word] {
        // SAFETY: as many as the count says were allocated and, but for blocks not yet published,
        // written; atomics may be shared and written by anyone.
        unsafe { std::slice::from_raw_parts(self.at.add(1).as_ptr(), self.count() - 1) }
    }
}

/// Words that nobody else sees yet.
pub(crate) struct Owned(Words<'static>);

impl Owned {
    /// Zeroed words: `n` besides the count.
    pub fn zeroed(n: usize) -> Owned {
        // SAFETY: there is a count, so it is not of no bytes.
        let at = unsafe { alloc_zeroed(layout(n + 1)) };
        Owned::counted(NonNull::new(at.cast()).unwrap_or_else(|| handle_alloc_error(layout(n + 1))), n)
    }

    /// A copy of `from`.
    pub fn of(from: &[u64]) -> Owned {
        let words = Owned::unwritten(from.len());
        for (i, w) in from.iter().enumerate() {
            words.0.write(1 + i, *w);
        }
        words
    }

    fn unwritten(n: usize) -> Owned {
        Owned::counted(allocate(n + 1), n)
    }

    fn counted(at: NonNull<Word>, n: usize) -> Owned {
        let words = Words { at, life: PhantomData };
        words.write(0, n as u64 + 1);
        Owned(words)
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.0.count() * size_of::<Word>()
    }

    /// The words after the count.
    pub fn all(&mut self) -> &[Word] {
        self.0.all()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: nobody else has seen it.
        unsafe { free(self.0.at, self.0.count()) };
    }
}

impl Words<'_> {
    /// Writes word `i`, of those allocated, for the first time.
    fn write(self, i: usize, value: u64) {
        // SAFETY: within the allocation, which only this thread writes to as yet; `write` does not
        // look at what was there.
        unsafe { self.at.add(i).write(Word::new(value)) };
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p kvindex --release --lib loom` tries every order of what a
/// reader and the writer do.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn look(cell: &Cell) -> u64 {
        let guard = pin();
        let Loaded::Words(words) = cell.load(&guard) else { return 0 };
        // Whatever the writer does meanwhile.
        thread::yield_now();
        words.all()[0].load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn loom_nothing_is_freed_while_a_reader_may_look() {
        loom::model(|| {
            let cell = Arc::new(Cell::new(0));
            drop(cell.replace(Owned::of(&[1])));
            let reader = {
                let cell = cell.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        let seen = look(&cell);
                        assert!(seen == 1 || seen == 2 || seen == 3, "{seen:x} was freed");
                    }
                })
            };
            let (mut limbo, mut numbers) = (Limbo::default(), Vec::new());
            for next in [2, 3] {
                limbo.add(cell.replace(Owned::of(&[next])), &mut numbers);
                limbo.collect(&mut numbers);
            }
            reader.join().unwrap();
            limbo.collect(&mut numbers);
            assert_eq!(look(&cell), 3);
            assert!(limbo.waiting.is_empty() && limbo.now.is_empty(), "all is freed in the end");
        });
    }
}
