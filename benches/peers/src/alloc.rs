//! The allocator of every index alike (mimalloc), which counts live bytes and asks for huge pages
//! when told to.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering};

/// Blocks from this size on get huge pages.
const HUGE_FROM: usize = 1 << 20;
const PAGE: usize = 4096;

static COUNT: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicIsize = AtomicIsize::new(0);
static HUGE: AtomicBool = AtomicBool::new(false);
static COUNT_CALLS: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Counts from now on.
pub fn count() {
    COUNT.store(true, Ordering::Relaxed);
}

/// Bytes allocated less bytes freed since counting began.
pub fn live_bytes() -> isize {
    LIVE.load(Ordering::Relaxed)
}

/// Counts allocations from now on.
pub fn count_calls() {
    COUNT_CALLS.store(true, Ordering::Relaxed);
}

/// Allocations since counting began, reallocations included.
pub fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Asks for huge pages behind large allocations from now on.
pub fn use_huge_pages() {
    HUGE.store(true, Ordering::Relaxed);
}

struct Counting;

#[global_allocator]
static GLOBAL: Counting = Counting;

#[inline]
fn note(bytes: isize) {
    if COUNT_CALLS.load(Ordering::Relaxed) && bytes > 0 {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
    if COUNT.load(Ordering::Relaxed) {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[inline]
fn advise(at: *mut u8, bytes: usize) -> *mut u8 {
    if bytes >= HUGE_FROM && HUGE.load(Ordering::Relaxed) && !at.is_null() {
        let skip = (at as usize).next_multiple_of(PAGE) - at as usize;
        // SAFETY: advice on pages of a block that was just given to us.
        unsafe { libc::madvise(at.add(skip).cast(), bytes - skip, libc::MADV_HUGEPAGE) };
    }
    at
}

// SAFETY: mimalloc does it all; what is added does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as our caller promises.
        advise(unsafe { mimalloc::MiMalloc.alloc(layout) }, layout.size())
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as our caller promises.
        advise(unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) }, layout.size())
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as isize - layout.size() as isize);
        // SAFETY: as our caller promises.
        advise(unsafe { mimalloc::MiMalloc.realloc(at, layout, size) }, size)
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as our caller promises.
        unsafe { mimalloc::MiMalloc.dealloc(at, layout) };
    }
}
