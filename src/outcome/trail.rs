//! Which of one engine's blocks left it lately?
//!
//! Between a prediction and the engine's own lookup blocks may go. Whether one of *this* prompt's did is
//! told by the removals of that time, which are kept for a while, bounded in number. What is beyond the
//! bound is not known, and then nothing is held against anybody.

use std::collections::vec_deque::Iter;
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use kvproto::EngineHash;

/// What is noted within so short a time is kept under one time, the first one's.
const STEP: Duration = Duration::from_millis(1);

/// An engine's removals, the latest ones.
#[derive(Debug)]
pub struct Trail {
    most: usize,
    removed: VecDeque<EngineHash>,
    /// When, and how many of all removals ever had been noted by then.
    marks: VecDeque<(Instant, u64)>,
    /// Removals ever noted.
    noted: u64,
    /// When the newest removal was noted that is not kept any more.
    forgotten: Option<Instant>,
    cleared: Option<Instant>,
}

/// What left an engine since some time.
#[derive(Debug)]
pub struct Since<'t> {
    /// The whole cache did.
    pub cleared: bool,
    /// Whether every removal is still known.
    pub known: bool,
    removed: Iter<'t, EngineHash>,
}

impl Trail {
    /// A trail of at most `most` removals.
    pub fn new(most: usize) -> Trail {
        Trail {
            most,
            removed: VecDeque::new(),
            marks: VecDeque::new(),
            noted: 0,
            forgotten: None,
            cleared: None,
        }
    }

    /// Notes copies that left by a batch whose effect was visible at `at`.
    pub fn removed(&mut self, hashes: &[EngineHash], at: Instant) {
        if hashes.is_empty() {
            return;
        }
        self.removed.extend(hashes);
        self.noted += hashes.len() as u64;
        match self.marks.back_mut() {
            Some((then, until)) if at.saturating_duration_since(*then) < STEP => *until = self.noted,
            Some(_) | None => self.marks.push_back((at, self.noted)),
        }
        let over = self.removed.len().saturating_sub(self.most);
        self.removed.drain(..over);
        let first = self.noted - self.removed.len() as u64;
        while let Some((then, until)) = self.marks.front()
            && (*until <= first || self.marks.len() > self.most.max(1))
        {
            self.forgotten = Some(*then);
            self.marks.pop_front();
        }
        if over > 0 {
            // Of the mark that is now the first some may be missing.
            self.forgotten = self.marks.front().map(|m| m.0).max(self.forgotten);
        }
    }

    /// Notes that all of it left at `at`.
    pub fn cleared(&mut self, at: Instant) {
        *self = Trail { cleared: Some(at), ..Trail::new(self.most) };
    }

    /// What left since `began`, a moment before anything that follows was looked at.
    pub fn since(&self, began: Instant) -> Since<'_> {
        // A mark stands for up to a step after its time.
        let from = self.marks.partition_point(|(at, _)| *at + STEP < began);
        let before = from.checked_sub(1).map_or(0, |i| self.marks[i].1);
        let first = self.noted - self.removed.len() as u64;
        let skip = before.saturating_sub(first).min(self.removed.len() as u64) as usize;
        Since {
            cleared: self.cleared.is_some_and(|at| at >= began),
            known: self.forgotten.is_none_or(|at| at + STEP < began),
            removed: self.removed.range(skip..),
        }
    }

    /// Removals or their times kept.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.removed.len().max(self.marks.len())
    }
}

impl Since<'_> {
    /// Copies that left, not counting a clear.
    pub fn removals(&self) -> usize {
        self.removed.len()
    }

    /// Whether a copy of any of `names` left.
    pub fn any_left(&self, names: &HashSet<EngineHash>) -> bool {
        !names.is_empty() && self.removed.clone().any(|h| names.contains(h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_millis(1000 + ms)
    }

    fn hash(n: u64) -> EngineHash {
        EngineHash(n)
    }

    fn left(trail: &Trail, since: u64, n: u64) -> bool {
        trail.since(at(since)).any_left(&HashSet::from([hash(n)]))
    }

    #[test]
    fn what_left_after_the_prediction_is_told_from_what_left_before() {
        let mut trail = Trail::new(100);
        trail.removed(&[hash(1)], at(0));
        trail.removed(&[hash(2), hash(3)], at(100));
        trail.removed(&[hash(4)], at(200));
        let found = [1, 2, 3, 4, 5].map(|n| left(&trail, 50, n));
        assert_eq!(found, [false, true, true, true, false]);
        assert_eq!(trail.since(at(50)).removals(), 3);
        assert!(trail.since(at(50)).known && !trail.since(at(50)).cleared);
        assert_eq!(trail.since(at(300)).removals(), 0);
    }

    #[test]
    fn a_removal_in_the_moment_of_the_prediction_counts() {
        let mut trail = Trail::new(100);
        trail.removed(&[hash(1)], at(50));
        assert!(left(&trail, 50, 1));
    }

    #[test]
    fn a_clear_explains_everything_and_ends_the_trail() {
        let mut trail = Trail::new(100);
        trail.removed(&[hash(1)], at(0));
        trail.cleared(at(10));
        assert!(trail.since(at(5)).cleared && !trail.since(at(20)).cleared);
        assert_eq!(trail.kept(), 0);
        trail.removed(&[hash(2)], at(30));
        assert!(left(&trail, 20, 2) && !left(&trail, 40, 2));
    }

    #[test]
    fn beyond_its_bound_a_trail_says_that_it_does_not_know() {
        let mut trail = Trail::new(4);
        for n in 0..10 {
            trail.removed(&[hash(n)], at(10 * n));
        }
        assert!(trail.kept() <= 4);
        assert!(trail.since(at(85)).known && !trail.since(at(15)).known);
        assert!(left(&trail, 85, 9));
    }

    #[test]
    fn whatever_comes_a_trail_stays_within_its_bound_and_misses_nothing_it_says_it_knows() {
        let mut x = 7u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        for _ in 0..200 {
            let most = 1 + next(20) as usize;
            let mut trail = Trail::new(most);
            let (mut all, mut now, mut cleared) = (Vec::new(), 0, None);
            for n in 0..60 {
                now += next(4);
                if next(25) == 0 {
                    trail.cleared(at(now));
                    cleared = Some(now);
                    continue;
                }
                let gone: Vec<EngineHash> = (0..next(4)).map(|i| hash(100 * n + i)).collect();
                trail.removed(&gone, at(now));
                all.extend(gone.into_iter().map(|h| (now, h)));
            }
            assert!(trail.kept() <= most, "{} of {most}", trail.kept());
            for began in 0..now {
                let since = trail.since(at(began));
                assert_eq!(since.cleared, cleared.is_some_and(|at| at >= began));
                if since.known && !since.cleared {
                    for (_, h) in all.iter().filter(|(at, _)| *at >= began) {
                        assert!(since.any_left(&HashSet::from([*h])), "{h:?} left after {began}");
                    }
                }
            }
        }
    }
}
