//! How likely is a block to be used again, by how often it was and how long ago?
//!
//! Counts, per class and age, how often blocks were used again (occurrences) and how long blocks
//! of that age were waiting for it (exposure); their ratio is the hazard of reuse. Blocks that are
//! still waiting count with the time they have waited, so nothing is biased towards short
//! intervals. Blocks are observed whether or not they still have a copy: what a cache sees of its
//! own contents only says how good its evictions were.

use super::blocks::{Blocks, Past};
use super::random::Random;

const CLASSES: usize = Past::CLASSES;
/// Classes that are alike but for the turn.
const TURNS: usize = 4;
/// Ages are told apart to a quarter of an octave.
const AGES: usize = 4 * 32;
/// Accesses between two looks at the counts.
const EPOCH: u32 = 4096;
/// What is left of a count after an epoch.
const DECAY: f32 = 0.97;
/// Before anything is observed, the hazard of reuse after `a` ticks is `PRIOR * (1 + reuse) / a`:
/// then blocks are ranked by age / (1 + reuse).
const PRIOR: f32 = 0.05;
/// How many occurrences the prior is worth, and how many what is known of all turns together is
/// worth where one is looked at.
const PRIOR_WEIGHT: f32 = 2.0;
const ALL_TURNS_WEIGHT: f32 = 10.0;

/// The learned hazard of reuse.
#[derive(Debug)]
pub(crate) struct Reuse {
    occurrences: [[f32; AGES]; CLASSES],
    /// In block-ticks.
    exposure: [[f32; AGES]; CLASSES],
    /// Hazard summed from age 0 to the beginning of each age.
    summed: [[f32; AGES + 1]; CLASSES],
    accesses: u32,
    /// Accesses between two looks at the counts: few at first.
    epoch: u32,
    /// Accesses since exposure was last measured, and when that was.
    unmeasured: u32,
    measured: Option<u32>,
}

/// Which age `ticks` is.
fn age_at(ticks: u32) -> usize {
    if ticks < 4 {
        return ticks as usize;
    }
    let octave = ticks.ilog2();
    ((octave - 1) * 4 + ((ticks >> (octave - 2)) & 3)) as usize
}

/// The first tick of an age.
fn age_begin(age: usize) -> u64 {
    if age < 4 {
        return age as u64;
    }
    let (octave, quarter) = (age as u64 / 4 + 1, age as u64 % 4);
    (4 + quarter) << (octave - 2)
}

impl Reuse {
    pub fn new() -> Reuse {
        let mut reuse = Reuse {
            occurrences: [[0.0; AGES]; CLASSES],
            exposure: [[0.0; AGES]; CLASSES],
            summed: [[0.0; AGES + 1]; CLASSES],
            accesses: 0,
            epoch: EPOCH / 32,
            unmeasured: 0,
            measured: None,
        };
        reuse.sum();
        reuse
    }

    /// A block was used again after `age` ticks.
    pub fn again(&mut self, past: Past, age: u32) {
        self.occurrences[past.class()][age_at(age)] += 1.0;
    }

    /// `accesses` happened at `now`. Looks at as many known blocks, and how long they have been
    /// waiting. True when an epoch has ended.
    pub fn measure(&mut self, accesses: u32, now: u32, blocks: &Blocks, random: &mut Random) -> bool {
        self.accesses += accesses;
        self.unmeasured += accesses;
        let passed = now.wrapping_sub(*self.measured.get_or_insert(now));
        if passed > 0 && blocks.span() > 0 {
            let looks = self.unmeasured.min(EPOCH);
            let each = passed as f32 * blocks.span() as f32 / looks as f32;
            for _ in 0..looks {
                // A moment between the last measurement and now, so that ages shorter than that
                // are seen as well.
                let ago = random.below(passed);
                let Some(block) = blocks.drawn(random.below(blocks.span())) else { continue };
                if let Some(age) = now.wrapping_sub(block.last).checked_sub(ago) {
                    self.exposure[block.past.class()][age_at(age)] += each;
                }
            }
            (self.unmeasured, self.measured) = (0, Some(now));
        }
        if self.accesses < self.epoch {
            return false;
        }
        self.accesses = 0;
        self.sum();
        if self.epoch < EPOCH {
            self.epoch *= 2;
            return true;
        }
        for count in self.occurrences.iter_mut().chain(&mut self.exposure).flatten() {
            *count *= DECAY;
        }
        true
    }

    fn sum(&mut self) {
        for first in (0..CLASSES).step_by(TURNS) {
            let turns = first..first + TURNS;
            let mut sums = [0.0; TURNS];
            for age in 0..AGES {
                let (begin, end) = (age_begin(age) as f32, age_begin(age + 1) as f32);
                let prior = PRIOR * (1.0 + (first / TURNS) as f32) / (begin + 1.0);
                let of_all =
                    |counts: &[[f32; AGES]; CLASSES]| turns.clone().map(|c| counts[c][age]).sum::<f32>();
                let all = (of_all(&self.occurrences) + PRIOR_WEIGHT)
                    / (of_all(&self.exposure) + PRIOR_WEIGHT / prior);
                for (class, sum) in turns.clone().zip(&mut sums) {
                    self.summed[class][age] = *sum;
                    let occurrences = self.occurrences[class][age] + ALL_TURNS_WEIGHT;
                    let exposure = self.exposure[class][age] + ALL_TURNS_WEIGHT / all;
                    *sum += occurrences / exposure * (end - begin);
                }
            }
            for (class, sum) in turns.zip(sums) {
                self.summed[class][AGES] = sum;
            }
        }
    }

    fn summed_at(&self, class: usize, ticks: u64) -> f32 {
        let ticks = ticks.min(u64::from(u32::MAX));
        let age = age_at(ticks as u32);
        let (begin, end) = (age_begin(age), age_begin(age + 1));
        let part = (ticks - begin) as f32 / (end - begin) as f32;
        let sums = &self.summed[class];
        sums[age] + (sums[age + 1] - sums[age]) * part
    }

    /// What blocks are worth that leave a tier after `horizon` ticks.
    pub fn worth(&self, horizon: u32) -> Worth {
        let mut worth = Worth { of: [[0.0; AGES]; CLASSES] };
        for (class, of) in worth.of.iter_mut().enumerate() {
            for (age, worth) in of.iter_mut().enumerate() {
                let middle = (age_begin(age) + age_begin(age + 1)) / 2;
                let then = middle + u64::from(horizon);
                *worth = self.summed_at(class, then) - self.summed_at(class, middle);
            }
        }
        worth
    }
}

/// How much a block is worth keeping in one tier, by its past and age.
#[derive(Debug)]
pub(crate) struct Worth {
    of: [[f32; AGES]; CLASSES],
}

impl Worth {
    /// The hazard of its reuse, summed over the time it would stay. Grows with the probability,
    /// 1 - e^-worth.
    pub fn of(&self, past: Past, age: u32) -> f32 {
        self.of[past.class()][age_at(age)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_is_of_the_age_that_begins_at_or_before_it() {
        for ticks in (0..4096).chain([u32::MAX / 3, u32::MAX - 1, u32::MAX]) {
            let age = age_at(ticks);
            assert!(age < AGES && age_begin(age) <= u64::from(ticks), "{ticks}");
            assert!(age_begin(age + 1) > u64::from(ticks), "{ticks}");
        }
    }

    #[test]
    fn unlearned_worth_falls_with_age_and_grows_with_reuse() {
        let worth = Reuse::new().worth(1000);
        let (never, once) = (Past::default(), Past::default().again());
        assert!(worth.of(never, 10) > worth.of(never, 100));
        assert!(worth.of(once, 100) > worth.of(never, 100));
    }
}
