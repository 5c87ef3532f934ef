//! The rules that are compared. Those that look at prefixes weigh them against load alike; they differ in what
//! they know of caches.

use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{EngineHash, Tier};
use rustc_hash::FxHashMap;
use scorer_client::PrefixMemory;

use super::cache::Change;
use super::cluster::{Load, Rule, Setup};
use super::workload::{Dice, Job};

/// What prefixes are weighed against: weights of the queue's and the cache's load in llm-d's guides.
const QUEUE: f64 = 2.0;
const USAGE: f64 = 2.0;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    /// Any pod, by chance.
    Random,
    /// The pod with the shortest queue and the emptiest cache.
    LeastLoad,
    /// Each scheduler remembers where it routed prompts that begin alike, as llm-d's approximate producer does.
    Approximate,
    /// kvd's index, which follows the engines' events.
    Exact,
    /// The same, and schedulers tell it where they route.
    Announced,
}

impl Who {
    /// Those that do not look at prefixes.
    pub const BLIND: [Who; 2] = [Who::Random, Who::LeastLoad];
    /// Those that do, by a weight.
    pub const SEEING: [Who; 3] = [Who::Approximate, Who::Exact, Who::Announced];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Who::Random => "random",
            Who::LeastLoad => "least load",
            Who::Approximate => "approximate prefix",
            Who::Exact => "kvd",
            Who::Announced => "kvd, routings announced",
        }
    }

    /// The rule, with a prefix that counts `weight`.
    pub fn rule(self, setup: &Setup, weight: f64, jobs: &[Job]) -> Box<dyn Rule> {
        match self {
            Who::Random => Box::new(Random(Dice::new(11))),
            Who::LeastLoad => Box::new(LeastLoad),
            Who::Approximate => {
                // As large as the caches really are, which llm-d's producer can read from the engines.
                let memory = || PrefixMemory::new(setup.engine.gpu + setup.engine.cpu);
                Box::new(Approximate { weight, memories: (0..setup.schedulers).map(|_| memory()).collect() })
            }
            Who::Exact => Box::new(Exact::new(setup, weight, false, jobs)),
            Who::Announced => Box::new(Exact::new(setup, weight, true, jobs)),
        }
    }
}

struct Random(Dice);

impl Rule for Random {
    fn route(&mut self, _: f64, _: usize, load: &Load, _: &Job) -> usize {
        let pods = load.requests.len();
        ((self.0.unit() * pods as f64) as usize).min(pods - 1)
    }

    fn heard(&mut self, _: usize, _: bool, _: &[Change]) {}
}

struct LeastLoad;

impl Rule for LeastLoad {
    fn route(&mut self, _: f64, _: usize, load: &Load, job: &Job) -> usize {
        choose(0.0, load, job, |_| 0.0)
    }

    fn heard(&mut self, _: usize, _: bool, _: &[Change]) {}
}

struct Approximate {
    weight: f64,
    memories: Vec<PrefixMemory<usize>>,
}

impl Rule for Approximate {
    fn route(&mut self, _: f64, scheduler: usize, load: &Load, job: &Job) -> usize {
        let chain: Vec<u64> = job.chain.iter().map(|b| u64::from(*b)).collect();
        let memory = &mut self.memories[scheduler];
        let pod = choose(self.weight, load, job, |pod| memory.depth(&pod, &chain) as f64);
        memory.note(&pod, &chain);
        pod
    }

    fn heard(&mut self, _: usize, _: bool, _: &[Change]) {}
}

const TENANT: &str = "default";
const MODEL: &str = "m";
/// Said with every question: of a pod that has stored nothing yet the index knows no size.
const BLOCK: Option<u32> = Some(1);

/// The index itself. A block of the trace is one token to it: all that it looks at is which blocks are alike.
struct Exact {
    weight: f64,
    announce: bool,
    /// How long an announced routing counts, ms.
    ttl: u64,
    index: Index,
    pods: Vec<HolderId>,
    /// The block before each.
    parents: FxHashMap<u32, u32>,
    requests: u64,
}

impl Exact {
    fn new(setup: &Setup, weight: f64, announce: bool, jobs: &[Job]) -> Exact {
        let index = Index::new(IndexConfig { max_speculative: usize::MAX, ..IndexConfig::default() });
        let attach = |i| index.attach(HolderSpec::new(TENANT, MODEL, &format!("pod{i}"), 0));
        let pods = (0..setup.pods).map(attach).collect();
        let pairs = jobs.iter().flat_map(|j| j.chain.windows(2).map(|w| (w[1], w[0])));
        let ttl = (setup.announced_for * 1e3) as u64;
        Exact { weight, announce, ttl, pods, index, parents: pairs.collect(), requests: 0 }
    }
}

impl Rule for Exact {
    fn route(&mut self, now: f64, _: usize, load: &Load, job: &Job) -> usize {
        let now = (now * 1e3) as u64;
        self.index.expire(now);
        // The last block is never asked for alone: a token more makes all of the chain count.
        let tokens: Vec<u32> = job.chain.iter().map(|b| b + 1).chain([0]).collect();
        let query = Query {
            speculative: self.announce,
            block_size: BLOCK,
            ..Query::new(TENANT, MODEL, kvindex::Prompt::tokens(&tokens))
        };
        let answer = self.index.query(&query);
        let depth = |pod: usize| {
            let holder = self.pods[pod];
            let of = answer.scores.iter().find(|s| s.holder == holder);
            of.map_or(
                0.0,
                |s| if self.announce { s.weighted.max(f64::from(s.speculative)) } else { s.weighted },
            )
        };
        let pod = choose(self.weight, load, job, depth);
        if self.announce {
            self.requests += 1;
            let name = self.requests.to_string();
            let prompt = kvindex::Prompt::tokens(&tokens[..job.chain.len()]);
            let whole = Query { block_size: BLOCK, ..Query::new(TENANT, MODEL, prompt) };
            self.index.announce(&name, &whole, &[self.pods[pod]], now + self.ttl);
        }
        pod
    }

    fn heard(&mut self, pod: usize, on_gpu: bool, changes: &[Change]) {
        let name = |block: u32| EngineHash(u64::from(block) + 1);
        let tier = if on_gpu { Tier::Gpu } else { Tier::Cpu };
        let mut batch = BatchBuilder::new(0.0, None);
        for change in changes {
            if change.stored {
                let parent = self.parents.get(&change.block).map(|p| name(*p));
                let fields = StoredFields { block_size: 1, parent, tier, ..StoredFields::default() };
                batch.stored(fields, &[name(change.block)], &[change.block + 1], &[]);
            } else {
                batch.removed(&[name(change.block)], tier, 0);
            }
        }
        self.index.apply(self.pods[pod], &batch.build());
    }
}

/// The pod with the best sum of prefix, short queue and free cache; of those that are as good, the one with
/// the fewest requests, then one that differs from prompt to prompt.
fn choose(weight: f64, load: &Load, job: &Job, depth: impl Fn(usize) -> f64) -> usize {
    let total = job.chain.len().max(1) as f64;
    let (least, most) = load.requests.iter().fold((usize::MAX, 0), |(l, m), n| (l.min(*n), m.max(*n)));
    let queue = |pod: usize| match most - least {
        0 => 1.0,
        range => (most - load.requests[pod]) as f64 / range as f64,
    };
    let score =
        |pod: usize| weight * depth(pod) / total + QUEUE * queue(pod) + USAGE * (1.0 - load.usage[pod]);
    let pods = load.requests.len();
    let turn = job.chain.last().copied().unwrap_or(job.tokens) as usize;
    let each = (0..pods).map(|i| (i + turn) % pods).map(|pod| (pod, score(pod)));
    let best = each.reduce(|a, b| {
        let better = b.1 > a.1 || (b.1 == a.1 && load.requests[b.0] < load.requests[a.0]);
        if better { b } else { a }
    });
    best.expect("there are pods").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::simulate::DEFAULT_ENGINE;

    const SETUP: Setup =
        Setup { engine: DEFAULT_ENGINE, pods: 3, schedulers: 2, delay: 0.0, announced_for: 2.0 };

    fn job(chain: &[u32]) -> Job {
        Job { at: 0.0, chain: chain.to_vec(), tokens: 512 * chain.len() as u32 + 1, output: 1, gone: false }
    }

    fn idle() -> Load {
        Load { requests: vec![1; 3], usage: vec![0.5; 3] }
    }

    #[test]
    fn a_scheduler_that_remembers_knows_its_own_routings_and_nothing_else() {
        let jobs = [job(&[1, 2, 3])];
        let mut rule = Who::Approximate.rule(&SETUP, 3.0, &jobs);
        let first = rule.route(0.0, 0, &idle(), &jobs[0]);
        let mut busy = idle();
        busy.requests[first] = 2;
        assert_eq!(rule.route(0.0, 0, &busy, &jobs[0]), first);
        assert_ne!(rule.route(0.0, 1, &busy, &jobs[0]), first);
    }

    #[test]
    fn the_index_knows_what_was_told_and_forgets_what_was_removed() {
        let jobs = [job(&[1, 2, 3])];
        let mut rule = Who::Exact.rule(&SETUP, 3.0, &jobs);
        let change = |block, stored| Change { block, stored };
        let mut busy = idle();
        busy.requests[2] = 2;
        assert_ne!(rule.route(0.0, 0, &busy, &jobs[0]), 2);
        rule.heard(2, true, &[change(1, true), change(2, true), change(3, true)]);
        assert_eq!(rule.route(0.0, 1, &busy, &jobs[0]), 2);
        rule.heard(2, true, &[change(3, false), change(2, false), change(1, false)]);
        assert_ne!(rule.route(0.0, 0, &busy, &jobs[0]), 2);
    }

    #[test]
    fn what_is_announced_counts_for_every_scheduler_until_its_time_is_over() {
        let jobs = [job(&[1, 2, 3])];
        let mut rule = Who::Announced.rule(&SETUP, 3.0, &jobs);
        // Announcements count where anything was stored before.
        (0..3).for_each(|pod| rule.heard(pod, true, &[Change { block: 99, stored: true }]));
        let first = rule.route(0.0, 0, &idle(), &jobs[0]);
        let mut busy = idle();
        busy.requests[first] = 2;
        assert_eq!(rule.route(1.0, 1, &busy, &jobs[0]), first);
        assert_ne!(rule.route(10.0, 1, &busy, &jobs[0]), first);
    }

    #[test]
    fn without_prefixes_the_pod_with_the_least_load_is_chosen() {
        let load = Load { requests: vec![3, 1, 2], usage: vec![0.5; 3] };
        assert_eq!(Who::LeastLoad.rule(&SETUP, 0.0, &[]).route(0.0, 0, &load, &job(&[1])), 1);
    }
}
