//! What waits to be applied for one publisher, in the order it arrived.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::budget::Budget;
use super::message::Message;
use super::vital::Sign;

/// Bounds of a queue, for live messages and as much again for replayed ones.
#[derive(Clone, Debug)]
pub struct QueueLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
    /// Bytes of all queues together.
    pub budget: Arc<Budget>,
}

/// Something that waits.
#[derive(Debug)]
pub enum Item {
    /// The live socket was connected again.
    Connected,
    /// Something that tells whether the engine is there.
    Sign(Sign),
    /// A live message and when it arrived.
    Live {
        /// The message.
        message: Message,
        /// When it arrived.
        at: Instant,
    },
    /// An answer to a replay request.
    Answer {
        /// Which request.
        ask: u64,
        /// The message.
        message: Message,
    },
    /// There was no room for more answers to a request.
    CutOff {
        /// Which request.
        ask: u64,
    },
}

#[derive(Debug, Default)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    /// Takes `message` in, if that is within `limits`.
    fn take(&mut self, message: &mut Message, limits: &QueueLimits) -> bool {
        let cost = message.cost();
        let fits = self.messages < limits.messages
            && self.bytes + cost <= limits.bytes
            && message.charge(&limits.budget);
        if fits {
            self.messages += 1;
            self.bytes += cost;
        }
        fits
    }

    fn release(&mut self, message: &Message) {
        self.messages -= 1;
        self.bytes -= message.cost();
    }
}

/// A bounded queue.
#[derive(Debug, Default)]
pub struct Queue {
    items: VecDeque<Item>,
    live: Load,
    answers: Load,
    /// Whether the lane is in line for a turn or having one.
    pub scheduled: bool,
    /// Whether the publisher is no longer registered.
    pub closed: bool,
    /// Whether live messages were dropped since this was last looked at.
    pub overflowed: bool,
}

impl Queue {
    /// Takes a live message. False where there is no room.
    pub fn push_live(&mut self, mut message: Message, at: Instant, limits: &QueueLimits) -> bool {
        let fits = self.live.take(&mut message, limits);
        if fits {
            self.items.push_back(Item::Live { message, at });
        } else {
            self.overflowed = true;
        }
        fits
    }

    /// Notes that the live socket was connected again.
    pub fn push_connected(&mut self) {
        // A connection that comes and goes without a message takes no more room than one that stays.
        if !matches!(self.items.back(), Some(Item::Connected)) {
            self.items.push_back(Item::Connected);
        }
    }

    /// Notes a sign of whether the engine is there.
    pub fn push_sign(&mut self, sign: Sign) {
        if !matches!(self.items.back(), Some(Item::Sign(last)) if *last == sign) {
            self.items.push_back(Item::Sign(sign));
        }
    }

    /// Takes an answer. False where there is no room; what waits behind it will know.
    pub fn push_answer(&mut self, ask: u64, mut message: Message, limits: &QueueLimits) -> bool {
        let fits = self.answers.take(&mut message, limits);
        self.items.push_back(if fits { Item::Answer { ask, message } } else { Item::CutOff { ask } });
        fits
    }

    /// Takes out the oldest, at most `n`. Their room is free at once.
    pub fn take(&mut self, n: usize) -> VecDeque<Item> {
        let n = n.min(self.items.len());
        let taken: VecDeque<Item> = self.items.drain(..n).collect();
        for item in &taken {
            match item {
                Item::Live { message, .. } => self.live.release(message),
                Item::Answer { message, .. } => self.answers.release(message),
                Item::CutOff { .. } | Item::Connected | Item::Sign(_) => {}
            }
        }
        taken
    }

    /// Drops everything and takes nothing more.
    pub fn close(&mut self) {
        *self = Queue { closed: true, scheduled: self.scheduled, ..Queue::default() };
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Live messages that wait.
    pub fn live(&self) -> usize {
        self.live.messages
    }

    /// When the oldest live message arrived.
    pub fn oldest(&self) -> Option<Instant> {
        oldest(&self.items)
    }
}

/// When the oldest live message of `items` arrived.
pub fn oldest(items: &VecDeque<Item>) -> Option<Instant> {
    items.iter().find_map(|item| match item {
        Item::Live { at, .. } => Some(*at),
        Item::Answer { .. } | Item::CutOff { .. } | Item::Connected | Item::Sign(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Message {
        [vec![0; len]].iter().collect()
    }

    fn limits(messages: usize, bytes: usize, total: usize) -> QueueLimits {
        QueueLimits { messages, bytes, budget: Budget::new(total) }
    }

    #[test]
    fn there_is_no_room_beyond_any_of_the_limits() {
        let now = Instant::now();
        for limits in [limits(2, 10_000, 10_000), limits(9, 2_500, 10_000), limits(9, 10_000, 2_500)] {
            let mut q = Queue::default();
            assert!(q.push_live(message(1000), now, &limits) && q.push_live(message(1000), now, &limits));
            assert!(!q.overflowed);
            assert!(!q.push_live(message(1000), now, &limits) && q.overflowed, "{limits:?}");
            drop(q.take(1));
            assert!(q.push_live(message(1000), now, &limits), "{limits:?}");
        }
    }

    #[test]
    fn answers_take_no_room_from_live_messages() {
        let now = Instant::now();
        let limits = limits(1, 10_000, 10_000);
        let mut q = Queue::default();
        assert!(q.push_answer(7, message(1), &limits));
        assert!(!q.push_answer(7, message(1), &limits));
        assert!(q.push_live(message(1), now, &limits));
        let mut items = q.take(9);
        assert!(matches!(
            items.make_contiguous(),
            [Item::Answer { ask: 7, .. }, Item::CutOff { ask: 7 }, Item::Live { .. }]
        ));
    }

    #[test]
    fn a_closed_queue_has_given_everything_back() {
        let limits = limits(9, 10_000, 1_500);
        let mut q = Queue::default();
        assert!(q.push_live(message(1000), Instant::now(), &limits));
        q.close();
        assert!(q.is_empty() && q.live() == 0 && limits.budget.take(1_500).is_some());
    }
}
