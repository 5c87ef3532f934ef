//! What time is it, for deadlines that outlive a process?
//!
//! Deadlines are Unix time, because they are read back after a restart and by other replicas.
//! While a process runs its clock is the monotonic one, set once: a wall clock that is corrected
//! moves no deadline. At a start the clock does not go back behind what was written before, so
//! that a wall clock that was set back does not lengthen anything either.

use std::time::{Duration, Instant};

use super::ledger::Millis;
use crate::wall::unix_ms;

/// The ledger's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
    /// What it said when it began.
    at: Millis,
}

impl Clock {
    /// A clock that shows the wall clock's time now, but nothing before `not_before`.
    pub fn start(not_before: Millis) -> Clock {
        Clock::at(unix_ms(), not_before, Instant::now())
    }

    fn at(wall: Millis, not_before: Millis, began: Instant) -> Clock {
        Clock { began, at: wall.max(not_before) }
    }

    /// Now.
    pub fn now(&self) -> Millis {
        self.at.saturating_add(self.began.elapsed().as_millis() as Millis)
    }

    /// How long it is until `then`.
    pub fn until(&self, then: Millis) -> Duration {
        Duration::from_millis(then.saturating_sub(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_was_set_back_lengthens_no_deadline() {
        let clock = Clock::at(1_000, 5_000, Instant::now());
        assert!(clock.now() >= 5_000);
        assert_eq!(clock.until(4_000), Duration::ZERO);
    }

    #[test]
    fn a_wall_clock_ahead_of_what_was_written_is_believed() {
        assert!(Clock::at(9_000, 5_000, Instant::now()).now() >= 9_000);
    }
}
