//! What a plan counts on in tiers of nodes is pinned there for as long as the transfer goes on.
//!
//! ```text
//!  plan ─▶ index: what its pods would load from their nodes ─▶ queue ─▶ `Hold` at each `kvd tier`
//!                     looked after: renewed while the transfer is live, taken back when it is over
//! ```
//!
//! Engines take no such order: what lies on their devices or in host memory of their own stays where it is as
//! long as they like. Hence a transfer is enforced if all that it counts on lies in tiers of nodes and all of
//! that is pinned. Nobody waits for a pin, and pins that are not renewed end by themselves.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvindex::HolderId;
use kvproto::rpc::kv;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::debug;

use super::Transfers;
use super::holdings::Asked;
use super::plan::PlanAsk;
use crate::nodes::{Node, Nodes, PATIENCE};
use crate::serve::Service;
use crate::transfer::ledger::{Enforcement, Record, State, TransferId};
use crate::transfer::types::LegKind;

/// Transfers whose blocks are to be pinned and that may wait.
const MAX_WAITING: usize = 1024;
/// Transfers for which blocks are pinned at a time.
const MAX_HELD: usize = 16_384;
/// Blocks pinned at one node for one transfer; of more, those from the root on.
const MAX_BLOCKS: usize = 4096;
/// How long a pin lasts unless it is renewed.
const TTL: Duration = Duration::from_secs(10);
/// Pins are looked after so often.
const EVERY: Duration = Duration::from_millis(500);

/// What one plan counts on in tiers of nodes.
#[derive(Debug)]
struct Wanted {
    transfer: TransferId,
    attempt: u32,
    /// By node.
    blocks: Vec<Blocks>,
    /// Whether it counts on nothing else.
    whole: bool,
}

#[derive(Debug)]
struct Blocks {
    /// Where the node's tiers answer, `host:port`.
    at: String,
    model: String,
    /// 64 bits of each block's hash, root first.
    hashes: Vec<u64>,
}

/// What is pinned for one transfer.
struct Held {
    attempt: u32,
    pins: Vec<(Node, kv::PinRef)>,
    /// Whether that is all that its plan counts on.
    whole: bool,
    until: Instant,
}

/// What is pinned for transfers, and what is to be.
pub(super) struct Holds {
    queue: mpsc::Sender<Wanted>,
    /// The other end, until the task that pins takes it.
    waiting: Mutex<Option<mpsc::Receiver<Wanted>>>,
    held: Mutex<FxHashMap<TransferId, Held>>,
    failed: AtomicU64,
}

impl Default for Holds {
    fn default() -> Holds {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        Holds { queue, waiting: Mutex::new(Some(waiting)), held: Mutex::default(), failed: AtomicU64::new(0) }
    }
}

impl Holds {
    /// Who keeps what `record` counts on, at `now`.
    fn enforcement(&self, record: &Record, now: u64) -> Enforcement {
        let hands_over = record.choice.legs.iter().any(|leg| leg.kind == LegKind::Handover);
        let before = match record.state {
            State::Planned | State::Prefilling => true,
            // What is handed over is the prefill engine's.
            State::Ready | State::Pulling => !hands_over,
            State::Done | State::Failed | State::Expired | State::Cancelled | State::Superseded => false,
        };
        let holds = |held: &Held| held.attempt == record.attempt && held.whole && Instant::now() < held.until;
        match before && !record.prefill_done && self.held.lock().get(&record.id).is_some_and(holds) {
            true => Enforcement::Enforced,
            false => record.enforcement(now),
        }
    }

    /// Keeps what is pinned for a transfer. What is not kept comes back: of an earlier attempt, or too much.
    fn keep(&self, transfer: TransferId, held: Held) -> Option<Held> {
        let mut all = self.held.lock();
        let room = all.len() < MAX_HELD;
        match all.entry(transfer) {
            Entry::Vacant(entry) if room => {
                entry.insert(held);
                None
            }
            Entry::Occupied(mut entry) if entry.get().attempt < held.attempt => Some(entry.insert(held)),
            Entry::Vacant(_) | Entry::Occupied(_) => Some(held),
        }
    }
}

impl Transfers {
    /// Who keeps what `record` counts on.
    pub(super) fn enforcement(&self, record: &Record) -> Enforcement {
        self.holds.enforcement(record, self.now())
    }

    /// Transfers for which blocks are pinned.
    pub(crate) fn held(&self) -> usize {
        self.holds.held.lock().len()
    }

    /// Transfers for which not all was pinned that should have been.
    pub(crate) fn holds_failed(&self) -> u64 {
        self.holds.failed.load(Ordering::Relaxed)
    }
}

impl Service {
    /// Has what `record` counts on in tiers of nodes pinned there. Does not wait.
    pub(super) fn hold(&self, ask: &PlanAsk, asked: &Asked, record: &Record) {
        let Some(transfers) = self.transfers.as_ref().filter(|_| record.live()) else { return };
        if !self.index.has_tiers(&ask.tenant, &ask.model) {
            return;
        }
        let pods: Vec<_> = asked.taking_part(record).collect();
        let engines: Vec<HolderId> = pods.iter().filter_map(|pod| pod.holder).collect();
        let within = ask.prompt.lend(|prompt| {
            let query = kvindex::Query {
                block_size: ask.prompt.block_size,
                ..kvindex::Query::new(&ask.tenant, &ask.model, prompt)
            };
            self.prepared(&query, |q| self.index.within(q, &engines, MAX_BLOCKS))
        });
        let Ok(within) = within else { return };
        let whole = pods.iter().all(|pod| {
            let found = within.iter().find(|found| Some(found.engine) == pod.holder);
            found.map_or(0, |found| found.hashes.len() as u64) * u64::from(pod.block_size)
                >= u64::from(pod.cached)
        });
        let blocks: Vec<Blocks> = within
            .into_iter()
            .filter_map(|found| {
                let at = self.publishers.spec(found.tiers)?.control_endpoint?;
                let hashes = found.hashes.into_iter().map(|hash| hash.0).collect();
                Some(Blocks { at, model: ask.model.to_string(), hashes })
            })
            .collect();
        if blocks.is_empty() {
            return;
        }
        let wanted = Wanted { transfer: record.id, attempt: record.attempt, blocks, whole };
        if transfers.holds.queue.try_send(wanted).is_err() {
            transfers.holds.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pins, renews and lets go. Never returns; one task runs it.
    pub async fn keep_holds(self: &Arc<Self>) {
        let taken =
            self.transfers.as_ref().and_then(|t| Some((Arc::clone(t), t.holds.waiting.lock().take()?)));
        let Some((transfers, mut waiting)) = taken else { return std::future::pending().await };
        let mut nodes = Nodes::new(self.tiers.clone());
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                Some(wanted) = waiting.recv() => {
                    let reached = wanted.blocks.iter().map(|blocks| nodes.at(&blocks.at)).collect();
                    match reached {
                        Ok(reached) => drop(tokio::spawn(take(Arc::clone(&transfers), wanted, reached))),
                        Err(error) => {
                            transfers.holds.failed.fetch_add(1, Ordering::Relaxed);
                            debug!(transfer = %wanted.transfer, %error, "a node cannot be told to hold blocks");
                        }
                    }
                }
                _ = tick.tick() => look_after(&transfers),
            }
        }
    }
}

/// Pins what is wanted.
async fn take(transfers: Arc<Transfers>, wanted: Wanted, nodes: Vec<Node>) {
    let Wanted { transfer, attempt, blocks, mut whole } = wanted;
    let until = Instant::now() + TTL;
    let mut pins = Vec::new();
    for (node, Blocks { at, model, hashes }) in nodes.into_iter().zip(blocks) {
        let asked = hashes.len() as u64;
        let request = kv::HoldRequest { model, hashes, ttl_ms: TTL.as_millis() as u64 };
        let mut client = node.client.clone();
        match call(&node, client.hold(request)).await {
            Ok(answer) => {
                whole &= answer.held >= asked;
                pins.extend(answer.pins.into_iter().map(|pin| (node.clone(), pin)));
            }
            Err(error) => {
                whole = false;
                debug!(%transfer, at, %error, "blocks are not held");
            }
        }
    }
    if !whole {
        transfers.holds.failed.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(left) = transfers.holds.keep(transfer, Held { attempt, pins, whole, until }) {
        let_go(left.pins).await;
    }
}

/// Renews what is still wanted and lets the rest go.
fn look_after(transfers: &Arc<Transfers>) {
    let now = Instant::now();
    let mut held = transfers.holds.held.lock();
    if held.is_empty() {
        return;
    }
    let over: Vec<TransferId> = transfers.book(|book| {
        let wanted = |id: &TransferId, held: &Held| {
            book.get(*id).is_some_and(|record| record.live() && record.attempt == held.attempt)
        };
        held.iter().filter(|(id, held)| !wanted(id, held)).map(|(id, _)| *id).collect()
    });
    for held in over.iter().filter_map(|id| held.remove(id)) {
        tokio::spawn(let_go(held.pins));
    }
    for (id, held) in held.iter_mut().filter(|(_, held)| held.until < now + TTL / 2) {
        // Renewed or not, it is not asked again before half of that is over; who could not be asked ends it.
        held.until = now + TTL;
        tokio::spawn(renew(Arc::clone(transfers), *id, held.pins.clone()));
    }
}

async fn renew(transfers: Arc<Transfers>, transfer: TransferId, pins: Vec<(Node, kv::PinRef)>) {
    for (node, pin) in pins {
        let request = kv::RenewPinRequest { pin: Some(pin), ttl_ms: TTL.as_millis() as u64 };
        let mut client = node.client.clone();
        if let Err(error) = call(&node, client.renew_pin(request)).await {
            debug!(%transfer, %error, "a pin was not renewed");
            if let Some(held) = transfers.holds.held.lock().get_mut(&transfer) {
                held.whole = false;
            }
        }
    }
}

async fn let_go(pins: Vec<(Node, kv::PinRef)>) {
    for (node, pin) in pins {
        let mut client = node.client.clone();
        // What cannot be taken back ends by itself.
        let _ = call(&node, client.unpin(kv::UnpinRequest { pin: Some(pin) })).await;
    }
}

/// One call, of which a node has a few at a time, and for none of which anybody waits long.
async fn call<T>(
    node: &Node,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let answered = tokio::time::timeout(PATIENCE, async {
        let _turn = node.calls.acquire().await.map_err(|e| Status::cancelled(e.to_string()))?;
        call.await
    });
    match answered.await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}
