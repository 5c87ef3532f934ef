//! Names for a prompt on this side: of its blocks, to find what begins alike, and of the whole question,
//! to find it again.

use kvproto::hash::canonical::{self, MmForm, MmItem, Namespace, PromptExtras};
use kvproto::rpc::kv::{self, prompt::Key};
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

/// A prompt's blocks by name, from the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// A block's name stands for it and all before it. Those of other models, adapters and tenants differ.
    pub blocks: Vec<u64>,
    /// Tokens per block.
    pub block_size: u32,
    /// Tokens of the prompt, where they were given.
    pub tokens: Option<u64>,
}

/// The first `most` blocks of a prompt. Tokens are cut into blocks of `block_tokens`; hashes are names
/// already. A score token, or what continues one, says nothing here: `None`.
pub(crate) fn of(
    tenant: &str,
    model: &str,
    prompt: &kv::Prompt,
    block_size: u32,
    block_tokens: u32,
    most: usize,
) -> Option<Chain> {
    if !prompt.continues.is_empty() {
        return None;
    }
    let lora = (!prompt.lora_name.is_empty()).then_some(prompt.lora_name.as_str());
    let seed = Namespace { salt: tenant, model, lora }.seed();
    if let Key::Hashes(hashes) = prompt.key.as_ref()? {
        // The seed keeps models apart whose engines hash alike.
        let salt = seed.0 ^ hashes.kind as u64;
        let blocks = hashes.hashes.iter().take(most).map(|h| h ^ salt).collect();
        return Some(Chain { blocks, block_size, tokens: None });
    }
    let (tokens, items) = (tokens(prompt)?, items(prompt));
    let cache_salt = (!prompt.cache_salt.is_empty()).then_some(prompt.cache_salt.as_str());
    let extras = PromptExtras { cache_salt, items: &items, form: MmForm::Placed };
    let block_tokens = block_tokens.max(1);
    let blocks = canonical::prompt_hashes(seed, &tokens, block_tokens, extras).take(most).map(|h| h.0);
    Some(Chain { blocks: blocks.collect(), block_size: block_tokens, tokens: Some(tokens.len() as u64) })
}

/// The prompt's tokens, where they were given. What is left after whole ones says nothing.
pub(super) fn tokens(prompt: &kv::Prompt) -> Option<Vec<u32>> {
    match prompt.key.as_ref()? {
        Key::Tokens(tokens) => Some(tokens.ids.clone()),
        Key::TokenIdsLe(bytes) => {
            Some(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        Key::Hashes(_) | Key::ScoreToken(_) => None,
    }
}

/// The prompt's multimodal items, in order.
pub(super) fn items(prompt: &kv::Prompt) -> Vec<MmItem<'_>> {
    let all = prompt.mm_items.iter();
    let mut items: Vec<MmItem<'_>> =
        all.map(|m| MmItem { identifier: &m.hash, offset: m.offset, length: m.length }).collect();
    items.sort_by_key(|m| m.offset);
    items
}

/// The name of a question: the same for whatever has the same answer.
pub(crate) fn question(request: &kv::ScoreRequest) -> u128 {
    let mut h = Xxh3::new();
    let mut part = |bytes: &[u8]| {
        h.update(&(bytes.len() as u64).to_le_bytes());
        h.update(bytes);
    };
    part(request.model.as_bytes());
    part(request.tenant_id.as_bytes());
    part(&request.block_size.to_le_bytes());
    part(&request.options.as_ref().map(Message::encode_to_vec).unwrap_or_default());
    part(&(request.candidates.len() as u64).to_le_bytes());
    request.candidates.iter().for_each(|c| part(c.as_bytes()));
    if let Some(prompt) = &request.prompt {
        match &prompt.key {
            // As it is: of all keys this one is long, and most common.
            Some(Key::TokenIdsLe(bytes)) => {
                part(bytes);
                part(&kv::Prompt { key: None, ..prompt.clone() }.encode_to_vec());
            }
            _ => part(&prompt.encode_to_vec()),
        }
    }
    h.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Prompt, ScoreCall};

    fn chain(prompt: Prompt) -> Option<Chain> {
        of("t", "m", &prompt.wire, prompt.block_size, 4, 3)
    }

    #[test]
    fn prompts_that_begin_alike_have_blocks_in_common_and_no_others() {
        let a = chain(Prompt::tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9])).unwrap();
        let b = chain(Prompt::packed_tokens(vec![1, 2, 3, 4, 5, 6, 7, 0])).unwrap();
        assert_eq!((a.blocks.len(), a.block_size, a.tokens), (2, 4, Some(9)));
        assert_eq!(a.blocks[0], b.blocks[0]);
        assert_ne!(a.blocks[1], b.blocks[1]);
        assert_eq!(chain(Prompt::tokens(&[0; 99])).unwrap().blocks.len(), 3);
    }

    #[test]
    fn whatever_keeps_blocks_apart_in_engines_keeps_them_apart_here() {
        let prompt = || Prompt::tokens(&[1, 2, 3, 4]);
        let first = |p: &Prompt, tenant, model| of(tenant, model, &p.wire, 0, 4, 9).unwrap().blocks[0];
        let item = crate::MmItem { identifier: "i", offset: 1, length: 2 };
        let hashes = |kind: fn(Vec<u64>) -> Prompt| kind(vec![7]);
        let canonical = hashes(|h| Prompt::canonical(h.into_iter().map(crate::SeqHash), 16));
        let engine = hashes(|h| Prompt::engine(h.into_iter().map(crate::EngineHash), 16));
        let all = [
            first(&prompt(), "t", "m"),
            first(&prompt(), "u", "m"),
            first(&prompt(), "t", "n"),
            first(&prompt().lora("l"), "t", "m"),
            first(&prompt().cache_salt("s"), "t", "m"),
            first(&prompt().items([item]), "t", "m"),
            first(&canonical, "t", "m"),
            first(&canonical, "t", "n"),
            first(&engine, "t", "m"),
        ];
        let different: std::collections::HashSet<u64> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn what_is_not_in_the_question_has_no_names() {
        assert_eq!(chain(Prompt::scored("x")), None);
        assert_eq!(chain(Prompt::tokens(&[1, 2, 3, 4]).continues("x")), None);
    }

    #[test]
    fn questions_are_told_apart_by_all_that_changes_the_answer_and_by_nothing_else() {
        let call = || ScoreCall::new("m", Prompt::tokens(&[1, 2])).candidates(["a", "b"]);
        let name = |c: ScoreCall| question(&c.wire);
        let one = name(call());
        assert_eq!(one, name(call().request_id("r")));
        let others = [
            call().tenant("t"),
            call().candidates(["ab"]),
            call().block_size(4),
            call().max_blocks(4),
            ScoreCall::new("m", Prompt::tokens(&[1, 3])).candidates(["a", "b"]),
            ScoreCall::new("m", Prompt::packed_tokens(vec![1, 2])).candidates(["a", "b"]),
            ScoreCall::new("m", Prompt::tokens(&[1, 2]).cache_salt("s")).candidates(["a", "b"]),
            ScoreCall::new("n", Prompt::tokens(&[1, 2])).candidates(["a", "b"]),
        ];
        for (i, other) in others.into_iter().enumerate() {
            assert_ne!(one, name(other), "{i}");
        }
    }
}
