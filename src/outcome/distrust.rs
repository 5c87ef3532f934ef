//! Which blocks does an engine not have, although its events say so?
//!
//! A block that was predicted, that the engine did not find, and that no event took away in between, has
//! been *contradicted*. One report proves little: it may be wrong, forged, or of a request that
//! skipped the cache. So each report is one testimony about one block; a block is *distrusted* when most
//! of the latest testimonies, and at least three, contradict it. A distrusted block does not count in
//! scores until an event stores it again, reports that found it outweigh the others, or its time is
//! over. How many blocks of a publisher may be distrusted, and how many of them newly in a minute, is
//! bounded: whoever forges reports gains little and loses it again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kvproto::EngineHash;

/// Contradictions that it takes.
pub const ENOUGH: u32 = 3;
/// Testimonies about one block that are remembered.
const REMEMBERED: u32 = 8;
/// Blocks about which testimonies are remembered.
const MOST_HEARD: usize = 512;
/// Blocks distrusted at a time.
pub const MOST_DISTRUSTED: usize = 64;
/// Blocks newly distrusted in [`PER`].
const NEWLY: usize = 8;
const PER: Duration = Duration::from_secs(60);
/// How late after its time something may still count.
const EXPIRY_STEP: Duration = Duration::from_millis(100);
/// How long a testimony counts, and how long a block is distrusted.
pub const LASTS: Duration = Duration::from_secs(300);

/// What testimonies say about one publisher's blocks.
#[derive(Debug, Default)]
pub struct Distrust {
    blocks: HashMap<EngineHash, Heard>,
    distrusted: usize,
    /// When blocks began to be distrusted, the latest ones.
    began: Vec<Instant>,
    expired: Option<Instant>,
}

/// What was testified about one block.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The latest testimonies, the newest in the lowest bit; 1 contradicts.
    bits: u32,
    count: u32,
    last: Instant,
    distrusted: Option<Instant>,
}

impl Distrust {
    /// Takes a testimony: whether the engine had the block. Returns whether it is distrusted now and was
    /// not before.
    pub fn testify(&mut self, block: EngineHash, had: bool, now: Instant) -> bool {
        if had && !self.blocks.contains_key(&block) {
            return false;
        }
        if self.expired.is_none_or(|at| now.saturating_duration_since(at) >= EXPIRY_STEP) {
            self.expire(now);
        }
        if self.blocks.len() >= MOST_HEARD && !self.blocks.contains_key(&block) {
            self.forget_oldest();
        }
        let heard =
            self.blocks.entry(block).or_insert(Heard { bits: 0, count: 0, last: now, distrusted: None });
        heard.bits = (heard.bits << 1 | u32::from(!had)) & ((1 << REMEMBERED) - 1);
        heard.count = (heard.count + 1).min(REMEMBERED);
        heard.last = now;
        let against = heard.bits.count_ones();
        let outweighs = against >= ENOUGH && 2 * against > heard.count;
        match (heard.distrusted, outweighs) {
            (Some(_), false) => {
                heard.distrusted = None;
                self.distrusted -= 1;
                false
            }
            (None, true) if self.distrusted < MOST_DISTRUSTED && self.began.len() < NEWLY => {
                heard.distrusted = Some(now);
                self.distrusted += 1;
                self.began.push(now);
                true
            }
            (Some(_), true) | (None, _) => false,
        }
    }

    /// An event stored the block: what was said about it before means nothing any more.
    pub fn stored(&mut self, block: EngineHash) {
        if let Some(heard) = self.blocks.remove(&block) {
            self.distrusted -= usize::from(heard.distrusted.is_some());
        }
    }

    /// The engine's cache was emptied.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.distrusted = 0;
    }

    /// Whether the block does not count.
    pub fn distrusts(&self, block: EngineHash, now: Instant) -> bool {
        let distrusted = self.blocks.get(&block).and_then(|h| h.distrusted);
        distrusted.is_some_and(|since| now.saturating_duration_since(since) < LASTS)
    }

    /// Whether anything was testified against any block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks distrusted.
    pub fn distrusted(&self) -> usize {
        self.distrusted
    }

    /// Takes back what is too old.
    pub fn expire(&mut self, now: Instant) {
        self.expired = Some(now);
        let is_over = |since: Instant, lasts| now.saturating_duration_since(since) >= lasts;
        self.began.retain(|since| !is_over(*since, PER));
        let distrusted = &mut self.distrusted;
        self.blocks.retain(|_, heard| {
            if is_over(heard.last, LASTS) || heard.distrusted.is_some_and(|since| is_over(since, LASTS)) {
                *distrusted -= usize::from(heard.distrusted.is_some());
                return false;
            }
            true
        });
    }

    /// Makes room; what is distrusted stays.
    fn forget_oldest(&mut self) {
        let oldest = self.blocks.iter().filter(|(_, h)| h.distrusted.is_none()).min_by_key(|(_, h)| h.last);
        if let Some(block) = oldest.map(|(block, _)| *block) {
            self.blocks.remove(&block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: EngineHash = EngineHash(1);

    fn testimonies(had: &[bool]) -> (Distrust, Instant) {
        let (mut distrusts, now) = (Distrust::default(), Instant::now());
        for had in had {
            distrusts.testify(B, *had, now);
        }
        (distrusts, now)
    }

    #[test]
    fn two_reports_change_nothing_and_three_do() {
        let (mut distrusts, now) = testimonies(&[false, false]);
        assert!(!distrusts.distrusts(B, now));
        assert!(distrusts.testify(B, false, now));
        assert!(distrusts.distrusts(B, now) && distrusts.distrusted() == 1);
        assert!(!distrusts.testify(B, false, now), "it is distrusted already");
    }

    #[test]
    fn reports_that_found_the_block_outweigh_as_many_that_did_not() {
        let (distrusts, now) = testimonies(&[false, true, false, true, true, false]);
        assert!(!distrusts.distrusts(B, now));
        let (mut distrusts, now) = testimonies(&[false, false, false]);
        for had in [true, true, true] {
            assert!(distrusts.distrusts(B, now));
            distrusts.testify(B, had, now);
        }
        assert!(!distrusts.distrusts(B, now) && distrusts.distrusted() == 0);
    }

    #[test]
    fn a_block_that_nobody_contradicted_is_not_remembered() {
        let (distrusts, _) = testimonies(&[true, true]);
        assert!(distrusts.is_empty());
    }

    #[test]
    fn an_event_that_stores_the_block_ends_it() {
        let (mut distrusts, now) = testimonies(&[false, false, false]);
        distrusts.stored(B);
        assert!(!distrusts.distrusts(B, now) && distrusts.is_empty() && distrusts.distrusted() == 0);
    }

    #[test]
    fn distrust_ends_by_its_time_and_takes_as_much_to_come_back() {
        let (mut distrusts, now) = testimonies(&[false, false, false]);
        let later = now + LASTS;
        assert!(!distrusts.distrusts(B, later));
        distrusts.testify(B, false, later);
        assert!(!distrusts.distrusts(B, later) && distrusts.distrusted() == 0);
    }

    #[test]
    fn a_flood_of_forged_reports_reaches_few_blocks() {
        let (mut distrusts, start) = (Distrust::default(), Instant::now());
        let mut most = 0;
        for n in 0..20_000u64 {
            let now = start + Duration::from_millis(5 * n);
            distrusts.testify(EngineHash(n / 4), false, now);
            let counted = distrusts.blocks.values().filter(|h| h.distrusted.is_some()).count();
            assert_eq!(distrusts.distrusted(), counted);
            assert!(distrusts.blocks.len() <= MOST_HEARD);
            most = most.max(counted);
        }
        // A hundred seconds: two windows of a minute.
        assert!(most <= 2 * NEWLY, "{most}");
    }
}
