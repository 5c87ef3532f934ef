//! What does one question take, and what is joined to the index's answer?
//!
//! Both transports come through here, so that a limit or a rule holds for both.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use kvindex::{Answer, Explanation, HolderId, HolderSpec, Placement, Prompt, Query};
use kvindex_valkey::QueryError;
use rustc_hash::FxHashMap;

pub use super::check::MAX_BLOCK_SIZE;
use super::outcome::HeldBack;
use super::{Counters, Service, endpoint};
use crate::publisher::{Freshness, PublisherState};
use crate::shared::{Mirror, freshness};

/// Why a question cannot be answered. Every message begins with the field to look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// A field's value makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// More than this kvd takes.
    #[error("{field}: {got} is over the limit of {limit}")]
    TooMany {
        /// The field.
        field: &'static str,
        /// What is taken.
        limit: usize,
        /// What was sent.
        got: usize,
    },
    /// Hashes of blocks of a size that no engine asked about uses.
    #[error("block_size: hashes are of {asked}-token blocks, the engines asked about use {engines:?}")]
    BlockSizeMismatch {
        /// Block size the hashes are computed for.
        asked: u32,
        /// Block sizes of the model's engines.
        engines: Vec<u32>,
    },
    /// Hashes without a block size, and the engines differ in theirs.
    #[error("block_size: say which of {engines:?} the hashes are computed for")]
    BlockSizeAmbiguous {
        /// Block sizes of the model's engines.
        engines: Vec<u32>,
    },
    /// Hashes of a kind the index has no keys of.
    #[error(
        "hashes: llm-d's {kind} keys are not indexed; configure them, or send token ids, or canonical hashes (GetHashSpec), or the engine's own"
    )]
    HashKindNotIndexed {
        /// The kind's name.
        kind: &'static str,
    },
    /// A token that was never given out for this tenant and model, or is too old.
    #[error("score_token: unknown or expired, send the prompt again")]
    UnknownScoreToken,
    /// An engine asked about by name is not registered.
    #[error("instance_id: {instance} with dp_rank {rank} is not registered for this model and tenant")]
    UnknownHolder {
        /// The instance.
        instance: String,
        /// Its rank.
        rank: u32,
    },
    /// A question that the index on Valkey does not answer.
    #[error("prompt: {0}; ask with token ids, canonical hashes (GetHashSpec) or the engine's own hashes")]
    NotShared(String),
    /// The servers of the index on Valkey do not answer.
    #[error("index.valkey: {0}")]
    SharedIndexGone(String),
    /// A prompt in words.
    #[error(
        "prompt: text cannot be looked up, kvd has no tokenizer; send a JSON array of token ids as the prompt, or call kv.v1.IndexService/Score with token ids"
    )]
    TextPrompt,
}

impl AskError {
    pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> AskError {
        AskError::Invalid { field, why: why.into() }
    }

    /// The request field to look at.
    pub fn field(&self) -> &'static str {
        match self {
            AskError::Invalid { field, .. } | AskError::TooMany { field, .. } => field,
            AskError::BlockSizeMismatch { .. } | AskError::BlockSizeAmbiguous { .. } => "block_size",
            AskError::HashKindNotIndexed { .. } => "hashes",
            AskError::UnknownScoreToken => "score_token",
            AskError::UnknownHolder { .. } => "instance_id",
            AskError::TextPrompt | AskError::NotShared(_) => "prompt",
            AskError::SharedIndexGone(_) => "index.valkey",
        }
    }
}

/// An answer and how far it can be trusted.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the index says.
    pub answer: Answer,
    /// Who the scores are about, parallel to `answer.scores`.
    pub holders: Vec<HolderView>,
    /// Instances left out because the hashes are of another block size.
    pub block_size_mismatch: Vec<String>,
    /// Candidates that are not registered, as they were asked for.
    pub missing: Vec<String>,
    /// Whether `coverage` is below 1.
    pub degraded: bool,
    /// Part of the candidates (missing ones included) whose publisher is live, 0 to 1.
    pub coverage: f64,
}

/// Who a score is about.
#[derive(Clone, Debug)]
pub struct HolderView {
    /// The registration.
    pub spec: Arc<HolderSpec>,
    /// How far it is known what the engine holds.
    pub freshness: Freshness,
    /// The name it was asked for by, where it registered under another form of it.
    pub asked_as: Option<String>,
    /// What does not count, because reported outcomes contradict it.
    pub held_back: Option<HeldBack>,
}

impl HolderView {
    /// The instance, by the name it was asked for.
    pub fn instance(&self) -> &str {
        self.asked_as.as_deref().unwrap_or(&self.spec.instance)
    }
}

/// Who holds each block of a prompt.
#[derive(Clone, Debug)]
pub struct Located {
    /// Block by block from the root.
    pub placements: Vec<Placement>,
    /// Everyone who occurs in `placements`.
    pub holders: FxHashMap<HolderId, Arc<HolderSpec>>,
}

impl Service {
    /// Answers `query` and says how fresh the answer is.
    pub fn ask(&self, query: &Query<'_>) -> Result<Asked, AskError> {
        self.counted(query, || self.ask_uncounted(query))
    }

    /// The same for who asks several times to answer one question, and counts it once.
    pub(crate) fn ask_uncounted(&self, query: &Query<'_>) -> Result<Asked, AskError> {
        if let Some(mirror) = self.mirror.as_ref().filter(|m| m.answers) {
            let (answer, vouched) = self.prepared(query, |q| self.ask_shared(mirror, q))??;
            return self.join(query, answer, &FxHashMap::default(), Some(&vouched));
        }
        let (answer, held_back) = self.prepared(query, |q| {
            let mut answer = self.index.query(q);
            let held_back = self.hold_back(q, &mut answer);
            (answer, held_back)
        })?;
        self.join(query, answer, &held_back, None)
    }

    /// Asks the index that replicas share, and how far each score there can be trusted.
    fn ask_shared(
        &self,
        mirror: &Mirror,
        query: &Query<'_>,
    ) -> Result<(Answer, FxHashMap<HolderId, Freshness>), AskError> {
        let asked = mirror.query(query).map_err(|e| match e {
            QueryError::Unsupported(_) => AskError::NotShared(e.to_string()),
            QueryError::Server(_) => AskError::SharedIndexGone(e.to_string()),
        })?;
        let answer = asked.answer;
        let vouched =
            answer.scores.iter().map(|s| s.holder).zip(asked.vouched.iter().map(freshness)).collect();
        Ok((answer, vouched))
    }

    /// Counts the question that `ask` answers.
    pub(crate) fn counted(
        &self,
        query: &Query<'_>,
        ask: impl FnOnce() -> Result<Asked, AskError>,
    ) -> Result<Asked, AskError> {
        let began = Instant::now();
        let asked = ask();
        if let Some(traces) = &self.traces {
            traces.score(query, &asked, began.elapsed());
        }
        match &asked {
            Ok(a) => {
                let ended = Instant::now();
                Counters::add(&self.counters.queries, 1);
                Counters::add(&self.counters.unknown_model, u64::from(a.answer.unknown_model));
                self.counters.query_seconds.observe(ended - began);
                self.traffic.note(query, &a.answer, ended);
            }
            Err(_) => Counters::add(&self.counters.query_errors, 1),
        }
        asked
    }

    /// Who holds each block of the prompt.
    pub fn locate(&self, query: &Query<'_>) -> Result<Located, AskError> {
        let mut placements = self.prepared(query, |q| self.index.locate(q))?;
        let mut holders = FxHashMap::default();
        for placement in &mut placements {
            placement.holders.retain(|(id, _)| match holders.entry(*id) {
                Entry::Occupied(_) => true,
                // A holder detached since then is left out.
                Entry::Vacant(v) => self.index.spec(*id).map(|spec| v.insert(spec)).is_some(),
            });
        }
        Ok(Located { placements, holders })
    }

    /// Why `instance` got its score.
    pub fn explain(
        &self,
        query: &Query<'_>,
        instance: &str,
        rank: u32,
    ) -> Result<(Explanation, HolderView), AskError> {
        let unknown = || AskError::UnknownHolder { instance: instance.to_owned(), rank };
        self.check_text("instance_id", instance)?;
        let query = Query { instances: &[instance], ..*query };
        let (id, spec) = self.holder(query.tenant, query.model, instance, rank).ok_or_else(unknown)?;
        let (mut explanation, held_back) = self
            .prepared(&query, |q| {
                let mut explanation = self.index.explain(q, id)?;
                let mut answer = Answer { scores: vec![explanation.score], ..Answer::default() };
                let held_back = self.hold_back(q, &mut answer).remove(&id);
                explanation.score = answer.scores.pop()?;
                Some((explanation, held_back))
            })?
            .ok_or_else(unknown)?;
        if let Some(HeldBack { blocks, .. }) = held_back {
            let tokens = explanation.score.cached_tokens;
            explanation.steps.push(format!(
                "{blocks} blocks do not count, because reports contradict the first of them: {tokens} tokens are left"
            ));
        }
        Ok((explanation, HolderView { spec, freshness: self.freshness(id), asked_as: None, held_back }))
    }

    /// The holder of an instance (either form of its name) and rank.
    pub(crate) fn holder(
        &self,
        tenant: &str,
        model: &str,
        instance: &str,
        rank: u32,
    ) -> Option<(HolderId, Arc<HolderSpec>)> {
        let mut found = self.holders(tenant, model, &[instance]);
        let at = found.iter().position(|(_, spec)| spec.rank == rank)?;
        Some(found.swap_remove(at))
    }

    /// Everyone attached for the model, of `instances` only unless that is empty.
    pub(crate) fn holders(
        &self,
        tenant: &str,
        model: &str,
        instances: &[&str],
    ) -> Vec<(HolderId, Arc<HolderSpec>)> {
        // A question about no block at all names every candidate and costs next to nothing.
        let query = Query {
            tenant,
            model,
            prompt: Prompt::Engine(&[]),
            block_size: None,
            instances,
            salt: None,
            max_blocks: None,
            speculative: false,
            weights: self.weights,
        };
        let answer = with_both_forms(&query, |q| self.index.query(q));
        answer.scores.iter().filter_map(|s| Some((s.holder, self.index.spec(s.holder)?))).collect()
    }

    /// Checks `query` and hands it on with what a request may leave out.
    pub(crate) fn prepared<R>(
        &self,
        query: &Query<'_>,
        answer: impl FnOnce(&Query<'_>) -> R,
    ) -> Result<R, AskError> {
        self.check(query)?;
        let mut query = *query;
        if let (Prompt::Canonical(_) | Prompt::Llmd(_), None) = (query.prompt, query.block_size) {
            let sizes = self.index.block_sizes(query.tenant, query.model);
            query.block_size = match sizes[..] {
                [] => None,
                [one] => Some(one),
                [..] => return Err(AskError::BlockSizeAmbiguous { engines: sizes }),
            };
        }
        Ok(with_both_forms(&query, answer))
    }

    /// Joins names and freshness to the scores, and says who is missing.
    fn join(
        &self,
        query: &Query<'_>,
        mut answer: Answer,
        held_back: &FxHashMap<HolderId, HeldBack>,
        vouched: Option<&FxHashMap<HolderId, Freshness>>,
    ) -> Result<Asked, AskError> {
        if answer.scores.is_empty() && !answer.block_size_mismatch.is_empty() {
            return Err(AskError::BlockSizeMismatch {
                asked: query.block_size.unwrap_or_default(),
                engines: self.index.block_sizes(query.tenant, query.model),
            });
        }
        let mut wanted: FxHashMap<&str, bool> = query.instances.iter().map(|i| (*i, false)).collect();
        let mut holders = Vec::with_capacity(answer.scores.len());
        // Asked for all at once: each question by itself would take a lock that every request takes.
        let mut specs = self.index.specs(answer.scores.iter().map(|s| s.holder)).into_iter();
        let mut freshness = self.publishers.freshness_of(answer.scores.iter().map(|s| s.holder)).into_iter();
        answer.scores.retain(|score| match (specs.next().flatten(), freshness.next().flatten()) {
            (None, _) => false, // detached since then
            (Some(spec), freshness) => {
                let asked_as = note_seen(&mut wanted, &spec.instance);
                let mut freshness = match vouched {
                    Some(vouched) => vouched.get(&score.holder).copied().unwrap_or(UNVOUCHED),
                    None => freshness.unwrap_or(UNVOUCHED),
                };
                freshness.complete &= !score.partial;
                let held_back = held_back.get(&score.holder).copied();
                holders.push(HolderView { spec, freshness, asked_as, held_back });
                true
            }
        });
        let mut block_size_mismatch = Vec::new();
        for id in &answer.block_size_mismatch {
            if let Some(spec) = self.index.spec(*id) {
                let name = note_seen(&mut wanted, &spec.instance).unwrap_or_else(|| spec.instance.clone());
                if block_size_mismatch.last() != Some(&name) {
                    block_size_mismatch.push(name);
                }
            }
        }
        let missing: Vec<String> = query
            .instances
            .iter()
            .filter(|i| wanted.remove(**i) == Some(false))
            .map(|i| (*i).to_owned())
            .collect();
        let live = holders.iter().filter(|h| h.freshness.state == PublisherState::Live).count();
        let of = holders.len() + answer.block_size_mismatch.len() + missing.len();
        let coverage = if of == 0 { 0.0 } else { live as f64 / of as f64 };
        Ok(Asked { answer, holders, block_size_mismatch, missing, degraded: coverage < 1.0, coverage })
    }

    /// How far it is known what `id` holds.
    pub(crate) fn freshness(&self, id: HolderId) -> Freshness {
        self.publishers.freshness(id).unwrap_or(UNVOUCHED)
    }
}

/// Of a publisher unregistered since the index answered: nothing vouches for its score any more.
const UNVOUCHED: Freshness = Freshness {
    state: PublisherState::Connecting,
    complete: false,
    last_seq: None,
    last_message: None,
    oldest_queued: None,
};

/// Asks for each candidate under both forms of its name.
fn with_both_forms<R>(query: &Query<'_>, ask: impl FnOnce(&Query<'_>) -> R) -> R {
    let others: Vec<String> = query.instances.iter().filter_map(|i| endpoint::other_form(i)).collect();
    if others.is_empty() {
        return ask(query);
    }
    let all: Vec<&str> = query.instances.iter().copied().chain(others.iter().map(String::as_str)).collect();
    ask(&Query { instances: &all, ..*query })
}

/// Ticks off a candidate that was found; returns the name it was asked for by, where that
/// is not the registered one.
fn note_seen(wanted: &mut FxHashMap<&str, bool>, instance: &str) -> Option<String> {
    if wanted.is_empty() {
        return None;
    }
    let as_registered = wanted.get_mut(instance).map(|seen| *seen = true).is_some();
    let other = endpoint::other_form(instance)?;
    *wanted.get_mut(other.as_str())? = true;
    (!as_registered).then_some(other)
}
