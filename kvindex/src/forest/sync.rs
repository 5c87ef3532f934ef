//! The atomics that readers and the writer meet at: the standard ones, or loom's, which tries every
//! order of what two threads do.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

/// Static variables; loom's are made anew for every order it tries.
#[cfg(not(loom))]
macro_rules! global {
    ($(static $name:ident: $type:ty = $value:expr;)*) => {
        $(static $name: $type = const { $value };)*
    };
}
#[cfg(loom)]
macro_rules! global {
    ($(static $name:ident: $type:ty = $value:expr;)*) => {
        loom::lazy_static! { $(static ref $name: $type = $value;)* }
    };
}
pub(super) use global;

/// Where this thread begins to look for a free record: threads are spread over them.
#[cfg(not(loom))]
#[inline]
pub fn first_record() -> usize {
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|i| *i)
}
#[cfg(loom)]
pub fn first_record() -> usize {
    0
}

#[cfg(loom)]
pub use loom::thread::yield_now as spin;
#[cfg(not(loom))]
pub use std::hint::spin_loop as spin;
