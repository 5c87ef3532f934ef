//! Prompts of 128k tokens that share system prompts and documents, in blocks of 16.

use super::Eviction;
use super::fleet::Fleet;
use crate::hash::{content, sequence_hashes};
use crate::stream::Stream;

const BLOCKS: usize = 8192;
const SYSTEM_BLOCKS: usize = 2048;
const DOCUMENT_BLOCKS: usize = 4096;
const SYSTEMS: usize = 16;
const DOCUMENTS: usize = 8;

/// A prompt: which system prompt, which of its documents, whose session.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    system: usize,
    document: usize,
    session: u64,
}

impl Prompt {
    fn locals(self, seed: u64) -> Vec<u64> {
        let part = |tag: u64, n: usize| (0..n as u64).map(move |k| content(seed, tag, k));
        part(0x5157_0000 + self.system as u64, SYSTEM_BLOCKS)
            .chain(part(0xD0C0_0000 + (self.system * DOCUMENTS + self.document) as u64, DOCUMENT_BLOCKS))
            .chain(part(0x7A11_0000_0000 + self.session, BLOCKS - SYSTEM_BLOCKS - DOCUMENT_BLOCKS))
            .collect()
    }
}

/// Fills the caches with `sessions` prompts, `copies` of each on pods chosen by chance, and asks
/// `questions`: known sessions, new sessions on known documents, and a tenth about unknown systems.
/// Every 20th question is served too. Nothing is evicted.
pub fn stream(pods: u32, sessions: u64, copies: usize, questions: usize, seed: u64) -> Stream {
    let per_pod = sessions as usize * copies / pods as usize + questions / 20 + 16;
    let mut fleet = Fleet::new(pods, per_pod.max(64) * BLOCKS, 16, Eviction::Tail, seed);
    let mut known: Vec<Prompt> = Vec::new();
    for session in 0..sessions {
        let (system, document) = (fleet.random.below(SYSTEMS), fleet.random.below(DOCUMENTS));
        let prompt = Prompt { system, document, session };
        known.push(prompt);
        let locals = prompt.locals(seed);
        let sequence = sequence_hashes(&locals);
        for _ in 0..copies {
            let pod = fleet.random.below(pods as usize) as u32;
            fleet.serve(pod, &locals, &sequence, 0);
        }
    }
    let mut session = sessions;
    for i in 0..questions {
        let chance = fleet.random.unit();
        let prompt = if chance < 0.45 {
            known[fleet.random.below(known.len())]
        } else {
            session += 1;
            let known_system = chance < 0.9;
            let (system, document) = match known_system {
                true => (fleet.random.below(SYSTEMS), fleet.random.below(DOCUMENTS)),
                false => (SYSTEMS + 1 + session as usize % 1000, 0),
            };
            Prompt { system, document, session }
        };
        let locals = prompt.locals(seed);
        let sequence = sequence_hashes(&locals);
        let scored = fleet.score(&sequence);
        fleet.stream.ask(&locals, scored.hit);
        if i % 20 == 19 {
            let pod = fleet.route(&scored, locals.len());
            fleet.serve(pod, &locals, &sequence, 0);
            known.push(prompt);
        }
    }
    fleet.stream
}
