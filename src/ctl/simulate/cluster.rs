//! Pods that requests come to, one after the other, by the word of one or several schedulers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::cache::Change;
use super::pod::{Engine, Pod, Prompt, private_blocks};
use super::workload::Job;

/// How often a scheduler asks engines how they are, seconds.
const SCRAPE: f64 = 0.1;

/// What requests meet.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How fast an engine is, and what it has room for.
    pub engine: Engine,
    /// Engines, each in a pod of its own.
    pub pods: usize,
    /// Schedulers, which take turns and do not talk to each other.
    pub schedulers: usize,
    /// Seconds from a change of a cache until who follows its events knows of it.
    pub delay: f64,
    /// Seconds that a routing counts which a scheduler told kvd of.
    pub announced_for: f64,
}

/// What a scheduler knows of the load of pods: how they were when it last asked, and what it sent since.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Requests that wait or run, and those sent there since.
    pub requests: Vec<usize>,
    /// Part of the cache that is in use.
    pub usage: Vec<f64>,
}

/// Decides where requests go.
pub trait Rule {
    /// The pod for a request that comes to `scheduler` now.
    fn route(&mut self, now: f64, scheduler: usize, load: &Load, job: &Job) -> usize;
    /// Blocks came to, or left, the cache of a pod; those on its GPU, or those in host memory.
    fn heard(&mut self, pod: usize, on_gpu: bool, changes: &[Change]);
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Seconds to the first token, sorted.
    pub ttft: Vec<f64>,
    /// Tokens of all prompts, and of those the ones that were found in a cache.
    pub tokens: u64,
    /// See `tokens`.
    pub found: u64,
    /// Requests at the busiest pod as a multiple of the mean, averaged over the moments at which
    /// requests came.
    pub imbalance: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    StepEnd(usize),
    Scrape,
}

/// Seconds since the beginning, in the order of their time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64, u64);

impl Eq for At {}
impl Ord for At {
    fn cmp(&self, other: &At) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &At) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Cluster<'a> {
    jobs: &'a [Job],
    setup: Setup,
    rule: &'a mut dyn Rule,
    pods: Vec<Pod>,
    /// By scheduler.
    loads: Vec<Load>,
    events: BinaryHeap<Reverse<(At, Event)>>,
    count: u64,
    now: f64,
    /// Changes that nobody knows of yet.
    told: VecDeque<(f64, usize, bool, Vec<Change>)>,
    pod_of: Vec<usize>,
    imbalances: (f64, u32),
    out: Played,
}

/// Whether an engine could serve a request at all.
pub fn fits(engine: &Engine, job: &Job) -> bool {
    job.chain.len() + private_blocks(job.tokens, job.output, &job.chain) <= engine.gpu
}

/// Plays `jobs`, all of which must fit, by a rule.
pub fn play(jobs: &[Job], setup: Setup, rule: &mut dyn Rule) -> Played {
    let nothing = Load { requests: vec![0; setup.pods], usage: vec![0.0; setup.pods] };
    let mut cluster = Cluster {
        jobs,
        setup,
        rule,
        pods: (0..setup.pods).map(|_| Pod::new(setup.engine)).collect(),
        loads: vec![nothing; setup.schedulers],
        events: BinaryHeap::new(),
        count: 0,
        now: 0.0,
        told: VecDeque::new(),
        pod_of: vec![0; jobs.len()],
        imbalances: (0.0, 0),
        out: Played::default(),
    };
    for (i, job) in jobs.iter().enumerate() {
        cluster.at(job.at, Event::Arrive(i));
    }
    cluster.at(0.0, Event::Scrape);
    cluster.run();
    let (sum, n) = cluster.imbalances;
    let mut out = cluster.out;
    out.imbalance = if n == 0 { 1.0 } else { sum / f64::from(n) };
    out.ttft.sort_by(f64::total_cmp);
    out
}

impl Cluster<'_> {
    fn at(&mut self, when: f64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((At(when, self.count), event)));
    }

    fn run(&mut self) {
        while let Some(Reverse((At(now, _), event))) = self.events.pop() {
            self.now = now;
            match event {
                Event::Arrive(job) => self.arrive(job),
                Event::StepEnd(pod) => self.step_end(pod),
                Event::Scrape => {
                    for load in &mut self.loads {
                        load.requests = self.pods.iter().map(|p| p.queued() + p.running()).collect();
                        load.usage = self.pods.iter().map(|p| p.gpu.usage()).collect();
                    }
                    if !self.events.is_empty() {
                        self.at(now + SCRAPE, Event::Scrape);
                    }
                }
            }
        }
        assert_eq!(self.out.ttft.len(), self.jobs.len(), "every request that fits is served");
    }

    fn arrive(&mut self, i: usize) {
        while self.told.front().is_some_and(|(at, ..)| *at <= self.now) {
            let (_, pod, on_gpu, changes) = self.told.pop_front().expect("it was looked at");
            self.rule.heard(pod, on_gpu, &changes);
        }
        let queues = self.pods.iter().map(|p| p.queued() + p.running());
        let (most, all) = queues.fold((0, 0), |(most, all), n| (n.max(most), all + n));
        // Of fewer requests than pods some pod has twice as many as the mean however they are spread.
        if all >= self.pods.len() {
            self.imbalances.0 += (most * self.pods.len()) as f64 / all as f64;
            self.imbalances.1 += 1;
        }
        let scheduler = i % self.loads.len();
        let job = &self.jobs[i];
        let pod = self.rule.route(self.now, scheduler, &self.loads[scheduler], job);
        self.loads[scheduler].requests[pod] += 1;
        self.pod_of[i] = pod;
        self.pods[pod].waiting.push_back(Prompt {
            job: i,
            tokens: job.tokens,
            done: 0,
            found: 0,
            on_gpu: 0,
            output: job.output,
            held_up: false,
            began: 0.0,
        });
        self.kick(pod);
    }

    fn step_end(&mut self, p: usize) {
        let ended = self.pods[p].end();
        for prompt in ended.prefilled {
            let job = &self.jobs[prompt.job];
            let pod = &mut self.pods[p];
            let rest = &job.chain[prompt.on_gpu..];
            pod.gpu.give_back(&[], rest.len());
            pod.gpu.take(rest, 0);
            pod.cpu.take(&job.chain, 0);
            pod.cpu.give_back(&job.chain, 0);
            self.out.ttft.push(self.now - job.at);
            self.out.tokens += u64::from(prompt.tokens);
            self.out.found += u64::from(prompt.found);
        }
        for i in ended.finished {
            let job = &self.jobs[i];
            let private = private_blocks(job.tokens, job.output, &job.chain);
            self.pods[p].gpu.give_back(&job.chain, private);
        }
        self.pods[p].stepping = false;
        self.kick(p);
    }

    fn kick(&mut self, p: usize) {
        if !self.pods[p].stepping {
            let jobs = self.jobs;
            if let Some(takes) = self.pods[p].step(self.now, |job| &jobs[job].chain) {
                self.pods[p].stepping = true;
                self.at(self.now + takes, Event::StepEnd(p));
            }
        }
        let known = self.now + self.setup.delay;
        let pod = &mut self.pods[p];
        for (on_gpu, changes) in [(true, &mut pod.gpu.changes), (false, &mut pod.cpu.changes)] {
            if !changes.is_empty() {
                self.told.push_back((known, p, on_gpu, std::mem::take(changes)));
            }
        }
    }
}
