//! Which questions are refused, and for which field?
//!
//! A limit holds for both transports. Nothing is cut to fit: what is over a limit is refused.

use kvindex::{Prompt, Query};
use kvproto::hash::canonical::MmItem;

use super::{AskError, Service};

/// The largest block size a request may name, in tokens.
pub const MAX_BLOCK_SIZE: u32 = 65536;

impl Service {
    /// Whether `query` is one that may be asked.
    pub(super) fn check(&self, query: &Query<'_>) -> Result<(), AskError> {
        if query.model.is_empty() {
            return Err(AskError::invalid("model", "empty"));
        }
        if query.tenant.is_empty() {
            return Err(AskError::invalid("tenant_id", "empty"));
        }
        self.check_text("model", query.model)?;
        self.check_text("tenant_id", query.tenant)?;
        self.check_text("additional_salt", query.salt.unwrap_or_default())?;
        at_most("candidates", self.limits.max_candidates, query.instances.len())?;
        for instance in query.instances {
            self.check_text("candidates", instance)?;
        }
        if let Some(size) = query.block_size
            && !(1..=MAX_BLOCK_SIZE).contains(&size)
        {
            return Err(AskError::invalid("block_size", format!("{size} is outside 1..{MAX_BLOCK_SIZE}")));
        }
        if !query.weights.by_tier.iter().all(|w| (0.0..=1e6).contains(w)) {
            return Err(AskError::invalid("tier_weights", "a weight is outside 0..1000000"));
        }
        match query.prompt {
            Prompt::Tokens { tokens, lora, cache_salt, items } => {
                at_most("token_ids", self.limits.max_tokens, tokens.len())?;
                self.check_text("lora_name", lora.unwrap_or_default())?;
                self.check_text("cache_salt", cache_salt.unwrap_or_default())?;
                self.check_items(items)
            }
            Prompt::Local(hashes) => at_most("hashes", self.limits.max_tokens, hashes.len()),
            Prompt::Canonical(hashes) => at_most("hashes", self.limits.max_tokens, hashes.len()),
            Prompt::Engine(hashes) => at_most("hashes", self.limits.max_tokens, hashes.len()),
            Prompt::Llmd(keys) => at_most("hashes", self.limits.max_tokens, keys.len()),
        }
    }

    fn check_items(&self, items: &[MmItem<'_>]) -> Result<(), AskError> {
        at_most("mm_items", self.limits.max_mm_items, items.len())?;
        let mut last = 0;
        for (i, item) in items.iter().enumerate() {
            self.check_text("mm_items", item.identifier)?;
            // An item may go on past the prompt's end, as it does where a caller cut the prompt.
            let why = if item.identifier.is_empty() {
                "has no hash".to_owned()
            } else if item.length == 0 {
                "has length 0".to_owned()
            } else if item.offset < last {
                "begins before the item in front of it".to_owned()
            } else {
                last = item.offset;
                continue;
            };
            return Err(AskError::invalid("mm_items", format!("item {i} {why}")));
        }
        Ok(())
    }

    /// Whether `text` is no longer than any text may be.
    pub(crate) fn check_text(&self, field: &'static str, text: &str) -> Result<(), AskError> {
        at_most(field, self.limits.max_text_bytes, text.len())
    }
}

pub(super) fn at_most(field: &'static str, limit: usize, got: usize) -> Result<(), AskError> {
    if got > limit { Err(AskError::TooMany { field, limit, got }) } else { Ok(()) }
}
