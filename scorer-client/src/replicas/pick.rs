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
    /// What an answer takes, smoothed.
    pub takes: Duration,
}

impl Seen {
    /// How long an answer would take, by what is known.
    fn cost(&self) -> f64 {
        self.takes.max(LEAST).as_secs_f64() * f64::from(self.in_flight + 1)
    }
}

/// Differences below this are none, and what waits counts also where nothing is known of latencies.
const LEAST: Duration = Duration::from_micros(50);
/// How much slower than the fastest still counts as about as fast.
const NEAR: f64 = 2.0;

/// Replicas to be asked, in this order, by their place in `seen`. `turn` counts questions.
pub(crate) fn order(seen: &[Seen], turn: usize) -> Vec<usize> {
    let n = seen.len();
    let mut order: Vec<usize> = (0..n).map(|i| (i + turn) % n).filter(|i| !seen[*i].open).collect();
    let best =
        order.iter().filter(|i| seen[**i].serves).map(|i| seen[*i].cost()).fold(f64::INFINITY, f64::min);
    // Stable, so that those of one kind stay in turn.
    order.sort_by_key(|i| (!seen[*i].serves, seen[*i].cost() > NEAR * best));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Seen = Seen { open: false, serves: true, in_flight: 0, takes: Duration::from_micros(300) };

    #[test]
    fn replicas_that_are_alike_take_turns() {
        let seen = [FAST, Seen { takes: Duration::from_micros(550), ..FAST }, FAST];
        assert_eq!(order(&seen, 0), [0, 1, 2]);
        assert_eq!(order(&seen, 1), [1, 2, 0]);
        assert_eq!(order(&seen, 5), [2, 0, 1]);
    }

    #[test]
    fn a_slow_or_busy_replica_comes_after_those_that_are_not() {
        let slow = Seen { takes: Duration::from_micros(700), ..FAST };
        let busy = Seen { in_flight: 2, ..FAST };
        assert_eq!(order(&[slow, FAST, busy], 0), [1, 0, 2]);
        assert_eq!(order(&[slow, FAST, busy], 2), [1, 2, 0]);
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
