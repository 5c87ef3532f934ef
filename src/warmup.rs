//! Is it known again what the engines hold, so that schedulers may ask?
//!
//! Pure: it looks at where publishers stand and at the time. Warm is who follows every publisher from a
//! place that is proven: its first batch, a snapshot that a replay confirmed, or, where neither can be
//! had, what it says from now on. Waiting has an end: then answers say that they are degraded.

use std::time::Duration;

use crate::publisher::{PublisherSpec, PublisherState, PublisherStatus};

/// What is known of publishers as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whether what was known before the start is back.
    pub restored: bool,
    /// Whether all were discovered that there are to discover.
    pub discovered: bool,
}

/// How far warming up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What was known before is still being fetched.
    Restoring,
    /// It is not known yet which publishers there are.
    Discovering,
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
    /// How far it is `since` the start.
    pub fn of(publishers: &[PublisherStatus], known: Known, since: Duration, limit: Duration) -> Stage {
        let waiting = publishers.iter().filter(|p| is_waited_for(&p.spec, p.freshness.state)).count();
        match (known, waiting) {
            (Known { restored: false, .. }, _) => Stage::Restoring,
            (Known { discovered: false, .. }, _) if since < limit => Stage::Discovering,
            (Known { discovered: true, .. }, 0) => Stage::Warm,
            (_, waiting) if since < limit => Stage::Warming { waiting },
            (_, waiting) => Stage::GivenUp { waiting },
        }
    }

    /// Whether schedulers may ask.
    pub fn is_ready(self) -> bool {
        match self {
            Stage::Restoring | Stage::Discovering | Stage::Warming { .. } => false,
            Stage::Warm | Stage::GivenUp { .. } => true,
        }
    }

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Restoring => "restoring",
            Stage::Discovering => "discovering",
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
    const ALL: Known = Known { restored: true, discovered: true };

    #[test]
    fn it_is_warm_when_nobody_is_waited_for_any_more() {
        let replayed = |state| {
            let mut status = status(dialled("a", "tcp://10.0.0.1:5557"), state);
            status.spec.replay_endpoint = Some("tcp://10.0.0.1:5558".into());
            status
        };
        let stage = |publishers: &[PublisherStatus]| Stage::of(publishers, ALL, Duration::ZERO, LIMIT);
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
        assert_eq!(Stage::of(&all, Known { restored: false, ..ALL }, late, LIMIT), Stage::Restoring);
        assert_eq!(Stage::of(&all, ALL, late, LIMIT), Stage::GivenUp { waiting: 1 });
        assert!(!Stage::Restoring.is_ready() && Stage::GivenUp { waiting: 1 }.is_ready());
    }

    #[test]
    fn nobody_is_warm_before_it_is_known_who_there_is() {
        let unseen = Known { discovered: false, ..ALL };
        assert_eq!(Stage::of(&[], unseen, Duration::ZERO, LIMIT), Stage::Discovering);
        assert_eq!(Stage::of(&[], unseen, LIMIT, LIMIT), Stage::GivenUp { waiting: 0 });
    }
}
