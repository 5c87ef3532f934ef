//! When is a replica left alone, and when is it tried again?
//!
//! Pure: told what happened and when. While it is open nobody's question goes to the replica; once the
//! pause is over a *probe* does, which no question waits for. A probe that is answered closes it on
//! probation: the first failure opens it again, for twice as long.

use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRule {
    /// So many failures without an answer between them open it.
    pub failures: u32,
    /// Pause before the first probe; it doubles with every probe that fails.
    pub pause: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for BreakerRule {
    fn default() -> Self {
        BreakerRule { failures: 3, pause: Duration::from_millis(100), longest: Duration::from_secs(5) }
    }
}

/// Of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    rule: BreakerRule,
    /// Failures since the last answer.
    failures: u32,
    pause: Duration,
    /// Until when it is open.
    open: Option<Instant>,
}

impl Breaker {
    pub(crate) fn new(rule: BreakerRule) -> Breaker {
        Breaker { rule, failures: 0, pause: rule.pause, open: None }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether it is time for a probe.
    pub(crate) fn wants_probe(&self, now: Instant) -> bool {
        self.open.is_some_and(|until| now >= until)
    }

    /// A question was answered. While it is open that is an answer to what was asked before, and says
    /// nothing of now.
    pub(crate) fn answered(&mut self) {
        if self.open.is_none() {
            self.failures = 0;
            self.pause = self.rule.pause;
        }
    }

    /// A question or a probe had no answer. Whether this opened it.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        match self.open {
            // Of questions that were under way when it opened.
            Some(until) if now < until => false,
            Some(_) => {
                self.reopen(now);
                false
            }
            None if self.failures >= self.rule.failures.max(1) => {
                self.open = Some(now + self.pause);
                true
            }
            None => false,
        }
    }

    /// A probe was answered. Whether this closed it.
    pub(crate) fn probed(&mut self) -> bool {
        if self.open.take().is_none() {
            return false;
        }
        // On probation: one more failure is enough, and the pause goes on from where it was.
        self.failures = self.rule.failures.max(1) - 1;
        self.pause = (self.pause * 2).min(self.rule.longest.max(self.rule.pause));
        true
    }

    fn reopen(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(self.rule.longest.max(self.rule.pause));
        self.open = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn opened(now: Instant) -> Breaker {
        let mut b = Breaker::new(BreakerRule::default());
        assert!(!b.failed(now) && !b.failed(now) && !b.is_open());
        assert!(b.failed(now) && b.is_open());
        b
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let now = Instant::now();
        let mut b = Breaker::new(BreakerRule::default());
        for _ in 0..10 {
            assert!(!b.failed(now) && !b.failed(now));
            b.answered();
        }
        assert!(!b.is_open());
    }

    #[test]
    fn it_is_probed_after_the_pause_and_not_before() {
        let now = Instant::now();
        let b = opened(now);
        assert!(!b.wants_probe(now + 99 * MS));
        assert!(b.wants_probe(now + 100 * MS));
    }

    #[test]
    fn answers_and_failures_of_questions_under_way_change_nothing_while_it_is_open() {
        let now = Instant::now();
        let mut b = opened(now);
        b.answered();
        assert!(b.is_open());
        assert!(!b.failed(now + 50 * MS));
        assert!(b.wants_probe(now + 100 * MS));
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_the_longest() {
        let mut now = Instant::now();
        let mut b = opened(now);
        now += 100 * MS;
        for pause in [200, 400, 800, 1600, 3200, 5000, 5000] {
            b.failed(now);
            assert!(!b.wants_probe(now + (pause - 1) * MS), "{pause}");
            now += pause * MS;
            assert!(b.wants_probe(now), "{pause}");
        }
    }

    #[test]
    fn after_a_probe_one_failure_opens_it_again_for_longer_and_an_answer_ends_the_probation() {
        let now = Instant::now();
        let mut b = opened(now);
        assert!(b.probed() && !b.is_open() && !b.probed());
        assert!(b.failed(now));
        assert!(!b.wants_probe(now + 199 * MS));
        assert!(b.wants_probe(now + 200 * MS) && b.probed());
        b.answered();
        assert!(!b.failed(now) && !b.failed(now) && b.failed(now));
        assert!(b.wants_probe(now + 100 * MS));
    }
}
