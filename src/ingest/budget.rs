//! Bytes that all publishers together may have waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How much there is and how much is in use.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: AtomicUsize,
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { max, used: AtomicUsize::new(0) })
    }

    /// Takes `bytes`, if that many are left.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let mut used = self.used.load(Relaxed);
        loop {
            let taken = used.checked_add(bytes).filter(|&taken| taken <= self.max)?;
            match self.used.compare_exchange_weak(used, taken, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => used = now,
            }
        }
        Some(Share { budget: Arc::clone(self), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(10);
        let most = budget.take(8).unwrap();
        assert!(budget.take(3).is_none());
        assert!(budget.take(usize::MAX).is_none());
        drop(most);
        assert!(budget.take(10).is_some());
    }
}
