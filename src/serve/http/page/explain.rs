//! Why does a pod get its number? `/v1/explain`: what `kvctl explain` shows, block by block.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use kvindex::{ExplainedBlock, Query, Score};
use kvproto::Tier;
use serde::Serialize;

use super::super::Http;
use super::super::error::{Refusal, json};
use super::super::query::{QueryBody, non_empty, read_token_query, refuse};
use crate::serve::{Asked, DEFAULT_TENANT, HolderView, Service};

/// Candidates of one answer, those with most of the prompt.
const MOST: usize = 20;

#[derive(Serialize)]
struct Explained {
    prompt_tokens: usize,
    /// Those with most of the prompt.
    candidates: Vec<Candidate>,
    candidates_total: usize,
    coverage: f64,
    /// The one asked for, or the first of them; `null` where there is none.
    explained: Option<Why>,
}

#[derive(Serialize)]
struct Candidate {
    instance_id: String,
    dp_rank: u32,
    cached_tokens: u64,
    cached_blocks: u32,
    block_size: u32,
    state: crate::publisher::PublisherState,
}

#[derive(Serialize)]
struct Why {
    instance_id: String,
    dp_rank: u32,
    block_size: u32,
    cached_tokens: u64,
    runs: Vec<Run>,
    steps: Vec<String>,
}

/// Blocks beside each other that are held alike.
#[derive(Serialize)]
struct Run {
    from: usize,
    /// After the last.
    to: usize,
    tiers: Vec<&'static str>,
    /// KV-cache groups that have it on the device.
    gpu_groups: Vec<u32>,
    /// Only announced by routing.
    speculative: bool,
    /// Canonical hash of its first block, as text.
    first_hash: Option<String>,
}

/// `POST /v1/explain`
pub(super) async fn explain(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Refusal> {
    let arrived = http.bodies.read(request).await?;
    let body = read_token_query(&arrived.bytes)?;
    let service = Arc::clone(&http.service);
    // Long prompts take their time.
    let made = tokio::task::spawn_blocking(move || answer(&service, &body)).await;
    let Ok(made) = made else {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "body", "kvd is being stopped"));
    };
    Ok(json(StatusCode::OK, &made?))
}

fn answer(service: &Service, body: &QueryBody) -> Result<Explained, Refusal> {
    let items = body.items();
    let prompt = body.tokens(&items)?;
    let Some(model) = non_empty(&body.model) else { return Err(Refusal::missing("model")) };
    let query = Query {
        salt: non_empty(&body.additionalsalt),
        weights: service.weights,
        ..Query::new(non_empty(&body.tenant_id).unwrap_or(DEFAULT_TENANT), model, prompt)
    };
    // Somebody looks: that is no traffic.
    let Asked { answer, holders, coverage, .. } = service.ask_uncounted(&query).map_err(refuse)?;
    let mut all: Vec<(&Score, &HolderView)> = answer.scores.iter().zip(&holders).collect();
    all.sort_by(|a, b| {
        b.0.cached_tokens.cmp(&a.0.cached_tokens).then_with(|| a.1.instance().cmp(b.1.instance()))
    });
    let first = all.first().map(|(_, view)| (view.instance(), view.spec.rank));
    let whom = match non_empty(&body.instance_id) {
        Some(instance) => Some((instance, body.dp_rank.unwrap_or(0))),
        None => first,
    };
    let explained = whom.map(|(instance, rank)| {
        let (why, view) = service.explain(&query, instance, rank).map_err(refuse)?;
        Ok(Why {
            instance_id: view.instance().to_owned(),
            dp_rank: rank,
            block_size: why.score.block_size,
            cached_tokens: why.score.cached_tokens,
            runs: runs(&why.blocks),
            steps: why.steps,
        })
    });
    let candidate = |(score, view): &(&Score, &HolderView)| Candidate {
        instance_id: view.instance().to_owned(),
        dp_rank: view.spec.rank,
        cached_tokens: score.cached_tokens,
        cached_blocks: score.cached,
        block_size: score.block_size,
        state: view.freshness.state,
    };
    Ok(Explained {
        prompt_tokens: body.token_ids.as_ref().map_or(0, Vec::len),
        candidates: all.iter().take(MOST).map(candidate).collect(),
        candidates_total: all.len(),
        coverage,
        explained: explained.transpose()?,
    })
}

fn runs(blocks: &[ExplainedBlock]) -> Vec<Run> {
    let alike = |a: &ExplainedBlock, b: &ExplainedBlock| {
        (a.tiers, &a.gpu_groups, a.speculative) == (b.tiers, &b.gpu_groups, b.speculative)
    };
    let mut from = 0;
    let run = |run: &[ExplainedBlock]| {
        let first = &run[0];
        let made = Run {
            from,
            to: from + run.len(),
            tiers: first.tiers.iter().map(Tier::name).collect(),
            gpu_groups: first.gpu_groups.clone(),
            speculative: first.speculative,
            first_hash: first.seq.map(|s| format!("{:016x}", s.0)),
        };
        from = made.to;
        made
    };
    blocks.chunk_by(alike).map(run).collect()
}
