//! How a scheduler asks several replicas: everything that can be set.

use std::net::SocketAddr;
use std::time::Duration;

use kvproto::Tier;

use super::breaker::BreakerRule;
use super::follow;
use super::hedge::HedgeAfter;
use super::places::Place;
use super::recall::RecallRule;
use crate::{ConnectError, Security};

/// Settings of [`Replicas`](super::Replicas). [`ReplicaSettings::new`] says where kvd is; everything else has
/// a value already.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSettings {
    /// Addresses as `http://host:port`, or `https://host:port` with a CA in `security`. A host name stands for everything it resolves to, as that of a
    /// headless service does, and is resolved again and again.
    pub places: Vec<String>,
    /// A question is answered within this time, by kvd or from memory; 5 ms.
    pub deadline: Duration,
    /// When a second replica is asked.
    pub hedge: HedgeAfter,
    /// When a replica that does not answer is left alone.
    pub breaker: BreakerRule,
    /// How often names are resolved; 5 s.
    pub resolve_every: Duration,
    /// How often a replica is asked for its health; 500 ms.
    pub health_every: Duration,
    /// Gives up dialling after this long; 1 s.
    pub connect_timeout: Duration,
    /// Who is trusted, and what is shown; nothing unless set.
    pub security: Security,
    /// Hashes prompts here, where all engines of a model have blocks of one size: an eighth of the bytes.
    pub hash_here: bool,
    /// Gives counts in blocks of this many tokens; 0 = of each engine's own size.
    pub block_size: u32,
    /// Looks at no more than this many blocks of a prompt; 0 = all.
    pub max_blocks: u32,
    /// Weights that replace kvd's own.
    pub tier_weights: Vec<(Tier, f64)>,
    /// Counts blocks that routing announced.
    pub speculative: bool,
    /// How long announced blocks count; kvd's own setting unless set.
    pub routing_ttl: Option<Duration>,
    /// Routings that wait to be told at most; more are dropped and counted. 1024.
    pub routing_queue: usize,
    /// Blocks per endpoint that are remembered for guesses; 8192.
    pub remembered_blocks: usize,
    /// How long the last answer to the same question is good for; 10 s.
    pub answers_for: Duration,
}

/// Tokens per block of guesses, where nothing else is said. llm-d's approximate producer uses no smaller ones.
const GUESS_BLOCK: u32 = 64;
/// Timers fire up to a millisecond late, and then the answer from memory is to be made.
const SLACK: Duration = Duration::from_micros(1500);

impl ReplicaSettings {
    /// Asks the replicas at these places.
    pub fn new<S: Into<String>>(places: impl IntoIterator<Item = S>) -> ReplicaSettings {
        ReplicaSettings {
            places: places.into_iter().map(Into::into).collect(),
            deadline: Duration::from_millis(5),
            hedge: HedgeAfter::Learnt,
            breaker: BreakerRule::default(),
            resolve_every: Duration::from_secs(5),
            health_every: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(1),
            security: Security::default(),
            hash_here: false,
            block_size: 0,
            max_blocks: 0,
            tier_weights: Vec::new(),
            speculative: false,
            routing_ttl: None,
            routing_queue: 1024,
            remembered_blocks: 8192,
            answers_for: Duration::from_secs(10),
        }
    }

    /// How long replicas are waited for, so that the answer is there when the deadline is.
    pub(crate) fn patience(&self) -> Duration {
        self.deadline - SLACK.min(self.deadline / 2)
    }

    pub(crate) fn parsed(&self) -> Result<Vec<Place>, ConnectError> {
        let parse = |text: &String| {
            let place = Place::parse(text, self.security.encrypts())?;
            // What is wrong with any of it is known now and not when nobody answers.
            let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
            follow::dial(self).endpoint(&place.uri(nobody), Some(place.host()))?;
            Ok(place)
        };
        self.places.iter().map(parse).collect()
    }

    pub(crate) fn recall(&self) -> RecallRule {
        let gpu = self.tier_weights.iter().rev().find(|(tier, _)| *tier == Tier::Gpu);
        RecallRule {
            block_tokens: if self.block_size == 0 { GUESS_BLOCK } else { self.block_size },
            most_blocks: if self.max_blocks == 0 { usize::MAX } else { self.max_blocks as usize },
            room: self.remembered_blocks,
            answers_for: self.answers_for,
            weight: gpu.map_or(1.0, |(_, weight)| *weight),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_waited_for_a_little_less_than_the_deadline() {
        let patience = |ms| {
            let deadline = Duration::from_millis(ms);
            ReplicaSettings { deadline, ..ReplicaSettings::new(["a:1"]) }.patience()
        };
        assert_eq!(patience(5), Duration::from_micros(3500));
        assert_eq!(patience(2), Duration::from_millis(1));
        assert_eq!(patience(0), Duration::ZERO);
    }
}
