//! A kvd node: the index, and a lane per engine that takes turns as `src/ingest/lane.rs` does, on the
//! simulation's clock.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd::ingest::pure::{
    self, Budget, Counters, Follower, Limits, Message, Patience, Position, Profile, Queue, QueueLimits,
    Request, Rules, Sink,
};
use kvd::publisher::PublisherState;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::Batch;
use kvproto::engine::Engine as Dialect;

use crate::engine::Shape;
use crate::talk::Talk;
use crate::truth::Holding;
use crate::wire::Form;

/// Messages of a turn, as in a lane.
const TURN: usize = 64;

/// Silence after which a follower asks whether it missed anything.
pub const CHECK_AFTER: Duration = Duration::from_secs(4);
/// How long what was held before a loss is remembered.
const DOUBT_FOR: Duration = Duration::from_secs(15);
/// How long a connection may be gone before the engine is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(2);
/// The longest that a repair may take.
pub const REPAIR_TOTAL: Duration = Duration::from_secs(10);

/// How much room a node has.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub queue_messages: usize,
    pub held_batches: usize,
}

/// The index as one follower sees it; remembers the time of the batch applied last.
pub struct Ear {
    index: Arc<Index>,
    holder: HolderId,
    /// Time of the last batch applied since the last clear.
    pub last: Cell<Option<f64>>,
    pub told: Told,
}

/// What the index was told, for the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub batches: u64,
    pub clears: u64,
}

impl Sink for Ear {
    fn apply(&mut self, batch: &Batch<'_>) {
        self.index.apply(self.holder, batch);
        self.last.set(Some(batch.ts));
        self.told.batches += 1;
    }

    fn clear(&mut self) {
        self.index.clear(self.holder);
        self.last.set(None);
        self.told.clears += 1;
    }

    fn doubt(&mut self) {
        self.index.doubt(self.holder);
        self.last.set(None);
        self.told.clears += 1;
    }

    fn drop_doubted(&mut self) {
        self.index.drop_suspects(self.holder);
    }
}

/// One engine as followed by one node.
pub struct Lane {
    name: String,
    pub holder: HolderId,
    pub queue: Queue,
    pub follower: Follower<Ear>,
    pub counters: Arc<Counters>,
    pub limits: QueueLimits,
    /// The replay request whose socket is open.
    pub open: Option<u64>,
    /// When its next turn is.
    pub turn_at: Option<u64>,
    /// Where its stream stood before the latest turn that applied anything.
    pub before: Position,
}

/// A running process.
pub struct Node {
    pub index: Arc<Index>,
    pub lanes: Vec<Lane>,
}

impl Node {
    /// A process that knows nothing and begins to follow engines of these shapes.
    pub fn start(shapes: &[Shape], room: Room, rules: Rules, now: Instant) -> Node {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let lanes =
            shapes.iter().enumerate().map(|(e, s)| Lane::new(e, s, &index, room, rules, now)).collect();
        Node { index, lanes }
    }

    /// What is answered about an engine, by probe.
    pub fn answers(&self, e: usize, talk: &Talk) -> Vec<Holding> {
        let lane = &self.lanes[e];
        let instances = [lane.name.as_str()];
        talk.probes
            .iter()
            .map(|p| {
                let c = &talk.conversations[p.conversation];
                let tokens = &c.tokens[..p.len];
                let prompt = Prompt::Tokens { tokens, lora: None, cache_salt: c.salt, items: &[] };
                let query = Query { instances: &instances, ..Query::new("t", "m", prompt) };
                let answer = self.index.query(&query);
                let score = answer.scores.first().expect("every engine is a candidate");
                Holding {
                    cached: score.cached,
                    device: score.by_tier[0],
                    below: score.by_tier[1],
                    tokens: score.cached_tokens,
                }
            })
            .collect()
    }

    /// Every hash held for an engine: true = below the device.
    pub fn contents(&self, e: usize) -> Vec<(u64, bool)> {
        let rows = self.index.dump(self.lanes[e].holder, None, usize::MAX);
        let mut all: Vec<_> = rows.iter().map(|r| (r.block.0, r.tier != kvproto::Tier::Gpu)).collect();
        all.sort_unstable();
        all
    }
}

impl Lane {
    fn new(e: usize, shape: &Shape, index: &Arc<Index>, room: Room, rules: Rules, now: Instant) -> Lane {
        let name = format!("engine{e}");
        let spec = HolderSpec {
            offload_chunk: shape.offload.map(|(chunk, _, _)| chunk as u32),
            ..HolderSpec::new("t", "m", &name, 0)
        };
        let holder = index.attach(spec);
        let profile = Profile {
            name: name.clone(),
            engine: Dialect::Vllm,
            topic: None,
            rank: 0,
            block_size: Some(shape.block),
            replayable: shape.ring.is_some(),
            dialled: true,
        };
        let patience = Patience { timeout: Duration::from_secs(1), attempts: 3, total: REPAIR_TOTAL };
        let limits = Limits {
            patience,
            held_batches: room.held_batches,
            held_bytes: 1 << 20,
            check_after: CHECK_AFTER,
            doubt_for: DOUBT_FOR,
            dead_after: DEAD_AFTER,
        };
        let counters = Arc::new(Counters::default());
        let ear = Ear { index: Arc::clone(index), holder, last: Cell::new(None), told: Told::default() };
        let mut follower = Follower::waiting(ear, profile, limits, Arc::clone(&counters), now);
        follower.set_rules(rules);
        let limits =
            QueueLimits { messages: room.queue_messages, bytes: 1 << 20, budget: Budget::new(16 << 20) };
        Lane {
            name,
            holder,
            queue: Queue::default(),
            follower,
            counters,
            limits,
            open: None,
            turn_at: None,
            before: Position::default(),
        }
    }

    /// A live message arrives. False where there was no room.
    pub fn push_live(&mut self, seq: u64, payload: &[u8], now: Instant) -> bool {
        let message: Message = [&b""[..], &seq.to_be_bytes(), payload].iter().collect();
        self.queue.push_live(message, now, &self.limits)
    }

    /// An answer to request `ask` arrives; `None` = no more. The frames differ between versions.
    pub fn push_answer(&mut self, ask: u64, answer: Option<(u64, &[u8])>, form: Form) {
        let (seq, payload) = answer.unwrap_or((u64::MAX, b""));
        let seq = seq.to_be_bytes();
        let message: Message = match form {
            Form::Array => [&b""[..], &seq, payload].iter().collect(),
            Form::Map => [&b""[..], b"", &seq, payload].iter().collect(),
        };
        if !self.queue.push_answer(ask, message, &self.limits) {
            // As the reader does: the socket is closed.
            self.open = None;
        }
    }

    /// Takes a turn; returns what is wanted of the replay socket.
    pub fn turn(&mut self, now: Instant) -> Vec<Request> {
        let before = self.follower.position();
        let items = self.queue.take(TURN);
        let mut requests = Vec::new();
        pure::work(&mut self.follower, items, || now, &mut requests, |_, _| {});
        pure::expire(&mut self.follower, now, &mut requests);
        pure::settle(&mut self.follower, &mut self.queue, now, &mut requests);
        if self.follower.position() != before {
            self.before = before;
        }
        requests
    }

    /// Whether answers about the engine are vouched for: exactly what it held after the batch
    /// that is said to be the last one applied.
    pub fn is_certain(&self) -> bool {
        self.follower.state() == PublisherState::Live || self.follower.is_complete()
    }
}
