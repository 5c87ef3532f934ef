//! Which prompt does a score token stand for?
//!
//! A scheduler that asked with a prompt and then routes it need not send the prompt again.
//! Prompts are kept for a fixed time, the oldest leave first when a bound is reached; a
//! token that is gone is answered so, and the caller sends the prompt.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::prompt::OwnedPrompt;

/// Prompts by token, bounded in number, bytes and time.
pub struct ScoreTokens {
    max_count: usize,
    max_bytes: usize,
    ttl: Duration,
    // Keyed by the process' own randomness, so that nobody guesses another tenant's token.
    keys: [RandomState; 2],
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    issued: u64,
    bytes: usize,
    by_token: FxHashMap<u128, Entry>,
    // Every entry lives equally long, so the order of issue is the order of expiry.
    order: VecDeque<u128>,
}

struct Entry {
    tenant: Box<str>,
    model: Box<str>,
    prompt: Arc<OwnedPrompt>,
    bytes: usize,
    expires: Instant,
}

impl ScoreTokens {
    /// Keeps at most `max_count` prompts of `max_bytes` together, each for `ttl`.
    pub fn new(max_count: usize, max_bytes: usize, ttl: Duration) -> ScoreTokens {
        ScoreTokens {
            max_count,
            max_bytes,
            ttl,
            keys: [RandomState::new(), RandomState::new()],
            kept: Mutex::default(),
        }
    }

    /// Keeps `prompt` and returns the token that stands for it; `None` where it alone is over
    /// the bounds.
    pub fn issue(&self, tenant: &str, model: &str, prompt: Arc<OwnedPrompt>, now: Instant) -> Option<String> {
        let bytes = size_of::<Entry>() + tenant.len() + model.len() + prompt.bytes();
        if self.max_count == 0 || bytes > self.max_bytes {
            return None;
        }
        let mut kept = self.kept.lock();
        kept.issued += 1;
        let [high, low] = self.keys.each_ref().map(|k| k.hash_one(kept.issued));
        let token = u128::from(high) << 64 | u128::from(low);
        while kept.order.len() >= self.max_count
            || kept.bytes + bytes > self.max_bytes
            || kept.oldest_expires().is_some_and(|at| at <= now)
        {
            kept.drop_oldest();
        }
        kept.bytes += bytes;
        kept.order.push_back(token);
        let entry =
            Entry { tenant: tenant.into(), model: model.into(), prompt, bytes, expires: now + self.ttl };
        kept.by_token.insert(token, entry);
        Some(format!("{token:032x}"))
    }

    /// The prompt that `token` stands for, if it was issued for this tenant and model.
    pub fn find(&self, token: &str, tenant: &str, model: &str, now: Instant) -> Option<Arc<OwnedPrompt>> {
        let token = u128::from_str_radix(token, 16).ok()?;
        let kept = self.kept.lock();
        let entry = kept.by_token.get(&token)?;
        (entry.expires > now && *entry.tenant == *tenant && *entry.model == *model)
            .then(|| Arc::clone(&entry.prompt))
    }
}

impl Kept {
    fn oldest_expires(&self) -> Option<Instant> {
        self.by_token.get(self.order.front()?).map(|e| e.expires)
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.order.pop_front().and_then(|t| self.by_token.remove(&t)) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prompt::PromptKey;
    use super::*;

    fn prompt(tokens: usize) -> Arc<OwnedPrompt> {
        let key = PromptKey::Tokens(vec![7; tokens]);
        Arc::new(OwnedPrompt { key, block_size: None, lora: None, cache_salt: None, items: vec![] })
    }

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn a_token_finds_its_prompt_until_its_time_is_over() {
        let tokens = ScoreTokens::new(10, 1 << 20, TTL);
        let now = Instant::now();
        let t = tokens.issue("default", "m", prompt(5), now).unwrap();
        assert_eq!(tokens.find(&t, "default", "m", now), Some(prompt(5)));
        assert_eq!(tokens.find(&t, "default", "m", now + TTL), None);
    }

    #[test]
    fn a_token_is_worth_nothing_to_another_tenant_or_model() {
        let tokens = ScoreTokens::new(10, 1 << 20, TTL);
        let now = Instant::now();
        let t = tokens.issue("a", "m", prompt(5), now).unwrap();
        assert_eq!(tokens.find(&t, "b", "m", now), None);
        assert_eq!(tokens.find(&t, "a", "n", now), None);
        assert_eq!(tokens.find("no token", "a", "m", now), None);
    }

    #[test]
    fn the_oldest_prompts_leave_when_a_bound_is_reached() {
        let now = Instant::now();
        let by_count = ScoreTokens::new(2, 1 << 20, TTL);
        let t: Vec<String> = (0..3).map(|_| by_count.issue("a", "m", prompt(5), now).unwrap()).collect();
        let found: Vec<bool> = t.iter().map(|t| by_count.find(t, "a", "m", now).is_some()).collect();
        assert_eq!(found, [false, true, true]);

        let by_bytes = ScoreTokens::new(1000, 10_000, TTL);
        for _ in 0..100 {
            by_bytes.issue("a", "m", prompt(500), now);
        }
        {
            let kept = by_bytes.kept.lock();
            assert!(kept.bytes <= 10_000);
            assert_eq!(kept.by_token.len(), kept.order.len());
        }
        assert_eq!(by_bytes.issue("a", "m", prompt(5000), now), None);
    }

    #[test]
    fn expired_prompts_are_freed_by_the_next_one() {
        let tokens = ScoreTokens::new(10, 1 << 20, TTL);
        let now = Instant::now();
        for _ in 0..5 {
            tokens.issue("a", "m", prompt(5), now);
        }
        tokens.issue("a", "m", prompt(5), now + TTL);
        assert_eq!(tokens.kept.lock().by_token.len(), 1);
    }
}
