//! How often does a stretch of code ask for memory? Counts what passes through the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with what each thread asks of it counted.
pub struct Counting;

/// What this thread asked for since it began.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Allocations and reallocations.
    pub calls: u64,
    /// Their bytes; a reallocation counts what it adds.
    pub bytes: u64,
}

/// What this thread asked for so far.
pub fn asked() -> Asked {
    Asked { calls: CALLS.get(), bytes: BYTES.get() }
}

fn count(bytes: usize) {
    // A thread that is ending has no counters any more, and nobody who reads them.
    let _ = CALLS.try_with(|c| c.set(c.get() + 1));
    let _ = BYTES.try_with(|b| b.set(b.get() + bytes as u64));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size.saturating_sub(layout.size()));
        // SAFETY: as in `alloc`; `ptr` came from the system's allocator.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from the system's allocator with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_box_is_one_call_and_its_bytes() {
        let before = super::asked();
        let kept = std::hint::black_box(Box::new([0u8; 100]));
        let after = super::asked();
        drop(kept);
        assert_eq!((after.calls - before.calls, after.bytes - before.bytes), (1, 100));
    }
}
