//! `indexer.v1.IndexerService`: llm-d's own question, answered as llm-d answers it.
//!
//! A pod's score is the tier-weighted number of its contiguous blocks, not normalised; pods
//! without the first block are left out. llm-d sends text and tokenizes in its indexer. kvd
//! has no tokenizer, so the prompt has to be a JSON array of token ids.

use std::collections::HashMap;
use std::sync::Arc;

use kvindex::{Prompt, Query};
use kvproto::rpc::indexer::indexer_service_server::IndexerService;
use kvproto::rpc::indexer::{GetPodScoresRequest, GetPodScoresResponse, PodScore};
use tonic::{Request, Response, Status};

use super::score::apart;
use crate::serve::{AskError, Asked, DEFAULT_TENANT, Service};

/// The service.
pub(super) struct LlmdApi {
    service: Arc<Service>,
}

impl LlmdApi {
    pub fn new(service: Arc<Service>) -> LlmdApi {
        LlmdApi { service }
    }
}

#[tonic::async_trait]
impl IndexerService for LlmdApi {
    async fn get_pod_scores(
        &self,
        request: Request<GetPodScoresRequest>,
    ) -> Result<Response<GetPodScoresResponse>, Status> {
        let service = Arc::clone(&self.service);
        let request = request.into_inner();
        let scores = apart(move || pod_scores(&service, &request)).await?;
        Ok(Response::new(GetPodScoresResponse { scores }))
    }
}

fn pod_scores(service: &Service, request: &GetPodScoresRequest) -> Result<Vec<PodScore>, AskError> {
    let tokens = read_token_ids(&request.prompt)?;
    let candidates: Vec<&str> = request.pod_identifiers.iter().map(String::as_str).collect();
    // Scores are compared with each other, so pods of different block sizes are counted in one.
    let sizes = service.index.block_sizes(DEFAULT_TENANT, &request.model_name);
    let asked = service.ask(&Query {
        instances: &candidates,
        block_size: if sizes.len() > 1 { sizes.first().copied() } else { None },
        weights: service.weights,
        ..Query::new(DEFAULT_TENANT, &request.model_name, Prompt::tokens(&tokens))
    })?;
    Ok(write(&asked))
}

/// Token ids from a JSON array of them, the only prompt that can be looked up.
fn read_token_ids(prompt: &str) -> Result<Vec<u32>, AskError> {
    if !prompt.trim_start().starts_with('[') {
        return Err(AskError::TextPrompt);
    }
    serde_json::from_str(prompt).map_err(|e| {
        // A text may begin with a bracket as well.
        if e.is_data() {
            AskError::invalid("prompt", format!("no array of token ids: {e}"))
        } else {
            AskError::TextPrompt
        }
    })
}

fn write(asked: &Asked) -> Vec<PodScore> {
    let mut ranks: HashMap<&str, u32> = HashMap::new();
    for view in &asked.holders {
        *ranks.entry(&view.spec.instance).or_default() += 1;
    }
    let scored = asked.answer.scores.iter().zip(&asked.holders);
    scored
        .filter(|(score, _)| score.cached > 0)
        .map(|(score, view)| PodScore {
            pod: view.instance().to_owned(),
            score: score.weighted,
            data_parallel_rank: match ranks.get(view.spec.instance.as_str()) {
                Some(2..) => i32::try_from(view.spec.rank).ok(),
                Some(_) | None => None,
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_an_array_of_token_ids() {
        assert_eq!(read_token_ids(" [1, 4294967295]"), Ok(vec![1, u32::MAX]));
        assert_eq!(read_token_ids("[]"), Ok(vec![]));
        assert_eq!(read_token_ids("What is KV?"), Err(AskError::TextPrompt));
        assert_eq!(read_token_ids("[INST] hello"), Err(AskError::TextPrompt));
        for numbers in ["[-1]", "[4294967296]", "[1.5]", "[\"1\"]"] {
            let error = read_token_ids(numbers).unwrap_err();
            assert!(error.to_string().starts_with("prompt: no array of token ids"), "{numbers}: {error}");
        }
    }
}
