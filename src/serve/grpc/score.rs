//! What does a `ScoreRequest` ask, and how is its answer written?

use std::sync::Arc;
use std::time::Instant;

use kvindex::Score;
use kvproto::rpc::kv;
use smallvec::SmallVec;
use tonic::Status;

use super::convert::{Asking, endpoint_score, non_zero, read_weights};
use crate::outcome::predictions::RequestName;
use crate::serve::{AskError, Asked, Service};

/// Prompts of more tokens are looked up on a thread of their own, so that the short ones
/// behind them are not kept waiting on a runtime worker.
const LONG_PROMPT: usize = 32_768;

/// A `ScoreRequest`, read.
pub(super) struct Scoring {
    seq: u64,
    request_id: String,
    asking: Asking,
    top_k: usize,
    want_score_token: bool,
}

impl Scoring {
    /// Reads the message.
    pub fn new(service: &Service, request: kv::ScoreRequest) -> Result<Scoring, AskError> {
        let kv::ScoreRequest { request_id, model, tenant_id, prompt, candidates, block_size, options, seq } =
            request;
        service.check_text("request_id", &request_id)?;
        let options = options.unwrap_or_default();
        let weights = read_weights(service, &options.tier_weights)?;
        let mut asking = Asking::new(service, tenant_id, model, prompt, block_size)?;
        asking.candidates = candidates;
        asking.weights = weights;
        asking.max_blocks = non_zero(options.max_blocks);
        asking.speculative = options.include_speculative;
        Ok(Scoring {
            seq,
            request_id,
            asking,
            top_k: options.top_k as usize,
            want_score_token: options.want_score_token,
        })
    }

    /// The question by itself.
    pub fn asking(&self) -> &Asking {
        &self.asking
    }

    fn answer(self, service: &Service) -> Result<kv::ScoreResponse, AskError> {
        let began = Instant::now();
        let asked = self.asking.lend(|q| service.ask(q))?;
        let now = Instant::now();
        let prompt = &self.asking.prompt;
        let block_size_tokens = common_block_size(prompt.block_size, &asked.answer.scores);
        let score_token = if self.want_score_token {
            service.score_tokens.issue(&self.asking.tenant, &self.asking.model, Arc::clone(prompt), now)
        } else {
            None
        };
        self.remember(service, score_token.as_deref(), &asked, began);
        Ok(kv::ScoreResponse {
            seq: self.seq,
            request_id: self.request_id,
            total_blocks: prompt.blocks(block_size_tokens),
            block_size_tokens,
            endpoints: endpoints(&asked, self.top_k, self.asking.speculative, now),
            missing_candidates: asked.missing,
            unknown_model: asked.answer.unknown_model,
            degraded: asked.degraded,
            score_token: score_token.unwrap_or_default(),
            coverage: asked.coverage,
            block_size_mismatch: asked.block_size_mismatch,
            error_code: 0,
            error_message: String::new(),
        })
    }
}

impl Scoring {
    /// Keeps what was said of a request that has a name, to be compared with its outcome. Where only
    /// the first blocks were looked at, nothing was said of the whole.
    fn remember(&self, service: &Service, token: Option<&str>, asked: &Asked, began: Instant) {
        let id = Some(self.request_id.as_str()).filter(|id| !id.is_empty()).map(RequestName::Id);
        let names: SmallVec<[RequestName<'_>; 2]> =
            id.into_iter().chain(token.map(RequestName::Token)).collect();
        if !names.is_empty() && self.asking.max_blocks.is_none() {
            let Asking { tenant, model, prompt, .. } = &self.asking;
            service.remember(&names, tenant, model, prompt, asked, began);
        }
    }
}

/// Answers one `Score`.
pub(super) async fn score(
    service: &Arc<Service>,
    request: kv::ScoreRequest,
) -> Result<kv::ScoreResponse, Status> {
    let scoring = Scoring::new(service, request)?;
    let service = Arc::clone(service);
    fitting(scoring.asking.prompt.key.len(), move || scoring.answer(&service)).await
}

/// Runs `work` on a prompt of `length` tokens or hashes: here if that is short.
pub(super) async fn fitting<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> Result<T, AskError> + Send + 'static,
) -> Result<T, Status> {
    if length <= LONG_PROMPT { work().map_err(Status::from) } else { apart(work).await }
}

/// Runs `work` where it may take its time.
pub(super) async fn apart<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(gone) => Err(Status::internal(gone.to_string())),
    }
}

/// The block size that a prompt's blocks are counted in: the one asked for, or the smallest
/// among the engines, so that no engine has more blocks than the prompt.
fn common_block_size(asked: Option<u32>, scores: &[Score]) -> u32 {
    asked.or_else(|| scores.iter().map(|s| s.block_size).filter(|size| *size > 0).min()).unwrap_or(0)
}

fn endpoints(asked: &Asked, top_k: usize, speculative: bool, now: Instant) -> Vec<kv::EndpointScore> {
    let scores = &asked.answer.scores;
    let write = |at: usize| endpoint_score(&scores[at], &asked.holders[at], speculative, now);
    if top_k == 0 {
        return (0..scores.len()).map(write).collect();
    }
    best_first(scores).into_iter().take(top_k).map(write).collect()
}

/// Positions of the scores, best first; equals keep their order.
fn best_first(scores: &[Score]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&scores[*a], &scores[*b]);
        b.weighted.total_cmp(&a.weighted).then_with(|| Ord::cmp(&b.cached, &a.cached))
    });
    order
}

#[cfg(test)]
mod tests {
    use kvindex::HolderId;

    use super::*;

    fn a_score(id: u32, cached: u32, weighted: f64, block_size: u32) -> Score {
        Score {
            holder: HolderId(id),
            block_size,
            cached,
            by_tier: [0; 5],
            cumulative: [0; 5],
            below_ram: 0,
            weighted,
            cached_tokens: 0,
            speculative: 0,
            mm_matched: 0,
            suspect: cached,
            partial: false,
        }
    }

    #[test]
    fn the_best_are_those_with_the_most_weight_and_then_the_most_blocks() {
        let scores =
            [a_score(0, 1, 1.0, 16), a_score(1, 3, 2.4, 16), a_score(2, 4, 2.4, 16), a_score(3, 1, 1.0, 16)];
        assert_eq!(best_first(&scores), [2, 1, 0, 3]);
    }

    #[test]
    fn blocks_are_counted_in_the_smallest_size_that_is_known() {
        let scores = [a_score(0, 0, 0.0, 0), a_score(1, 1, 1.0, 64), a_score(2, 1, 1.0, 16)];
        assert_eq!(common_block_size(None, &scores), 16);
        assert_eq!(common_block_size(Some(32), &scores), 32);
        assert_eq!(common_block_size(None, &scores[..1]), 0);
    }
}
