//! What the tests of ingest share: registrations, and an engine's messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvindex::HolderId;
use kvproto::engine::Engine;
use kvproto::{Batch, Event};
use serde_json::{Value, json};

use super::cursor::Position;
use super::follow::{Follower, Limits, Profile, Request, Sink};
use super::message::Message;
use super::replay::Patience;
use super::stats::Counters;
use super::vital::Sign;
use crate::publisher::{EngineType, Freshness, Origin, PublisherSpec, PublisherState, PublisherStatus};

/// A registration of `instance` at `endpoint` and nothing else.
pub fn dialled(instance: &str, endpoint: &str) -> PublisherSpec {
    PublisherSpec { endpoint: Some(endpoint.into()), ..PublisherSpec::new(EngineType::Vllm, "m", instance) }
}

/// A publisher that stands at `state`, of which nothing was heard.
pub fn status(spec: PublisherSpec, state: PublisherState) -> PublisherStatus {
    let freshness =
        Freshness { state, complete: false, last_seq: None, last_message: None, oldest_queued: None };
    PublisherStatus {
        spec,
        origin: Origin::Client,
        holder: HolderId(0),
        freshness,
        batches: 0,
        events: 0,
        events_skipped: 0,
        gaps: 0,
        restarts: 0,
        deaths: 0,
        replays: 0,
        malformed: 0,
        dropped: 0,
        queued: 0,
        losses: 0,
        misranked: 0,
        last_error: None,
    }
}

/// Tokens per block of the engines here.
pub const BLOCK: u32 = 4;

/// A prompt of `n` blocks as [`stored`] announces them, one batch each.
pub fn prompt(n: u32) -> Vec<u32> {
    (0..n * BLOCK).collect()
}

/// The batch numbered `seq` of an engine started at `start`: block `seq` of the [`prompt`].
pub fn stored(start: f64, seq: u64) -> Vec<u8> {
    let tokens: Vec<u64> = (seq * 4..seq * 4 + 4).collect();
    let parent = if seq == 0 { Value::Null } else { json!(seq) };
    batch(start + seq as f64, json!([["BlockStored", [seq + 1], parent, tokens, BLOCK, null, "GPU"]]))
}

/// A batch that clears everything.
pub fn cleared(ts: f64) -> Vec<u8> {
    batch(ts, json!([["AllBlocksCleared"]]))
}

/// A batch of which nothing can be applied.
pub fn noise(ts: f64) -> Vec<u8> {
    batch(ts, json!([["Nonsense", 1]]))
}

fn batch(ts: f64, events: Value) -> Vec<u8> {
    rmp_serde::to_vec(&json!([ts, events, 0])).unwrap()
}

/// A live message.
pub fn live(topic: &str, seq: u64, payload: &[u8]) -> Message {
    [topic.as_bytes(), &seq.to_be_bytes(), payload].iter().collect()
}

/// An answer of a replay socket.
pub fn answer(seq: u64, payload: &[u8]) -> Message {
    [&b""[..], b"", &seq.to_be_bytes(), payload].iter().collect()
}

/// Writes down what it is told: the first hash of each batch, "none" or "clear".
#[derive(Debug, Default)]
pub struct Journal(pub Vec<String>);

impl Sink for Journal {
    fn apply(&mut self, batch: &Batch<'_>) {
        self.0.push(match batch.events().next() {
            Some(Event::Stored(s)) => {
                format!("{}@{}", s.hashes[0].0 - 1, batch.ts - (s.hashes[0].0 - 1) as f64)
            }
            Some(Event::Cleared(_)) => "cleared".into(),
            Some(Event::Removed(_)) | None => "none".into(),
        });
    }

    fn clear(&mut self) {
        self.0.push("clear".into());
    }

    fn doubt(&mut self) {
        self.0.push("doubt".into());
    }

    fn drop_doubted(&mut self) {
        self.0.push("settle".into());
    }
}

/// A follower at a desk: messages and answers are handed to it one by one.
pub struct Rig {
    /// What is tested.
    pub follower: Follower<Journal>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// What time it is.
    pub now: Instant,
    /// When the engine was started, by its clock.
    pub start: f64,
    /// The latest request.
    pub asked: Option<(u64, u64)>,
}

impl Rig {
    /// With a replay endpoint or without.
    pub fn new(replayable: bool) -> Rig {
        let mut rig = Rig::waiting(replayable);
        rig.follower.begin(rig.now);
        rig.settle();
        rig
    }

    /// One that waits for a snapshot.
    pub fn waiting(replayable: bool) -> Rig {
        let profile = Profile {
            name: "test".into(),
            engine: Engine::Vllm,
            topic: None,
            rank: 0,
            block_size: None,
            replayable,
            dialled: true,
        };
        let patience =
            Patience { timeout: Duration::from_secs(2), attempts: 3, total: Duration::from_secs(60) };
        let limits = Limits {
            patience,
            held_batches: 10,
            held_bytes: 1 << 20,
            check_after: Duration::from_secs(30),
            doubt_for: Duration::from_secs(600),
            dead_after: Duration::from_secs(30),
        };
        let counters = Arc::new(Counters::default());
        let now = Instant::now();
        let mut follower = Follower::waiting(Journal::default(), profile, limits, Arc::clone(&counters), now);
        follower.sign(Sign::Greeted, now);
        Rig { follower, counters, now, start: 100.0, asked: None }
    }

    /// The snapshot ends with batch `seq` of the engine started at `start`.
    pub fn resume(&mut self, seq: u64, start: f64) {
        let ts = Some(start + seq as f64);
        let position = Position { seq: Some(seq), ts, newest_ts: ts, complete: true, life: None };
        self.follower.resume(&position, self.now);
        self.settle();
    }

    fn settle(&mut self) {
        match self.follower.take_request() {
            Some(Request::Ask { ask, from }) => self.asked = Some((ask, from)),
            Some(Request::Close) => self.asked = None,
            None => {}
        }
    }

    /// The number asked from, if a request is open.
    pub fn asked_from(&self) -> Option<u64> {
        self.asked.map(|(_, from)| from)
    }

    /// The live socket is connected again.
    pub fn connected(&mut self) {
        self.follower.connected(self.now);
        self.settle();
    }

    /// Something tells whether the engine is there.
    pub fn sign(&mut self, sign: Sign) {
        self.follower.sign(sign, self.now);
        self.settle();
    }

    /// The live socket brings the engine's batches `seqs`.
    pub fn live(&mut self, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            self.live_raw(seq, &stored(self.start, seq));
        }
    }

    /// The live socket brings `payload`.
    pub fn live_raw(&mut self, seq: u64, payload: &[u8]) {
        self.follower.live(live("", seq, payload), self.now, self.now);
        self.settle();
    }

    /// The replay socket brings the engine's batches `seqs`, while the request stays open.
    pub fn replay(&mut self, seqs: impl IntoIterator<Item = u64>) {
        let Some((ask, _)) = self.asked else { panic!("nothing was asked for") };
        for seq in seqs {
            self.follower.answer(ask, &answer(seq, &stored(self.start, seq)), self.now);
            self.settle();
        }
    }

    /// The replay socket brings `payload`.
    pub fn replay_raw(&mut self, seq: u64, payload: &[u8]) {
        let Some((ask, _)) = self.asked else { panic!("nothing was asked for") };
        self.follower.answer(ask, &answer(seq, payload), self.now);
        self.settle();
    }

    /// The replay socket has no more.
    pub fn end(&mut self) {
        self.replay_raw(u64::MAX, b"");
    }

    /// Time passes up to the next deadline, which is acted upon.
    pub fn wait(&mut self) {
        self.now = self.now.max(self.follower.deadline().expect("something is due"));
        self.follower.timeout(self.now);
        self.settle();
    }

    /// What the index was told since this was asked last.
    pub fn told(&mut self) -> String {
        std::mem::take(&mut self.follower.sink.0).join(" ")
    }
}
