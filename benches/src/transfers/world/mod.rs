//! A cluster in which requests come, are routed by a rule, and cost what they cost.

mod moves;
mod router;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use rustc_hash::FxHashMap;

use super::net::{Net, Speeds};
use super::view::{DELAY, Route, Router, View};
use kvd::ctl::simulate::pod::{Engine, Pod, Prompt, private_blocks};
use kvd::ctl::simulate::workload::{BLOCK, Job, Workload};

/// How often a router asks engines how they are, seconds.
const SCRAPE: f64 = 0.1;
/// How long an engine keeps blocks that nobody fetches.
const LEASE: f64 = 30.0;

/// What a cluster consists of.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    pub engine: Engine,
    pub speeds: Speeds,
    /// Pods, of which every second prefills for the others, unless all do both.
    pub pods: usize,
    pub mixed: bool,
    /// Seconds before the first byte of a transfer, and of a pair's first contact.
    pub setup: f64,
    pub handshake: f64,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seconds to the first token, and per further token, of each request that was served.
    pub ttft: Vec<f64>,
    pub tpot: Vec<f64>,
    /// Bytes that went from pod to pod.
    pub moved: u64,
    /// Byte-seconds that prefill pods kept blocks for a transfer, and of those for nobody.
    pub kept: f64,
    pub stranded: f64,
    /// Tokens that were computed, and of those the ones whose cache some pod had.
    pub computed: u64,
    pub recomputed: u64,
    /// Requests by what was decided: in place, elsewhere, after a pull, elsewhere after a pull.
    pub decided: [u32; 4],
    /// Seconds that it took.
    pub lasted: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Arrive(usize),
    StepEnd(usize),
    Net(u64),
    /// A transfer's first byte goes out.
    Begin(usize),
    LeaseEnd(usize),
    Scrape,
    /// A router learns of something.
    Notice(Notice),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Notice {
    Prefilled(usize),
    Moved(usize),
    Finished(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct At(f64, u64, Event);

impl Eq for At {}
impl Ord for At {
    fn cmp(&self, other: &At) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &At) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What has become of a request.
#[derive(Clone, Debug)]
struct State {
    route: Route,
    /// As the router has it in its books.
    booked_tokens: u64,
    booked_bytes: u64,
    first: f64,
    /// When prefill was done, and what was computed after what in which time.
    ready: f64,
    prefilled: (u32, u32, f64),
    /// Blocks that the decode pod had when it took the request in.
    had: usize,
}

#[derive(Clone, Debug)]
struct Transfer {
    job: usize,
    from: usize,
    to: usize,
    bytes: u64,
    /// Blocks of the chain that it brings.
    blocks: (usize, usize),
    handover: bool,
    began: f64,
    took: f64,
    /// As the router has them in its books.
    booked: u64,
    sharing: u32,
}

struct World<'a> {
    jobs: &'a [Job],
    cluster: Cluster,
    router: &'a mut dyn Router,
    view: View,
    pods: Vec<Pod>,
    net: Net,
    events: BinaryHeap<At>,
    count: u64,
    now: f64,
    states: Vec<Option<State>>,
    transfers: Vec<Transfer>,
    /// When each pair's first contact is over.
    met: FxHashMap<(usize, usize), f64>,
    /// Handed-over requests that wait for room.
    at_the_door: Vec<VecDeque<usize>>,
    out: Outcome,
}

/// Plays `workload` with `router`.
pub fn play(workload: &Workload, cluster: Cluster, router: &mut dyn Router) -> Outcome {
    let n = cluster.pods;
    let mixed = cluster.mixed;
    let mut world = World {
        jobs: &workload.jobs,
        cluster,
        router,
        view: View::new(n, |i| mixed || i % 2 == 0, |i| mixed || i % 2 == 1),
        pods: (0..n).map(|_| Pod::new(cluster.engine)).collect(),
        net: Net::new(cluster.speeds, n),
        events: BinaryHeap::new(),
        count: 0,
        now: 0.0,
        states: vec![None; workload.jobs.len()],
        transfers: Vec::new(),
        met: FxHashMap::default(),
        at_the_door: vec![VecDeque::new(); n],
        out: Outcome::default(),
    };
    for (i, job) in workload.jobs.iter().enumerate() {
        world.at(job.at, Event::Arrive(i));
    }
    world.at(0.0, Event::Scrape);
    world.run();
    world.out
}

impl World<'_> {
    fn at(&mut self, when: f64, event: Event) {
        self.count += 1;
        self.events.push(At(when, self.count, event));
    }

    fn run(&mut self) {
        let mut open = self.jobs.len();
        while let Some(At(when, _, event)) = self.events.pop() {
            self.now = when;
            match event {
                Event::Arrive(job) => self.arrive(job),
                Event::StepEnd(pod) => self.step_end(pod),
                Event::Net(version) if version == self.net.version => {
                    for id in self.net.ended(when) {
                        self.arrived(id);
                    }
                    self.wake_net();
                }
                Event::Net(_) => {}
                Event::Begin(id) => {
                    let t = &self.transfers[id];
                    self.net.begin(when, id, t.from, t.to, t.bytes as f64);
                    self.wake_net();
                }
                Event::LeaseEnd(job) => self.release_prefill(job),
                Event::Notice(notice) => {
                    open -= usize::from(matches!(notice, Notice::Finished(_)));
                    self.notice(notice);
                }
                Event::Scrape => {
                    for (seen, pod) in self.view.pods.iter_mut().zip(&self.pods) {
                        (seen.waiting, seen.running, seen.usage) =
                            (pod.queued(), pod.running(), pod.gpu.usage());
                    }
                    if open > 0 {
                        self.at(when + SCRAPE, Event::Scrape);
                    }
                }
            }
        }
        self.out.lasted = self.now;
        assert_eq!(open, 0, "every request ends");
    }

    fn arrive(&mut self, i: usize) {
        self.view.until(self.now);
        let job = &self.jobs[i];
        let route = self.router.route(&self.view, job);
        let kind = usize::from(route.compute != route.decode) + 2 * usize::from(route.pull.is_some());
        self.out.decided[kind] += 1;
        self.book(i, route);
        let mut prompt = Prompt {
            job: i,
            tokens: job.tokens,
            done: 0,
            found: 0,
            on_gpu: 0,
            output: if route.compute == route.decode { job.output } else { 0 },
            held_up: false,
            began: 0.0,
        };
        if let Some((source, blocks)) = route.pull {
            prompt.held_up = self.pull(i, source, route.compute, blocks);
        }
        self.pods[route.compute].waiting.push_back(prompt);
        self.kick(route.compute);
    }

    fn step_end(&mut self, p: usize) {
        let ended = self.pods[p].end();
        for job in ended.joined {
            self.first_token(job);
        }
        for prompt in ended.prefilled {
            self.prefilled(p, prompt);
        }
        for job in ended.finished {
            self.finished(job);
        }
        self.announce(p);
        self.pods[p].stepping = false;
        self.kick(p);
    }

    fn prefilled(&mut self, p: usize, prompt: Prompt) {
        let i = prompt.job;
        let job = &self.jobs[i];
        // What somebody had and this pod neither had nor got.
        let had = self.pods.iter().map(|o| o.gpu.prefix(&job.chain).max(o.cpu.prefix(&job.chain)));
        let had = (had.max().unwrap_or(0) as u32 * BLOCK).min(job.tokens - 1);
        self.out.recomputed += u64::from(had.saturating_sub(prompt.found));
        let pod = &mut self.pods[p];
        let rest = &job.chain[prompt.on_gpu..];
        pod.gpu.give_back(&[], rest.len());
        pod.gpu.take(rest, 0);
        pod.cpu.take(&job.chain, 0);
        pod.cpu.give_back(&job.chain, 0);
        let computed = prompt.tokens - prompt.found;
        self.out.computed += u64::from(computed);
        let took = self.now - prompt.began;
        let now = self.now;
        let state = self.states[i].as_mut().expect("it was routed");
        state.ready = now;
        state.prefilled = (computed, prompt.found, took);
        let route = state.route;
        self.at(now + DELAY, Event::Notice(Notice::Prefilled(i)));
        if route.compute == route.decode {
            self.first_token(i);
        } else if job.gone {
            // Nobody comes for it.
            let bytes = u64::from(job.tokens) * self.cluster.engine.token_bytes;
            self.out.stranded += bytes as f64 * LEASE;
            self.at(now + LEASE, Event::LeaseEnd(i));
            self.at(now + DELAY, Event::Notice(Notice::Finished(i)));
        } else {
            self.at_the_door[route.decode].push_back(i);
            self.let_in(route.decode);
        }
    }

    fn first_token(&mut self, i: usize) {
        let now = self.now;
        self.states[i].as_mut().expect("it was routed").first = now;
        if !self.jobs[i].gone {
            self.out.ttft.push(now - self.jobs[i].at);
        }
    }

    fn finished(&mut self, i: usize) {
        let (job, state) = (&self.jobs[i], self.state(i).clone());
        if job.output > 1 && !job.gone {
            self.out.tpot.push((self.now - state.first) / f64::from(job.output - 1));
        }
        let private = private_blocks(job.tokens, job.output, &job.chain);
        self.pods[state.route.decode].gpu.give_back(&job.chain, private);
        self.at(self.now + DELAY, Event::Notice(Notice::Finished(i)));
        self.let_in(state.route.decode);
    }

    fn announce(&mut self, p: usize) {
        self.view.announce(self.now, p, true, &mut self.pods[p].gpu.changes);
        self.view.announce(self.now, p, false, &mut self.pods[p].cpu.changes);
    }

    fn kick(&mut self, p: usize) {
        if self.pods[p].stepping {
            return;
        }
        let jobs = self.jobs;
        if let Some(takes) = self.pods[p].step(self.now, |job| &jobs[job].chain) {
            self.pods[p].stepping = true;
            self.at(self.now + takes, Event::StepEnd(p));
        }
        self.announce(p);
    }

    fn state(&self, i: usize) -> &State {
        self.states[i].as_ref().expect("it was routed")
    }
}
