//! One run: things go wrong, then they do not, and then everything must be right.

use kvd::publisher::PublisherState;

use crate::trace::Trace;
use crate::world::{LeftOut, MS, SECOND, Tally, World};

/// What came of a run.
pub struct Outcome {
    /// What was counted, or what was wrong.
    pub result: Result<Tally, String>,
    /// What happened, where that was wanted.
    pub trace: Trace,
}

/// Runs `seed` with `left_out`.
pub fn run(seed: u64, left_out: LeftOut, trace: Trace) -> Outcome {
    let mut world = World::new(seed, left_out, trace);
    let result = play(&mut world).map_err(|e| format!("seed {seed}, at {} ms: {e}", world.now / MS));
    Outcome { result: result.map(|()| world.tally), trace: world.trace }
}

fn play(world: &mut World) -> Result<(), String> {
    let long = world.rng.between(5 * SECOND, 25 * SECOND);
    world.pass(long)?;
    world.calm();
    // What was under way ends; then silence, in which what was missed is asked for.
    world.pass(40 * SECOND)?;
    world.wait_for_replays()?;
    world.settle(false, true)?;
    // Every engine says something once more.
    for e in 0..world.engines.len() {
        (0..3).for_each(|_| world.request(e));
    }
    world.pass(20 * SECOND)?;
    world.wait_for_replays()?;
    world.settle(false, false)?;
    world.count_partial();
    // And whatever could not be known is forgotten by the engines themselves.
    for e in 0..world.engines.len() {
        world.engines[e].reset();
        (0..3).for_each(|_| world.request(e));
    }
    world.pass(20 * SECOND)?;
    world.wait_for_replays()?;
    world.settle(true, false)?;
    for n in 0..world.places.len() {
        if let Some(node) = world.places[n].node.take() {
            world.count(&node);
        }
    }
    Ok(())
}

impl World {
    /// Nothing goes wrong any more, and no requests come in by themselves.
    fn calm(&mut self) {
        self.faulty = false;
        self.lively = false;
        let now = self.now;
        self.links.iter_mut().flatten().for_each(|link| link.heal(now));
        for place in &mut self.places {
            place.busy_until = now;
            place.room.queue_messages = 1_000;
            if let Some(node) = &mut place.node {
                node.lanes.iter_mut().for_each(|lane| lane.limits.messages = 1_000);
            }
        }
    }

    /// Replays that lose messages take their time.
    fn wait_for_replays(&mut self) -> Result<(), String> {
        for _ in 0..60 {
            let lanes = self.places.iter().filter_map(|p| p.node.as_ref()).flat_map(|n| &n.lanes);
            if !lanes.into_iter().any(|l| l.follower.state() == PublisherState::Replaying) {
                break;
            }
            self.pass(SECOND)?;
        }
        Ok(())
    }

    fn count_partial(&mut self) {
        for node in self.places.iter().filter_map(|p| p.node.as_ref()) {
            self.tally.lanes += node.lanes.len() as u64;
            self.tally.partial += node.lanes.iter().filter(|l| !l.is_certain()).count() as u64;
        }
    }
}
