//! Which replica is asked first, and which next?
//!
//! Pure. Those that say they serve come before those that do not; those with an open breaker are not
//! asked at all. Among the others the work is spread in turn over all that are about as fast as the
//! fastest, so that no replica is asked by every scheduler because it happens to be a little faster.

use std::time::Duration;

/// What matters of a replica for the choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Nobody asks it now.
    pub open: bool,
    /// It says that it serves, or has not said anything yet.
    pub serves: bool,
    /// Questions it has not answered yet.
    pub in_flight: u32,
    /// What an answer takes, smoothed; none before the first.
    pub takes: Option<Duration>,
}

impl Seen {
    /// How long an answer would take, by what is known. Who has not answered yet is taken to be as fast as the
    /// `fastest`: it is asked, but no more than others.
    fn cost(&self, fastest: Duration) -> f64 {
        self.takes.unwrap_or(fastest).max(LEAST).as_secs_f64() * f64::from(self.in_flight + 1)
    }
}

/// Differences below this are none, and what waits counts also where nothing takes any time.
const LEAST: Duration = Duration::from_micros(50);
/// How much slower than the fastest no longer counts as about as fast. One question more in flight is as much.
const NEAR: f64 = 2.0;

/// Replicas to be asked, in this order, by their place in `seen`. `turn` counts questions.
pub(crate) fn order(seen: &[Seen], turn: usize) -> Vec<usize> {
    let n = seen.len();
    let mut order: Vec<usize> = (0..n).map(|i| (i + turn) % n).filter(|i| !seen[*i].open).collect();
    let fastest = order.iter().filter_map(|i| seen[*i].takes).min().unwrap_or(LEAST);
    let cost = |i: usize| seen[i].cost(fastest);
    let best = order.iter().filter(|i| seen[**i].serves).map(|i| cost(*i)).fold(f64::INFINITY, f64::min);
    // Stable, so that those of one kind stay in turn.
    order.sort_by_key(|i| (!seen[*i].serves, cost(*i) >= NEAR * best));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Seen =
        Seen { open: false, serves: true, in_flight: 0, takes: Some(Duration::from_micros(300)) };

    #[test]
    fn replicas_that_are_alike_take_turns() {
        let seen = [FAST, Seen { takes: Some(Duration::from_micros(550)), ..FAST }, FAST];
        assert_eq!(order(&seen, 0), [0, 1, 2]);
        assert_eq!(order(&seen, 1), [1, 2, 0]);
        assert_eq!(order(&seen, 5), [2, 0, 1]);
    }

    #[test]
    fn a_slow_or_busy_replica_comes_after_those_that_are_not() {
        let slow = Seen { takes: Some(Duration::from_micros(700)), ..FAST };
        let busy = Seen { in_flight: 1, ..FAST };
        assert_eq!(order(&[slow, FAST, busy], 0), [1, 0, 2]);
        assert_eq!(order(&[slow, FAST, busy], 2), [1, 2, 0]);
    }

    #[test]
    fn who_has_not_answered_yet_is_asked_as_much_as_others() {
        let new = Seen { takes: None, ..FAST };
        let waited_for = Seen { in_flight: 1, ..new };
        assert_eq!(order(&[FAST, new], 1), [1, 0]);
        assert_eq!(order(&[FAST, waited_for], 1), [0, 1]);
    }

    #[test]
    fn who_does_not_serve_is_asked_last_and_who_is_open_never() {
        let warming = Seen { serves: false, ..FAST };
        let open = Seen { open: true, ..FAST };
        assert_eq!(order(&[warming, open, FAST], 0), [2, 0]);
        assert_eq!(order(&[warming, open, warming], 1), [2, 0]);
        assert!(order(&[open], 3).is_empty() && order(&[], 3).is_empty());
    }
}
