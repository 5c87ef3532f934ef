//! Is what a node answers so?

use kvd::publisher::PublisherState;

use crate::trace::say;
use crate::truth::Holding;
use crate::world::World;

impl World {
    /// Compares what a node answers about an engine with what it had after the batch that the node
    /// says it applied last: equal where the node vouches for it, never more elsewhere.
    ///
    /// # Errors
    /// If it is not so.
    pub fn check(&mut self, e: usize, n: usize) -> Result<(), String> {
        self.compare(e, n, false)
    }

    /// The same, with an answer that must be exact where `restored`: a snapshot of all that the engine had
    /// has just been put back.
    pub fn compare(&mut self, e: usize, n: usize, restored: bool) -> Result<(), String> {
        let Some(node) = &self.places[n].node else { return Ok(()) };
        let lane = &node.lanes[e];
        let (state, last_seq) = (lane.follower.state(), lane.follower.last_seq());
        let certain = restored || lane.is_certain();
        let engine = &self.engines[e];
        let moment =
            lane.follower.sink().last.get().map(|ts| engine.moment(ts).expect("every batch has its moment"));
        let answers = node.answers(e, &self.talk);
        let wrong = |what: &str| {
            let at = moment.map(|m| format!("{}@{}", m.seq, m.life));
            format!(
                "{what}: node{n} about engine{e}, {state:?}, last {last_seq:?}, applied last {at:?}\n\
                 held     {:?}\nanswered {answers:?}",
                moment.map(|m| &m.holding)
            )
        };
        self.tally.checks += 1;
        self.tally.certain += u64::from(certain);
        self.tally.held += u64::from(certain && answers.iter().any(|a| a.cached > 0));
        if certain && last_seq != moment.map(|m| m.seq) {
            return Err(wrong("another batch than the last one"));
        }
        let nothing = Holding::default();
        if state == PublisherState::Dead && answers.iter().any(|a| *a != nothing) {
            return Err(wrong("the dead hold something"));
        }
        for (i, answered) in answers.iter().enumerate() {
            let held = moment.map_or(&nothing, |m| &m.holding[i]);
            if certain && answered != held {
                return Err(wrong("false certainty"));
            }
            if answered.cached > held.cached || answered.device > held.device || answered.below > held.below {
                return Err(wrong("too much"));
            }
        }
        Ok(())
    }

    /// Compares what every node answers with what the engines have now. `all` = of every engine and
    /// with certainty; otherwise only what is vouched for, of engines with a history if `asked`.
    ///
    /// # Errors
    /// If it is not so.
    pub fn settle(&mut self, all: bool, asked: bool) -> Result<(), String> {
        for n in 0..self.places.len() {
            for e in 0..self.engines.len() {
                self.check(e, n)?;
                let node = self.places[n].node.as_ref().expect("everything is up by now");
                let (lane, engine) = (&node.lanes[e], &self.engines[e]);
                let state = lane.follower.state();
                say!(self.trace, self.now, "node{n} engine{e}: {state:?} in the end");
                let wrong = |what: &str| {
                    format!("{what}: node{n} about engine{e}, {state:?}, last {:?}", lane.follower.last_seq())
                };
                if !matches!(state, PublisherState::Live | PublisherState::Partial)
                    && (engine.shape.ring.is_some() || all)
                {
                    return Err(wrong("still not known"));
                }
                if asked && engine.shape.ring.is_none() {
                    continue;
                }
                if state != PublisherState::Live {
                    if all {
                        return Err(wrong("not live after a reset"));
                    }
                    continue;
                }
                let answers = node.answers(e, &self.talk);
                if answers[..] != engine.latest[..] {
                    return Err(format!(
                        "{}\nheld     {:?}\nanswered {answers:?}",
                        wrong("wrong in the end"),
                        engine.latest
                    ));
                }
                if all && node.contents(e) != engine.contents() {
                    return Err(wrong("the dump is wrong in the end"));
                }
            }
        }
        Ok(())
    }
}
