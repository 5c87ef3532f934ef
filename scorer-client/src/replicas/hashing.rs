//! Hashing prompts here, with what kvd says of how that is done.
//!
//! No question waits for it: as long as a model's spec is not here, its prompts go as tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kvproto::rpc::kv::{self, prompt::Key};

use super::chain;
use crate::{HashSpec, Prompt, PromptHasher};

/// A spec is asked for again after this long.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// Models, adapters and tenants that are remembered at most.
const MOST: usize = 1024;

/// What prompts are hashed alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Domain {
    pub tenant: String,
    pub model: String,
    pub lora: String,
}

/// What is known of each.
#[derive(Debug, Default)]
pub(crate) struct Hashers {
    known: HashMap<Domain, Known>,
}

#[derive(Debug)]
struct Known {
    /// None where it is not known, or hashes would leave out engines whose blocks are of another size.
    hasher: Option<PromptHasher>,
    asked: Instant,
}

/// What to do with a prompt.
#[derive(Debug)]
pub(crate) struct Advice {
    /// Hashes it, if there is one.
    pub hasher: Option<PromptHasher>,
    /// The spec is to be asked for.
    pub ask: bool,
}

impl Hashers {
    pub(crate) fn advice(&mut self, domain: &Domain, now: Instant) -> Advice {
        if let Some(known) = self.known.get_mut(domain) {
            let ask = now.duration_since(known.asked) >= GOOD_FOR;
            if ask {
                known.asked = now;
            }
            return Advice { hasher: known.hasher, ask };
        }
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(domain.clone(), Known { hasher: None, asked: now });
        Advice { hasher: None, ask: true }
    }

    /// kvd said how; `None` where it did not answer, which is asked again sooner.
    pub(crate) fn learnt(&mut self, domain: &Domain, spec: Option<&HashSpec>, now: Instant) {
        let Some(known) = self.known.get_mut(domain) else { return };
        match spec {
            None => known.asked = now.checked_sub(GOOD_FOR * 29 / 30).unwrap_or(now),
            Some(spec) => {
                known.hasher = match spec.block_sizes[..] {
                    [size] => PromptHasher::new(spec, size).ok(),
                    _ => None,
                };
            }
        }
    }

    /// Engines were left out of an answer because their blocks are of another size.
    pub(crate) fn forget(&mut self, domain: &Domain) {
        self.known.remove(domain);
    }
}

/// The domain of a question.
pub(crate) fn domain(request: &kv::ScoreRequest) -> Domain {
    Domain {
        tenant: request.tenant_id.clone(),
        model: request.model.clone(),
        lora: request.prompt.as_ref().map(|p| p.lora_name.clone()).unwrap_or_default(),
    }
}

/// A question by hashes in place of tokens; `None` where it is not asked by tokens, or goes on from another
/// prompt.
pub(crate) fn hashed(request: &kv::ScoreRequest, hasher: &PromptHasher) -> Option<kv::ScoreRequest> {
    let prompt = request.prompt.as_ref().filter(|p| p.continues.is_empty())?;
    let size = hasher.block_size();
    // Counts in other blocks than the engines' own can only be had by tokens.
    if request.block_size != 0 && request.block_size != size {
        return None;
    }
    // A token that is cut off is kvd's to refuse.
    if matches!(&prompt.key, Some(Key::TokenIdsLe(bytes)) if bytes.len() % 4 > 0) {
        return None;
    }
    let (tokens, items) = (chain::tokens(prompt)?, chain::items(prompt));
    let hashed = Prompt::canonical(hasher.hashes(&tokens, Some(&prompt.cache_salt), &items), size);
    let prompt = kv::Prompt { key: hashed.wire.key, ..prompt.clone() };
    Some(kv::ScoreRequest { prompt: Some(prompt), block_size: size, ..request.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScoreCall;
    use kvproto::hash::canonical::{self, Seed};

    fn spec(sizes: &[u32]) -> HashSpec {
        HashSpec {
            algorithm: canonical::ALGORITHM.to_owned(),
            seed: Seed(7),
            block_sizes: sizes.to_vec(),
            description: String::new(),
            additional_salt: String::new(),
            vectors: Vec::new(),
        }
    }

    fn some_domain() -> Domain {
        domain(&ScoreCall::new("m", Prompt::tokens(&[]).lora("l")).tenant("t").wire)
    }

    #[test]
    fn a_spec_is_asked_for_once_and_again_when_it_is_old() {
        let (mut h, d, now) = (Hashers::default(), some_domain(), Instant::now());
        let ask = |h: &mut Hashers, at| h.advice(&d, now + at).ask;
        assert!(ask(&mut h, Duration::ZERO) && !ask(&mut h, Duration::ZERO));
        h.learnt(&d, Some(&spec(&[16])), now);
        assert!(!ask(&mut h, GOOD_FOR / 2));
        assert!(ask(&mut h, GOOD_FOR) && !ask(&mut h, GOOD_FOR));
        assert!(h.advice(&d, now + GOOD_FOR).hasher.is_some());
        h.learnt(&d, None, now + GOOD_FOR * 2);
        assert!(!ask(&mut h, GOOD_FOR * 2) && ask(&mut h, GOOD_FOR * 2 + Duration::from_secs(1)));
    }

    #[test]
    fn where_engines_differ_in_their_blocks_tokens_are_sent() {
        let (mut h, d, now) = (Hashers::default(), some_domain(), Instant::now());
        for (sizes, hashes) in [(&[16][..], true), (&[16, 32], false), (&[], false), (&[32], true)] {
            h.advice(&d, now);
            h.learnt(&d, Some(&spec(sizes)), now);
            assert_eq!(h.advice(&d, now).hasher.is_some(), hashes, "{sizes:?}");
        }
        h.forget(&d);
        assert!(h.advice(&d, now).hasher.is_none());
    }

    #[test]
    fn a_question_by_hashes_is_the_same_but_for_its_tokens() {
        let hasher = PromptHasher::new(&spec(&[4]), 4).unwrap();
        let items = [crate::MmItem { identifier: "i", offset: 2, length: 3 }];
        let prompt = |p: Prompt| p.lora("l").cache_salt("s").items(items);
        let tokens: Vec<u32> = (0..9).collect();
        let call = ScoreCall::new("m", prompt(Prompt::tokens(&tokens))).candidates(["a"]);
        let got = hashed(&call.wire, &hasher).unwrap();
        let by_hand = prompt(hasher.prompt(&tokens, Some("s"), &items));
        assert_eq!(got, ScoreCall::new("m", by_hand).candidates(["a"]).wire);
        assert_eq!(hashed(&call.clone().block_size(8).wire, &hasher), None);
        assert_eq!(hashed(&got, &hasher), None);
        assert_eq!(hashed(&ScoreCall::new("m", Prompt::tokens(&tokens).continues("x")).wire, &hasher), None);
    }
}
