//! The ledger is right: by hand, against a model, exhaustively, and through crashes.

mod crash;
mod exhaustive;
mod random;
mod reference;
mod rules;
mod shared;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use kvproto::Tier;

use super::machine::{Event, Replan};
use super::record::{Cause, Millis, Record, State, TransferId};
use super::{Book, Bounds, Timers};
use crate::transfer::types::{
    Caps, Choice, Connector, Decision, Endpoint, Estimate, Leg, LegKind, Purpose, Reason,
};

/// When everything begins.
const NOW: Millis = 1_000_000;
const GIB: u64 = 1 << 30;

fn pod(name: &str) -> Endpoint {
    Endpoint { instance: name.into(), rank: 0 }
}

/// Prefill on `p`, decode on `d`.
fn disagg(p: &str, d: &str) -> Choice {
    let leg = Leg {
        kind: LegKind::Handover,
        from: pod(p),
        to: pod(d),
        tier: Tier::Gpu,
        tokens: 8192,
        blocks: 512,
        bytes: GIB,
        pinned_bytes: GIB,
    };
    Choice {
        decision: Decision::Disagg,
        prefill: Some(pod(p)),
        decode: Some(pod(d)),
        legs: vec![leg],
        prefill_tokens: 8192,
        estimate: Estimate { prefill: Duration::from_secs(1), ..Estimate::default() },
    }
}

/// `d` pulls a prefix from `s`.
fn pull(s: &str, d: &str) -> Choice {
    let mut choice = disagg(s, d);
    choice.decision = Decision::Pull;
    choice.prefill = None;
    choice.legs[0].kind = LegKind::Pull;
    choice
}

fn record(request: &str, choice: Choice) -> Record {
    let timers = Timers::default();
    Record {
        id: TransferId::new(request, 1),
        request_id: request.into(),
        purpose: Purpose::PrefillDecode,
        tenant: "default".into(),
        model: "llama".into(),
        connector: Connector::NixlPull,
        fingerprint: 7,
        reason: Reason::Faster,
        explanation: "because".into(),
        alternatives: vec![],
        state: State::Planned,
        ended_in: None,
        attempt: 1,
        epoch: 256,
        planned_at: NOW,
        changed_at: NOW,
        deadline: timers.deadline(State::Planned, &choice, None, NOW),
        overall: timers.overall(&choice, NOW),
        lease_ends: None,
        prefill_done: false,
        stale: None,
        recovered: false,
        warned: false,
        cause: None,
        strand: None,
        prefill_answer: None,
        pass_through: None,
        choice,
    }
}

fn book() -> Book {
    Book::new(Timers::default(), Bounds::default(), Caps::default())
}

fn prefill_done() -> Event {
    Event::PrefillDone { lease: None, answer: Some("{\"remote_block_ids\":[[1]]}".into()) }
}

fn replan(because: Cause, choice: Choice) -> Event {
    let explanation: Arc<str> = "again".into();
    let reason = Reason::Faster;
    Event::Replanned(Box::new(Replan { because, choice, reason, explanation, alternatives: vec![] }))
}

/// Numbers that look random and are the same in every run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
