//! What has been asked lately, and how much of it is cached?
//!
//! For people ([`crate::serve::http`]'s page): no answer depends on it. Every query adds to three sums;
//! at most [`RATE`] of them a second are looked at more closely and stand for those that were passed over
//! in between. So the cost is bounded whatever is asked: a look hashes some 30,000 tokens at most and goes
//! over the candidates once, and never waits for somebody who reads.

mod path;
mod tree;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use kvindex::{Answer, HolderId, Prompt, Query};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

pub use path::Root;
pub use tree::{HALF_LIFE, Held, Prefix};

use path::Path;
use tree::{Bounds, Fading, Tree};

/// Queries a second that are looked at, at most.
pub const RATE: u64 = 64;
const APART_NANOS: u64 = 1_000_000_000 / RATE;

/// What has been asked lately.
#[derive(Debug)]
pub struct Traffic {
    began: Instant,
    /// When the last query was looked at, in nanoseconds since `began`, plus one; 0 = none was.
    looked: AtomicU64,
    /// Queries passed over since then.
    passed: AtomicU64,
    /// Tokens of all prompts, by hash too.
    asked_tokens: AtomicU64,
    /// Of them, what the candidate with the most has cached.
    best_tokens: AtomicU64,
    /// The same in blocks of that candidate.
    best_blocks: AtomicU64,
    /// Tokens of prompts that engines reported on, and what they had cached of them.
    reported_tokens: AtomicU64,
    reported_cached: AtomicU64,
    lately: Mutex<Lately>,
}

#[derive(Debug)]
struct Lately {
    tree: Tree,
    all: Ratio,
    holders: FxHashMap<HolderId, Ratio>,
    /// The same as the engines reported.
    reported: Ratio,
    reported_by: FxHashMap<HolderId, Ratio>,
}

/// Tokens asked for and tokens cached, faded.
#[derive(Clone, Copy, Debug, Default)]
struct Ratio {
    asked: Fading,
    cached: Fading,
}

impl Ratio {
    fn add(&mut self, asked: f64, cached: f64, now: f64) {
        self.asked.add(asked, now);
        self.cached.add(cached, now);
    }

    /// `None` where nothing was asked lately.
    fn at(self, now: f64) -> Option<f64> {
        let asked = self.asked.at(now);
        (asked >= 1.0).then(|| self.cached.at(now) / asked)
    }
}

/// What all queries since the start had in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Tokens of all prompts.
    pub asked_tokens: u64,
    /// Of them, what the candidate with the most would report as cached.
    pub best_tokens: u64,
    /// Blocks from the root that the candidate with the most holds.
    pub best_blocks: u64,
    /// Tokens of prompts whose outcome was reported with their length.
    pub reported_tokens: u64,
    /// Of them, what the engines had cached.
    pub reported_cached: u64,
}

/// How much of what was asked lately is cached.
#[derive(Clone, Debug, Default)]
pub struct Ratios {
    /// On the best candidate of each query; `None` where nothing was asked.
    pub best: Option<f64>,
    /// On each holder, as if it had got every request it was a candidate for.
    pub by_holder: FxHashMap<HolderId, f64>,
    /// What engines reported that they had.
    pub reported: Option<f64>,
    /// The same by holder.
    pub reported_by: FxHashMap<HolderId, f64>,
}

impl Default for Traffic {
    fn default() -> Self {
        Traffic {
            began: Instant::now(),
            looked: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            asked_tokens: AtomicU64::new(0),
            best_tokens: AtomicU64::new(0),
            best_blocks: AtomicU64::new(0),
            reported_tokens: AtomicU64::new(0),
            reported_cached: AtomicU64::new(0),
            lately: Mutex::new(Lately {
                tree: Tree::new(Bounds::default()),
                all: Ratio::default(),
                holders: FxHashMap::default(),
                reported: Ratio::default(),
                reported_by: FxHashMap::default(),
            }),
        }
    }
}

impl Traffic {
    /// Notes a query and its answer; returns the tokens of its prompt.
    pub fn note(&self, query: &Query<'_>, answer: &Answer, at: Instant) -> u64 {
        let block_size = answer.scores.iter().map(|s| s.block_size).find(|b| *b > 0).unwrap_or(0);
        let tokens = prompt_tokens(query, block_size);
        let best = answer.scores.iter().map(|s| s.cached_tokens).max().unwrap_or(0).min(tokens);
        let blocks = answer.scores.iter().map(|s| s.cached).max().unwrap_or(0);
        self.asked_tokens.fetch_add(tokens, Relaxed);
        self.best_tokens.fetch_add(best, Relaxed);
        self.best_blocks.fetch_add(blocks.into(), Relaxed);
        if let Some(weight) = self.turn(at) {
            self.look(query, answer, (tokens, best, block_size), weight as f64, at);
        }
        tokens
    }

    /// Whether it is time to look at a query, and for how many it stands.
    fn turn(&self, at: Instant) -> Option<u64> {
        let now = at.saturating_duration_since(self.began).as_nanos() as u64 + 1;
        let last = self.looked.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= APART_NANOS;
        if !due || self.looked.compare_exchange(last, now, Relaxed, Relaxed).is_err() {
            self.passed.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.passed.swap(0, Relaxed) + 1)
    }

    fn look(
        &self,
        query: &Query<'_>,
        answer: &Answer,
        (tokens, best, block_size): (u64, u64, u32),
        weight: f64,
        at: Instant,
    ) {
        let path = Path::of(query, block_size);
        let mut held: Vec<(HolderId, u64)> =
            answer.scores.iter().map(|s| (s.holder, u64::from(s.cached) * u64::from(s.block_size))).collect();
        held.sort_unstable_by_key(|(id, tokens)| (std::cmp::Reverse(*tokens), id.0));
        let now = self.seconds(at);
        // No query waits for somebody who is reading.
        let Some(mut lately) = self.lately.try_lock() else {
            self.passed.fetch_add(weight as u64, Relaxed);
            return;
        };
        let Lately { tree, all, holders, .. } = &mut *lately;
        tree.note(&path, weight, &held, now);
        let asked = tokens as f64 * weight;
        all.add(asked, best as f64 * weight, now);
        for score in &answer.scores {
            let cached = score.cached_tokens.min(tokens) as f64 * weight;
            holders.entry(score.holder).or_default().add(asked, cached, now);
        }
    }

    /// Sums since the start.
    pub fn sums(&self) -> Sums {
        Sums {
            asked_tokens: self.asked_tokens.load(Relaxed),
            best_tokens: self.best_tokens.load(Relaxed),
            best_blocks: self.best_blocks.load(Relaxed),
            reported_tokens: self.reported_tokens.load(Relaxed),
            reported_cached: self.reported_cached.load(Relaxed),
        }
    }

    /// Notes what an engine reported: tokens of a prompt, and of them cached.
    pub fn reported(&self, holder: HolderId, prompt: u64, cached: u64, at: Instant) {
        let (cached, now) = (cached.min(prompt), self.seconds(at));
        self.reported_tokens.fetch_add(prompt, Relaxed);
        self.reported_cached.fetch_add(cached, Relaxed);
        let mut lately = self.lately.lock();
        lately.reported.add(prompt as f64, cached as f64, now);
        lately.reported_by.entry(holder).or_default().add(prompt as f64, cached as f64, now);
    }

    /// How much of what was asked lately is cached. Forgets holders that are not `registered`.
    pub fn ratios(&self, registered: impl Fn(HolderId) -> bool, at: Instant) -> Ratios {
        let now = self.seconds(at);
        let mut lately = self.lately.lock();
        let Lately { all, holders, reported, reported_by, .. } = &mut *lately;
        let each = |of: &mut FxHashMap<HolderId, Ratio>| {
            of.retain(|id, _| registered(*id));
            of.iter().filter_map(|(id, r)| Some((*id, r.at(now)?))).collect()
        };
        Ratios {
            best: all.at(now),
            by_holder: each(holders),
            reported: reported.at(now),
            reported_by: each(reported_by),
        }
    }

    /// The prefixes asked for most, at most `limit`, and whose they are.
    pub fn hottest(&self, limit: usize, at: Instant) -> (Vec<Root>, Vec<Prefix>) {
        self.lately.lock().tree.hottest(limit, self.seconds(at))
    }

    /// Nodes of the tree of prefixes.
    pub fn nodes(&self) -> usize {
        self.lately.lock().tree.size().0
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.began).as_secs_f64()
    }
}

/// Tokens of a prompt; hashes stand for whole blocks.
fn prompt_tokens(query: &Query<'_>, block_size: u32) -> u64 {
    let by_hash = |n: usize| n as u64 * u64::from(query.block_size.filter(|b| *b > 0).unwrap_or(block_size));
    match query.prompt {
        Prompt::Tokens { tokens, .. } => tokens.len() as u64,
        Prompt::Local(hashes) => by_hash(hashes.len()),
        Prompt::Canonical(hashes) => by_hash(hashes.len()),
        Prompt::Engine(hashes) => by_hash(hashes.len()),
        Prompt::Llmd(keys) => by_hash(keys.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvindex::Score;

    use super::*;

    fn score(holder: u32, cached: u32) -> Score {
        Score {
            holder: HolderId(holder),
            block_size: 16,
            cached,
            by_tier: [cached; 5],
            cumulative: [cached; 5],
            below_ram: 0,
            weighted: f64::from(cached),
            cached_tokens: u64::from(cached) * 16,
            speculative: cached,
            mm_matched: 0,
            suspect: cached,
            partial: false,
        }
    }

    fn answer(cached: &[u32]) -> Answer {
        let scores = (0..).zip(cached).map(|(i, c)| score(i, *c)).collect();
        Answer { scores, ..Answer::default() }
    }

    #[test]
    fn sums_count_every_query_and_ratios_say_who_would_have_had_how_much() {
        let (traffic, tokens) = (Traffic::default(), vec![1; 64]);
        let query = Query::new("t", "m", Prompt::tokens(&tokens));
        let at = traffic.began + Duration::from_secs(1);
        assert_eq!(traffic.note(&query, &answer(&[2, 1]), at), 64);
        assert_eq!(traffic.note(&query, &answer(&[2, 1]), at), 64);
        let sums = traffic.sums();
        assert_eq!((sums.asked_tokens, sums.best_tokens, sums.best_blocks), (128, 64, 4));
        let ratios = traffic.ratios(|id| id.0 == 1, at);
        assert_eq!(ratios.best, Some(0.5));
        assert_eq!(ratios.by_holder.into_iter().collect::<Vec<_>>(), [(HolderId(1), 0.25)]);
    }

    #[test]
    fn queries_passed_over_are_stood_for_by_the_next_that_is_looked_at() {
        let (traffic, tokens) = (Traffic::default(), vec![1; 16]);
        let query = Query::new("t", "m", Prompt::tokens(&tokens));
        let mut at = traffic.began + Duration::from_secs(1);
        for _ in 0..1000 {
            traffic.note(&query, &answer(&[1]), at);
            at += Duration::from_millis(1);
        }
        let (roots, hot) = traffic.hottest(8, at);
        assert_eq!((roots.len(), hot.len(), hot[0].tokens), (1, 1, (0, 16)));
        assert!((hot[0].weight - 1000.0).abs() < 20.0, "{}", hot[0].weight);
    }

    #[test]
    fn what_engines_report_is_kept_apart_and_never_above_the_prompt() {
        let traffic = Traffic::default();
        let at = traffic.began;
        traffic.reported(HolderId(1), 100, 25, at);
        traffic.reported(HolderId(2), 100, 900, at);
        let ratios = traffic.ratios(|_| true, at);
        assert_eq!((ratios.reported, ratios.best), (Some(0.625), None));
        assert_eq!(ratios.reported_by[&HolderId(2)], 1.0);
        assert_eq!((traffic.sums().reported_tokens, traffic.sums().reported_cached), (200, 125));
    }

    #[test]
    fn hashes_count_as_whole_blocks() {
        let hashes = [kvproto::SeqHash(1), kvproto::SeqHash(2)];
        let query = Query::new("t", "m", Prompt::Canonical(&hashes));
        let traffic = Traffic::default();
        assert_eq!(traffic.note(&query, &answer(&[1]), traffic.began), 32);
    }
}
