//! Telling kvd where requests went, off the critical path.
//!
//! A few lanes, each of which tells one thing after the other: what is told of one request stays in
//! order. A lane that is full drops, and the drop is counted.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use kvproto::rpc::kv;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::set::Shared;
use crate::{RoutingCall, ScoreError};

const LANES: usize = 4;
/// A call that nobody waits for may take longer than a question.
const DEADLINE: Duration = Duration::from_millis(100);
/// Replicas that are tried.
const TRIES: usize = 2;

/// What is told.
#[derive(Debug)]
pub(crate) enum Word {
    Routed(Box<RoutingCall>),
    Forget(String),
}

#[derive(Debug)]
pub(crate) struct Lanes(Vec<mpsc::Sender<Word>>);

impl Lanes {
    pub(crate) fn start(shared: &Arc<Shared>) -> (Lanes, Vec<JoinHandle<()>>) {
        let room = shared.settings.routing_queue.div_ceil(LANES).max(1);
        let lanes = (0..LANES).map(|_| mpsc::channel(room));
        let (senders, tasks) =
            lanes.map(|(to, from)| (to, tokio::spawn(lane(Arc::clone(shared), from)))).unzip();
        (Lanes(senders), tasks)
    }

    /// Whether there was room for it.
    pub(crate) fn tell(&self, word: Word) -> bool {
        let id = match &word {
            Word::Routed(call) => &call.wire.request_id,
            Word::Forget(id) => id,
        };
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        self.0[hasher.finish() as usize % LANES].try_send(word).is_ok()
    }
}

async fn lane(shared: Arc<Shared>, mut words: mpsc::Receiver<Word>) {
    while let Some(word) = words.recv().await {
        if let Word::Routed(call) = &word {
            shared.recall.lock().expect(super::set::SOUND).routed(&call.wire);
        }
        let told = tell(&shared, &word).await;
        let count = if told { &shared.counts.told } else { &shared.counts.untold };
        count.fetch_add(1, Relaxed);
    }
}

async fn tell(shared: &Shared, word: &Word) -> bool {
    let order = shared.board.lock().expect(super::set::SOUND).order(Instant::now());
    for address in order.into_iter().take(TRIES) {
        let Some(client) = shared.client(address) else { continue };
        let client = client.with_deadline(DEADLINE);
        let told = match word {
            Word::Routed(call) => client.record_routing((**call).clone()).await.map(drop),
            Word::Forget(id) => client.forget_routing(id).await.map(drop),
        };
        match told {
            Ok(()) => return true,
            // Another replica is worth a try only where this one is away.
            Err(ScoreError::Deadline { .. } | ScoreError::Unavailable { .. }) => {}
            Err(ScoreError::InvalidArgument { .. } | ScoreError::Refused { .. }) => return false,
        }
    }
    false
}

/// A routing with what the settings add to it.
pub(crate) fn with_ttl(mut call: RoutingCall, ttl: Option<Duration>) -> RoutingCall {
    if let (0, Some(ttl)) = (call.wire.ttl_ms, ttl) {
        call = call.ttl(ttl);
    }
    let kv::RecordRoutingRequest { prompt, block_size, .. } = &mut call.wire;
    // Only hashes need it.
    if !matches!(prompt.as_ref().and_then(|p| p.key.as_ref()), Some(kv::prompt::Key::Hashes(_))) {
        *block_size = 0;
    }
    call
}
