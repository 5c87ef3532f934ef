//! When is a second replica asked the same?
//!
//! Pure. After the time that nearly all answers take, learnt from answers or set; and only so often
//! that a slow moment of all replicas does not double what they have to do.

use std::time::Duration;

/// When a question goes to a second replica as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// After the time within which 95 of 100 answers come, at least 1 ms and at most half of the deadline.
    Learnt,
    /// After this long.
    Fixed(Duration),
    /// Never. Another replica is asked only where the first one fails.
    Never,
}

/// Answers that a delay is learnt from.
const WINDOW: usize = 256;
/// It is learnt anew with every so many.
const EVERY: usize = 32;
/// Part of the questions that may be asked twice, in the long run, and how many may be at once.
const SHARE: f64 = 0.1;
const BURST: f64 = 16.0;

/// What was learnt.
#[derive(Clone, Debug)]
pub(crate) struct Hedge {
    after: HedgeAfter,
    most: Duration,
    took: Vec<Duration>,
    count: usize,
    learnt: Duration,
    /// Second questions that may be asked now.
    credit: f64,
}

impl Hedge {
    /// For questions that end after `deadline`.
    pub(crate) fn new(after: HedgeAfter, deadline: Duration) -> Hedge {
        let most = deadline / 2;
        Hedge { after, most, took: Vec::with_capacity(WINDOW), count: 0, learnt: most, credit: BURST }
    }

    /// A question is asked. How long its first answer is waited for.
    pub(crate) fn asked(&mut self) -> Option<Duration> {
        self.credit = (self.credit + SHARE).min(BURST);
        match self.after {
            HedgeAfter::Learnt => Some(self.learnt),
            HedgeAfter::Fixed(after) => Some(after),
            HedgeAfter::Never => None,
        }
    }

    /// That time is over: whether a second replica may be asked.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.credit >= 1.0;
        self.credit -= f64::from(may);
        may
    }

    /// An answer came after so long.
    pub(crate) fn answered(&mut self, took: Duration) {
        if self.took.len() < WINDOW {
            self.took.push(took);
        } else {
            self.took[self.count % WINDOW] = took;
        }
        self.count += 1;
        if self.count.is_multiple_of(EVERY) {
            let mut sorted = self.took.clone();
            let at = sorted.len() * 95 / 100;
            // Timers do not fire earlier than a millisecond, and a shorter wait would ask twice for nothing.
            let least = Duration::from_millis(1).min(self.most);
            self.learnt = (*sorted.select_nth_unstable(at).1).clamp(least, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(5);

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn until_something_is_learnt_half_of_the_deadline_is_waited() {
        let mut h = Hedge::new(HedgeAfter::Learnt, DEADLINE);
        assert_eq!(h.asked(), Some(us(2500)));
        (0..31).for_each(|_| h.answered(us(1200)));
        assert_eq!(h.asked(), Some(us(2500)));
        h.answered(us(1200));
        assert_eq!(h.asked(), Some(us(1200)));
    }

    #[test]
    fn the_delay_is_what_nearly_all_answers_keep_and_follows_them() {
        let mut h = Hedge::new(HedgeAfter::Learnt, DEADLINE);
        for i in 0..256 {
            h.answered(us(if i % 32 == 0 { 2400 } else { 1500 }));
        }
        assert_eq!(h.asked(), Some(us(1500)));
        (0..256).for_each(|_| h.answered(us(1900)));
        assert_eq!(h.asked(), Some(us(1900)));
    }

    #[test]
    fn it_is_neither_shorter_than_a_timer_nor_longer_than_half_of_the_deadline() {
        let mut h = Hedge::new(HedgeAfter::Learnt, DEADLINE);
        (0..256).for_each(|_| h.answered(us(100)));
        assert_eq!(h.asked(), Some(us(1000)));
        (0..256).for_each(|_| h.answered(us(4900)));
        assert_eq!(h.asked(), Some(us(2500)));
    }

    #[test]
    fn second_questions_are_a_tenth_of_all_and_a_burst() {
        let mut h = Hedge::new(HedgeAfter::Fixed(us(700)), DEADLINE);
        let mut second = 0;
        for _ in 0..1000 {
            assert_eq!(h.asked(), Some(us(700)));
            second += u32::from(h.spend());
        }
        assert!((114..=116).contains(&second), "{second}");
        assert_eq!(Hedge::new(HedgeAfter::Never, DEADLINE).asked(), None);
    }
}
