//! Which requests come when, and how long their answers are.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustc_hash::{FxHashMap, FxHashSet};

use super::trace::Trace;

/// Tokens per block of every trace.
pub const BLOCK: u32 = 512;
/// A block that so many prompts have belongs to no one conversation.
const SHARED: u32 = 64;
/// Part of the clients that go away while their prompt is being prefilled.
pub const GONE: f64 = 0.01;

/// One request.
#[derive(Clone, Debug)]
pub struct Job {
    /// Seconds since the beginning.
    pub at: f64,
    /// Whole blocks of the prompt, each standing for itself and all before it.
    pub chain: Vec<u32>,
    /// Tokens of the prompt.
    pub tokens: u32,
    /// Tokens of the answer.
    pub output: u32,
    /// The client will not wait for the answer.
    pub gone: bool,
}

/// Requests in the order they come.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What to call it.
    pub name: String,
    /// The requests.
    pub jobs: Vec<Job>,
}

impl Workload {
    /// Reads a trace in Mooncake's format.
    pub fn read(path: &Path) -> anyhow::Result<Workload> {
        let trace = Trace::read(path)?;
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut lengths = Vec::with_capacity(trace.requests.len());
        for (n, line) in text.lines().enumerate() {
            let value: serde_json::Value = serde_json::from_str(line)?;
            let number = |key: &str| value[key].as_u64().with_context(|| format!("line {}: no {key}", n + 1));
            lengths.push((number("timestamp")?, number("input_length")?, number("output_length")?));
        }
        // As the trace itself is sorted.
        lengths.sort_by_key(|l| l.0);
        let mut dice = Dice::new(0x5eed);
        let jobs = trace.requests.iter().zip(&lengths).map(|(r, (_, input, output))| {
            let tokens = (*input).max(1) as u32;
            Job {
                at: r.at as f64 / 1e3,
                chain: r.chain[..r.chain.len().min((tokens / BLOCK) as usize)].to_vec(),
                tokens,
                output: (*output).max(1) as u32,
                gone: dice.unit() < GONE,
            }
        });
        Ok(Workload { name: trace.name.clone(), jobs: jobs.collect() })
    }

    /// The first so many, for short runs.
    pub fn first(mut self, jobs: usize) -> Workload {
        self.jobs.truncate(jobs);
        self
    }

    /// As many conversations as it takes that computing what nobody has seen before takes this part
    /// of the time of `pods` pods, one of which computes a token in `token_s` and attends as `parity`
    /// says.
    ///
    /// The trace's own pace stays: people think as long as they do. Conversations are left out, or the
    /// trace is laid over itself, shifted in time, with the prompts that many share kept shared.
    pub fn at_load(self, load: f64, pods: usize, token_s: f64, parity: f64) -> Workload {
        let begin = self.jobs.first().map_or(0.0, |j| j.at);
        let lasts = self.jobs.last().map_or(1.0, |j| j.at - begin).max(1.0);
        let times = load * pods as f64 * lasts / (self.work(parity) * token_s);
        let copies = times.ceil().max(1.0);
        let mut uses: FxHashMap<u32, u32> = FxHashMap::default();
        for block in self.jobs.iter().flat_map(|j| &j.chain) {
            *uses.entry(*block).or_default() += 1;
        }
        let blocks = uses.keys().max().map_or(0, |b| b + 1);
        let shared = |block: &u32| uses[block] > SHARED;
        let mut jobs = Vec::new();
        for copy in 0..copies as u32 {
            for job in &self.jobs {
                let own = job.chain.iter().find(|b| !shared(b)).or(job.chain.last()).copied().unwrap_or(0);
                if Dice::of(u64::from(own) << 8 | u64::from(copy)).unit() >= times / copies {
                    continue;
                }
                let mut job = job.clone();
                job.at = (job.at - begin + lasts * f64::from(copy) / copies) % lasts;
                let name = |b: &u32| if shared(b) { *b } else { *b + copy * blocks };
                job.chain = job.chain.iter().map(name).collect();
                jobs.push(job);
            }
        }
        jobs.sort_by(|a, b| a.at.total_cmp(&b.at));
        Workload { name: self.name, jobs }
    }

    /// Seconds to the first token if nobody waited for anything and everything that was ever computed
    /// were at hand at once: no way to route is below that.
    pub fn floor(&self, token_s: f64, parity: f64) -> Vec<f64> {
        let mut seen = FxHashSet::default();
        let mut floor = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            let known = job.chain.iter().take_while(|b| seen.contains(*b)).count() as u32 * BLOCK;
            let (n, known) = (f64::from(job.tokens), f64::from(known.min(job.tokens - 1)));
            if !job.gone {
                floor.push((n - known) * token_s * (1.0 + (n + known) / (2.0 * parity)));
            }
            seen.extend(job.chain.iter().copied());
        }
        floor.sort_by(f64::total_cmp);
        floor
    }

    /// Work of computing everything once, in tokens at the start of a prompt.
    fn work(&self, parity: f64) -> f64 {
        let mut seen = FxHashSet::default();
        let mut work = 0.0;
        for job in &self.jobs {
            let known = job.chain.iter().take_while(|b| seen.contains(*b)).count() as f64 * f64::from(BLOCK);
            let n = f64::from(job.tokens);
            work += (n - known) * (1.0 + (n + known) / (2.0 * parity));
            seen.extend(job.chain.iter().copied());
        }
        work
    }
}

/// Chances that fall the same way in every run: xorshift64*.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins with `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }

    /// Of something that is to fall the same way each time.
    pub fn of(what: u64) -> Dice {
        let z = (what ^ (what >> 30)).wrapping_add(0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Dice((z ^ (z >> 31)) | 1)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Around 0, mostly between -2 and 2.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}
