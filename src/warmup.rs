//! Is it known again what the engines hold, so that schedulers may ask?
//!
//! Pure: it looks at where publishers stand and at the time. Warm is who follows every publisher from a
//! place that is proven: its first batch, a snapshot that a replay confirmed, or, where neither can be
//! had, what it says from now on. Waiting has an end: then answers say that they are degraded.

use std::time::Duration;

use crate::publisher::{PublisherSpec, PublisherState, PublisherStatus};

/// How far warming up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What was known before is still being fetched.
    Restoring,
    /// Some publishers are not followed from a proven place yet.
    Warming {
        /// How many.
        waiting: usize,
    },
    /// All are.
    Warm,
    /// Some are not, and it has been waited long enough for them.
    GivenUp {
        /// How many.
        waiting: usize,
    },
}

impl Stage {
    /// How far it is `since` the start, with what was known before `restored` or not yet.
    pub fn of(publishers: &[PublisherStatus], restored: bool, since: Duration, limit: Duration) -> Stage {
        let waiting = publishers.iter().filter(|p| is_waited_for(&p.spec, p.freshness.state)).count();
        match (restored, waiting) {
            (false, _) => Stage::Restoring,
            (true, 0) => Stage::Warm,
            (true, waiting) if since < limit => Stage::Warming { waiting },
            (true, waiting) => Stage::GivenUp { waiting },
        }
    }

    /// Whether schedulers may ask.
    pub fn is_ready(self) -> bool {
        match self {
            Stage::Restoring | Stage::Warming { .. } => false,
            Stage::Warm | Stage::GivenUp { .. } => true,
        }
    }

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Restoring => "restoring",
            Stage::Warming { .. } => "warming",
            Stage::Warm => "warm",
            Stage::GivenUp { .. } => "given_up",
        }
    }
}

/// Whether more will be known of a publisher by waiting.
pub fn is_waited_for(spec: &PublisherSpec, state: PublisherState) -> bool {
    match state {
        PublisherState::Replaying => true,
        PublisherState::Dead => false,
        // Without a replay only its next message tells, and an idle engine sends none.
        PublisherState::Connecting | PublisherState::Unreachable => spec.replay_endpoint.is_some(),
        PublisherState::Live | PublisherState::Partial => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::testing::{dialled, status};

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn it_is_warm_when_nobody_is_waited_for_any_more() {
        let replayed = |state| {
            let mut status = status(dialled("a", "tcp://10.0.0.1:5557"), state);
            status.spec.replay_endpoint = Some("tcp://10.0.0.1:5558".into());
            status
        };
        let stage = |publishers: &[PublisherStatus]| Stage::of(publishers, true, Duration::ZERO, LIMIT);
        use PublisherState::{Connecting, Live, Partial, Replaying};
        assert_eq!(stage(&[]), Stage::Warm);
        assert_eq!(stage(&[replayed(Live), replayed(Partial)]), Stage::Warm);
        assert_eq!(stage(&[replayed(Live), replayed(Replaying)]), Stage::Warming { waiting: 1 });
        assert_eq!(stage(&[replayed(Connecting)]), Stage::Warming { waiting: 1 });
        let silent = status(dialled("a", "tcp://10.0.0.1:5557"), Connecting);
        assert_eq!(stage(&[silent]), Stage::Warm, "nothing is gained by waiting for it");
    }

    #[test]
    fn waiting_has_an_end_but_not_before_what_was_known_is_restored() {
        let mut p = status(dialled("a", "tcp://10.0.0.1:5557"), PublisherState::Replaying);
        p.spec.replay_endpoint = Some("tcp://10.0.0.1:5558".into());
        let all = [p];
        let late = LIMIT + Duration::from_secs(1);
        assert_eq!(Stage::of(&all, false, late, LIMIT), Stage::Restoring);
        assert_eq!(Stage::of(&all, true, late, LIMIT), Stage::GivenUp { waiting: 1 });
        assert!(!Stage::Restoring.is_ready() && Stage::GivenUp { waiting: 1 }.is_ready());
    }
}
