//! Which prompt is asked about? The arguments that `score` and `explain` share.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use kvproto::rpc::kv::{BlockHashes, HashKind, MmItem, Prompt, ScoreOptions, ScoreRequest, TokenIds, prompt};

use crate::ctl::UsageError;

/// Larger token files are refused, bytes.
const MAX_FILE: u64 = 64 << 20;

/// A prompt, as given on the command line.
#[derive(Debug, Args)]
pub struct PromptArgs {
    /// Model, as registered
    #[arg(long)]
    model: String,
    /// Tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    #[command(flatten)]
    key: Key,
    /// Whose --hashes are: kvd's own, those in the engine's events, or llm-d's request keys
    #[arg(long, value_enum, default_value = "canonical", value_name = "KIND")]
    hash_kind: Kind,
    /// Tokens per block of the counts; needed with --hashes (default: each engine's own)
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "TOKENS")]
    block_size: u32,
    /// LoRA adapter of the request
    #[arg(long, default_value = "", hide_default_value = true)]
    lora: String,
    /// Cache salt of the request
    #[arg(long, default_value = "", hide_default_value = true)]
    salt: String,
    /// A multimodal item: what identifies it, its first token, its number of tokens
    #[arg(long, value_parser = mm_item, value_name = "HASH:OFFSET:LENGTH")]
    mm: Vec<MmItem>,
    /// Count blocks that routing announced, too
    #[arg(long)]
    speculative: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Key {
    /// Token ids
    #[arg(long, value_delimiter = ',', value_name = "ID,ID,...")]
    tokens: Option<Vec<u32>>,
    /// Token ids in a file: a JSON array, or numbers between spaces, commas or line ends ("-": standard input)
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// Block hashes from the root, decimal or 0x...
    #[arg(long, value_delimiter = ',', value_parser = hash, value_name = "HASH,HASH,...")]
    hashes: Option<Vec<u64>>,
}

/// Whose hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Canonical,
    Engine,
    LlmdCborFnv,
    LlmdXxh64,
}

impl PromptArgs {
    /// The model asked about.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The question, about `candidates` (all of the model where there are none).
    pub fn request(&self, candidates: Vec<String>) -> anyhow::Result<ScoreRequest> {
        let key = match (&self.key.tokens, &self.key.tokens_file, &self.key.hashes) {
            (Some(ids), _, _) => prompt::Key::Tokens(TokenIds { ids: ids.clone() }),
            (None, Some(path), _) => prompt::Key::Tokens(TokenIds { ids: tokens_in(path)? }),
            (None, None, Some(hashes)) => {
                let kind = match self.hash_kind {
                    Kind::Canonical => HashKind::Canonical,
                    Kind::Engine => HashKind::Engine,
                    Kind::LlmdCborFnv => HashKind::LlmdCborFnv,
                    Kind::LlmdXxh64 => HashKind::LlmdXxh64,
                };
                prompt::Key::Hashes(BlockHashes { kind: kind.into(), hashes: hashes.clone() })
            }
            (None, None, None) => {
                return Err(UsageError("a prompt: give --tokens, --tokens-file or --hashes".into()).into());
            }
        };
        Ok(ScoreRequest {
            model: self.model.clone(),
            tenant_id: self.tenant.clone(),
            prompt: Some(Prompt {
                key: Some(key),
                lora_name: self.lora.clone(),
                cache_salt: self.salt.clone(),
                mm_items: self.mm.clone(),
                ..Prompt::default()
            }),
            candidates,
            block_size: self.block_size,
            options: Some(ScoreOptions { include_speculative: self.speculative, ..ScoreOptions::default() }),
            ..ScoreRequest::default()
        })
    }
}

fn tokens_in(path: &Path) -> anyhow::Result<Vec<u32>> {
    let mut text = String::new();
    let shown = path.display();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE).read_to_string(&mut text).context("read standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("open {shown}"))?;
        file.take(MAX_FILE).read_to_string(&mut text).with_context(|| format!("read {shown}"))?;
    }
    token_ids(&text).map_err(|e| UsageError(format!("{shown}: {e}")).into())
}

/// Token ids in a JSON array, or in words.
fn token_ids(text: &str) -> Result<Vec<u32>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|e| format!("not a JSON array of token ids: {e}"));
    }
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty());
    words
        .enumerate()
        .map(|(i, w)| {
            w.parse().map_err(|_| format!("token {i} is {w:?}, expected an id from 0 to {}", u32::MAX))
        })
        .collect()
}

/// A hash, decimal or hexadecimal; engines' signed ones by their bits.
fn hash(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok().or_else(|| text.parse::<i64>().ok().map(|n| n as u64)),
    };
    parsed.ok_or_else(|| "expected 64 bits, decimal or 0x...".into())
}

fn mm_item(text: &str) -> Result<MmItem, String> {
    // From the end: what identifies an item may contain colons itself.
    let mut parts = text.rsplitn(3, ':');
    let (length, offset, hash) = (parts.next(), parts.next(), parts.next());
    match (hash, offset.map(str::parse), length.map(str::parse)) {
        (Some(hash), Some(Ok(offset)), Some(Ok(length))) if !hash.is_empty() => {
            Ok(MmItem { hash: hash.into(), offset, length })
        }
        _ => Err("expected HASH:OFFSET:LENGTH, the last two in tokens".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files_are_json_or_words() {
        assert_eq!(token_ids("[1, 2,3]").unwrap(), [1, 2, 3]);
        assert_eq!(token_ids("1 2\n3,4\n").unwrap(), [1, 2, 3, 4]);
        assert_eq!(token_ids("").unwrap(), [0u32; 0]);
        assert_eq!(token_ids("1 -2").unwrap_err(), "token 1 is \"-2\", expected an id from 0 to 4294967295");
        assert!(token_ids("[1, -2]").is_err());
    }

    #[test]
    fn hashes_are_decimal_hex_or_signed() {
        assert_eq!(hash("0xff"), Ok(255));
        assert_eq!(hash("-1"), Ok(u64::MAX));
        assert_eq!(hash("18446744073709551615"), Ok(u64::MAX));
        assert!(hash("0x").is_err() && hash("x").is_err());
    }

    #[test]
    fn what_identifies_an_item_may_contain_colons() {
        let item = mm_item("sha256:ab:4:40").unwrap();
        assert_eq!((item.hash.as_str(), item.offset, item.length), ("sha256:ab", 4, 40));
        assert!(mm_item("img:4").is_err() && mm_item(":4:40").is_err() && mm_item("img:x:1").is_err());
    }
}
