//! Is it worth the write, or the read?

/// How many blocks a tier may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Blocks per second in the long run.
    pub per_second: u32,
    /// Blocks at once after a rest.
    pub burst: u32,
}

/// What may be written now: a bucket that fills at a [`Rate`].
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    rate: Rate,
    /// Thousandths of blocks. Below 0 after writes that could not be put off.
    filled: i64,
    /// ms
    at: u64,
}

impl Budget {
    pub fn new(rate: Rate) -> Budget {
        Budget { rate, filled: i64::from(rate.burst) * 1000, at: 0 }
    }

    /// Whether a block may be written at `now` (ms), which then counts as written. One that
    /// `must` be written counts in any case.
    pub fn take(&mut self, now: u64, must: bool) -> bool {
        let passed = now.saturating_sub(self.at).min(1 << 32) as i64;
        self.at = self.at.max(now);
        let full = i64::from(self.rate.burst) * 1000;
        self.filled = (self.filled + passed * i64::from(self.rate.per_second)).min(full);
        if self.filled < 1000 && !must {
            return false;
        }
        self.filled = (self.filled - 1000).max(-full);
        true
    }
}

/// Whether to load `bytes` for `tokens` rather than have them computed again: a tier that
/// delivers `tier_rate` (bytes/s) against an engine that prefills `prefill_rate` (tokens/s).
/// `slack` above 1 prefers loading, which leaves the engine free for other work.
pub fn worth_loading(bytes: u64, tokens: u64, tier_rate: f64, prefill_rate: f64, slack: f64) -> bool {
    bytes as f64 * prefill_rate < tokens as f64 * tier_rate * slack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_the_burst_then_the_rate() {
        let mut budget = Budget::new(Rate { per_second: 10, burst: 3 });
        let taken = (0..9).filter(|_| budget.take(0, false)).count();
        assert_eq!(taken, 3);
        assert!(!budget.take(99, false));
        assert!(budget.take(100, false));
        assert!(budget.take(101, true) && !budget.take(250, false) && budget.take(300, false));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut budget = Budget::new(Rate { per_second: 1, burst: 1 });
        assert!(budget.take(5000, false));
        assert!(!budget.take(1000, false) && !budget.take(5500, false) && budget.take(6000, false));
    }

    #[test]
    fn what_is_computed_faster_than_read_is_not_loaded() {
        // Llama-3.1-8B: 1 GiB of KV for 8192 tokens, prefilled at 27.8k tokens/s.
        let load = |gib_per_second: f64| {
            worth_loading(1 << 30, 8192, gib_per_second * (1u64 << 30) as f64, 27_800.0, 1.0)
        };
        assert!(load(3.5) && !load(3.3));
    }
}
