//! What does a publisher's turn do? What waits goes to its follower, in order.
//!
//! Without threads, locks and clocks, so that the simulation in `tests/sim/` takes the same turns as
//! a [`Lane`](super::lane::Lane).

use std::collections::VecDeque;
use std::time::Instant;

use super::follow::{Follower, Request, Sink};
use super::queue::{self, Item, Queue};

/// Hands `items` to `follower` one by one. After each, `requests` has what it wants of the replay
/// socket, and `shown` is called with when the oldest message that still waits arrived.
pub fn work<S: Sink>(
    follower: &mut Follower<S>,
    mut items: VecDeque<Item>,
    clock: impl Fn() -> Instant,
    requests: &mut Vec<Request>,
    mut shown: impl FnMut(&mut Follower<S>, Option<Instant>),
) {
    while let Some(item) = items.pop_front() {
        let now = clock();
        match item {
            Item::Live { message, at } => follower.live(message, at, now),
            Item::Answer { ask, message } => follower.answer(ask, &message, now),
            Item::CutOff { ask } => follower.cut_off(ask, now),
            Item::Connected => follower.connected(now),
            Item::Sign(sign) => follower.sign(sign, now),
        }
        requests.extend(follower.take_request());
        shown(follower, queue::oldest(&items));
    }
}

/// Acts on a deadline that has passed.
pub fn expire<S: Sink>(follower: &mut Follower<S>, now: Instant, requests: &mut Vec<Request>) {
    if follower.deadline().is_some_and(|at| at <= now) {
        follower.timeout(now);
        requests.extend(follower.take_request());
    }
}

/// Ends a turn: acts on messages that were dropped.
pub fn settle<S: Sink>(
    follower: &mut Follower<S>,
    queue: &mut Queue,
    now: Instant,
    requests: &mut Vec<Request>,
) {
    if queue.overflowed && queue.is_empty() {
        // Nothing may come after what was dropped, and then no gap would show it.
        queue.overflowed = !follower.check_now(now);
    }
    requests.extend(follower.take_request());
}
