//! Does an index say of a holder what the reference model says?

use kvindex::Score;
use kvindex::reference::Expected;

/// How often answers were of each interesting kind, so that a test that compares zeros is seen.
#[derive(Default, Debug)]
pub struct Seen {
    held: u32,
    lower_tier: u32,
    engine_less_than_held: u32,
    engine_more_than_device: u32,
}

impl Seen {
    /// Takes note of what should be said, and compares; `at` says of what.
    pub fn compare(&mut self, got: &Score, want: &Expected, at: &str) {
        let bs = u64::from(got.block_size);
        self.held += u32::from(want.cached > 0);
        self.lower_tier += u32::from(want.by_tier[0] < want.cached);
        self.engine_less_than_held += u32::from(want.cached_tokens < u64::from(want.cached) * bs);
        self.engine_more_than_device +=
            u32::from(want.cached_tokens > u64::from(want.by_tier[0]) * bs && bs == 2);
        assert_eq!(got.cached, want.cached, "cached: {at}");
        assert_eq!(got.by_tier, want.by_tier, "by_tier: {at}");
        assert_eq!(got.cumulative, want.cumulative, "cumulative: {at}");
        assert_eq!(got.below_ram, want.below_ram, "below_ram: {at}");
        assert!((got.weighted - want.weighted).abs() < 1e-9, "weighted: {at}");
        assert_eq!(got.cached_tokens, want.cached_tokens, "cached_tokens: {at}");
    }

    /// Each kind must have come more often than this.
    pub fn assert_more_than(&self, least: u32) {
        let kinds = [self.held, self.lower_tier, self.engine_less_than_held, self.engine_more_than_device];
        assert!(kinds.iter().all(|&n| n > least), "the events made up are too tame: {self:?}");
    }
}
