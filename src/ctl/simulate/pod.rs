//! An engine, step by step: chunked prefill beside continuous batching.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::cache::Cache;
use super::workload::BLOCK;

/// How fast an engine is. The planner is not told any of it.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// Seconds per token of prefill at the start of a prompt.
    pub token_s: f64,
    /// Context at which attention costs as much as the rest.
    pub parity: f64,
    /// Seconds that a step takes at least.
    pub step_s: f64,
    /// Seconds per running request and step.
    pub running_s: f64,
    /// Seconds per token of cache that a running request reads in a step.
    pub read_s: f64,
    /// Tokens computed in a step at most.
    pub budget: u32,
    /// Blocks on the GPU.
    pub gpu: usize,
    /// Blocks in host memory.
    pub cpu: usize,
    /// Bytes per second from host memory to the GPU.
    pub load: f64,
    /// Bytes per token.
    pub token_bytes: u64,
}

/// A prompt to be computed.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Which request it is of.
    pub job: usize,
    /// Its tokens.
    pub tokens: u32,
    /// Tokens computed or found so far; set when it is admitted.
    pub done: u32,
    /// Tokens that were found.
    pub found: u32,
    /// Blocks of them on the GPU.
    pub on_gpu: usize,
    /// Tokens to decode here afterwards; 0 = it is handed over.
    pub output: u32,
    /// A pull for it is under way.
    pub held_up: bool,
    /// Seconds at which computing began.
    pub began: f64,
}

/// What a step ended with.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Prompts that are computed.
    pub prefilled: Vec<Prompt>,
    /// Requests that got their first token here by being handed over.
    pub joined: Vec<usize>,
    /// Requests whose answer is complete.
    pub finished: Vec<usize>,
}

/// One engine.
#[derive(Debug)]
pub struct Pod {
    engine: Engine,
    /// Blocks on the GPU.
    pub gpu: Cache,
    /// Blocks in host memory.
    pub cpu: Cache,
    /// Prompts that are not being computed yet, in the order they came.
    pub waiting: VecDeque<Prompt>,
    /// Being computed, with the tokens of this step.
    computing: Vec<(Prompt, u32)>,
    /// Handed over: job, tokens of the prompt and of the answer.
    joining: Vec<(usize, u32, u32)>,
    /// Of those, which get their first token with this step.
    joined: Vec<usize>,
    /// By the step that they end with: job, and tokens of cache by then.
    running: BinaryHeap<Reverse<(u64, usize, u32)>>,
    context: f64,
    steps: u64,
    /// A step is under way.
    pub stepping: bool,
    /// Seconds of prefill, for utilisation.
    pub prefill_s: f64,
}

impl Pod {
    /// An engine with nothing in its caches.
    pub fn new(engine: Engine) -> Pod {
        Pod {
            gpu: Cache::new(engine.gpu),
            cpu: Cache::new(engine.cpu),
            engine,
            waiting: VecDeque::new(),
            computing: Vec::new(),
            joining: Vec::new(),
            joined: Vec::new(),
            running: BinaryHeap::new(),
            context: 0.0,
            steps: 0,
            stepping: false,
            prefill_s: 0.0,
        }
    }

    /// Requests that decode here.
    pub fn running(&self) -> usize {
        self.running.len() + self.joining.len()
    }

    /// Requests that wait or are being computed.
    pub fn queued(&self) -> usize {
        self.waiting.len() + self.computing.len()
    }

    /// Takes in a request whose cache is here: its first token comes with the next step.
    pub fn join(&mut self, job: usize, tokens: u32, output: u32) {
        self.joining.push((job, tokens, output));
    }

    /// Begins a step; how long it takes, or `None` where there is nothing to do. `chain` gives a
    /// job's whole blocks.
    pub fn step<'j>(&mut self, now: f64, chain: impl Fn(usize) -> &'j [u32]) -> Option<f64> {
        let e = self.engine;
        let mut budget = e.budget.saturating_sub(self.running() as u32).max(1);
        let mut prefill_s = 0.0;
        for (prompt, chunk) in &mut self.computing {
            *chunk = budget.min(prompt.tokens - prompt.done);
            budget -= *chunk;
            prefill_s += compute_s(&e, prompt.done, *chunk);
        }
        while budget > 0 {
            let Some(at) = self.waiting.iter().position(|p| !p.held_up) else { break };
            let chain = chain(self.waiting[at].job);
            let private = private_blocks(self.waiting[at].tokens, self.waiting[at].output, chain);
            // A prompt that does not fit keeps those behind it waiting, too, as in vLLM.
            if !self.gpu.has_room(chain.len() + private) {
                break;
            }
            let mut prompt = self.waiting.remove(at).expect("it was found there");
            // The last token is always computed.
            let most = ((prompt.tokens - 1) / BLOCK) as usize;
            let on_gpu = self.gpu.prefix(chain).min(most);
            let found = on_gpu + self.cpu.prefix(&chain[on_gpu..]).min(most - on_gpu);
            prompt.found = found as u32 * BLOCK;
            prompt.done = prompt.found;
            prompt.began = now;
            // What is yet to be computed is nobody's to find.
            self.gpu.take(&chain[..on_gpu], private + chain.len() - on_gpu);
            prompt.on_gpu = on_gpu;
            let loaded = (found - on_gpu) as u64 * u64::from(BLOCK) * e.token_bytes;
            prefill_s += loaded as f64 / e.load;
            let chunk = budget.min(prompt.tokens - prompt.done);
            budget -= chunk;
            prefill_s += compute_s(&e, prompt.done, chunk);
            self.computing.push((prompt, chunk));
        }
        for (job, tokens, output) in self.joining.drain(..) {
            self.running.push(Reverse((self.steps + u64::from(output), job, tokens + output)));
            self.context += f64::from(tokens);
            self.joined.push(job);
        }
        if self.computing.is_empty() && self.running.is_empty() {
            return None;
        }
        self.prefill_s += prefill_s;
        let running = self.running.len() as f64;
        Some(e.step_s + prefill_s + running * e.running_s + self.context * e.read_s)
    }

    /// Ends the step that was begun last.
    pub fn end(&mut self) -> Ended {
        let mut ended = Ended::default();
        self.steps += 1;
        ended.joined = std::mem::take(&mut self.joined);
        self.context += self.running.len() as f64;
        while let Some(Reverse((step, job, tokens))) = self.running.peek().copied()
            && step <= self.steps
        {
            self.running.pop();
            self.context -= f64::from(tokens);
            ended.finished.push(job);
        }
        if self.running.is_empty() {
            self.context = 0.0;
        }
        for (mut prompt, chunk) in std::mem::take(&mut self.computing) {
            prompt.done += chunk;
            if prompt.done < prompt.tokens {
                self.computing.push((prompt, 0));
                continue;
            }
            // The prompt's last step makes the first token.
            if prompt.output > 1 {
                let end = self.steps + u64::from(prompt.output - 1);
                self.running.push(Reverse((end, prompt.job, prompt.tokens + prompt.output)));
                self.context += f64::from(prompt.tokens);
            } else if prompt.output == 1 {
                ended.finished.push(prompt.job);
            }
            ended.prefilled.push(prompt);
        }
        ended
    }
}

fn compute_s(e: &Engine, context: u32, tokens: u32) -> f64 {
    let middle = f64::from(context) + f64::from(tokens) / 2.0;
    f64::from(tokens) * e.token_s * (1.0 + middle / e.parity)
}

/// Blocks of a request that nobody can share: the last part of the prompt, and the answer.
pub fn private_blocks(tokens: u32, output: u32, chain: &[u32]) -> usize {
    ((tokens + output).div_ceil(BLOCK) as usize).saturating_sub(chain.len())
}
