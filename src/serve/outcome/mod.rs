//! What did the engine really have? Joins reports to what was said of their requests.
//!
//! [`crate::outcome`] has the rules; here the index is asked again, the clock is read, and a report that
//! nothing explains yet is put off a moment: an engine may answer before its events are out. `look` gathers
//! what a judgement takes, `hold_back` takes out of answers what does not count.

mod hold_back;
mod look;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::check::at_most;
use super::prompt::OwnedPrompt;
use super::routing::Endpoint;
use super::{AskError, Asked, Counters, Limits, Service};
use crate::outcome::Verdict;
use crate::outcome::account::Comparison;
use crate::outcome::predictions::{Bounds, Found, Predicted, Prediction, Predictions, RequestName};
use crate::publisher::PublisherState;
pub use hold_back::HeldBack;

/// Reports put off at a time; more are not compared.
const MAX_PUT_OFF: usize = 4096;
/// Their prompts may take this part of what predictions may.
const PUT_OFF_SHARE: usize = 4;
/// Tokens that a report may speak of.
const MOST_TOKENS: u64 = u32::MAX as u64;

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
        let Report { tenant, model, name, endpoint, .. } = report;
        let holder = self.holder(tenant, model, &endpoint.instance, endpoint.rank);
        let found = match holder {
            Some((holder, _)) => self.outcomes.predictions.take(tenant, model, *name, holder, received),
            None => Found::Nothing,
        };
        if let (Some((holder, _)), Some(prompt), false) =
            (&holder, report.prompt_tokens, matches!(found, Found::Reported))
        {
            self.traffic.reported(*holder, prompt, report.cached_tokens, received);
        }
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
        for (field, tokens) in
            [("cached_tokens", report.cached_tokens), ("prompt_tokens", report.prompt_tokens.unwrap_or(0))]
        {
            at_most(field, MOST_TOKENS as usize, usize::try_from(tokens).unwrap_or(usize::MAX))?;
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

impl Counts {
    /// A count now.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
