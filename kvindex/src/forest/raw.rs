//! Memory that readers look at while the writer replaces it. All `unsafe` of the crate is here.
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

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64 as Word, AtomicUsize};

use super::sync::{AtomicPtr, AtomicU64, Ordering, fence, first_record, global, spin};

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

/// Numbered things that are made once and never move, in chunks that double.
#[derive(Debug)]
pub(crate) struct Grown<T> {
    chunks: [std::sync::OnceLock<Box<[T]>>; 32],
    len: AtomicUsize,
}

/// Things in the first chunk, as a power of two.
const FIRST: u32 = 6;

impl<T> Grown<T> {
    /// Nothing yet.
    pub fn new() -> Grown<T> {
        Grown { chunks: [const { std::sync::OnceLock::new() }; 32], len: AtomicUsize::new(0) }
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

/// Asks the processor to fetch what lies at `at`.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about memory that the reference shows to be there.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// How many leading words two slices have in common.
#[inline]
pub(crate) fn common(a: &[u64], b: &[u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { common_avx2(a, b) };
    }
    common_anywhere(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn common_avx2(a: &[u64], b: &[u64]) -> usize {
    common_anywhere(a, b)
}

/// Compares 32 at a time without a branch, which the compiler makes vector code of. A plain loop: a
/// closure would be compiled for any processor and halve the speed.
#[inline(always)]
fn common_anywhere(a: &[u64], b: &[u64]) -> usize {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut i = 0;
    while i + 32 <= n {
        let (x, y) = (&a[i..i + 32], &b[i..i + 32]);
        let mut differs = 0;
        for j in 0..32 {
            differs |= x[j] ^ y[j];
        }
        if differs != 0 {
            break;
        }
        i += 32;
    }
    while i < n && a[i] == b[i] {
        i += 1;
    }
    i
}

/// Hashes as the numbers they are.
pub(crate) trait Hash64: Copy {}
impl Hash64 for kvproto::LocalHash {}
impl Hash64 for kvproto::SeqHash {}
impl Hash64 for kvproto::EngineHash {}

/// The numbers of hashes.
#[inline]
pub(crate) fn words<T: Hash64>(hashes: &[T]) -> &[u64] {
    const { assert!(size_of::<T>() == size_of::<u64>() && align_of::<T>() == align_of::<u64>()) };
    // SAFETY: the types that are `Hash64` are transparent wrappers of a u64.
    unsafe { std::slice::from_raw_parts(hashes.as_ptr().cast(), hashes.len()) }
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
