//! An engine: requests come in, steps go by, and what they do to the cache is published.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::pool::{Offload, Pool};
use crate::rng::{Rng, mix};
use crate::talk::Talk;
use crate::truth::{self, Holding};
use crate::wire::{self, Form, Said};

/// What kind of engine it is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Tokens per block.
    pub block: u32,
    /// Tokens that a second group of layers looks back at, where there is one.
    pub window: Option<u32>,
    /// Group number of the full-attention layers.
    pub full_group: u32,
    /// Physical blocks.
    pub blocks: usize,
    /// Chunk, room in chunks, and whether events describe the blocks.
    pub offload: Option<(usize, usize, bool)>,
    /// Engines of one seed call blocks alike.
    pub hash_seed: u64,
    pub form: Form,
    /// Batches kept for replay; `None` where there is no replay endpoint.
    pub ring: Option<usize>,
    /// Whether answers get lost in the middle, as up to vLLM 0.32.
    pub lossy_replay: bool,
}

/// One published batch.
#[derive(Clone, Debug)]
pub struct Published {
    pub seq: u64,
    pub payload: Rc<[u8]>,
}

/// What an engine held after a batch.
#[derive(Clone, Debug)]
pub struct Moment {
    pub life: u32,
    pub seq: u64,
    /// By probe.
    pub holding: Rc<[Holding]>,
}

#[derive(Debug)]
struct Request {
    conversation: usize,
    prompt: usize,
    /// Tokens when it is done.
    end: usize,
    /// Tokens whose keys and values are there.
    computed: usize,
    /// By group: its blocks in order, `None` where the window has passed.
    blocks: Vec<Vec<Option<usize>>>,
    /// Blocks announced.
    cached: usize,
}

/// A copy to the tier below that is under way: blocks `from..to` of a conversation.
#[derive(Debug)]
struct Copying {
    conversation: usize,
    from: usize,
    to: usize,
}

pub struct Engine {
    pub shape: Shape,
    /// How slow it is. Of slow ones one life's numbers often fit another's.
    pub pace: u64,
    pub up: bool,
    pub life: u32,
    /// Number of the next batch.
    pub seq: u64,
    pub ring: VecDeque<Published>,
    pub pool: Pool,
    pub offload: Option<Offload>,
    talk: Rc<Talk>,
    /// By conversation: the engine's hashes of its blocks.
    hashes: Vec<Vec<u64>>,
    waiting: VecDeque<Request>,
    running: Vec<Request>,
    copying: Vec<Copying>,
    /// By the time of the batch, which no two batches share.
    moments: HashMap<u64, Moment>,
    /// What is held after the latest batch.
    pub latest: Rc<[Holding]>,
    rng: Rng,
}

impl Engine {
    pub fn new(shape: Shape, talk: Rc<Talk>, mut rng: Rng) -> Engine {
        let hashes = talk
            .conversations
            .iter()
            .map(|c| {
                let salt = c.salt.map_or(0, |_| 77);
                let mut h = mix(shape.hash_seed ^ mix(u64::from(shape.block))) ^ salt;
                c.tokens
                    .chunks_exact(shape.block as usize)
                    .map(|block| {
                        h = block.iter().fold(h, |h, t| mix(h.rotate_left(5) ^ u64::from(*t) ^ 0xA5A5));
                        h
                    })
                    .collect()
            })
            .collect();
        let nothing: Rc<[Holding]> = vec![Holding::default(); talk.probes.len()].into();
        let (pool, offload) = empty(&shape);
        Engine {
            shape,
            pace: rng.pick(&[1, 1, 5]),
            up: true,
            life: 0,
            seq: 0,
            ring: VecDeque::new(),
            pool,
            offload,
            talk,
            hashes,
            waiting: VecDeque::new(),
            running: Vec::new(),
            copying: Vec::new(),
            moments: HashMap::new(),
            latest: nothing,
            rng,
        }
    }

    /// The engine's process ends.
    pub fn stop(&mut self) {
        self.up = false;
    }

    /// It comes up again, knowing nothing.
    pub fn start(&mut self) {
        self.up = true;
        self.life += 1;
        self.seq = 0;
        self.ring.clear();
        (self.pool, self.offload) = empty(&self.shape);
        self.waiting.clear();
        self.running.clear();
        self.copying.clear();
        self.latest = vec![Holding::default(); self.talk.probes.len()].into();
    }

    /// A request comes in.
    pub fn ask(&mut self) {
        let conversation = self.rng.below(self.talk.conversations.len() as u64) as usize;
        let len = self.talk.conversations[conversation].tokens.len() as u64;
        // Often a whole number of blocks, so that the last one is computed and stored again.
        let mut prompt = self.rng.between(2, len) as usize;
        if self.rng.one_in(3) {
            prompt = (prompt / self.shape.block as usize).max(1) * self.shape.block as usize;
        }
        let end = (prompt + self.rng.below(9) as usize).min(len as usize);
        let groups = 1 + usize::from(self.shape.window.is_some());
        self.waiting.push_back(Request {
            conversation,
            prompt,
            end,
            computed: 0,
            blocks: vec![Vec::new(); groups],
            cached: 0,
        });
    }

    /// Whether a step would do anything.
    pub fn is_busy(&self) -> bool {
        self.up && !(self.waiting.is_empty() && self.running.is_empty() && self.copying.is_empty())
    }

    /// Empties the cache, as `/reset_prefix_cache` does; requests under way are dropped. What that
    /// says is published with the next step that has something to do.
    pub fn reset(&mut self) {
        for request in std::mem::take(&mut self.running) {
            self.release(&request);
        }
        self.copying.clear();
        self.pool.reset();
        if let Some(offload) = &mut self.offload {
            offload.reset();
        }
    }

    /// One step. What it has to say is published at `ts`.
    pub fn step(&mut self, ts: f64) -> Option<Published> {
        self.copy();
        while self.running.len() < 2 {
            let Some(mut request) = self.waiting.pop_front() else { break };
            self.admit(&mut request);
            self.running.push(request);
        }
        let mut i = 0;
        while i < self.running.len() {
            let mut request = self.running.swap_remove(i);
            let (fits, budget) = (request.end, self.rng.between(1, 12) as usize);
            let moved = self.advance(&mut request, budget);
            if !moved || request.computed == fits {
                // Done, or no room for it: its blocks are free, but keep what is in them.
                self.release(&request);
            } else {
                self.running.insert(i, request);
                i += 1;
            }
        }
        self.publish(ts)
    }

    fn publish(&mut self, ts: f64) -> Option<Published> {
        if self.pool.said.is_empty() {
            return None;
        }
        let said = std::mem::take(&mut self.pool.said);
        let published =
            Published { seq: self.seq, payload: wire::payload(ts, &said, self.shape.form).into() };
        self.seq += 1;
        if let Some(room) = self.shape.ring {
            if self.ring.len() == room {
                self.ring.pop_front();
            }
            self.ring.push_back(published.clone());
        }
        self.latest = self.holding();
        let moment = Moment { life: self.life, seq: published.seq, holding: self.latest.clone() };
        let twice = self.moments.insert(ts.to_bits(), moment);
        assert!(twice.is_none(), "two batches at {ts}");
        Some(published)
    }

    /// What was held after the batch made at `ts`.
    pub fn moment(&self, ts: f64) -> Option<&Moment> {
        self.moments.get(&ts.to_bits())
    }

    /// Every hash held, with its tier: true = below the device.
    pub fn contents(&self) -> Vec<(u64, bool)> {
        let device = self.pool.contents().map(|(_, h)| (h, false));
        let mut all: Vec<_> =
            device.chain(self.offload.iter().flat_map(Offload::contents).map(|h| (h, true))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn holding(&self) -> Rc<[Holding]> {
        let found: Vec<Vec<truth::Found>> = self.hashes.iter().map(|h| self.find(h)).collect();
        let probes = self.talk.probes.iter();
        probes.map(|p| Holding::of(&found[p.conversation], p.len, &self.shape)).collect()
    }

    fn find(&self, hashes: &[u64]) -> Vec<truth::Found> {
        let full = self.shape.full_group;
        hashes
            .iter()
            .map(|&h| truth::Found {
                full: self.pool.has(full, h),
                window: self.shape.window.is_some() && self.pool.has(1 - full, h),
                below: self.offload.as_ref().is_some_and(|o| o.has(h)),
            })
            .collect()
    }

    /// Groups in their order: number and window.
    fn groups(&self) -> Vec<(u32, Option<u32>)> {
        let mut all = vec![(self.shape.full_group, None)];
        all.extend(self.shape.window.map(|w| (1 - self.shape.full_group, Some(w))));
        all.sort_unstable_by_key(|g| g.0);
        all
    }

    /// Takes what the cache has of a request's prompt.
    fn admit(&mut self, request: &mut Request) {
        let found = self.find(&self.hashes[request.conversation]);
        let hit = truth::device_hit(&found, request.prompt, &self.shape);
        let (blocks, block) = (hit / self.shape.block as usize, self.shape.block);
        for (i, (group, window)) in self.groups().into_iter().enumerate() {
            let from = window.map_or(0, |w| blocks.saturating_sub(truth::window_blocks(w, block)));
            for b in 0..blocks {
                let hash = self.hashes[request.conversation][b];
                let id = (b >= from).then(|| self.pool.touch(group, hash).expect("the hit says it is there"));
                request.blocks[i].push(id);
            }
        }
        request.computed = hit;
        request.cached = blocks;
        if let Some(offload) = &mut self.offload {
            for chunk in self.hashes[request.conversation].chunks_exact(offload.chunk) {
                offload.touch(chunk[offload.chunk - 1]);
            }
        }
    }

    /// Computes up to `budget` tokens. False where there is no room.
    fn advance(&mut self, request: &mut Request, budget: usize) -> bool {
        let block = self.shape.block as usize;
        let limit = if request.computed < request.prompt { request.prompt } else { request.end };
        let target = (request.computed + budget).min(limit);
        let groups = self.groups();
        for (i, (_, window)) in groups.iter().enumerate() {
            let Some(window) = window else { continue };
            let passed = (request.computed + 1).saturating_sub(*window as usize) / block;
            let gone: Vec<usize> =
                request.blocks[i].iter_mut().take(passed).filter_map(Option::take).collect();
            self.pool.release(gone.into_iter().rev());
        }
        let wanted = target.div_ceil(block);
        let missing: usize = request.blocks.iter().map(|b| wanted - b.len()).sum();
        if self.pool.free() < missing {
            return false;
        }
        for (i, (_, window)) in groups.iter().enumerate() {
            // Of a stretch longer than the window only its end is kept.
            let from = window.map_or(0, |w| (target + 1).saturating_sub(w as usize) / block);
            for b in request.blocks[i].len()..wanted {
                let id = (b >= from).then(|| self.pool.take().expect("there is room, as just counted"));
                request.blocks[i].push(id);
            }
        }
        let full = target / block;
        if full > request.cached {
            for (i, (group, window)) in groups.iter().enumerate() {
                self.announce(request, i, *group, *window, full);
            }
            self.plan_copies(request, full);
            request.cached = full;
        }
        request.computed = target;
        true
    }

    /// Caches and announces a request's blocks in one group, up to block `full`.
    fn announce(&mut self, request: &Request, i: usize, group: u32, window: Option<u32>, full: usize) {
        let from = request.cached;
        let hashes = &self.hashes[request.conversation];
        let conversation = &self.talk.conversations[request.conversation];
        let mut kept = Vec::new();
        for (b, hash) in hashes.iter().enumerate().take(full).skip(from) {
            if let Some(id) = request.blocks[i][b] {
                self.pool.cache(id, group, *hash);
                kept.push(*hash);
            }
        }
        let n = self.shape.block as usize;
        self.pool.said.push(Said::Stored {
            group,
            window,
            parent: from.checked_sub(1).map(|p| hashes[p]),
            at_root: from == 0 && request.blocks[i][0].is_some(),
            hashes: kept,
            tokens: conversation.tokens[from * n..full * n].to_vec(),
            block: self.shape.block,
            salt: conversation.salt,
        });
    }

    fn plan_copies(&mut self, request: &Request, full: usize) {
        let Some(offload) = &self.offload else { return };
        for chunk in request.cached / offload.chunk..full / offload.chunk {
            let (from, to) = (chunk * offload.chunk, (chunk + 1) * offload.chunk);
            self.copying.push(Copying { conversation: request.conversation, from, to });
        }
    }

    /// Ends copies to the tier below; in any order, some later.
    fn copy(&mut self) {
        let Some(offload) = &mut self.offload else { return };
        let mut later = Vec::new();
        for copy in self.copying.drain(..) {
            if self.rng.one_in(3) {
                later.push(copy);
                continue;
            }
            let hashes = &self.hashes[copy.conversation];
            let n = self.shape.block as usize;
            let tokens = &self.talk.conversations[copy.conversation].tokens[copy.from * n..copy.to * n];
            let parent = copy.from.checked_sub(1).map(|p| hashes[p]);
            offload.store(&hashes[copy.from..copy.to], tokens, parent, self.shape.block, &mut self.pool.said);
        }
        self.copying = later;
    }

    fn release(&mut self, request: &Request) {
        for blocks in &request.blocks {
            self.pool.release(blocks.iter().rev().copied().flatten());
        }
    }
}

fn empty(shape: &Shape) -> (Pool, Option<Offload>) {
    let offload = shape.offload.map(|(chunk, room, describes)| Offload::new(chunk, room, describes));
    (Pool::new(shape.blocks), offload)
}

#[cfg(test)]
mod tests {
    use kvindex::reference::Reference;
    use kvindex::{HolderSpec, Prompt, Query};
    use kvproto::engine::{Engine as Dialect, decode};

    use super::*;
    use crate::world;

    /// What `truth` reads off the blocks is what the index's reference model makes of the events.
    #[test]
    fn the_blocks_and_the_events_tell_the_same() {
        let mut held = 0;
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let talk = Rc::new(Talk::new(&mut rng));
            let mut engine = Engine::new(world::shape(&mut rng), Rc::clone(&talk), rng.fork());
            let spec = HolderSpec {
                offload_chunk: engine.shape.offload.map(|(chunk, _, _)| chunk as u32),
                ..HolderSpec::new("t", "m", "i", 0)
            };
            let mut reference = Reference::new(spec);
            for step in 0..150 {
                if rng.one_in(3) {
                    engine.ask();
                }
                if rng.one_in(60) {
                    engine.reset();
                }
                let Some(published) = engine.step(f64::from(step)) else { continue };
                reference.apply(&decode(Dialect::Vllm, &published.payload).expect("a batch"));
                if !rng.one_in(8) {
                    continue;
                }
                for (probe, holding) in talk.probes.iter().zip(&*engine.latest) {
                    let c = &talk.conversations[probe.conversation];
                    let tokens = &c.tokens[..probe.len];
                    let prompt = Prompt::Tokens { tokens, lora: None, cache_salt: c.salt, items: &[] };
                    let want = reference.expect(&Query::new("t", "m", prompt));
                    let told = Holding {
                        cached: want.cached,
                        device: want.by_tier[0],
                        below: want.by_tier[1],
                        tokens: want.cached_tokens,
                    };
                    held += u32::from(told.cached > 0);
                    assert_eq!(told, *holding, "seed {seed}, step {step}, {probe:?}, {:?}", engine.shape);
                }
            }
        }
        assert!(held > 5_000, "hardly anything is held: {held}");
    }
}
