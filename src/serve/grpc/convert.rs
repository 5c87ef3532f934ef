//! How do messages map to what the index speaks of, and back?

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvindex::{Query, Score, TierSet, TierWeights};
use kvproto::hash::llmd::{Algo, RequestKey};
use kvproto::rpc::kv;
use kvproto::{EngineHash, SeqHash, Tier};

use crate::publisher::{Freshness, PublisherState};
use crate::serve::prompt::{OwnedItem, OwnedPrompt, PromptKey};
use crate::serve::{AskError, DEFAULT_TENANT, HolderView, Service};

/// What a request asks about, as its message says it.
pub(in crate::serve) struct Asking {
    pub tenant: String,
    pub model: String,
    pub prompt: Arc<OwnedPrompt>,
    pub candidates: Vec<String>,
    pub weights: TierWeights,
    pub max_blocks: Option<u32>,
    pub speculative: bool,
}

impl Asking {
    /// Reads the fields that every request about a prompt has. `block_size` 0 = not said.
    pub fn new(
        service: &Service,
        tenant: String,
        model: String,
        prompt: Option<kv::Prompt>,
        block_size: u32,
    ) -> Result<Asking, AskError> {
        let tenant = or_default_tenant(tenant);
        let prompt = read_prompt(service, &tenant, &model, prompt, non_zero(block_size))?;
        Ok(Asking {
            tenant,
            model,
            prompt,
            candidates: Vec::new(),
            weights: service.weights,
            max_blocks: None,
            speculative: false,
        })
    }

    /// Hands out the question as the service takes it.
    pub fn lend<R>(&self, ask: impl FnOnce(&Query<'_>) -> R) -> R {
        let instances: Vec<&str> = self.candidates.iter().map(String::as_str).collect();
        self.prompt.lend(|prompt| {
            ask(&Query {
                tenant: &self.tenant,
                model: &self.model,
                prompt,
                block_size: self.prompt.block_size,
                instances: &instances,
                salt: None,
                max_blocks: self.max_blocks,
                speculative: self.speculative,
                weights: self.weights,
            })
        })
    }
}

fn read_prompt(
    service: &Service,
    tenant: &str,
    model: &str,
    prompt: Option<kv::Prompt>,
    block_size: Option<u32>,
) -> Result<Arc<OwnedPrompt>, AskError> {
    use kv::prompt::Key;

    let prompt = prompt.unwrap_or_default();
    let kept = |token: &str| {
        let kept = service.score_tokens.find(token, tenant, model, Instant::now());
        kept.ok_or(AskError::UnknownScoreToken)
    };
    let key = match prompt.key {
        None => return Err(AskError::invalid("prompt", "missing")),
        Some(Key::Tokens(tokens)) => PromptKey::Tokens(tokens.ids),
        Some(Key::TokenIdsLe(bytes)) => PromptKey::Tokens(read_token_ids(&bytes)?),
        Some(Key::Hashes(hashes)) => read_hashes(hashes, service.index.config().llmd.map(|l| l.algo()))?,
        Some(Key::ScoreToken(_)) if !prompt.continues.is_empty() => {
            return Err(AskError::invalid("continues", "a score_token already is a whole prompt"));
        }
        Some(Key::ScoreToken(token)) => {
            let kept = kept(&token)?;
            return Ok(match block_size {
                Some(_) if kept.block_size != block_size => {
                    if !matches!(kept.key, PromptKey::Tokens(_)) {
                        return Err(AskError::invalid(
                            "block_size",
                            "differs from the one that the score_token's hashes came with",
                        ));
                    }
                    Arc::new(OwnedPrompt { block_size, ..(*kept).clone() })
                }
                Some(_) | None => kept,
            });
        }
    };
    let mut items: Vec<OwnedItem> = prompt
        .mm_items
        .into_iter()
        .map(|i| OwnedItem { identifier: i.hash, offset: i.offset, length: i.length })
        .collect();
    items.sort_by_key(|i| i.offset);
    let mut read = OwnedPrompt {
        key,
        block_size,
        lora: non_empty(prompt.lora_name),
        cache_salt: non_empty(prompt.cache_salt),
        items,
    };
    if !prompt.continues.is_empty() {
        let whole = kept(&prompt.continues)?.followed_by(read);
        read = whole.map_err(|(field, why)| AskError::invalid(field, why))?;
    }
    Ok(Arc::new(read))
}

/// A prompt as a message, and the block size that goes with it. `indexed` is llm-d's algorithm that the
/// index also names its blocks by, if any.
pub(super) fn write_prompt(prompt: &OwnedPrompt, indexed: Option<Algo>) -> (kv::Prompt, u32) {
    use kv::prompt::Key;

    let hashes =
        |kind: kv::HashKind, hashes: Vec<u64>| Key::Hashes(kv::BlockHashes { kind: kind.into(), hashes });
    let key = match &prompt.key {
        PromptKey::Tokens(ids) => {
            Key::TokenIdsLe(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>().into())
        }
        PromptKey::Canonical(h) => hashes(kv::HashKind::Canonical, h.iter().map(|h| h.0).collect()),
        PromptKey::Engine(h) => hashes(kv::HashKind::Engine, h.iter().map(|h| h.0).collect()),
        PromptKey::Llmd(h) => {
            let kind = match indexed {
                Some(Algo::Xxh64) => kv::HashKind::LlmdXxh64,
                Some(Algo::CborFnv) | None => kv::HashKind::LlmdCborFnv,
            };
            hashes(kind, h.iter().map(|h| h.0).collect())
        }
    };
    let item = |i: &OwnedItem| kv::MmItem { hash: i.identifier.clone(), offset: i.offset, length: i.length };
    let prompt_message = kv::Prompt {
        key: Some(key),
        lora_name: prompt.lora.clone().unwrap_or_default(),
        cache_salt: prompt.cache_salt.clone().unwrap_or_default(),
        mm_items: prompt.items.iter().map(item).collect(),
        continues: String::new(),
    };
    (prompt_message, prompt.block_size.unwrap_or(0))
}

fn read_token_ids(bytes: &Bytes) -> Result<Vec<u32>, AskError> {
    let (ids, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(AskError::invalid("token_ids_le", format!("{} bytes are no multiple of 4", bytes.len())));
    }
    Ok(ids.iter().map(|id| u32::from_le_bytes(*id)).collect())
}

/// `indexed` is llm-d's algorithm that the index also names its blocks by, if any.
fn read_hashes(hashes: kv::BlockHashes, indexed: Option<Algo>) -> Result<PromptKey, AskError> {
    let kind = kv::HashKind::try_from(hashes.kind)
        .map_err(|_| AskError::invalid("hashes", format!("kind {} is not known", hashes.kind)))?;
    match kind {
        kv::HashKind::Canonical => Ok(PromptKey::Canonical(hashes.hashes.into_iter().map(SeqHash).collect())),
        kv::HashKind::Engine => Ok(PromptKey::Engine(hashes.hashes.into_iter().map(EngineHash).collect())),
        kv::HashKind::LlmdCborFnv => read_llmd_keys(hashes, Algo::CborFnv, indexed),
        kv::HashKind::LlmdXxh64 => read_llmd_keys(hashes, Algo::Xxh64, indexed),
    }
}

fn read_llmd_keys(hashes: kv::BlockHashes, algo: Algo, indexed: Option<Algo>) -> Result<PromptKey, AskError> {
    if indexed != Some(algo) {
        return Err(AskError::HashKindNotIndexed { kind: algo.name() });
    }
    Ok(PromptKey::Llmd(hashes.hashes.into_iter().map(RequestKey).collect()))
}

/// The configured weights with those that the request replaces.
pub(super) fn read_weights(service: &Service, replaced: &[kv::TierWeight]) -> Result<TierWeights, AskError> {
    let mut weights = service.weights;
    for w in replaced {
        let tier = kv::Tier::try_from(w.tier).ok().and_then(read_tier).ok_or_else(|| {
            AskError::invalid("tier_weights", format!("{} is no tier that has a weight", w.tier))
        })?;
        weights.by_tier[tier as usize] = w.weight;
    }
    Ok(weights)
}

fn read_tier(tier: kv::Tier) -> Option<Tier> {
    match tier {
        kv::Tier::Unspecified => None,
        kv::Tier::Gpu => Some(Tier::Gpu),
        kv::Tier::Cpu => Some(Tier::Cpu),
        kv::Tier::Disk => Some(Tier::Disk),
        kv::Tier::Shared => Some(Tier::Shared),
        kv::Tier::Unknown => Some(Tier::Unknown),
    }
}

pub(in crate::serve) fn tier(tier: Tier) -> kv::Tier {
    match tier {
        Tier::Gpu => kv::Tier::Gpu,
        Tier::Cpu => kv::Tier::Cpu,
        Tier::Disk => kv::Tier::Disk,
        Tier::Shared => kv::Tier::Shared,
        Tier::Unknown => kv::Tier::Unknown,
    }
}

pub(super) fn tiers(set: TierSet) -> Vec<i32> {
    set.iter().map(|t| tier(t).into()).collect()
}

/// A score as llm-d and other schedulers read it.
pub(super) fn endpoint_score(
    score: &Score,
    view: &HolderView,
    speculative: bool,
    now: Instant,
) -> kv::EndpointScore {
    kv::EndpointScore {
        instance_id: view.instance().to_owned(),
        dp_rank: view.spec.rank,
        block_size_tokens: score.block_size,
        cached_blocks: score.cached,
        by_tier: tier_counts(&score.by_tier),
        cumulative_by_tier: tier_counts(&score.cumulative),
        weighted_blocks: score.weighted,
        match_blocks: score.weighted as u32,
        cached_tokens: score.cached_tokens,
        speculative_blocks: if speculative { score.speculative } else { 0 },
        mm_match_blocks: score.mm_matched,
        freshness: Some(freshness(&view.freshness, now)),
        distrusted_blocks: view.held_back.map_or(0, |h| h.blocks),
        suspect_blocks: if score.suspect > score.cached { score.suspect } else { 0 },
    }
}

fn tier_counts(counts: &[u32; 5]) -> Vec<kv::TierCount> {
    Tier::ALL
        .into_iter()
        .zip(counts)
        .filter(|(_, blocks)| **blocks > 0)
        .map(|(t, blocks)| kv::TierCount { tier: tier(t).into(), blocks: *blocks })
        .collect()
}

pub(super) fn freshness(f: &Freshness, now: Instant) -> kv::Freshness {
    let since = |at: Option<Instant>| at.map_or(0, |at| now.saturating_duration_since(at).as_millis() as u64);
    kv::Freshness {
        state: publisher_state(f.state).into(),
        silent_ms: since(f.last_message),
        staleness_ms: since(f.oldest_queued),
        complete: f.complete,
        last_seq: f.last_seq,
    }
}

fn publisher_state(state: PublisherState) -> kv::PublisherState {
    match state {
        PublisherState::Connecting => kv::PublisherState::Connecting,
        PublisherState::Replaying => kv::PublisherState::Replaying,
        PublisherState::Live => kv::PublisherState::Live,
        PublisherState::Partial => kv::PublisherState::Partial,
        PublisherState::Unreachable => kv::PublisherState::Unreachable,
        PublisherState::Dead => kv::PublisherState::Dead,
    }
}

pub(in crate::serve) fn or_default_tenant(tenant: String) -> String {
    if tenant.is_empty() { DEFAULT_TENANT.to_owned() } else { tenant }
}

pub(in crate::serve) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(in crate::serve) fn non_zero(n: u32) -> Option<u32> {
    (n != 0).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ids_are_little_endian_and_whole() {
        assert_eq!(
            read_token_ids(&Bytes::from_static(&[1, 0, 0, 0, 0, 1, 0, 255])),
            Ok(vec![1, 0xff00_0100])
        );
        assert_eq!(read_token_ids(&Bytes::new()), Ok(vec![]));
        let error = read_token_ids(&Bytes::from_static(&[1, 0, 0])).unwrap_err();
        assert_eq!(error.to_string(), "token_ids_le: 3 bytes are no multiple of 4");
    }

    #[test]
    fn hashes_are_read_by_their_kind() {
        let hashes = |kind: i32| kv::BlockHashes { kind, hashes: vec![u64::MAX] };
        let read = |kind: i32| read_hashes(hashes(kind), Some(Algo::Xxh64));
        assert_eq!(read(0), Ok(PromptKey::Canonical(vec![SeqHash(u64::MAX)])));
        assert_eq!(read(1), Ok(PromptKey::Engine(vec![EngineHash(u64::MAX)])));
        assert_eq!(read(2), Err(AskError::HashKindNotIndexed { kind: "cbor-fnv" }));
        assert_eq!(read(3), Ok(PromptKey::Llmd(vec![RequestKey(u64::MAX)])));
        assert_eq!(read_hashes(hashes(3), None), Err(AskError::HashKindNotIndexed { kind: "xxh64" }));
        assert_eq!(read(9), Err(AskError::invalid("hashes", "kind 9 is not known")));
    }

    #[test]
    fn tiers_without_a_block_are_left_out() {
        let counts = tier_counts(&[3, 0, 1, 0, 0]);
        assert_eq!(
            counts,
            [(kv::Tier::Gpu, 3), (kv::Tier::Disk, 1)]
                .map(|(t, blocks)| kv::TierCount { tier: t.into(), blocks })
        );
    }
}
