//! Who pulls: takes wishes, and brings blocks of other nodes to this one.
//!
//! A few threads, each with one wish at a time, so many bytes at most are on their way: a megabyte, or
//! one block, for each. A source that fails is left alone for a while; what it was wished for is
//! dropped and counted. Wishes are just that: who wants a block asks this node, which has it or not.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fetch::Fetch;
use super::frame::{MOST_MODELS, MOST_NAMES};
use super::secret::Secret;
use super::sources::Sources;
use super::wire::WireError;
use crate::node::{Lacking, Node};
use crate::slot::lock;
use crate::store::{Put, StoreKey, TOGETHER};

/// How pulling is set up.
#[derive(Clone, Debug)]
pub struct PullConfig {
    /// What sources must know, and want to hear.
    pub secret: Secret,
    /// Whether sources are asked that anybody could be: without a secret, beyond this machine.
    pub insecure: bool,
    /// Wishes under way at a time.
    pub workers: usize,
    /// Wishes that may wait.
    pub waiting: usize,
    /// How long connecting, an answer and a block may take.
    pub patience: Duration,
    /// How long a wish may take in all.
    pub longest: Duration,
    /// How long a source that failed is left alone.
    pub rest: Duration,
}

impl Default for PullConfig {
    fn default() -> PullConfig {
        PullConfig {
            secret: Secret::none(),
            insecure: false,
            workers: 4,
            waiting: 256,
            patience: Duration::from_secs(1),
            longest: Duration::from_secs(10),
            rest: Duration::from_secs(2),
        }
    }
}

/// Blocks that are said to be at a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where, `host:port`.
    pub source: String,
    /// The model, as engines and kvd call it.
    pub model: String,
    /// 64 bits of their hashes, root first.
    pub hashes: Vec<u64>,
    /// If not empty, only blocks of these names.
    pub only: HashSet<StoreKey>,
    /// How long what is here then stays in RAM, in ms; 0 = as long as the policy keeps it.
    pub stay: u64,
}

/// What a wish came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Blocks that came and were kept.
    pub blocks: u64,
    /// Blocks that were found there, and did not come or were not kept.
    pub missing: u64,
    /// Blocks that this node had no room for.
    pub refused: u64,
}

/// What a puller has done.
#[derive(Debug, Default)]
pub struct PullCounts {
    /// Blocks that came and were kept.
    pub blocks: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Blocks that were said to be at a source and did not come.
    pub missing: AtomicU64,
    /// Blocks that there was no room for.
    pub refused: AtomicU64,
    /// Wishes dropped: too many waited, or their source had just failed.
    pub dropped: AtomicU64,
    /// Sources that could not be reached, were late, or said what they should not.
    pub failed: AtomicU64,
    /// Payloads that were not what they were at their source.
    pub corrupt: AtomicU64,
}

/// Brings blocks from other nodes. Dropping it ends that.
#[derive(Debug)]
pub struct Puller {
    inner: Arc<Inner>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    node: Arc<Node>,
    config: PullConfig,
    counts: PullCounts,
    waiting: Mutex<VecDeque<(Wish, SyncSender<Pulled>)>>,
    bell: Condvar,
    closed: AtomicBool,
    /// Blocks that wishes under way have been promised room for.
    coming: Mutex<usize>,
    sources: Sources,
}

impl Puller {
    /// Starts its threads.
    ///
    /// # Errors
    ///
    /// Where the system gives none.
    pub fn start(node: Arc<Node>, config: PullConfig) -> io::Result<Puller> {
        let workers = config.workers;
        let inner = Arc::new(Inner {
            node,
            config,
            counts: PullCounts::default(),
            waiting: Mutex::default(),
            bell: Condvar::new(),
            closed: AtomicBool::new(false),
            coming: Mutex::new(0),
            sources: Sources::default(),
        });
        let mut puller = Puller { inner, workers: Vec::new() };
        for at in 0..workers {
            let inner = puller.inner.clone();
            let worker = std::thread::Builder::new().name(format!("kvtier-pull-{at}"));
            puller.workers.push(worker.spawn(move || inner.work())?);
        }
        Ok(puller)
    }

    /// Takes a wish, and says on the channel returned what it came to. `None` where too many wait or
    /// its source has just failed.
    pub fn wish(&self, wish: Wish) -> Option<Receiver<Pulled>> {
        let inner = &self.inner;
        let mut waiting = lock(&inner.waiting);
        let is_closed = inner.closed.load(Ordering::Acquire);
        if is_closed || waiting.len() >= inner.config.waiting || inner.sources.is_resting(&wish.source) {
            inner.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let (say, said) = sync_channel(1);
        waiting.push_back((wish, say));
        inner.bell.notify_one();
        Some(said)
    }

    /// What it has done.
    pub fn counts(&self) -> &PullCounts {
        &self.inner.counts
    }
}

impl Drop for Puller {
    /// What is under way ends with the block at hand.
    fn drop(&mut self) {
        self.inner.closed.store(true, Ordering::Release);
        lock(&self.inner.waiting).clear();
        self.inner.bell.notify_all();
        for worker in self.workers.drain(..) {
            // What a thread that panicked had to say was said.
            let _ = worker.join();
        }
    }
}

impl Inner {
    fn work(&self) {
        loop {
            let waiting = lock(&self.waiting);
            let idle = |waiting: &mut VecDeque<_>| waiting.is_empty() && !self.closed.load(Ordering::Acquire);
            let waiting = self.bell.wait_while(waiting, idle);
            let next = waiting.unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((wish, say)) = next else { return };
            // It may have failed while the wish was waiting.
            let pulled = match self.sources.is_resting(&wish.source) {
                true => {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                    None
                }
                false => Some(self.pull(&wish)),
            };
            if wish.stay > 0 {
                // What did not come may lie in shared storage.
                let most = u32::try_from(wish.hashes.len()).unwrap_or(u32::MAX);
                self.node.hint(&wish.model, &wish.hashes, most, wish.stay);
            }
            // Who wished may not be listening.
            let _ = pulled.map(|pulled| say.try_send(pulled));
        }
    }

    fn pull(&self, wish: &Wish) -> Pulled {
        let (mut pulled, mut coming) = (Pulled::default(), 0);
        if let Err(error) = self.fulfil(wish, &mut pulled, &mut coming) {
            self.fail(&wish.source, &error);
        }
        *lock(&self.coming) -= coming;
        self.counts.blocks.fetch_add(pulled.blocks, Ordering::Relaxed);
        self.counts.missing.fetch_add(pulled.missing, Ordering::Relaxed);
        self.counts.refused.fetch_add(pulled.refused, Ordering::Relaxed);
        pulled
    }

    fn fulfil(&self, wish: &Wish, pulled: &mut Pulled, coming: &mut usize) -> Result<(), WireError> {
        let mut models = self.node.fingerprints(&wish.model);
        models.truncate(MOST_MODELS);
        if models.is_empty() || self.node.is_draining() {
            return Ok(());
        }
        // Later, whoever was going to ask has done without.
        let wanted = if wish.stay == 0 { Duration::MAX } else { Duration::from_millis(wish.stay) };
        let until = Instant::now() + self.config.longest.min(wanted);
        let mut fetch = self.sources.connection(&wish.source, &self.config)?;
        for shorts in wish.hashes.chunks(MOST_NAMES) {
            if Instant::now() > until {
                return Err(WireError::Late);
            }
            let mut found = fetch.find(&models, shorts)?;
            found.retain(|found| wish.only.is_empty() || wish.only.contains(&found.key));
            let (lacking, refused) = {
                let mut all = lock(&self.coming);
                let (lacking, refused) = self.node.lacking(&wish.model, &found, *all);
                *all += lacking.len();
                *coming += lacking.len();
                (lacking, refused)
            };
            pulled.refused += refused as u64;
            for of_pool in lacking.chunk_by(|a, b| a.pool == b.pool) {
                for lacking in of_pool.chunks(MOST_NAMES) {
                    let before = pulled.blocks;
                    let done = self.get(&mut fetch, lacking, until, pulled);
                    pulled.missing += lacking.len() as u64 - (pulled.blocks - before);
                    done?;
                }
            }
        }
        self.sources.keep(&wish.source, fetch, self.config.workers);
        Ok(())
    }

    /// Gets blocks of one pool, and hands them on as they come.
    fn get(
        &self,
        fetch: &mut Fetch,
        lacking: &[Lacking],
        until: Instant,
        pulled: &mut Pulled,
    ) -> Result<(), WireError> {
        let Some(first) = lacking.first() else { return Ok(()) };
        let block_bytes = first.found.block_bytes as usize;
        let together = (TOGETHER / block_bytes.max(1)).clamp(1, lacking.len());
        let keys: Vec<StoreKey> = lacking.iter().map(|lacking| lacking.found.key).collect();
        let generation = fetch.get(block_bytes, &keys)?;
        let mut bytes = vec![0; together * block_bytes];
        // What follows a block that is missing would be of no use.
        let mut broken = HashSet::new();
        let mut at = 0;
        for lacking in lacking.chunks(together) {
            let mut came = Vec::new();
            let mut ended = Ok(());
            for (lacking, into) in lacking.iter().zip(bytes.chunks_mut(block_bytes)) {
                if self.closed.load(Ordering::Acquire) || Instant::now() > until {
                    ended = Err(WireError::Late);
                    break;
                }
                let key = lacking.found.key;
                match fetch.next(generation, at, &key, into) {
                    Ok(true) if !broken.contains(&(key.model, key.group)) => came.push((lacking, &*into)),
                    Ok(true) => {}
                    Ok(false) => {
                        broken.insert((key.model, key.group));
                    }
                    Err(error) => {
                        ended = Err(error);
                        break;
                    }
                }
                at += 1;
            }
            let puts: Vec<Put<'_>> = came
                .iter()
                .map(|(lacking, payload)| Put {
                    key: lacking.found.key,
                    after: lacking.found.after,
                    owner: lacking.owner,
                    payload,
                })
                .collect();
            // What came before an error was verified.
            let kept = self.node.take(first.pool, &puts) as u64;
            pulled.blocks += kept;
            self.counts.bytes.fetch_add(kept * block_bytes as u64, Ordering::Relaxed);
            ended?;
        }
        Ok(())
    }

    fn fail(&self, source: &str, error: &WireError) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        if matches!(error, WireError::Corrupt) {
            self.counts.corrupt.fetch_add(1, Ordering::Relaxed);
        }
        self.sources.leave_alone(source, self.config.rest);
    }
}
