//! What a scheduler tells when a request is done, and what kvd makes of it.

use kvproto::rpc::kv;

use crate::Endpoint;

/// What an engine reported for a request that was scored before, under its request id or with
/// [`ScoreCall::want_score_token`](crate::ScoreCall::want_score_token).
///
/// Of vLLM it is `usage.prompt_tokens_details.cached_tokens`, which is there with
/// `--enable-prompt-tokens-details`. Do not report requests whose engine did not say, or that skip the
/// cache by their own wish (`prompt_logprobs`).
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomeCall {
    pub(crate) wire: kv::ReportOutcomeRequest,
}

impl OutcomeCall {
    /// `endpoint` ran request `request_id` and found `cached_tokens` of its prompt in its cache.
    pub fn new(
        request_id: impl Into<String>,
        model: impl Into<String>,
        endpoint: Endpoint,
        cached_tokens: u64,
    ) -> OutcomeCall {
        OutcomeCall {
            wire: kv::ReportOutcomeRequest {
                request_id: request_id.into(),
                model: model.into(),
                instance_id: endpoint.instance,
                dp_rank: endpoint.rank,
                cached_tokens,
                ..kv::ReportOutcomeRequest::default()
            },
        }
    }

    /// In this tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> OutcomeCall {
        self.wire.tenant_id = tenant.into();
        self
    }

    /// Names the request by the token that its score gave, instead of its id.
    pub fn score_token(mut self, token: impl Into<String>) -> OutcomeCall {
        self.wire.score_token = token.into();
        self
    }

    /// How many tokens the engine counted in the prompt (`usage.prompt_tokens`).
    pub fn prompt_tokens(mut self, tokens: u64) -> OutcomeCall {
        self.wire.prompt_tokens = Some(tokens);
        self
    }
}

/// What came of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it compares.
    pub verdict: Verdict,
    /// Cached tokens that were predicted.
    pub predicted_tokens: u64,
    /// Cached tokens that would be predicted now.
    pub tokens_now: u64,
}

/// How a report compares with what was predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// As predicted.
    Exact,
    /// More, by blocks announced after the prediction.
    CameMeanwhile,
    /// Less, or more and gone again, by blocks that left after the prediction.
    LeftMeanwhile,
    /// More, and nothing explains it.
    TooLow,
    /// Less, and nothing explains it.
    TooHigh,
    /// Nobody can say.
    Unclear,
    /// Not explained yet; kvd judges it a moment later.
    UnderReview,
    /// Nothing was predicted for it.
    NoPrediction,
    /// It was reported before.
    Repeated,
}

/// What came of many reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// How many came to what.
    pub counts: Vec<(Verdict, u64)>,
    /// Reports that made no sense.
    pub refused: u64,
    /// What was wrong with the first of them.
    pub first_error: Option<String>,
}

impl From<kv::ReportOutcomeResponse> for Outcome {
    fn from(r: kv::ReportOutcomeResponse) -> Self {
        let kv::ReportOutcomeResponse { predicted_tokens, tokens_now, .. } = r;
        Outcome { verdict: r.verdict().into(), predicted_tokens, tokens_now }
    }
}

impl From<kv::ReportOutcomesResponse> for Outcomes {
    fn from(r: kv::ReportOutcomesResponse) -> Self {
        Outcomes {
            counts: r.counts.iter().map(|c| (c.verdict().into(), c.reports)).collect(),
            refused: r.refused,
            first_error: Some(r.first_error).filter(|e| !e.is_empty()),
        }
    }
}

impl From<kv::OutcomeVerdict> for Verdict {
    fn from(v: kv::OutcomeVerdict) -> Self {
        match v {
            kv::OutcomeVerdict::Exact => Verdict::Exact,
            kv::OutcomeVerdict::CameMeanwhile => Verdict::CameMeanwhile,
            kv::OutcomeVerdict::LeftMeanwhile => Verdict::LeftMeanwhile,
            kv::OutcomeVerdict::TooLow => Verdict::TooLow,
            kv::OutcomeVerdict::TooHigh => Verdict::TooHigh,
            kv::OutcomeVerdict::Unspecified | kv::OutcomeVerdict::Unclear => Verdict::Unclear,
            kv::OutcomeVerdict::UnderReview => Verdict::UnderReview,
            kv::OutcomeVerdict::NoPrediction => Verdict::NoPrediction,
            kv::OutcomeVerdict::Repeated => Verdict::Repeated,
        }
    }
}
