//! What does the index say of a reported request now? Gathers what a judgement takes.

use std::sync::Arc;
use std::time::Instant;

use kvindex::{HolderId, Named, Query, Score};
use smallvec::SmallVec;
use tracing::warn;

use super::OpenCase;
use crate::outcome::Verdict;
use crate::outcome::account::{Account, AskedBy, Comparison, Facts};
use crate::outcome::predictions::Predicted;
use crate::publisher::PublisherState;
use crate::serve::Service;
use crate::serve::prompt::PromptKey;

/// Tokens per block of an engine that has announced none yet, to tell prompts of less than a block.
const ASSUMED_BLOCK: u64 = 16;
/// Others whose prediction fits a report that are noted.
const MAX_FITS: usize = 4;

/// A case that was looked at.
pub(super) struct Looked {
    pub comparison: Comparison,
    names: Vec<Named>,
    account: Arc<Account>,
}

impl Service {
    /// Asks the index again and judges. `None` where the publisher is gone.
    pub(super) fn look(&self, case: &OpenCase) -> Option<Looked> {
        let OpenCase { prediction, at, reported, .. } = case;
        let said = prediction.endpoints[*at];
        let account = self.publishers.account(said.holder)?;
        let spec = self.index.spec(said.holder)?;
        let freshness = self.freshness(said.holder);
        let prompt = &prediction.prompt;
        let asked_by = match prompt.key {
            PromptKey::Tokens(_) => AskedBy::Tokens,
            PromptKey::Canonical(_) | PromptKey::Engine(_) | PromptKey::Llmd(_) => AskedBy::Hashes,
        };
        let (score, names) = prompt.lend(|p| {
            let query = Query {
                // Of tokens the engine's own blocks are meant, whatever size counts were asked in.
                block_size: prompt.block_size.filter(|_| asked_by == AskedBy::Hashes),
                instances: &[&spec.instance],
                ..Query::new(&prediction.tenant, &prediction.model, p)
            };
            let scores = self.index.query(&query).scores;
            let score = scores.into_iter().find(|s| s.holder == said.holder)?;
            Some((score, self.index.named(&query, said.holder)))
        })?;
        let per = u64::from(score.block_size);
        let (predicted, now) = match asked_by {
            AskedBy::Tokens => (said.tokens.into(), score.cached_tokens),
            AskedBy::Hashes => {
                let whole = prompt.key.len() as u64 * per;
                let most = most_of_hashes(whole, per, *reported, case.reported_prompt);
                (most.min(said.tokens.into()), most.min(score.cached_tokens))
            }
        };
        let live = freshness.complete && freshness.state == PublisherState::Live && !score.partial;
        // What arrived a while after the report speaks of later times.
        let until = case.received + self.limits.outcome_review / 2;
        let lagging = freshness.oldest_queued.is_some_and(|at| at <= until)
            || freshness.state == PublisherState::Replaying;
        let facts = Facts {
            began: prediction.began,
            predicted,
            now,
            reported: *reported,
            vouched: said.vouched && live,
            lagging,
            names: &names,
            block_size: score.block_size,
        };
        let (verdict, disturbed) = account.judge(&facts);
        let held = names.iter().filter(|n| n.held).map(|n| u64::from(n.block) + 1).max().unwrap_or(0);
        let adapter = prompt.lora.as_deref();
        let mut comparison = Comparison {
            verdict,
            predicted,
            now,
            reported: *reported,
            block_size: score.block_size,
            whole: whole_blocks(&prompt.key, per),
            found: held * per,
            extra_tokens: match (&prompt.key, case.reported_prompt) {
                (PromptKey::Tokens(t), Some(n)) => Some(n as i64 - t.len() as i64),
                (_, _) => None,
            },
            asked_by,
            salted: prompt.cache_salt.is_some(),
            adapter_heard: adapter.map(|a| spec.lora.as_deref() == Some(a) || account.knows_adapter(a)),
            fits: fitting(&prediction.endpoints, *at, *reported),
            disturbed: disturbed || !live,
        };
        if comparison.found < comparison.whole && !comparison.disturbed {
            self.note_elsewhere(case, &mut comparison);
        }
        Some(Looked { comparison, names, account })
    }

    /// Notes which other candidates have all of the prompt now and had not when it was scored.
    fn note_elsewhere(&self, case: &OpenCase, comparison: &mut Comparison) {
        let prediction = &case.prediction;
        let scores = prediction.prompt.lend(|p| {
            let block_size = prediction.prompt.block_size;
            let query = Query { block_size, ..Query::new(&prediction.tenant, &prediction.model, p) };
            self.index.query(&query).scores
        });
        for (at, said) in prediction.endpoints.iter().enumerate() {
            let has = |s: &Score| u64::from(s.cached) * u64::from(s.block_size) >= comparison.whole;
            let came = u64::from(said.tokens) + u64::from(comparison.block_size) < comparison.whole
                && scores.iter().any(|s| s.holder == said.holder && has(s));
            if came
                && at != case.at
                && comparison.fits.len() < MAX_FITS
                && !comparison.fits.contains(&said.holder)
            {
                comparison.fits.push(said.holder);
            }
        }
    }
}

impl Comparison {
    /// Whether waiting for further events can change nothing.
    pub(super) fn is_settled(&self) -> bool {
        !self.verdict.is_error()
            && self.verdict != Verdict::Unclear
            && (self.disturbed || self.found >= self.whole)
    }
}

impl Looked {
    /// Enters the comparison into the publisher's account.
    pub fn enter(self, now: Instant) {
        let Looked { comparison, names, account } = self;
        let Comparison { predicted, reported, .. } = comparison;
        if account.enter(comparison, &names, now) {
            warn!(predicted, reported, "a block that reports contradict does not count any more");
        }
    }
}

/// The most that an engine can report of a prompt given by hashes of `whole` tokens: it computes the
/// last token again, and hashes do not say whether the prompt goes on after them.
fn most_of_hashes(whole: u64, per: u64, reported: u64, prompt: Option<u64>) -> u64 {
    match prompt {
        Some(n) => n.saturating_sub(1).checked_div(per).map_or(whole, |blocks| blocks * per),
        None if reported + per == whole => reported,
        None => whole,
    }
}

/// Tokens in the blocks that the engine caches when it has run the prompt.
fn whole_blocks(key: &PromptKey, per: u64) -> u64 {
    match key {
        PromptKey::Tokens(t) => {
            let per = if per == 0 { ASSUMED_BLOCK } else { per };
            t.len() as u64 / per * per
        }
        PromptKey::Canonical(_) | PromptKey::Engine(_) | PromptKey::Llmd(_) => key.len() as u64 * per,
    }
}

/// The other candidates whose prediction is what was reported.
fn fitting(endpoints: &[Predicted], at: usize, reported: u64) -> SmallVec<[HolderId; MAX_FITS]> {
    if reported == 0 || u64::from(endpoints[at].tokens) == reported {
        return SmallVec::new();
    }
    endpoints.iter().filter(|e| u64::from(e.tokens) == reported).map(|e| e.holder).take(MAX_FITS).collect()
}
