//! How often was a publisher's prediction right, and how far off was it otherwise?

use super::account::Comparison;
use super::judge::Verdict;

/// Counts of one publisher since it was registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Comparisons, by [`Verdict::ALL`]'s order.
    pub verdicts: [u64; Verdict::ALL.len()],
    /// How much was predicted too little.
    pub too_low: Sizes,
    /// How much was predicted too much.
    pub too_high: Sizes,
    /// Blocks that began to be distrusted.
    pub distrusted: u64,
}

/// How large errors were, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    buckets: [u64; Sizes::BOUNDS.len() + 1],
    /// Tokens altogether.
    pub tokens: u64,
}

impl Tally {
    /// Counts a comparison.
    pub fn add(&mut self, c: &Comparison, distrusted: bool) {
        self.verdicts[c.verdict as usize] += 1;
        self.distrusted += u64::from(distrusted);
        match c.verdict {
            Verdict::TooLow => self.too_low.add(c.reported.saturating_sub(c.predicted.max(c.now))),
            Verdict::TooHigh => self.too_high.add(c.predicted.saturating_sub(c.reported)),
            Verdict::Exact | Verdict::CameMeanwhile | Verdict::LeftMeanwhile | Verdict::Unclear => {}
        }
    }

    /// Comparisons of this verdict.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize]
    }

    /// All comparisons.
    pub fn compared(&self) -> u64 {
        self.verdicts.iter().sum()
    }
}

impl Sizes {
    /// Upper bounds in tokens, ascending.
    pub const BOUNDS: [u64; 6] = [16, 64, 256, 1024, 4096, 16384];

    fn add(&mut self, tokens: u64) {
        let at = Self::BOUNDS.iter().position(|b| tokens <= *b).unwrap_or(Self::BOUNDS.len());
        self.buckets[at] += 1;
        self.tokens += tokens;
    }

    /// Errors of at most each of [`BOUNDS`](Self::BOUNDS), cumulative, and all of them.
    pub fn cumulative(&self) -> ([u64; Sizes::BOUNDS.len()], u64) {
        let mut sum = 0;
        let cumulative = std::array::from_fn(|i| {
            sum += self.buckets[i];
            sum
        });
        (cumulative, sum + self.buckets[Self::BOUNDS.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cumulative_and_the_count_includes_what_is_beyond_the_last_bound() {
        let mut sizes = Sizes::default();
        for tokens in [16, 17, 5000, 1 << 20] {
            sizes.add(tokens);
        }
        assert_eq!(sizes.cumulative(), ([1, 2, 2, 2, 2, 3], 4));
        assert_eq!(sizes.tokens, 16 + 17 + 5000 + (1 << 20));
    }
}
