//! What does the service ask of a planner?
//!
//! The ledger keeps no costs and the planner no transfers: questions go in, plans and
//! artefacts come out, and what became of them comes back as lessons.

use std::time::Duration;

use serde_json::{Map, Value};

use super::types::{Artefacts, Choice, Connector, Endpoint, Lesson, Plan, Question, Wire};

/// Decides how prompts are served, and learns from what came of it.
pub trait Plans: Send + Sync {
    /// The best way to serve `question` that exceeds no limit. Depends on nothing but the
    /// question and the lessons so far.
    fn plan(&self, question: &Question) -> Plan;

    /// What to send to the engines.
    fn artefacts(&self, brief: &Brief<'_>) -> Artefacts;

    /// Takes note of something that happened.
    fn learn(&self, lesson: &Lesson);

    /// What is known of the link between two pods; `None` = nothing.
    fn link(&self, from: &Endpoint, to: &Endpoint) -> Option<LinkCost>;

    /// Every link of which something is known.
    fn links(&self) -> Vec<(Endpoint, Endpoint, LinkCost)>;
}

/// What artefacts are made of.
#[derive(Clone)]
pub struct Brief<'a> {
    /// The way that was chosen.
    pub choice: &'a Choice,
    /// How blocks travel.
    pub connector: Connector,
    /// The transfer's id, 32 hexadecimal digits; of no transfer where nothing is reserved.
    pub transfer_id: &'a str,
    /// Which plan of the transfer this is, from 1; a new attempt needs a new rendezvous.
    pub attempt: u32,
    /// The caller's request id.
    pub request_id: &'a str,
    /// Finds how a pod is reached.
    pub wire: &'a dyn Fn(&Endpoint) -> Wire,
    /// Engine hashes of the blocks to pull, where they are known (`kv.fetch`).
    pub pull_hashes: &'a [u64],
    /// What the prefill engine answered, once it has.
    pub prefill_answer: Option<&'a Map<String, Value>>,
    /// Keys that the caller wants handed through.
    pub pass_through: &'a Map<String, Value>,
}

/// What is known of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCost {
    /// Bytes a second when nothing else goes on; 0 = not known.
    pub bytes_per_second: u64,
    /// Time before the first byte.
    pub setup: Duration,
    /// Whether the pair has worked together since either began.
    pub warm: bool,
    /// Transfers that ended well.
    pub transfers: u64,
    /// Transfers that failed.
    pub failures: u64,
}
