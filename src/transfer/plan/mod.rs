//! How is this prompt served: in place, after a pull, with prefill elsewhere, or not now?
//!
//! ```text
//! Question ─▶ board (numbers) ─▶ search (the best three ways) ─▶ words ─▶ Plan
//!                ▲                    ▲
//!             CostBook             Geometry, Policy
//! ```
//!
//! A pure function: [`Planner`] only keeps memory to use again. The cost model is written down in
//! `docs/transfers.md`; `tests/plan.rs` compares it with an evaluator and an optimum of their own.

mod board;
mod policy;
mod search;
mod words;

use std::time::Duration;

pub use policy::Policy;

use crate::transfer::cost::{CostBook, Geometry};
use crate::transfer::types::{Choice, Decision, Estimate, Leg, LegKind, Plan, Purpose, Question, Reason};
use board::Board;
use search::{Found, Scratch, Search, Way, duration};

/// What is known besides the question.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge<'a> {
    /// The model's shape; without it nothing moves.
    pub geometry: Option<&'a Geometry>,
    /// What pods and links cost.
    pub book: &'a CostBook,
    /// How to weigh it.
    pub policy: &'a Policy,
    /// Time since the moment that the book's times count from.
    pub now: Duration,
}

/// Answers questions. Equal questions and knowledge get equal plans.
#[derive(Debug, Default)]
pub struct Planner {
    board: Board,
    scratch: Scratch,
}

impl Planner {
    /// The best way to serve `q`, and at most two others.
    pub fn plan(&mut self, q: &Question, know: Knowledge<'_>) -> Plan {
        let unknown = Geometry::uniform(0);
        let geometry = know.geometry.unwrap_or(&unknown);
        self.board.set(q, geometry, &know);
        let search = Search {
            q,
            board: &self.board,
            geometry,
            book: know.book,
            policy: know.policy,
            may_move: know.geometry.is_some(),
        };
        if q.purpose == Purpose::Migrate {
            return migrate(&search);
        }
        let found = search.run(&mut self.scratch);
        let Some((way, reason)) = choose(&search, found) else {
            return busy(&search, found);
        };
        let others = found.ways.iter().filter(|w| **w != way && w.stage.pod != way.stage.pod);
        let alternatives = others.take(2).map(|w| choice(&search, w, found.local)).collect();
        let choice = choice(&search, &way, found.local);
        let explanation = words::explain(q, &choice, reason);
        Plan { choice, reason, explanation, alternatives }
    }
}

/// The way to go and why; `None` where every way takes too long or there is none.
fn choose(search: &Search<'_>, found: &Found) -> Option<(Way, Reason)> {
    let (q, policy) = (search.q, search.policy);
    let mut way = *found.ways.first()?;
    let mut small = false;
    if let Some(local) = found.local.filter(|_| way.moves()) {
        let gain_s = local.cost_s - way.cost_s;
        small = gain_s < policy.min_gain.max(q.constraints.min_gain).as_secs_f64();
        if small {
            way = local;
        }
    }
    let most = q.constraints.deadline.unwrap_or(policy.give_up).min(policy.give_up);
    if way.ttft_s > most.as_secs_f64() {
        return None;
    }
    let below = |cost: Option<f64>| cost.is_some_and(|c| c < way.cost_s);
    let reason = if way.moves() {
        Reason::Faster
    } else if !search.may_move {
        Reason::UnknownModel
    } else if small {
        Reason::SmallGain
    } else if below(found.at_limit_s) {
        Reason::AtLimit
    } else if below(found.constrained_s) {
        Reason::Constrained
    } else if q.pods.len() == 1 {
        Reason::OnlyPod
    } else if !search.board.any_compatible() {
        Reason::Incompatible
    } else if q.purpose == Purpose::Pull && !search.anything_to_pull(way.stage.pod) {
        Reason::NothingToPull
    } else {
        Reason::LocalFaster
    };
    Some((way, reason))
}

/// Nobody waits: as much as there is goes to the destination.
fn migrate(search: &Search<'_>) -> Plan {
    let to = search.q.decode.filter(|d| *d < search.q.pods.len());
    let (way, barred) = match to {
        Some(to) if search.may_move => search.farthest(to),
        Some(_) | None => (None, false),
    };
    let reason = match way {
        Some(_) => Reason::Faster,
        None if !search.may_move => Reason::UnknownModel,
        None if barred => Reason::AtLimit,
        None => Reason::NothingToPull,
    };
    let choice = match way {
        Some(way) => Choice { prefill_tokens: 0, ..choice(search, &way, None) },
        None => {
            Choice { decision: Decision::Local, ..nowhere(to.map(|t| search.q.pods[t].endpoint.clone())) }
        }
    };
    let explanation = words::explain(search.q, &choice, reason);
    Plan { choice, reason, explanation, alternatives: Vec::new() }
}

fn busy(search: &Search<'_>, found: &Found) -> Plan {
    let mut choice = nowhere(None);
    if let Some(best) = found.ways.first() {
        choice.estimate = estimate(best, search, found.local);
    }
    let explanation = words::explain(search.q, &choice, Reason::Busy);
    // For who has nowhere else to go.
    let alternatives = found.ways.iter().take(2).map(|w| self::choice(search, w, found.local)).collect();
    Plan { choice, reason: Reason::Busy, explanation, alternatives }
}

fn nowhere(decode: Option<crate::transfer::types::Endpoint>) -> Choice {
    Choice {
        decision: Decision::Busy,
        prefill: None,
        decode,
        legs: Vec::new(),
        prefill_tokens: 0,
        estimate: Estimate::default(),
    }
}

/// A way with names instead of places.
fn choice(search: &Search<'_>, way: &Way, local: Option<Way>) -> Choice {
    let (q, g) = (search.q, search.geometry);
    let pod = way.stage.pod;
    let mut legs = Vec::with_capacity(2);
    if let Some(pull) = way.stage.pull {
        legs.push(Leg {
            kind: LegKind::Pull,
            from: q.pods[pull.from].endpoint.clone(),
            to: q.pods[pod].endpoint.clone(),
            tier: search.board.seats[pull.from].tier,
            tokens: pull.to_token - search.board.seats[pod].hit,
            blocks: blocks(pull.to_token - search.board.seats[pod].hit, q.pods[pull.from].block_size),
            bytes: pull.bytes,
            pinned_bytes: pull.bytes,
        });
    }
    if let Some(h) = way.handover {
        let tokens = q.prompt_tokens - search.board.seats[h.to].hit;
        legs.push(Leg {
            kind: LegKind::Handover,
            from: q.pods[pod].endpoint.clone(),
            to: q.pods[h.to].endpoint.clone(),
            tier: kvproto::Tier::Gpu,
            tokens,
            blocks: blocks(tokens, q.pods[pod].block_size),
            bytes: h.bytes,
            pinned_bytes: g.bytes(0, q.prompt_tokens),
        });
    }
    let has = way.stage.pull.map_or(search.board.seats[pod].hit, |p| p.to_token);
    Choice {
        decision: match (way.handover, way.stage.pull) {
            (None, None) => Decision::Local,
            (None, Some(_)) => Decision::Pull,
            (Some(_), None) => Decision::Disagg,
            (Some(_), Some(_)) => Decision::DisaggWithPull,
        },
        prefill: way.handover.map(|_| q.pods[pod].endpoint.clone()),
        decode: Some(q.pods[way.decode()].endpoint.clone()),
        legs,
        prefill_tokens: q.prompt_tokens - has,
        estimate: estimate(way, search, local),
    }
}

fn blocks(tokens: u32, block_size: u32) -> u32 {
    if block_size == 0 { 0 } else { tokens.div_ceil(block_size) }
}

fn estimate(way: &Way, search: &Search<'_>, local: Option<Way>) -> Estimate {
    let stage = &way.stage;
    let queue_s = search.board.seats[stage.pod].queue_s.min(stage.done_s - stage.prefill_s);
    let pull = stage.pull;
    let handover = way.handover;
    let setup_s = pull.map_or(0.0, |p| p.setup_s) + handover.map_or(0.0, |h| h.setup_s);
    // As far as the wait did not hide it.
    let waits_s = stage.done_s - stage.prefill_s - queue_s;
    let works = 1.0 - pull.map_or(0.0, |p| p.failures);
    let works = works * (1.0 - handover.map_or(0.0, |h| h.failures));
    Estimate {
        queue: duration(queue_s + way.room_s),
        pull: duration(waits_s - pull.map_or(0.0, |p| p.setup_s)),
        prefill: duration(stage.prefill_s),
        setup: duration(setup_s),
        handover: duration(handover.map_or(0.0, |h| h.bytes_s)),
        total: duration(way.cost_s),
        local: duration(local.map_or(0.0, |l| l.cost_s)),
        failure_probability: 1.0 - works,
    }
}
