//! The network between an engine and a node: a PUB socket's connection that keeps order, and a
//! replay socket beside it.

use kvd::ingest::pure::Sign;

use crate::engine::Published;
use crate::rng::Rng;
use crate::trace::say;
use crate::world::{Due, MS, Payload, Time, World};

/// Answers that a replay socket keeps for a reader.
const REPLAY_MARK: usize = 6;

/// One engine's connection to one node.
#[derive(Clone, Debug)]
pub struct Link {
    /// Names the connection; what was sent on an earlier one is lost.
    epoch: u32,
    /// Whether the engine sends.
    subscribed: bool,
    in_flight: usize,
    /// Messages that may be in flight; more are dropped.
    mark: usize,
    /// When the last message under way arrives: none overtakes another.
    last_at: Time,
    /// Not before this time is a connection possible.
    blocked_until: Time,
    pub stall_until: Time,
    /// Messages to be lost.
    pub lose: u32,
    /// Messages to come twice.
    pub repeat: u32,
}

impl Link {
    pub fn new(rng: &mut Rng) -> Link {
        Link {
            epoch: 0,
            subscribed: false,
            in_flight: 0,
            mark: rng.pick(&[4, 100]),
            last_at: 0,
            blocked_until: 0,
            stall_until: 0,
            lose: 0,
            repeat: 0,
        }
    }

    /// Ends what goes wrong here.
    pub fn heal(&mut self, now: Time) {
        self.mark = usize::MAX;
        self.lose = 0;
        self.repeat = 0;
        self.stall_until = now;
        self.blocked_until = now;
    }
}

impl World {
    /// Breaks a connection for at least `time`; ZMQ dials again by itself.
    pub fn cut(&mut self, e: usize, n: usize, time: Time) {
        let wait = self.rng.between(MS, 200 * MS);
        let link = &mut self.links[e][n];
        link.epoch += 1;
        link.subscribed = false;
        link.in_flight = 0;
        link.blocked_until = self.now + time;
        let epoch = link.epoch;
        if let Some(node) = &mut self.places[n].node {
            node.lanes[e].queue.push_sign(Sign::Lost);
            self.wake(e, n, wait);
        }
        self.after(time + wait, Due::Dial { e, n, epoch });
    }

    pub fn dial(&mut self, e: usize, n: usize, epoch: u32) {
        let link = &self.links[e][n];
        if link.epoch != epoch || self.places[n].node.is_none() {
            return;
        }
        let blocked = self.now < link.blocked_until || !self.engines[e].up;
        if !blocked {
            self.connected(e, n);
        }
        let next = if blocked { Due::Dial { e, n, epoch } } else { Due::Subscribed { e, n, epoch } };
        // Dialled again after at most half a second; the subscription arrives sooner.
        let wait = self.rng.between(MS, if blocked { 500 * MS } else { 150 * MS });
        self.after(wait, next);
    }

    pub fn subscribed(&mut self, e: usize, n: usize, epoch: u32) {
        let link = &mut self.links[e][n];
        if link.epoch == epoch {
            say!(self.trace, self.now, "node{n} is subscribed to engine{e}");
            link.subscribed = true;
            link.last_at = self.now;
        }
    }

    /// Tells a node that it is connected, which its socket's monitor does before any message comes.
    fn connected(&mut self, e: usize, n: usize) {
        if let Some(node) = &mut self.places[n].node {
            node.lanes[e].queue.push_connected();
            node.lanes[e].queue.push_sign(Sign::Greeted);
            let wait = self.rng.below(3 * MS);
            self.wake(e, n, wait);
        }
    }

    /// An engine sends a batch to a node.
    pub fn send(&mut self, e: usize, n: usize, batch: &Published) {
        let delay = if self.rng.one_in(50) { 300 * MS } else { self.rng.between(MS, 20 * MS) };
        let link = &mut self.links[e][n];
        if !link.subscribed {
            return;
        }
        if link.in_flight >= link.mark || link.lose > 0 {
            link.lose = link.lose.saturating_sub(1);
            say!(self.trace, self.now, "engine{e} to node{n}: {} is lost", batch.seq);
            return;
        }
        let times = if link.repeat > 0 { 2 } else { 1 };
        link.repeat = link.repeat.saturating_sub(1);
        for _ in 0..times {
            let link = &mut self.links[e][n];
            let at = (self.now + delay).max(link.stall_until).max(link.last_at);
            link.last_at = at;
            link.in_flight += 1;
            let epoch = link.epoch;
            self.at(at, Due::Live { e, n, epoch, batch: batch.clone() });
        }
    }

    /// A batch arrives at a node.
    pub fn live(&mut self, e: usize, n: usize, epoch: u32, batch: &Published) {
        let now = self.instant();
        let link = &mut self.links[e][n];
        if link.epoch != epoch {
            return;
        }
        link.in_flight -= 1;
        let Some(node) = &mut self.places[n].node else { return };
        let lane = &mut node.lanes[e];
        if lane.push_live(batch.seq, &batch.payload, now) {
            lane.counters.messages.add(1);
        } else {
            lane.counters.dropped.add(1);
            say!(self.trace, self.now, "node{n} has no room for {} of engine{e}", batch.seq);
        }
        let wait = self.rng.below(3 * MS);
        self.wake(e, n, wait);
    }

    /// A replay request arrives at an engine, or waits for it to come up.
    pub fn replay(&mut self, e: usize, n: usize, boot: u32, ask: u64, from: u64) {
        let place = &self.places[n];
        let open = place.node.as_ref().is_some_and(|node| node.lanes[e].open == Some(ask));
        if place.boot != boot || !open {
            return;
        }
        if !self.engines[e].up || self.now < self.links[e][n].blocked_until {
            let wait = self.rng.between(50 * MS, 200 * MS);
            return self.after(wait, Due::Replay { e, n, boot, ask, from });
        }
        let epoch = self.links[e][n].epoch;
        let engine = &self.engines[e];
        let lossy = engine.shape.lossy_replay;
        let batches: Vec<Payload> = engine
            .ring
            .iter()
            .filter(|b| b.seq >= from)
            .map(|b| Some((b.seq, b.payload.clone())))
            .chain([None])
            .collect();
        say!(self.trace, self.now, "engine{e} replays {} batches to node{n} ({ask})", batches.len() - 1);
        let mut wait = self.rng.below(100 * MS);
        let mut losing = 0;
        for (i, answer) in batches.into_iter().enumerate() {
            wait += self.rng.below(2 * MS);
            // Up to vLLM 0.32 the socket drops what a slow reader has not taken, a stretch at a time,
            // once as many as it keeps are under way; the end may come all the same.
            if lossy && i >= REPLAY_MARK && losing == 0 && self.rng.one_in(12) {
                losing = self.rng.between(1, 6);
            }
            if losing > 0 {
                losing -= 1;
                continue;
            }
            self.after(wait, Due::Answer { e, n, epoch, boot, ask, answer });
        }
    }

    /// An answer arrives at a node.
    pub fn answer(&mut self, e: usize, n: usize, epoch: u32, boot: u32, ask: u64, answer: Payload) {
        let form = self.engines[e].shape.form;
        let place = &mut self.places[n];
        if place.boot != boot || self.links[e][n].epoch != epoch {
            return;
        }
        let Some(node) = &mut place.node else { return };
        let lane = &mut node.lanes[e];
        if lane.open == Some(ask) {
            lane.push_answer(ask, answer.as_ref().map(|(seq, payload)| (*seq, &**payload)), form);
            let wait = self.rng.below(3 * MS);
            self.wake(e, n, wait);
        }
    }
}
