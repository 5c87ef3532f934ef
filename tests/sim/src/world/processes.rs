//! Engines and nodes: when do they work, end and come back?

use super::{Due, MS, SECOND, Time, World};
use crate::engine::Shape;
use crate::node::Node;
use crate::rng::Rng;
use crate::trace::say;
use crate::wire::Form;

impl World {
    /// A request reaches an engine, and the next one is thought of.
    pub(super) fn ask(&mut self, e: usize) {
        if !self.lively {
            return;
        }
        self.request(e);
        // Now and then an engine is left alone for longer than a follower stays patient.
        let wait = match self.rng.below(40) {
            0 => self.rng.between(3 * SECOND, 9 * SECOND),
            _ => self.engines[e].pace * self.rng.between(20 * MS, 500 * MS),
        };
        self.after(wait, Due::Ask { e });
    }

    /// Gives an engine something to do.
    pub fn request(&mut self, e: usize) {
        if !self.engines[e].up {
            return;
        }
        let idle = !self.engines[e].is_busy();
        self.engines[e].ask();
        if idle {
            let wait = self.engines[e].pace * self.rng.between(10 * MS, 100 * MS);
            self.after(wait, Due::Step { e });
        }
    }

    pub(super) fn step(&mut self, e: usize) {
        if !self.engines[e].is_busy() {
            return;
        }
        let ts = 1.7e9 + self.skew[e] + self.now as f64 / SECOND as f64;
        let published = self.engines[e].step(ts);
        if let Some(batch) = published {
            self.tally.batches += 1;
            say!(self.trace, self.now, "engine{e} publishes {}@{}", batch.seq, self.engines[e].life);
            for n in 0..self.places.len() {
                self.send(e, n, &batch);
            }
        }
        if self.engines[e].is_busy() {
            let wait = self.engines[e].pace * self.rng.between(10 * MS, 100 * MS);
            self.after(wait, Due::Step { e });
        }
    }

    /// An engine's process ends, and comes back after `time`.
    pub fn engine_down(&mut self, e: usize, time: Time) {
        if self.engines[e].up {
            say!(self.trace, self.now, "engine{e} goes down");
            self.engines[e].stop();
            for n in 0..self.places.len() {
                self.cut(e, n, 0);
            }
            self.after(time, Due::EngineUp { e });
        }
    }

    pub(super) fn engine_up(&mut self, e: usize) {
        self.engines[e].start();
        // Another host's clock may be a little behind or ahead; never so that times repeat.
        self.skew[e] += self.menu.skew(&mut self.rng);
        say!(self.trace, self.now, "engine{e} is up again, life {}", self.engines[e].life);
    }

    /// A node's process is killed, and starts again after `time`.
    pub fn node_down(&mut self, n: usize, time: Time) {
        let Some(node) = self.places[n].node.take() else { return };
        say!(self.trace, self.now, "node{n} is killed");
        // What was being written is not noted as complete, so nobody will read it.
        self.places[n].cutting = None;
        self.count(&node);
        for e in 0..self.engines.len() {
            self.cut(e, n, 0);
        }
        self.after(time, Due::NodeUp { n });
    }

    pub(super) fn node_up(&mut self, n: usize) {
        say!(self.trace, self.now, "node{n} starts");
        let shapes: Vec<Shape> = self.engines.iter().map(|e| e.shape.clone()).collect();
        let now = self.instant();
        let place = &mut self.places[n];
        place.boot += 1;
        place.node = Some(Node::start(&shapes, place.room, self.rules, now));
        // It listens first, so that no batch is missed between a snapshot and what comes after.
        for e in 0..self.engines.len() {
            self.cut(e, n, 0);
        }
        self.find_snapshot(n);
    }
}

/// A random kind of engine.
pub fn shape(rng: &mut Rng) -> Shape {
    let block = rng.pick(&[2, 4]);
    let window = rng.one_in(3).then(|| rng.pick(&[5, 9]));
    let offload = (window.is_none() && rng.one_in(3))
        .then(|| (rng.pick(&[1, 2]), rng.between(3, 12) as usize, rng.one_in(2)));
    let groups = 1 + usize::from(window.is_some());
    Shape {
        block,
        window,
        full_group: if window.is_some() { rng.below(2) as u32 } else { 0 },
        blocks: groups * (80 / block as usize + rng.below(30) as usize),
        offload,
        hash_seed: rng.below(2),
        form: rng.pick(&[Form::Array, Form::Map]),
        ring: (!rng.one_in(4)).then(|| rng.pick(&[8, 60, 4000])),
        lossy_replay: rng.one_in(3),
    }
}
