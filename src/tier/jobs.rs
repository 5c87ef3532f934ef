//! What takes a while and says how far it is: reading a disk through, copying and moving blocks.
//!
//! A job ends with the call that asked for it: who hung up does not want to know the rest. What it had
//! begun is finished all the same.

use std::sync::Arc;

use kvproto::rpc::kv;
use kvtier::node::{Node, PoolId, PoolUsage, Progress, Scrubbed};
use kvtier::policy::Tier;
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

/// Copies or moves each of `chains` in each of `pools`.
pub(super) fn transfer(
    node: Arc<Node>,
    pools: Vec<PoolId>,
    chains: Vec<Vec<StoreKey>>,
    way: Way,
) -> Said<kv::JobProgress> {
    start(move |say| {
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

fn progress(p: Progress) -> kv::JobProgress {
    kv::JobProgress { found: p.found, done: p.done, failed: p.failed, left: p.left }
}
