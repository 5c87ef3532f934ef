//! The threads that apply batches: lanes take turns, deadlines are kept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::lane::Lane;
use super::reader::{Inlet, Readers};

/// What an apply thread is told.
pub enum Signal {
    /// A lane has something to do.
    Ready(Arc<Lane>),
    /// No more.
    Stop,
}

/// A lane that wants a turn at a time.
struct Alarm {
    at: Instant,
    lane: Weak<Lane>,
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Alarm) -> bool {
        self.at == other.at
    }
}

impl Eq for Alarm {}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Alarm) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Alarm) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Applies what lanes have, until told to stop.
pub fn run(signals: &Receiver<Signal>, readers: &Readers) {
    let mut alarms: BinaryHeap<Reverse<Alarm>> = BinaryHeap::new();
    loop {
        let next = alarms.peek().map(|Reverse(alarm)| alarm.at);
        let signal = match next {
            Some(at) => signals.recv_deadline(at),
            None => signals.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match signal {
            Ok(Signal::Ready(lane)) => {
                let turn = lane.turn();
                for request in turn.requests {
                    readers.replay(&lane, request);
                }
                // Unregistered during its turn: what the turn opened must not stay.
                if lane.is_closed() {
                    readers.remove(Inlet::Replay(lane.holder));
                }
                if let Some(at) = turn.wake_at {
                    alarms.push(Reverse(Alarm { at, lane: Arc::downgrade(&lane) }));
                }
            }
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        while alarms.peek().is_some_and(|Reverse(alarm)| alarm.at <= now) {
            // A lane that is gone needs no turn.
            if let Some(lane) = alarms.pop().and_then(|Reverse(alarm)| alarm.lane.upgrade()) {
                lane.schedule();
            }
        }
    }
}
