//! What a router knows: what engines announced a while ago, and what it decided itself.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use kvd::ctl::simulate::cache::Change;
use kvd::ctl::simulate::workload::{BLOCK, Job};

/// How old an engine's event is when a router sees it, seconds.
pub const DELAY: f64 = 0.02;

/// What is known of one pod.
#[derive(Debug, Default)]
pub struct Seen {
    gpu: FxHashSet<u32>,
    cpu: FxHashSet<u32>,
    /// Blocks that it will have when it has computed what was sent there, and for how many requests.
    announced: FxHashMap<u32, u32>,
    /// As last asked: requests that wait, requests that run, part of the cache in use.
    pub waiting: usize,
    pub running: usize,
    pub usage: f64,
    /// From the router's own books: prompt tokens to be computed, requests sent there and not
    /// finished, blocks of those that decode there.
    pub prefill_tokens: u64,
    pub prefills: u32,
    pub active: u32,
    pub active_blocks: u64,
    /// Transfers it planned: count and bytes out and in, and bytes kept for others.
    pub egress: (u32, u64),
    pub ingress: (u32, u64),
    pub pinned: u64,
    /// Whether it prefills for others, and whether it decodes.
    pub prefills_for_others: bool,
    pub decodes: bool,
}

/// Everything a router knows.
#[derive(Debug, Default)]
pub struct View {
    pub now: f64,
    pub pods: Vec<Seen>,
    on_the_way: VecDeque<(f64, usize, bool, Change)>,
}

impl View {
    pub fn new(pods: usize, prefillers: impl Fn(usize) -> bool, decoders: impl Fn(usize) -> bool) -> View {
        let seen = |i| Seen { prefills_for_others: prefillers(i), decodes: decoders(i), ..Seen::default() };
        View { pods: (0..pods).map(seen).collect(), ..View::default() }
    }

    /// An engine announces changes of its GPU's or its host memory's blocks.
    pub fn announce(&mut self, now: f64, pod: usize, gpu: bool, changes: &mut Vec<Change>) {
        self.on_the_way.extend(changes.drain(..).map(|c| (now + DELAY, pod, gpu, c)));
    }

    /// What has arrived by `now` counts.
    pub fn until(&mut self, now: f64) {
        self.now = now;
        while let Some((at, pod, gpu, change)) = self.on_the_way.front().copied()
            && at <= now
        {
            self.on_the_way.pop_front();
            let seen = &mut self.pods[pod];
            let set = if gpu { &mut seen.gpu } else { &mut seen.cpu };
            if change.stored {
                set.insert(change.block)
            } else {
                set.remove(&change.block)
            };
        }
    }

    /// A request goes to a pod: once it is its turn, what came before is there.
    pub fn route(&mut self, pod: usize, chain: &[u32]) {
        let announced = &mut self.pods[pod].announced;
        chain.iter().for_each(|b| *announced.entry(*b).or_default() += 1);
    }

    /// That request is computed, or given up.
    pub fn forget(&mut self, pod: usize, chain: &[u32]) {
        let announced = &mut self.pods[pod].announced;
        for block in chain {
            if let Some(n) = announced.get_mut(block) {
                *n -= 1;
                if *n == 0 {
                    announced.remove(block);
                }
            }
        }
    }

    /// Blocks of a prompt that a pod's engine would find: on the GPU, in all, in host memory alone.
    pub fn held(&self, pod: usize, job: &Job) -> (usize, usize, usize) {
        let seen = &self.pods[pod];
        let chain = &job.chain;
        let gpu = chain.iter().take_while(|b| seen.gpu.contains(*b)).count();
        let soon =
            |b: &&u32| seen.gpu.contains(*b) || seen.cpu.contains(*b) || seen.announced.contains_key(*b);
        let all = gpu + chain[gpu..].iter().take_while(soon).count();
        let cpu = chain.iter().take_while(|b| seen.cpu.contains(*b)).count();
        (gpu, all, cpu)
    }

    /// Tokens that a pod would have to compute.
    pub fn lacking(&self, pod: usize, job: &Job) -> u32 {
        job.tokens - (self.held(pod, job).1 as u32 * BLOCK).min(job.tokens - 1)
    }

    /// Pods that decode; pods that prefill for others.
    pub fn decoders(&self) -> impl Iterator<Item = usize> {
        (0..self.pods.len()).filter(|i| self.pods[*i].decodes)
    }

    pub fn prefillers(&self) -> impl Iterator<Item = usize> {
        (0..self.pods.len()).filter(|i| self.pods[*i].prefills_for_others)
    }
}

/// What a router decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub compute: usize,
    pub decode: usize,
    /// Pulls up to so many blocks from another pod first.
    pub pull: Option<(usize, usize)>,
}

/// What a router is told of what came of it.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// A pod computed so many tokens after so many that it had.
    Prefilled { pod: usize, tokens: u32, cached: u32, took: f64 },
    /// Bytes went from one pod to another.
    Moved { from: usize, to: usize, bytes: u64, took: f64, sharing: u32 },
}

/// Decides where requests go.
pub trait Router {
    fn route(&mut self, view: &View, job: &Job) -> Route;
    fn told(&mut self, now: f64, told: Told);
}
