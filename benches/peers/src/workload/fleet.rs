//! Engines behind a router that prefers the longest prefix: requests go in, a stream comes out.

use rustc_hash::FxHashMap;

use super::Eviction;
use super::cache::Cache;
use crate::hash::{Random, chain, content};
use crate::peer::Hit;
use crate::stream::Stream;

/// Tokens that an engine prefills, and announces, in one step.
const PREFILL_TOKENS: u32 = 8192;

/// A set of pods, one bit each.
type Pods = [u64; Fleet::MAX_PODS / 64];

/// A request that is being answered: blocks of output come one by one.
#[derive(Debug)]
struct Decode {
    pod: u32,
    last: u64,
    position: u32,
    left: u32,
}

/// The engines, and the stream so far.
#[derive(Debug)]
pub struct Fleet {
    /// What happened.
    pub stream: Stream,
    /// Decides whatever chance decides.
    pub random: Random,
    seed: u64,
    eviction: Eviction,
    caches: Vec<Cache>,
    holders: FxHashMap<u64, Pods>,
    decodes: Vec<Decode>,
    decoded: u64,
    load: Vec<f64>,
    last_used: Vec<u64>,
    served: u64,
}

/// The scores of a prompt and who has the best.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scored {
    pub hit: Hit,
    best_pod: u32,
}

impl Fleet {
    /// Pods a fleet can have.
    pub const MAX_PODS: usize = 512;

    /// `pods` empty caches of `capacity` blocks.
    pub fn new(pods: u32, capacity: usize, block_size: u32, eviction: Eviction, seed: u64) -> Fleet {
        assert!((1..=Self::MAX_PODS).contains(&(pods as usize)), "1 to {} pods", Self::MAX_PODS);
        Fleet {
            stream: Stream::new(pods, block_size),
            random: Random(seed),
            seed,
            eviction,
            caches: (0..pods).map(|_| Cache::new(capacity)).collect(),
            holders: FxHashMap::default(),
            decodes: Vec::new(),
            decoded: 0,
            load: vec![0.0; pods as usize],
            last_used: vec![0; pods as usize],
            served: 0,
        }
    }

    /// Scores by definition: the blocks from the root that a pod has without a gap.
    pub fn score(&self, sequence: &[u64]) -> Scored {
        let mut out = Scored::default();
        let mut alive = Pods::default();
        for (depth, block) in sequence.iter().enumerate() {
            let held = self.holders.get(block).copied().unwrap_or_default();
            let before = alive;
            for (i, w) in alive.iter_mut().enumerate() {
                *w = if depth == 0 { held[i] } else { *w & held[i] };
                out.hit.add_level(depth as u32, (before[i] & !*w).count_ones());
            }
            if is_empty(&alive) {
                out.best_pod = self.least_recent(&before);
                return out;
            }
        }
        for w in alive {
            out.hit.add_level(sequence.len() as u32, w.count_ones());
        }
        out.best_pod = self.least_recent(&alive);
        out
    }

    /// Of these pods the one used least recently; 0 of none.
    fn least_recent(&self, pods: &Pods) -> u32 {
        let is_in = |p: &u32| pods[*p as usize / 64] >> (p % 64) & 1 != 0;
        let pods = (0..self.caches.len() as u32).filter(is_in);
        pods.min_by_key(|p| self.last_used[*p as usize]).unwrap_or(0)
    }

    /// Where a request of `n` blocks goes: to the best score, unless that is no gain or too busy.
    pub fn route(&self, scored: &Scored, n: usize) -> u32 {
        let mean = self.load.iter().sum::<f64>() / self.load.len() as f64;
        let worth = (n / 10).max(512 / self.stream.block_size as usize + 1) as u32;
        let best = scored.best_pod;
        if scored.hit.best >= worth && self.load[best as usize] <= 3.0 * mean + n as f64 {
            return best;
        }
        let idle = |p: &u32| (self.load[*p as usize] as u64, self.last_used[*p as usize]);
        (0..self.caches.len() as u32).min_by_key(idle).unwrap_or(0)
    }

    /// Notes that `pod` has a block; `store` writes the event.
    pub fn hold(&mut self, block: u64, pod: u32) {
        self.holders.entry(block).or_default()[pod as usize / 64] |= 1 << (pod % 64);
    }

    /// Notes that `pod` has a block no more.
    pub fn unhold(&mut self, block: u64, pod: u32) {
        if let Some(held) = self.holders.get_mut(&block) {
            held[pod as usize / 64] &= !(1 << (pod % 64));
            if is_empty(held) {
                self.holders.remove(&block);
            }
        }
    }

    fn evicted(&mut self, blocks: &[u64], pod: u32) {
        for block in blocks {
            self.unhold(*block, pod);
        }
        self.stream.remove(pod, blocks);
    }

    /// Writes that `pod` stored the prompt's blocks `range`.
    pub fn store(&mut self, pod: u32, locals: &[u64], sequence: &[u64], range: std::ops::Range<usize>) {
        let parent = range.start.checked_sub(1).map(|i| sequence[i]);
        let blocks = range.clone().map(|i| [locals[i], sequence[i]]);
        self.stream.store(pod, parent, range.start as u32, blocks);
        for block in &sequence[range] {
            self.hold(*block, pod);
        }
    }

    /// Serves one request: evictions, then stores in prefill steps; `decode` blocks of output are
    /// to come.
    pub fn serve(&mut self, pod: u32, locals: &[u64], sequence: &[u64], decode: u32) {
        self.served += 1;
        self.last_used[pod as usize] = self.served;
        self.load.iter_mut().for_each(|l| *l *= 0.995);
        self.load[pod as usize] += sequence.len() as f64;

        let cache = &mut self.caches[pod as usize];
        assert!(sequence.len() + 64 < cache.capacity, "the cache is smaller than a request");
        let hit = sequence.iter().take_while(|s| cache.place(**s).is_some()).count();
        let held: Vec<_> = sequence.iter().filter_map(|s| cache.place(*s)).collect();
        held.iter().for_each(|&at| cache.pin(at));
        let gone = cache.make_room(sequence.len() - held.len());
        let place = |s: &u64| cache.place(*s).unwrap_or_else(|| cache.insert(*s));
        let places: Vec<_> = sequence.iter().map(place).collect();
        match self.eviction {
            Eviction::Tail => places.iter().rev().for_each(|&at| cache.make_newest(at)),
            Eviction::Head => places.iter().for_each(|&at| cache.make_newest(at)),
        }
        self.evicted(&gone, pod);

        // From the first block that is missing on everything is computed and stored anew, also
        // what is still there further down.
        let step = (PREFILL_TOKENS / self.stream.block_size).max(1) as usize;
        for from in (hit..sequence.len()).step_by(step) {
            self.store(pod, locals, sequence, from..sequence.len().min(from + step));
        }
        if decode > 0
            && let Some(&last) = sequence.last()
        {
            self.decodes.push(Decode { pod, last, position: sequence.len() as u32, left: decode });
        }
    }

    /// Lets the latest running requests decode `n` blocks between them, an event each.
    pub fn decode(&mut self, n: usize) {
        for _ in 0..n {
            if self.decodes.is_empty() {
                return;
            }
            let back = self.random.below(self.decodes.len().min(64));
            let k = self.decodes.len() - 1 - back;
            if !self.decode_one(k) {
                self.decodes.swap_remove(k);
            }
        }
    }

    /// Decodes one block of request `k`; false where it ends.
    fn decode_one(&mut self, k: usize) -> bool {
        let Decode { pod, last, position, left } = self.decodes[k];
        let cache = &mut self.caches[pod as usize];
        let Some(parent) = cache.place(last) else { return false };
        self.decoded += 1;
        let local = content(self.seed, 0xDEC0_DE00_0000_0000, self.decoded);
        let block = chain(last, local);
        let at = cache.insert(block);
        match self.eviction {
            Eviction::Tail => cache.make_older_than(at, parent),
            Eviction::Head => cache.make_newest(at),
        }
        let mut gone = cache.make_room(0);
        // In a cache full of hotter blocks the new one may be the first to go: it never had a place.
        let no_place = gone.contains(&block);
        let lost = no_place || gone.contains(&last);
        gone.retain(|b| *b != block);
        if lost && !no_place {
            cache.remove(block);
        }
        self.evicted(&gone, pod);
        if lost {
            return false;
        }
        self.stream.store(pod, Some(last), position, std::iter::once([local, block]));
        self.hold(block, pod);
        self.decodes[k] = Decode { pod, last: block, position: position + 1, left: left - 1 };
        left > 1
    }
}

fn is_empty(pods: &Pods) -> bool {
    pods.iter().all(|w| *w == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::sequence_hashes;
    use crate::stream::{Change, Next};

    #[test]
    fn a_score_ends_at_the_first_block_that_is_missing() {
        let locals = [1, 2, 3];
        let sequence = sequence_hashes(&locals);
        let mut f = Fleet::new(70, 1000, 16, Eviction::Tail, 1);
        f.store(69, &locals, &sequence, 0..3);
        f.store(2, &locals, &sequence, 0..3);
        f.unhold(sequence[1], 2);
        let scored = f.score(&sequence);
        assert_eq!(scored.hit, Hit { best: 3, pods: 2, sum: 4 });
        assert_eq!(scored.best_pod, 69);
    }

    #[test]
    fn heads_that_were_evicted_are_stored_anew_over_what_is_left() {
        let prompts: Vec<Vec<u64>> = (0..4).map(|t| (0..40).map(|k| content(7, t, k)).collect()).collect();
        let mut f = Fleet::new(1, 110, 16, Eviction::Head, 1);
        for p in prompts.iter().chain(&prompts[1..2]) {
            f.serve(0, p, &sequence_hashes(p), 0);
        }
        let first = sequence_hashes(&prompts[1]);
        let last_store = f.stream.iter().filter_map(|n| match n {
            Next::Change(Change::Stored { position, blocks, .. }) => Some((position, blocks.len())),
            Next::Change(Change::Removed { .. } | Change::Cleared { .. }) | Next::Ask(_) => None,
        });
        assert_eq!(last_store.last(), Some((0, 40)));
        assert_eq!(f.score(&first).hit.best, 40);
    }
}
