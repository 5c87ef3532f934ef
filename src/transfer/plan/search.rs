//! Which way costs least?
//!
//! First what it takes each pod to have the whole prompt, alone or after a pull ([`Stage`]): for a
//! pod that decodes that is a whole way already. Then every pair of a pod that prefills and one that
//! decodes, the most promising prefillers first, until none can come among the best three.

use std::time::Duration;

use super::board::{Board, Seat};
use super::policy::Policy;
use crate::transfer::cost::{CostBook, Geometry, LinkCost};
use crate::transfer::types::{Distance, Purpose, Question};

/// A prefix that is pulled before prefill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pull {
    pub from: usize,
    /// Tokens from the start that are there afterwards.
    pub to_token: u32,
    pub bytes: u64,
    pub setup_s: f64,
    pub bytes_s: f64,
    pub failures: f64,
}

/// What it takes one pod to have the whole prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stage {
    pub pod: usize,
    pub pull: Option<Pull>,
    /// Seconds until it is done.
    pub done_s: f64,
    /// Seconds of computing in it.
    pub prefill_s: f64,
    /// The same with what it costs others and what may go wrong.
    pub cost_s: f64,
}

/// A handover of a finished prefill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Handover {
    pub to: usize,
    pub bytes: u64,
    pub setup_s: f64,
    pub bytes_s: f64,
    pub failures: f64,
}

/// One way to serve the prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Way {
    pub stage: Stage,
    pub handover: Option<Handover>,
    /// Seconds that are waited for room on the decode pod, as far as nothing else hides them.
    pub room_s: f64,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// The same with what it costs others and what may go wrong: what ways are compared by.
    pub cost_s: f64,
}

impl Way {
    /// Whether bytes move between pods.
    pub fn moves(&self) -> bool {
        self.handover.is_some() || self.stage.pull.is_some()
    }

    pub fn decode(&self) -> usize {
        self.handover.map_or(self.stage.pod, |h| h.to)
    }
}

/// What the search came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// At most three ways, each computed on another pod, the best first.
    pub ways: Vec<Way>,
    /// The best way that moves nothing.
    pub local: Option<Way>,
    /// The least cost that a limit, or a constraint of the caller's, stood in the way of.
    pub at_limit_s: Option<f64>,
    pub constrained_s: Option<f64>,
}

/// Memory that is used again for the next question.
#[derive(Default, Debug)]
pub(super) struct Scratch {
    stages: Vec<Stage>,
    sources: Vec<usize>,
    found: Found,
}

pub(super) struct Search<'a> {
    pub q: &'a Question,
    pub board: &'a Board,
    pub geometry: &'a Geometry,
    pub book: &'a CostBook,
    pub policy: &'a Policy,
    /// Whether anything may move at all.
    pub may_move: bool,
}

/// Why something may not be done.
enum Bar {
    Limit,
    Constraint,
}

impl Search<'_> {
    pub fn run<'s>(&self, scratch: &'s mut Scratch) -> &'s Found {
        let Scratch { stages, sources, found } = scratch;
        found.ways.clear();
        *found = Found { ways: std::mem::take(&mut found.ways), ..Found::default() };
        let seats = &self.board.seats;
        sources.clear();
        sources.extend((0..seats.len()).filter(|i| self.may_move && seats[*i].sources));
        sources.sort_by_key(|i| std::cmp::Reverse(seats[*i].offer));

        let decodes = |i: usize| self.q.decode.map_or(seats[i].decodes, |d| d == i);
        let hands_over = self.may_move && self.q.purpose == Purpose::PrefillDecode;
        let most = self.q.constraints.max_bytes.unwrap_or(u64::MAX);
        let lacking = |i: usize| self.geometry.bytes(seats[i].hit, self.q.prompt_tokens);
        let least_handed_over = (0..seats.len()).filter(|i| decodes(*i)).map(lacking).min().unwrap_or(0);
        stages.clear();
        for (i, seat) in seats.iter().enumerate() {
            let prefills = hands_over && seat.prefills;
            if !prefills && !decodes(i) {
                continue;
            }
            let alone = self.alone(i);
            let stage = self.with_pull(i, alone, sources, most, found);
            if decodes(i) {
                for s in [Some(alone), stage].into_iter().flatten() {
                    let way = self.in_place(s);
                    if !way.moves() && found.local.is_none_or(|l| way.cost_s < l.cost_s) {
                        found.local = Some(way);
                    }
                    enter(&mut found.ways, way);
                }
            }
            if prefills {
                // Both: the pull may be what rules a handover out. Where the request says how much
                // may move, the handover takes its part.
                match self.q.constraints.max_bytes {
                    None => stages.extend(stage),
                    Some(_) => {
                        let rest = most.saturating_sub(least_handed_over);
                        stages.extend(self.with_pull(i, alone, sources, rest, found));
                    }
                }
                stages.push(alone);
            }
        }
        stages.sort_by(|a, b| a.cost_s.total_cmp(&b.cost_s));
        for stage in stages.iter() {
            // Later ones are not better even if handing over were free.
            if stage.cost_s >= bound(&found.ways) {
                break;
            }
            for to in (0..seats.len()).filter(|i| decodes(*i) && *i != stage.pod) {
                self.hand_over(stage, to, found);
            }
        }
        found
    }

    /// The most that can be brought to `to`, whether or not computing it would be faster: for
    /// moves that nobody waits for.
    pub fn farthest(&self, to: usize) -> (Option<Way>, bool) {
        let seats = &self.board.seats;
        let (mut best, mut barred): (Option<Way>, bool) = (None, false);
        let alone = self.alone(to);
        for s in (0..seats.len()).filter(|s| *s != to && seats[*s].sources) {
            let source = &seats[s];
            let least = seats[to].hit.saturating_add(self.policy.min_pull_tokens.max(1));
            if source.offer < least || !self.board.compatible(s, to) {
                continue;
            }
            let pull = self.pull(s, to);
            let bar = self.barred(s, to, pull.bytes, pull.bytes).or_else(|| self.too_many(pull.bytes));
            if bar.is_some() {
                barred = true;
                continue;
            }
            let pull_s = pull.setup_s + pull.bytes_s;
            let better = |b: Way| {
                let p = b.stage.pull.expect("every way here pulls");
                (pull.to_token, -pull_s) > (p.to_token, -b.cost_s)
            };
            if best.is_none_or(better) {
                let stage =
                    Stage { pull: Some(pull), done_s: pull_s, prefill_s: 0.0, cost_s: pull_s, ..alone };
                best = Some(Way { stage, handover: None, room_s: 0.0, ttft_s: pull_s, cost_s: pull_s });
            }
        }
        (best, barred)
    }

    /// Whether anyone has more than `to` that it could pull.
    pub fn anything_to_pull(&self, to: usize) -> bool {
        let least = self.board.seats[to].hit.saturating_add(self.policy.min_pull_tokens.max(1));
        let mut seats = self.board.seats.iter().enumerate();
        seats.any(|(s, seat)| s != to && seat.sources && seat.offer >= least && self.board.compatible(s, to))
    }

    /// What `to` lacks of what `from` offers, on its way.
    fn pull(&self, from: usize, to: usize) -> Pull {
        let (source, seat) = (&self.board.seats[from], &self.board.seats[to]);
        let bytes = self.geometry.bytes(seat.hit, source.offer);
        let link = self.book.link(source.id, seat.id, self.board.distance(from, to));
        Pull {
            from,
            to_token: source.offer,
            bytes,
            setup_s: link.setup_s,
            bytes_s: transfer_s(bytes, source, seat, link),
            failures: link.failures,
        }
    }

    /// The pod computes what it lacks.
    fn alone(&self, i: usize) -> Stage {
        let seat = &self.board.seats[i];
        let prefill_s = self.prefill_s(seat, seat.hit);
        let done_s = seat.queue_s + seat.load_s + prefill_s;
        Stage { pod: i, pull: None, done_s, prefill_s, cost_s: done_s + seat.price * prefill_s + seat.keep_s }
    }

    /// The pod pulls a prefix of at most so many bytes first, if that costs less than `alone`.
    fn with_pull(
        &self,
        i: usize,
        alone: Stage,
        sources: &[usize],
        most: u64,
        found: &mut Found,
    ) -> Option<Stage> {
        let seat = &self.board.seats[i];
        let mut best: Option<Stage> = None;
        for s in sources.iter().copied() {
            let source = &self.board.seats[s];
            if source.offer < seat.hit.saturating_add(self.policy.min_pull_tokens.max(1)) {
                break;
            }
            if s == i || !self.board.compatible(s, i) {
                continue;
            }
            let prefill_s = self.prefill_s(seat, source.offer);
            let least = seat.queue_s.max(seat.load_s) + prefill_s * (1.0 + seat.price) + seat.keep_s;
            let limit = best.map_or(alone.cost_s, |b| b.cost_s);
            if least >= limit {
                // Later sources have less to offer, so there is more to compute.
                break;
            }
            let pull = self.pull(s, i);
            let pull_s = pull.setup_s + pull.bytes_s;
            // The pull goes on while the request waits, and so does loading from below.
            let done_s = seat.queue_s.max(pull_s).max(seat.load_s) + prefill_s;
            let saved_s = alone.prefill_s - prefill_s;
            let failure_s = self.policy.failure.as_secs_f64() + saved_s;
            let risk_s = self.policy.margin * pull_s + pull.failures * failure_s;
            let cost_s = done_s + seat.price * prefill_s + seat.keep_s + risk_s;
            if cost_s >= limit {
                continue;
            }
            let too_many = (pull.bytes > most).then_some(Bar::Constraint);
            if let Some(bar) = self.barred(s, i, pull.bytes, pull.bytes).or(too_many) {
                found.note(bar, cost_s);
                continue;
            }
            best = Some(Stage { pod: i, pull: Some(pull), done_s, prefill_s, cost_s });
        }
        best
    }

    /// The pod that has the prompt decodes as well.
    fn in_place(&self, stage: Stage) -> Way {
        let seat = &self.board.seats[stage.pod];
        // Room is waited for before computing begins.
        let room_s = (seat.room_s - (stage.done_s - stage.prefill_s)).max(0.0);
        let (ttft_s, cost_s) = (stage.done_s + room_s, stage.cost_s + room_s + seat.seat_s);
        Way { stage, handover: None, room_s, ttft_s, cost_s }
    }

    /// What the pod of `stage` has computed goes to `to`.
    fn hand_over(&self, stage: &Stage, to: usize, found: &mut Found) {
        let (from, seat) = (&self.board.seats[stage.pod], &self.board.seats[to]);
        let pulled = stage.pull.map_or(0, |p| p.bytes);
        if stage.cost_s + seat.seat_s + seat.keep_s >= bound(&found.ways) {
            return;
        }
        if !self.board.compatible(stage.pod, to) {
            return;
        }
        let bytes = self.geometry.bytes(seat.hit, self.q.prompt_tokens);
        let link = self.book.link(from.id, seat.id, self.board.distance(stage.pod, to));
        let bytes_s = transfer_s(bytes, from, seat, link);
        let moving_s = link.setup_s + bytes_s;
        let redo_s = self.prefill_s(seat, seat.hit);
        let risk_s =
            self.policy.margin * moving_s + link.failures * (self.policy.failure.as_secs_f64() + redo_s);
        let room_s = (seat.room_s - stage.done_s).max(0.0);
        let others_s = seat.seat_s + seat.keep_s;
        let cost_s = stage.cost_s + room_s + moving_s + seat.load_s + risk_s + others_s;
        if cost_s >= bound(&found.ways) {
            return;
        }
        let pinned = self.geometry.bytes(0, self.q.prompt_tokens);
        let bar = match from.full_prefill {
            true => Some(Bar::Limit),
            false => self.barred(stage.pod, to, bytes, pinned),
        };
        let bar = bar.or_else(|| self.too_many(bytes.saturating_add(pulled)));
        let bar = bar.or_else(|| stage.pull.and_then(|p| self.too_far(p.from, to)));
        if let Some(bar) = bar {
            found.note(bar, cost_s);
            return;
        }
        let handover = Handover { to, bytes, setup_s: link.setup_s, bytes_s, failures: link.failures };
        let ttft_s = stage.done_s + room_s + moving_s + seat.load_s;
        enter(&mut found.ways, Way { stage: *stage, handover: Some(handover), room_s, ttft_s, cost_s });
    }

    /// What keeps `bytes` from going from one pod to another, if anything does.
    fn barred(&self, from: usize, to: usize, bytes: u64, pinned: u64) -> Option<Bar> {
        let (src, dst) = (&self.board.seats[from], &self.board.seats[to]);
        if src.avoided {
            return Some(Bar::Constraint);
        }
        let full = src.full_source || dst.full_destination || pinned > src.pin_room;
        if full || !self.board.link_has_room(from, to, bytes) {
            return Some(Bar::Limit);
        }
        self.too_far(from, to)
    }

    fn too_many(&self, bytes: u64) -> Option<Bar> {
        self.q.constraints.max_bytes.is_some_and(|most| bytes > most).then_some(Bar::Constraint)
    }

    fn too_far(&self, a: usize, b: usize) -> Option<Bar> {
        let within = self.q.constraints.within.unwrap_or(Distance::Far);
        (a != b && self.board.distance(a, b) > within).then_some(Bar::Constraint)
    }

    /// Seconds to compute what comes after the first `from` tokens.
    fn prefill_s(&self, seat: &Seat, from: u32) -> f64 {
        seat.overhead_s + seat.token_s * self.geometry.work(from, self.q.prompt_tokens)
    }
}

impl Found {
    fn note(&mut self, bar: Bar, cost_s: f64) {
        let least = match bar {
            Bar::Limit => &mut self.at_limit_s,
            Bar::Constraint => &mut self.constrained_s,
        };
        *least = Some(least.map_or(cost_s, |l| l.min(cost_s)));
    }
}

/// Seconds that `bytes` take beside what is under way at either end.
///
/// Transfers share a port evenly. Of one under way only so much gets in the way as is left of it,
/// and never more than goes here: by then this one is through.
fn transfer_s(bytes: u64, from: &Seat, to: &Seat, link: LinkCost) -> f64 {
    let beside = |flow: crate::transfer::types::Flow| {
        flow.bytes.min(u64::from(flow.transfers).saturating_mul(bytes)) as f64
    };
    (bytes as f64 + beside(from.egress).max(beside(to.ingress))) / link.bytes_per_s
}

/// What a way must cost less than to be among the best three.
fn bound(ways: &[Way]) -> f64 {
    if ways.len() < 3 { f64::INFINITY } else { ways[2].cost_s }
}

/// Takes `way` among the best three, of which each computes on another pod.
fn enter(ways: &mut Vec<Way>, way: Way) {
    if let Some(same) = ways.iter().position(|w| w.stage.pod == way.stage.pod) {
        if ways[same].cost_s <= way.cost_s {
            return;
        }
        ways.remove(same);
    }
    let at = ways.partition_point(|w| w.cost_s <= way.cost_s);
    ways.insert(at, way);
    ways.truncate(3);
}

/// Seconds as a duration, for estimates.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
