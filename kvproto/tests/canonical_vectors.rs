//! The canonical hash is what another implementation (`docs/hash_vectors.py`) says it is.

use kvproto::ExtraKey;
use kvproto::hash::canonical::{MmForm, MmItem, Namespace, PromptExtras, prompt_hashes};
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    case: String,
    salt: String,
    model: String,
    lora: Option<String>,
    block_size: u32,
    tokens: Vec<u32>,
    cache_salt: Option<String>,
    mm_items: Vec<Item>,
    seed: String,
    blocks: Vec<Block>,
}

#[derive(Deserialize)]
struct Item {
    hash: String,
    offset: u32,
    length: u32,
}

#[derive(Deserialize)]
struct Block {
    keys: Vec<Key>,
    local: String,
    seq: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Key {
    Text { text: String },
    Item { item: String, offset: i64 },
    Digest { digest: String },
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str::<File>(include_str!("canonical_vectors.json")).unwrap().vectors
}

fn hex(n: u64) -> String {
    format!("{n:016x}")
}

fn unhex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

impl Vector {
    fn namespace(&self) -> Namespace<'_> {
        Namespace { salt: &self.salt, model: &self.model, lora: self.lora.as_deref() }
    }
}

#[test]
fn blocks_hash_as_the_vectors_say() {
    for v in vectors() {
        let seed = v.namespace().seed();
        assert_eq!(hex(seed.0), v.seed, "{}", v.case);
        let mut parent = None;
        let blocks = v.tokens.chunks_exact(v.block_size as usize);
        assert_eq!(blocks.len(), v.blocks.len(), "{}", v.case);
        for (tokens, want) in blocks.zip(&v.blocks) {
            let digests: Vec<Vec<u8>> = want
                .keys
                .iter()
                .map(|k| match k {
                    Key::Digest { digest } => unhex(digest),
                    Key::Text { .. } | Key::Item { .. } => vec![],
                })
                .collect();
            let keys: Vec<ExtraKey<'_>> = want
                .keys
                .iter()
                .zip(&digests)
                .map(|(k, digest)| match k {
                    Key::Text { text } => ExtraKey::Text(text),
                    Key::Item { item, offset } => ExtraKey::Item { identifier: item, offset: *offset },
                    Key::Digest { .. } => ExtraKey::Digest(digest),
                })
                .collect();
            let local = seed.local(tokens, &keys);
            let seq = seed.chain(parent, local);
            assert_eq!((hex(local.0), hex(seq.0)), (want.local.clone(), want.seq.clone()), "{}", v.case);
            parent = Some(seq);
        }
    }
}

#[test]
fn prompts_hash_as_the_vectors_say() {
    let of_prompts =
        |v: &Vector| v.blocks.iter().all(|b| !b.keys.iter().any(|k| matches!(k, Key::Digest { .. })));
    let mut checked = 0;
    for v in vectors().iter().filter(|v| of_prompts(v)) {
        let items: Vec<MmItem<'_>> = v
            .mm_items
            .iter()
            .map(|m| MmItem { identifier: &m.hash, offset: m.offset, length: m.length })
            .collect();
        let extras =
            PromptExtras { cache_salt: v.cache_salt.as_deref(), items: &items, form: MmForm::Placed };
        let got = prompt_hashes(v.namespace().seed(), &v.tokens, v.block_size, extras);
        let want: Vec<&str> = v.blocks.iter().map(|b| b.seq.as_str()).collect();
        assert_eq!(got.map(|h| hex(h.0)).collect::<Vec<_>>(), want, "{}", v.case);
        checked += 1;
    }
    assert_eq!(checked, 19);
}
