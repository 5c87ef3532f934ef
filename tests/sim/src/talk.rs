//! What engines are asked: conversations that share beginnings, and the prompts that kvd is asked
//! about.

use crate::rng::Rng;

/// A sequence of tokens; a request is a beginning of it, and what the engine answers is what
/// follows there.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub tokens: Vec<u32>,
    pub salt: Option<&'static str>,
}

/// A prompt asked about again and again: the first `len` tokens of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub conversation: usize,
    pub len: usize,
}

/// All that is talked about in one run.
#[derive(Clone, Debug)]
pub struct Talk {
    pub conversations: Vec<Conversation>,
    pub probes: Vec<Probe>,
}

/// Tokens of a conversation.
const LENGTH: u64 = 40;

impl Talk {
    pub fn new(rng: &mut Rng) -> Talk {
        let systems: Vec<Vec<u32>> =
            (0..2).map(|s| (0..rng.between(5, 14)).map(|i| 100 * (s + 1) + i as u32).collect()).collect();
        let conversations: Vec<Conversation> = (0..rng.between(4, 6) as usize)
            .map(|c| {
                let mut tokens = systems[rng.below(2) as usize].clone();
                // Two conversations may go the same way for a while after the system prompt.
                let topic = rng.below(3) as u32;
                tokens.extend((0..6).map(|i| 1000 + 10 * topic + i));
                while (tokens.len() as u64) < LENGTH {
                    tokens.push(10_000 * (c as u32 + 1) + tokens.len() as u32);
                }
                Conversation { tokens, salt: rng.one_in(4).then_some("salt") }
            })
            .collect();
        let mut probes = Vec::new();
        for conversation in 0..conversations.len() {
            probes.push(Probe { conversation, len: LENGTH as usize });
            probes.push(Probe { conversation, len: rng.between(6, LENGTH - 1) as usize });
        }
        Talk { conversations, probes }
    }
}
