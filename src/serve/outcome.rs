//! What did the engine really have? Joins reports to what was said of their requests.
//!
//! [`crate::outcome`] has the rules; here the index is asked again, the clock is read, and a report that
//! nothing explains yet is put off a moment: an engine may answer before its events are out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvindex::{Answer, HolderId, Named, Query, Score};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tracing::warn;

use super::prompt::{OwnedPrompt, PromptKey};
use super::routing::Endpoint;
use super::{AskError, Asked, Counters, Limits, Service};
use crate::outcome::Verdict;
use crate::outcome::account::{Account, AskedBy, Comparison, Facts};
use crate::outcome::predictions::{Bounds, Found, Predicted, Prediction, Predictions, RequestName};
use crate::publisher::PublisherState;

/// Reports put off at a time; more are not compared.
const MAX_PUT_OFF: usize = 4096;
/// Their prompts may take this part of what predictions may.
const PUT_OFF_SHARE: usize = 4;
/// Tokens per block of an engine that has announced none yet, to tell prompts of less than a block.
const ASSUMED_BLOCK: u64 = 16;
/// Others whose prediction fits a report that are noted.
const MAX_FITS: usize = 4;

/// What was said and waits for its outcome.
pub(crate) struct Outcomes {
    pub predictions: Predictions,
    put_off: Mutex<PutOff>,
    added: Notify,
    pub counts: Counts,
}

/// Reports, over all publishers.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Received.
    pub reports: AtomicU64,
    /// Without a prediction.
    pub unmatched: AtomicU64,
    /// Of requests whose outcome had been reported.
    pub repeated: AtomicU64,
    /// Not compared, because too many were put off.
    pub dropped: AtomicU64,
}

#[derive(Default)]
struct PutOff {
    /// In the order they are due.
    cases: VecDeque<(Instant, OpenCase)>,
    bytes: usize,
}

/// A report beside what was said.
#[derive(Clone)]
struct OpenCase {
    prediction: Arc<Prediction>,
    /// The endpoint's place in it.
    at: usize,
    reported: u64,
    reported_prompt: Option<u64>,
    received: Instant,
}

/// What an engine reported.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Tenant and model of the request.
    pub tenant: &'a str,
    /// See [`tenant`](Self::tenant).
    pub model: &'a str,
    /// The request, as it was named when it was scored.
    pub name: RequestName<'a>,
    /// Who ran it.
    pub endpoint: Endpoint,
    /// Prompt tokens it found in its cache.
    pub cached_tokens: u64,
    /// Tokens of the prompt as it counted them.
    pub prompt_tokens: Option<u64>,
}

/// What a report came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was compared.
    Compared {
        /// What came of it.
        verdict: Verdict,
        /// Tokens predicted.
        predicted: u64,
        /// Tokens predicted now.
        now: u64,
    },
    /// It is not explained yet and will be judged again.
    UnderReview {
        /// Tokens predicted.
        predicted: u64,
        /// Tokens predicted now.
        now: u64,
    },
    /// Nothing was predicted for it.
    NoPrediction,
    /// Its outcome was reported before.
    Repeated,
}

/// What does not count of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Blocks that would count otherwise.
    pub blocks: u32,
    /// Cached tokens if they did.
    pub cached_tokens: u64,
}

/// A case that was looked at.
struct Looked {
    comparison: Comparison,
    names: Vec<Named>,
    account: Arc<Account>,
}

impl Outcomes {
    pub fn new(limits: &Limits) -> Outcomes {
        let bounds = Bounds {
            count: limits.max_predictions,
            bytes: limits.max_prediction_bytes,
            ttl: limits.prediction_ttl,
        };
        Outcomes {
            predictions: Predictions::new(bounds),
            put_off: Mutex::default(),
            added: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// False where there is no room.
    fn put_off(&self, due: Instant, case: OpenCase, most_bytes: usize) -> bool {
        let mut put_off = self.put_off.lock();
        let bytes = case.prediction.prompt.bytes();
        if put_off.cases.len() >= MAX_PUT_OFF || put_off.bytes + bytes > most_bytes {
            return false;
        }
        put_off.bytes += bytes;
        put_off.cases.push_back((due, case));
        self.added.notify_one();
        true
    }

    fn next_due(&self) -> Option<Instant> {
        self.put_off.lock().cases.front().map(|(due, _)| *due)
    }

    fn take_due(&self, now: Instant) -> Option<OpenCase> {
        let mut put_off = self.put_off.lock();
        put_off.cases.front().filter(|(due, _)| *due <= now)?;
        let (_, case) = put_off.cases.pop_front()?;
        put_off.bytes -= case.prediction.prompt.bytes();
        Some(case)
    }
}

impl Service {
    /// Keeps what was said of a request, for its outcome. `began` is a moment before the index was asked.
    pub(crate) fn remember(
        &self,
        names: &[RequestName<'_>],
        tenant: &str,
        model: &str,
        prompt: &Arc<OwnedPrompt>,
        asked: &Asked,
        began: Instant,
    ) {
        let endpoints: Box<[Predicted]> = asked
            .answer
            .scores
            .iter()
            .zip(&asked.holders)
            .map(|(score, view)| Predicted {
                holder: score.holder,
                tokens: view.held_back.map_or(score.cached_tokens, |h| h.cached_tokens) as u32,
                vouched: view.freshness.complete && view.freshness.state == PublisherState::Live,
            })
            .collect();
        if !endpoints.is_empty() {
            let prompt = Arc::clone(prompt);
            let (tenant, model) = (tenant.into(), model.into());
            self.outcomes.predictions.keep(names, Prediction { tenant, model, prompt, began, endpoints });
        }
    }

    /// Compares what an engine reported with what was said.
    pub fn report_outcome(&self, report: &Report<'_>) -> Result<Received, AskError> {
        self.check_report(report)?;
        let received = Instant::now();
        let counts = &self.outcomes.counts;
        Counters::add(&counts.reports, 1);
        let is = |holder: HolderId| {
            let spec = self.index.spec(holder);
            spec.is_some_and(|spec| report.endpoint.is(&spec.instance, spec.rank))
        };
        let found = self.outcomes.predictions.take(report.tenant, report.model, report.name, is, received);
        let (prediction, at) = match found {
            Found::Prediction(prediction, at) => (prediction, at),
            Found::Reported => {
                Counters::add(&counts.repeated, 1);
                return Ok(Received::Repeated);
            }
            Found::Nothing => {
                Counters::add(&counts.unmatched, 1);
                return Ok(Received::NoPrediction);
            }
        };
        let case = OpenCase {
            prediction,
            at,
            reported: report.cached_tokens,
            reported_prompt: report.prompt_tokens,
            received,
        };
        let Some(looked) = self.look(&case) else { return Ok(Received::NoPrediction) };
        let Comparison { verdict, predicted, now, .. } = looked.comparison;
        if looked.comparison.is_settled() {
            looked.enter(received);
            return Ok(Received::Compared { verdict, predicted, now });
        }
        let due = received + self.limits.outcome_review;
        let most = self.limits.max_prediction_bytes / PUT_OFF_SHARE;
        if !self.outcomes.put_off(due, case, most) {
            Counters::add(&counts.dropped, 1);
            return Ok(Received::Compared { verdict: Verdict::Unclear, predicted, now });
        }
        Ok(Received::UnderReview { predicted, now })
    }

    /// Judges reports that were put off, when they are due. Never returns; one task runs it.
    pub async fn review_outcomes(self: &Arc<Self>) {
        loop {
            let Some(due) = self.outcomes.next_due() else {
                self.outcomes.added.notified().await;
                continue;
            };
            tokio::time::sleep_until(due.into()).await;
            let service = Arc::clone(self);
            // Long prompts take their time.
            let reviewed = tokio::task::spawn_blocking(move || service.review(Instant::now()));
            if let Err(error) = reviewed.await {
                warn!(%error, "review of outcomes ended early");
            }
        }
    }

    /// Judges the reports that are due at `now` for good.
    pub fn review(&self, now: Instant) {
        while let Some(case) = self.outcomes.take_due(now) {
            if let Some(looked) = self.look(&case) {
                looked.enter(Instant::now());
            }
        }
    }

    /// Asks the index again and judges. `None` where the publisher is gone.
    fn look(&self, case: &OpenCase) -> Option<Looked> {
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

    /// Takes blocks that reports contradict, and what comes after them, out of an answer.
    pub(super) fn hold_back(&self, query: &Query<'_>, answer: &mut Answer) -> FxHashMap<HolderId, HeldBack> {
        let mut held_back = FxHashMap::default();
        if self.publishers.distrusted() == 0 {
            return held_back;
        }
        for score in answer.scores.iter_mut().filter(|s| s.cached > 0 || s.cached_tokens > 0) {
            if let Some(less) = self.without_distrusted(query, score) {
                let blocks = score.cached.saturating_sub(less.cached);
                let cached_tokens = score.cached_tokens;
                held_back.insert(score.holder, HeldBack { blocks, cached_tokens });
                *score = less;
            }
        }
        held_back
    }

    fn without_distrusted(&self, query: &Query<'_>, score: &Score) -> Option<Score> {
        let account = self.publishers.account(score.holder).filter(|a| a.has_distrusted())?;
        let names = self.index.named(query, score.holder);
        let first = account.first_distrusted(&names, Instant::now())?;
        let spec = self.index.spec(score.holder)?;
        let most = query.max_blocks.map_or(first, |n| n.min(first));
        let query = Query { instances: &[&spec.instance], max_blocks: Some(most), ..*query };
        self.index.query(&query).scores.into_iter().find(|s| s.holder == score.holder)
    }

    fn check_report(&self, report: &Report<'_>) -> Result<(), AskError> {
        if report.model.is_empty() {
            return Err(AskError::invalid("model", "empty"));
        }
        if report.endpoint.instance.is_empty() {
            return Err(AskError::invalid("instance_id", "empty"));
        }
        match report.name {
            RequestName::Id("") => {
                return Err(AskError::invalid("request_id", "empty, and so is score_token"));
            }
            RequestName::Id(id) => self.check_text("request_id", id)?,
            RequestName::Token(token) => self.check_text("score_token", token)?,
        }
        for (field, text) in [
            ("model", report.model),
            ("tenant_id", report.tenant),
            ("instance_id", &report.endpoint.instance),
        ] {
            self.check_text(field, text)?;
        }
        if let Some(prompt) = report.prompt_tokens
            && report.cached_tokens > prompt
        {
            let why = format!("{} is more than the prompt's {prompt}", report.cached_tokens);
            return Err(AskError::invalid("cached_tokens", why));
        }
        Ok(())
    }
}

impl Comparison {
    /// Whether waiting for further events can change nothing.
    fn is_settled(&self) -> bool {
        !self.verdict.is_error()
            && self.verdict != Verdict::Unclear
            && (self.disturbed || self.found >= self.whole)
    }
}

impl Looked {
    fn enter(self, now: Instant) {
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
fn fitting(endpoints: &[Predicted], at: usize, reported: u64) -> smallvec::SmallVec<[HolderId; MAX_FITS]> {
    if reported == 0 || u64::from(endpoints[at].tokens) == reported {
        return smallvec::SmallVec::new();
    }
    endpoints.iter().filter(|e| u64::from(e.tokens) == reported).map(|e| e.holder).take(MAX_FITS).collect()
}

impl Counts {
    /// A count now.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
