//! The plain baseline: one hash map from sequence hash to a bitset of pods, every block of a
//! prompt probed in turn. Also the truth that other answers are compared with, because it does
//! nothing but what the words say.

use rustc_hash::FxHashMap;

use crate::hash::chain;
use crate::peer::{Hit, Key, Peer, Reader, Shape};
use crate::stream::Change;

/// Words of a bitset of up to 512 pods.
const WORDS: usize = 8;

/// A change in the map's own types.
pub enum Event {
    Stored(u32, Vec<u64>),
    Removed(u32, Vec<u64>),
    Cleared(u32),
}

/// Who holds each block.
#[derive(Debug, Default)]
pub struct Holders(FxHashMap<u64, [u64; WORDS]>);

impl Holders {
    /// Carries out one change.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Stored(pod, blocks) => {
                for b in blocks {
                    self.0.entry(*b).or_default()[*pod as usize / 64] |= 1 << (pod % 64);
                }
            }
            Event::Removed(pod, blocks) => {
                for b in blocks {
                    if let Some(held) = self.0.get_mut(b) {
                        held[*pod as usize / 64] &= !(1 << (pod % 64));
                        if held.iter().all(|w| *w == 0) {
                            self.0.remove(b);
                        }
                    }
                }
            }
            Event::Cleared(pod) => self.0.retain(|_, held| {
                held[*pod as usize / 64] &= !(1 << (pod % 64));
                held.iter().any(|w| *w != 0)
            }),
        }
    }

    /// The scores of a prompt by its sequence hashes.
    pub fn ask(&self, prompt: impl ExactSizeIterator<Item = u64>) -> Hit {
        let mut hit = Hit::default();
        let blocks = prompt.len() as u32;
        let mut alive = [0u64; WORDS];
        for (depth, block) in prompt.enumerate() {
            let held = self.0.get(&block).copied().unwrap_or_default();
            if depth == 0 {
                alive = held;
            }
            for (a, h) in alive.iter_mut().zip(held) {
                hit.add_level(depth as u32, (*a & !h).count_ones());
                *a &= h;
            }
            if alive.iter().all(|w| *w == 0) {
                return hit;
            }
        }
        alive.iter().for_each(|w| hit.add_level(blocks, w.count_ones()));
        hit
    }
}

/// A change as the map takes it.
pub fn event(change: Change<'_>) -> Event {
    match change {
        Change::Stored { pod, blocks, .. } => Event::Stored(pod, blocks.iter().map(|b| b[1]).collect()),
        Change::Removed { pod, blocks, .. } => Event::Removed(pod, blocks.to_vec()),
        Change::Cleared { pod } => Event::Cleared(pod),
    }
}

/// The map by local hashes, which it chains itself, or (`SEQUENCE`) by sequence hashes.
pub struct Flat<const SEQUENCE: bool>(Holders);

impl<const SEQUENCE: bool> Peer for Flat<SEQUENCE> {
    const NAME: &'static str = if SEQUENCE { "flat-map-seq" } else { "flat-map" };
    const KEY: Key = if SEQUENCE { Key::Sequence } else { Key::Local };
    type Event = Event;
    type Block = u64;

    fn new(shape: Shape) -> Self {
        assert!(shape.pods as usize <= 64 * WORDS, "at most {} pods", 64 * WORDS);
        Flat(Holders::default())
    }
    fn event(&self, change: Change<'_>) -> Event {
        event(change)
    }
    fn block(local: u64, sequence: u64) -> u64 {
        if SEQUENCE { sequence } else { local }
    }
    fn ingest(&mut self, events: Vec<Event>) -> usize {
        events.iter().for_each(|e| self.0.apply(e));
        0
    }
    fn query(&mut self, prompt: &[u64]) -> Hit {
        if SEQUENCE {
            return self.0.ask(prompt.iter().copied());
        }
        let mut last = None;
        let next = |&local: &u64| *last.insert(last.map_or(local, |before| chain(before, local)));
        self.0.ask(prompt.iter().map(next))
    }
    fn reader(&self) -> Option<Reader<u64>> {
        None
    }
}
