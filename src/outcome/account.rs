//! What is known of one publisher's answers and of what came of them?
//!
//! One per registration, in its lane: events come in on one side, outcomes on the other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kvindex::{HolderId, Named};
use kvproto::{Batch, EngineHash, Event};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::distrust::Distrust;
use super::heard::Heard;
use super::judge::{Case, Left, Verdict, judge};
use super::tally::Tally;
use super::trail::Trail;

/// Comparisons that are looked at together: so many, and none older.
pub const WINDOW: usize = 128;
const RECENT: Duration = Duration::from_secs(1800);
/// Removals remembered of one publisher: 64 KiB.
const TRAIL: usize = 8192;

/// A report beside what it was compared with. Counts are tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What came of it.
    pub verdict: Verdict,
    /// What was predicted.
    pub predicted: u64,
    /// The same question asked again when the report was judged.
    pub now: u64,
    /// What the engine reported.
    pub reported: u64,
    /// Tokens per block, as the events say; 0 = none yet.
    pub block_size: u32,
    /// Tokens of the prompt's blocks that the engine caches when it has run it.
    pub whole: u64,
    /// Tokens up to the last of them that the index holds when the report is judged.
    pub found: u64,
    /// Tokens that the engine counted in the prompt, less those it was asked about with; `None` where
    /// one of both is not known.
    pub extra_tokens: Option<i64>,
    /// How the prompt was given.
    pub asked_by: AskedBy,
    /// Whether it was asked about with a salt.
    pub salted: bool,
    /// Whether the events know the adapter it was asked about with; `None` = with none.
    pub adapter_heard: Option<bool>,
    /// Other candidates whose prediction was just what the engine reported, or to whom the prompt's blocks
    /// came that did not come here.
    pub fits: SmallVec<[HolderId; 4]>,
    /// Whether blocks of the prompt left between prediction and judgement, or may have.
    pub disturbed: bool,
}

/// How a prompt was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// As tokens: kvd cut and hashed it.
    Tokens,
    /// As hashes: the scheduler did.
    Hashes,
}

/// What a report is judged by, beside what the account knows itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// A moment before the prediction was made.
    pub began: Instant,
    /// What was predicted.
    pub predicted: u64,
    /// What is predicted now.
    pub now: u64,
    /// What the engine reported.
    pub reported: u64,
    /// See [`Case::vouched`].
    pub vouched: bool,
    /// See [`Case::lagging`].
    pub lagging: bool,
    /// The names of the prompt's blocks.
    pub names: &'a [Named],
    /// Tokens per block.
    pub block_size: u32,
}

/// A publisher's account.
#[derive(Debug)]
pub struct Account {
    inner: Mutex<Inner>,
    /// Blocks distrusted of all publishers: while there are none, scores need not look.
    all_distrusted: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Inner {
    trail: Trail,
    heard: Heard,
    distrust: Distrust,
    window: VecDeque<(Instant, Comparison)>,
    tally: Tally,
}

/// An account as it is at one moment.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    /// What was counted since the registration.
    pub tally: Tally,
    /// Blocks distrusted now.
    pub distrusted: usize,
    /// What its events say.
    pub heard: Heard,
    /// The latest comparisons, oldest first.
    pub window: Vec<Comparison>,
}

impl Account {
    /// An empty account; `all_distrusted` is shared by all of them.
    pub fn new(all_distrusted: Arc<AtomicUsize>) -> Account {
        let inner = Inner {
            trail: Trail::new(TRAIL),
            heard: Heard::default(),
            distrust: Distrust::default(),
            window: VecDeque::new(),
            tally: Tally::default(),
        };
        Account { inner: Mutex::new(inner), all_distrusted }
    }

    /// Takes in a batch whose effect is visible at `at`.
    pub fn applied(&self, batch: &Batch<'_>, at: Instant) {
        self.change(|inner| {
            inner.heard.note(batch);
            for event in batch.events() {
                match event {
                    Event::Removed(r) => inner.trail.removed(r.hashes, at),
                    Event::Cleared(_) => {
                        inner.trail.cleared(at);
                        inner.distrust.clear();
                    }
                    Event::Stored(s) if !inner.distrust.is_empty() => {
                        s.hashes.iter().for_each(|h| inner.distrust.stored(*h));
                    }
                    Event::Stored(_) => {}
                }
            }
        });
    }

    /// The engine restarted: everything it held is gone, and it may name blocks otherwise now.
    pub fn restarted(&self, at: Instant) {
        self.change(|inner| {
            inner.trail.cleared(at);
            inner.distrust.clear();
            inner.heard = Heard::default();
        });
    }

    /// Batches were lost at `at`: nothing held before is certain.
    pub fn lost(&self, at: Instant) {
        self.change(|inner| {
            inner.trail.cleared(at);
            inner.distrust.clear();
        });
    }

    /// Judges a report. Says also whether blocks of the prompt left since it was scored, or may have.
    pub fn judge(&self, facts: &Facts<'_>) -> (Verdict, bool) {
        let inner = self.inner.lock();
        let since = inner.trail.since(facts.began);
        // What the engine did not find begins where its count ends.
        let end = facts.reported.min(facts.predicted.max(facts.now));
        let first = end.checked_div(facts.block_size.into()).unwrap_or(0);
        let beyond: HashSet<EngineHash> =
            facts.names.iter().filter(|n| u64::from(n.block) >= first).map(|n| n.name).collect();
        let left = match beyond.is_empty() {
            _ if since.any_left(&beyond) => Left::Yes,
            true => Left::Nameless,
            false => Left::No,
        };
        let verdict = judge(&Case {
            predicted: facts.predicted,
            now: facts.now,
            reported: facts.reported,
            vouched: facts.vouched,
            lagging: facts.lagging,
            offload_in_doubt: inner.heard.offload_in_doubt,
            since: &since,
            left,
        });
        let disturbed = since.cleared || !since.known || left == Left::Yes || facts.lagging;
        (verdict, disturbed)
    }

    /// Enters a comparison that is judged, and takes its testimony about blocks by their `names`. Returns
    /// whether a block is newly distrusted.
    pub fn enter(&self, comparison: Comparison, names: &[Named], now: Instant) -> bool {
        self.change(|inner| {
            let found = comparison.reported.checked_div(comparison.block_size.into()).unwrap_or(0);
            let mut distrusted = false;
            for named in names.iter().filter(|n| n.held) {
                let block = u64::from(named.block);
                if block < found && !inner.distrust.is_empty() {
                    inner.distrust.testify(named.name, true, now);
                } else if block == found && comparison.verdict == Verdict::TooHigh {
                    distrusted |= inner.distrust.testify(named.name, false, now);
                }
            }
            inner.tally.add(&comparison, distrusted);
            if inner.window.len() >= WINDOW {
                inner.window.pop_front();
            }
            inner.window.push_back((now, comparison));
            distrusted
        })
    }

    /// The first of the blocks named, all held, that does not count.
    pub fn first_distrusted(&self, names: &[Named], now: Instant) -> Option<u32> {
        let inner = self.inner.lock();
        let distrusted = |n: &&Named| n.held && inner.distrust.distrusts(n.name, now);
        names.iter().filter(distrusted).map(|n| n.block).min()
    }

    /// Whether any block is distrusted.
    pub fn has_distrusted(&self) -> bool {
        self.inner.lock().distrust.distrusted() > 0
    }

    /// Whether the events know the adapter.
    pub fn knows_adapter(&self, name: &str) -> bool {
        self.inner.lock().heard.knows_adapter(name)
    }

    /// What was counted, and how many blocks are distrusted.
    pub fn tally(&self, now: Instant) -> (Tally, usize) {
        self.change(|inner| {
            inner.distrust.expire(now);
            (inner.tally.clone(), inner.distrust.distrusted())
        })
    }

    /// All of it.
    pub fn statement(&self, now: Instant) -> Statement {
        self.change(|inner| {
            inner.distrust.expire(now);
            Statement {
                tally: inner.tally.clone(),
                distrusted: inner.distrust.distrusted(),
                heard: inner.heard.clone(),
                window: inner
                    .window
                    .iter()
                    .filter(|(at, _)| now.saturating_duration_since(*at) < RECENT)
                    .map(|(_, c)| c.clone())
                    .collect(),
            }
        })
    }

    /// Keeps the count of all distrusted blocks right.
    fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let before = inner.distrust.distrusted();
        let result = change(&mut inner);
        let after = inner.distrust.distrusted();
        if after > before {
            self.all_distrusted.fetch_add(after - before, Relaxed);
        } else if after < before {
            self.all_distrusted.fetch_sub(before - after, Relaxed);
        }
        result
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.all_distrusted.fetch_sub(self.inner.get_mut().distrust.distrusted(), Relaxed);
    }
}
