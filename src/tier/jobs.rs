//! What takes a while and says how far it is: reading a disk through, copying and moving blocks.
//!
//! A job ends with the call that asked for it: who hung up does not want to know the rest. What it had
//! begun is finished all the same.

use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv;
use kvtier::node::{Node, PoolId, PoolUsage, Progress, Scrubbed};
use kvtier::policy::Tier;
use kvtier::pull::{Puller, Wish};
use kvtier::store::StoreKey;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// What a job says of itself.
pub(super) type Said<T> = ReceiverStream<Result<T, Status>>;

/// Where blocks are copied, and where they are given up then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub to: Tier,
    pub leave: Option<Tier>,
}

/// Blocks that are pulled before a job begins.
#[derive(Debug)]
pub(super) struct Pull {
    pub puller: Arc<Puller>,
    pub wish: Wish,
}

/// Longer than a wish that waits for all before it may take.
const PATIENCE: Duration = Duration::from_secs(600);

impl Pull {
    /// Waits for it. How many blocks came.
    pub fn wait(self) -> Result<u64, Status> {
        let source = self.wish.source.clone();
        let said = self.puller.wish(self.wish);
        let refused = || Status::unavailable(format!("{source} has just failed, or too many pulls wait"));
        // Dropped unsaid, it was not tried either.
        said.and_then(|said| said.recv_timeout(PATIENCE).ok()).map(|pulled| pulled.blocks).ok_or_else(refused)
    }
}

/// A tier by its name, of those that `field` may say.
pub(super) fn tier(field: &str, name: &str, may: &[Tier]) -> Result<Tier, Status> {
    let of = |tier: &Tier| match tier {
        Tier::Cpu => "cpu",
        Tier::Disk => "disk",
        Tier::Shared => "shared",
    };
    may.iter().copied().find(|tier| of(tier) == name).ok_or_else(|| {
        let names: Vec<&str> = may.iter().map(of).collect();
        Status::invalid_argument(format!("{field}: {name:?}, use {}", names.join(" or ")))
    })
}

/// Starts a job on a thread of its own: it waits for disks.
fn start<T: Send + 'static>(job: impl FnOnce(Sender<Result<T, Status>>) + Send + 'static) -> Said<T> {
    let (say, said) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || job(say));
    ReceiverStream::new(said)
}

/// Reads the disks of `pools` through.
pub(super) fn scrub(node: Arc<Node>, pools: Vec<PoolUsage>) -> Said<kv::ScrubProgress> {
    start(move |say| {
        for pool in pools {
            let progress = |seen: Scrubbed| kv::ScrubProgress {
                block_bytes: pool.block_bytes as u64,
                checked: seen.checked,
                bad: seen.bad,
                blocks: pool.policy.disk.into(),
            };
            let seen = node.scrub(pool.pool, |seen| say.blocking_send(Ok(progress(seen))).is_ok());
            if say.blocking_send(Ok(progress(seen))).is_err() {
                return;
            }
        }
    })
}

/// Copies or moves each of `chains` in each of `pools`, when what is to be pulled before is here.
pub(super) fn transfer(
    node: Arc<Node>,
    pull: Option<Pull>,
    pools: Vec<PoolId>,
    chains: Vec<Vec<StoreKey>>,
    way: Way,
) -> Said<kv::JobProgress> {
    start(move |say| {
        let pulled = match pull.map(Pull::wait).transpose() {
            Ok(pulled) => pulled.unwrap_or_default(),
            Err(status) => {
                let _ = say.blocking_send(Err(status));
                return;
            }
        };
        let progress = |p: Progress| kv::JobProgress {
            found: p.found,
            done: p.done,
            failed: p.failed,
            left: p.left,
            pulled,
        };
        let mut before = Progress::default();
        let mut last = None;
        for (pool, chain) in pools.iter().flat_map(|pool| chains.iter().map(move |chain| (*pool, chain))) {
            let ended = node.transfer(pool, chain, way.to, way.leave, |now| {
                let sum = add(before, now);
                // It is asked many times between steps; only what is new is said.
                if last.replace(sum) == Some(sum) {
                    return !say.is_closed();
                }
                say.blocking_send(Ok(progress(sum))).is_ok()
            });
            before = add(before, ended);
            if say.is_closed() {
                return;
            }
        }
        // Who hung up just now has missed nothing but this.
        let _ = say.blocking_send(Ok(progress(before)));
    })
}

fn add(a: Progress, b: Progress) -> Progress {
    Progress {
        found: a.found + b.found,
        done: a.done + b.done,
        failed: a.failed + b.failed,
        left: a.left + b.left,
    }
}
