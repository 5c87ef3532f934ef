//! What was said about a request, until its outcome is reported?
//!
//! Every scored request that has a name (its id, its score token) is kept with what was said of every
//! candidate. The oldest leave first when a bound is reached; a report about one that is gone is
//! answered so and counted.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvindex::HolderId;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::serve::prompt::OwnedPrompt;

/// Predictions of one name that are kept: a scheduler may ask once per role of a pod.
const PER_NAME: usize = 4;

/// What was said about one request.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Its tenant.
    pub tenant: Box<str>,
    /// Its model.
    pub model: Box<str>,
    /// Its prompt.
    pub prompt: Arc<OwnedPrompt>,
    /// A moment before the index was asked: whatever it did not know yet came later.
    pub began: Instant,
    /// What was said of each candidate.
    pub endpoints: Box<[Predicted]>,
}

/// What was said of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// Who.
    pub holder: HolderId,
    /// Cached tokens by all that the index holds.
    pub tokens: u32,
    /// Whether its publisher was live and complete: it had no more than the index knew.
    pub vouched: bool,
}

/// How a request is named. Names of other tenants and models are other names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestName<'a> {
    /// By its own id.
    Id(&'a str),
    /// By the token that its score gave.
    Token(&'a str),
}

/// What a report is compared with.
#[derive(Clone, Debug)]
pub enum Found {
    /// This prediction, and the candidate's place in it. It is not given out for that candidate again.
    Prediction(Arc<Prediction>, usize),
    /// Its outcome has been reported before.
    Reported,
    /// Nothing: never scored under this name, too long ago, or without that candidate.
    Nothing,
}

/// What may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How many predictions.
    pub count: usize,
    /// How many bytes, prompts included.
    pub bytes: usize,
    /// For how long.
    pub ttl: Duration,
}

/// Predictions by name.
pub struct Predictions {
    bounds: Bounds,
    // Keyed by the process' own randomness, so that nobody makes names collide.
    keys: [RandomState; 2],
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// In the order they were made, which is the order they expire in.
    entries: VecDeque<Entry>,
    /// Entries ever dropped: the number of the first one kept.
    dropped: u64,
    by_name: FxHashMap<u128, SmallVec<[u64; 1]>>,
    bytes: usize,
}

struct Entry {
    prediction: Arc<Prediction>,
    names: SmallVec<[u128; 2]>,
    /// Candidates whose outcome was reported.
    reported: SmallVec<[HolderId; 2]>,
    bytes: usize,
}

impl Predictions {
    /// Keeps predictions within `bounds`.
    pub fn new(bounds: Bounds) -> Predictions {
        Predictions { bounds, keys: [RandomState::new(), RandomState::new()], kept: Mutex::default() }
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.bounds.count > 0
    }

    /// Keeps `prediction` under its `names`. False where it alone is over the bounds.
    pub fn keep(&self, names: &[RequestName<'_>], prediction: Prediction) -> bool {
        let bytes = prediction.bytes();
        if names.is_empty() || !self.is_on() || bytes > self.bounds.bytes {
            return false;
        }
        let names = names.iter().map(|n| self.key(&prediction.tenant, &prediction.model, *n)).collect();
        let mut kept = self.kept.lock();
        let now = prediction.began;
        while kept.entries.len() >= self.bounds.count
            || kept.bytes + bytes > self.bounds.bytes
            || kept.oldest().is_some_and(|began| now.saturating_duration_since(began) >= self.bounds.ttl)
        {
            kept.drop_oldest();
        }
        kept.add(Entry { prediction: Arc::new(prediction), names, reported: SmallVec::new(), bytes });
        true
    }

    /// Gives out what was said under `name` about `holder`: the latest.
    pub fn take(
        &self,
        tenant: &str,
        model: &str,
        name: RequestName<'_>,
        holder: HolderId,
        now: Instant,
    ) -> Found {
        let key = self.key(tenant, model, name);
        let mut kept = self.kept.lock();
        let Some(numbers) = kept.by_name.get(&key).cloned() else { return Found::Nothing };
        let mut found = Found::Nothing;
        for number in numbers.into_iter().rev() {
            let at = (number - kept.dropped) as usize;
            let Some(entry) = kept.entries.get_mut(at) else { continue };
            if now.saturating_duration_since(entry.prediction.began) >= self.bounds.ttl {
                continue;
            }
            let Some(at) = entry.prediction.endpoints.iter().position(|e| e.holder == holder) else {
                continue;
            };
            if entry.reported.contains(&holder) {
                found = Found::Reported;
                continue;
            }
            entry.reported.push(holder);
            return Found::Prediction(Arc::clone(&entry.prediction), at);
        }
        found
    }

    /// How many are kept, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.entries.len(), kept.bytes)
    }

    fn key(&self, tenant: &str, model: &str, name: RequestName<'_>) -> u128 {
        let [high, low] = self.keys.each_ref().map(|k| k.hash_one((tenant, model, name)));
        u128::from(high) << 64 | u128::from(low)
    }
}

impl Kept {
    fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|e| e.prediction.began)
    }

    fn add(&mut self, entry: Entry) {
        let number = self.dropped + self.entries.len() as u64;
        for name in &entry.names {
            let numbers = self.by_name.entry(*name).or_default();
            if numbers.len() >= PER_NAME {
                numbers.remove(0);
            }
            numbers.push(number);
        }
        self.bytes += entry.bytes;
        self.entries.push_back(entry);
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        let number = self.dropped;
        self.dropped += 1;
        self.bytes -= entry.bytes;
        for name in &entry.names {
            if let Some(numbers) = self.by_name.get_mut(name) {
                numbers.retain(|n| *n != number);
                if numbers.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
    }
}

impl Prediction {
    fn bytes(&self) -> usize {
        // The last part is the entry and its names in the tables.
        self.prompt.bytes()
            + size_of_val(&*self.endpoints)
            + self.tenant.len()
            + self.model.len()
            + size_of::<Prediction>()
            + size_of::<Entry>()
            + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::prompt::PromptKey;

    const TTL: Duration = Duration::from_secs(60);

    fn prediction(began: Instant, tokens: usize, holders: &[u32]) -> Prediction {
        let key = PromptKey::Tokens(vec![7; tokens]);
        Prediction {
            tenant: "default".into(),
            model: "m".into(),
            prompt: Arc::new(OwnedPrompt {
                key,
                block_size: None,
                lora: None,
                cache_salt: None,
                items: vec![],
            }),
            began,
            endpoints: holders
                .iter()
                .map(|h| Predicted { holder: HolderId(*h), tokens: 10 * h, vouched: true })
                .collect(),
        }
    }

    fn bounds(count: usize, bytes: usize) -> Predictions {
        Predictions::new(Bounds { count, bytes, ttl: TTL })
    }

    fn take(p: &Predictions, name: RequestName<'_>, holder: u32, now: Instant) -> Found {
        p.take("default", "m", name, HolderId(holder), now)
    }

    #[test]
    fn what_was_said_is_found_by_every_name_and_once_for_each_candidate() {
        let (p, now) = (bounds(10, 1 << 20), Instant::now());
        let names = [RequestName::Id("r1"), RequestName::Token("t1")];
        assert!(p.keep(&names, prediction(now, 5, &[1, 2])));
        assert!(matches!(take(&p, names[1], 2, now), Found::Prediction(p, 1) if p.endpoints[1].tokens == 20));
        assert!(matches!(take(&p, names[0], 2, now), Found::Reported));
        assert!(matches!(take(&p, names[0], 1, now), Found::Prediction(_, 0)));
        assert!(matches!(take(&p, names[0], 3, now), Found::Nothing));
        assert!(matches!(take(&p, RequestName::Token("r1"), 1, now), Found::Nothing));
        assert!(matches!(p.take("other", "m", names[0], HolderId(1), now), Found::Nothing));
    }

    #[test]
    fn of_several_questions_about_one_request_the_latest_with_that_candidate_counts() {
        let (p, now) = (bounds(10, 1 << 20), Instant::now());
        let name = RequestName::Id("r");
        p.keep(&[name], prediction(now, 5, &[1]));
        p.keep(&[name], prediction(now, 6, &[1, 2]));
        p.keep(&[name], prediction(now, 7, &[3]));
        assert!(matches!(take(&p, name, 1, now), Found::Prediction(p, 0) if p.prompt.key.len() == 6));
        assert!(matches!(take(&p, name, 1, now), Found::Prediction(p, 0) if p.prompt.key.len() == 5));
        assert!(matches!(take(&p, name, 1, now), Found::Reported));
    }

    #[test]
    fn predictions_end_by_their_time() {
        let (p, now) = (bounds(10, 1 << 20), Instant::now());
        p.keep(&[RequestName::Id("a")], prediction(now, 5, &[1]));
        assert!(matches!(take(&p, RequestName::Id("a"), 1, now + TTL), Found::Nothing));
        p.keep(&[RequestName::Id("b")], prediction(now + TTL, 5, &[1]));
        assert_eq!(p.size().0, 1);
    }

    #[test]
    fn whatever_is_kept_the_bounds_hold_and_names_go_with_their_predictions() {
        let mut x = 3u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        let (p, began) = (bounds(20, 30_000), Instant::now());
        for n in 0..2000 {
            let id = format!("r{}", next(30));
            let token = format!("t{n}");
            let names = [RequestName::Id(&id), RequestName::Token(&token)];
            let now = began + Duration::from_millis(100 * n);
            let holders: Vec<u32> = (0..next(40) as u32).collect();
            p.keep(&names[..1 + next(2) as usize], prediction(now, next(2000) as usize, &holders));
            take(&p, names[0], next(40) as u32, now);
            let kept = p.kept.lock();
            assert!(kept.entries.len() <= 20 && kept.bytes <= 30_000);
            assert_eq!(kept.bytes, kept.entries.iter().map(|e| e.bytes).sum::<usize>());
            let numbers: usize = kept.by_name.values().map(SmallVec::len).sum();
            assert!(numbers <= kept.entries.iter().map(|e| e.names.len()).sum());
            let live = kept.dropped..kept.dropped + kept.entries.len() as u64;
            assert!(kept.by_name.values().flatten().all(|n| live.contains(n)));
        }
        assert!(!p.keep(&[RequestName::Id("big")], prediction(began, 10_000, &[1])));
    }
}
