//! How much of a prompt does every instance hold? `/query` and `/query_by_hash`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use kvindex::{Answer, Prompt, Query};
use kvproto::hash::canonical::MmItem;
use kvproto::hash::llmd::RequestKey;
use kvproto::{EngineHash, SeqHash};
use serde::Deserialize;

use super::error::{Refusal, json};
use super::hashes::Hash64;
use super::params::{Format, Params, Shape, read_shape};
use super::{Http, answer, body, tokens};
use crate::outcome::predictions::RequestName;
use crate::serve::prompt::OwnedPrompt;
use crate::serve::{AskError, Asked, DEFAULT_TENANT, Service};

/// Says, in percent, for how many of the candidates the answer is known to be exact; only where not
/// for all.
const COVERAGE: HeaderName = HeaderName::from_static("kvd-coverage");

/// The body of both. Empty texts are as good as none.
#[derive(Debug, Deserialize)]
pub(super) struct QueryBody {
    #[serde(alias = "modelname", alias = "model_name")]
    pub model: Option<String>,
    pub tenant_id: Option<String>,
    /// Under which the outcome is reported later.
    request_id: Option<String>,
    pub instance_id: Option<String>,
    /// Whom to explain; nobody else asks.
    pub dp_rank: Option<u32>,
    block_size: Option<u32>,
    #[serde(alias = "additional_salt")]
    pub additionalsalt: Option<String>,
    pub token_ids: Option<Vec<u32>>,
    pub lora_name: Option<String>,
    pub cache_salt: Option<String>,
    mm_items: Option<Vec<Item>>,
    #[serde(alias = "block_hashes", alias = "block_hash")]
    seq_hashes: Option<Vec<Hash64>>,
}

impl QueryBody {
    /// Multimodal items, in order.
    pub fn items(&self) -> Vec<MmItem<'_>> {
        let all = self.mm_items.iter().flatten();
        let mut items: Vec<MmItem<'_>> =
            all.map(|i| MmItem { identifier: &i.hash, offset: i.offset, length: i.length }).collect();
        items.sort_by_key(|i| i.offset);
        items
    }

    /// The prompt by its tokens, with its [items](Self::items).
    pub fn tokens<'a>(&'a self, items: &'a [MmItem<'a>]) -> Result<Prompt<'a>, Refusal> {
        let Some(tokens) = &self.token_ids else { return Err(Refusal::missing("token_ids")) };
        let (lora, cache_salt) = (non_empty(&self.lora_name), non_empty(&self.cache_salt));
        Ok(Prompt::Tokens { tokens, lora, cache_salt, items })
    }
}

/// A multimodal item placed in the prompt.
#[derive(Debug, Deserialize)]
struct Item {
    hash: String,
    offset: u32,
    length: u32,
}

/// `POST /query`
pub(super) async fn by_tokens(
    State(http): State<Arc<Http>>,
    params: Params<Format>,
    request: Request,
) -> Result<Response, Refusal> {
    let shape = read_shape(params)?;
    let arrived = http.bodies.read(request).await?;
    let body = read_token_query(&arrived.bytes)?;
    let items = body.items();
    let prompt = body.tokens(&items)?;
    let ask = |query: &Query<'_>| http.service.ask(query);
    respond(&http.service, &body, prompt, shape, ask)
}

/// `POST /query_by_hash`
pub(super) async fn by_hash(
    State(http): State<Arc<Http>>,
    params: Params<Format>,
    request: Request,
) -> Result<Response, Refusal> {
    let shape = read_shape(params)?;
    let arrived = http.bodies.read(request).await?;
    let body: QueryBody = body::parse(&arrived.bytes)?;
    let Some(hashes) = &body.seq_hashes else { return Err(Refusal::missing("seq_hashes")) };
    let canonical: Vec<SeqHash> = hashes.iter().map(|h| SeqHash(h.0)).collect();
    let service = &http.service;
    let ask = |query: &Query<'_>| service.counted(query, || ask_by_any_kind(service, query, hashes));
    respond(&http.service, &body, Prompt::Canonical(&canonical), shape, ask)
}

/// Part of the candidates whose publisher is followed without a loss, in percent, rounded down.
fn coverage_percent(coverage: f64) -> u32 {
    (coverage * 100.0) as u32
}

/// The body of `/query`. Its array of tokens is long, so that is read apart.
pub(super) fn read_token_query(bytes: &[u8]) -> Result<QueryBody, Refusal> {
    if let Some((rest, ids)) = tokens::split(bytes, "token_ids")
        && let Ok(mut body) = serde_json::from_slice::<QueryBody>(&rest)
    {
        body.token_ids = Some(ids);
        return Ok(body);
    }
    body::parse(bytes)
}

fn respond(
    service: &Service,
    body: &QueryBody,
    prompt: Prompt<'_>,
    shape: Shape,
    ask: impl FnOnce(&Query<'_>) -> Result<Asked, AskError>,
) -> Result<Response, Refusal> {
    let Some(model) = non_empty(&body.model) else { return Err(Refusal::missing("model")) };
    let tenant = non_empty(&body.tenant_id).unwrap_or(DEFAULT_TENANT);
    let instance = non_empty(&body.instance_id);
    let query = Query {
        tenant,
        model,
        prompt,
        block_size: body.block_size,
        instances: instance.as_slice(),
        salt: non_empty(&body.additionalsalt),
        max_blocks: None,
        speculative: false,
        weights: service.weights,
    };
    let request_id = non_empty(&body.request_id);
    service.check_text("request_id", request_id.unwrap_or_default()).map_err(refuse)?;
    let began = Instant::now();
    let asked = ask(&query).map_err(refuse)?;
    // Of hashes it is not known what kind they are, so that what was said cannot be asked again.
    if let (Some(id), Prompt::Tokens { .. }) = (request_id, prompt) {
        let prompt = Arc::new(OwnedPrompt::of(prompt, body.block_size));
        service.remember(&[RequestName::Id(id)], tenant, model, &prompt, &asked, began);
    }
    let mut response = match shape {
        Shape::Conductor => json(StatusCode::OK, &answer::conductor(tenant, &asked)),
        Shape::Dynamo => json(StatusCode::OK, &answer::dynamo(&asked)),
    };
    // The shapes are others'; how far to trust an answer stands beside it.
    if asked.degraded {
        response.headers_mut().insert(COVERAGE, HeaderValue::from(coverage_percent(asked.coverage)));
    }
    Ok(response)
}

/// Hashes do not say whose they are, and a client may have the canonical ones, those of its
/// engine or llm-d's. By a wrong kind nothing is found, so of all kinds the best match counts.
fn ask_by_any_kind(service: &Service, query: &Query<'_>, hashes: &[Hash64]) -> Result<Asked, AskError> {
    let mut asked = service.ask_uncounted(query)?;
    let all_found = |asked: &Asked| asked.answer.scores.iter().all(|s| s.cached > 0);
    if !all_found(&asked) {
        let engine: Vec<EngineHash> = hashes.iter().map(|h| EngineHash(h.0)).collect();
        keep_better(&mut asked, service, &Query { prompt: Prompt::Engine(&engine), ..*query })?;
    }
    if !all_found(&asked) {
        let llmd: Vec<RequestKey> = hashes.iter().map(|h| RequestKey(h.0)).collect();
        match keep_better(&mut asked, service, &Query { prompt: Prompt::Llmd(&llmd), ..*query }) {
            // Without llm-d's seed configured there are no such keys to find, nor on Valkey.
            Ok(()) | Err(AskError::HashKindNotIndexed { .. } | AskError::NotShared(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

fn keep_better(asked: &mut Asked, service: &Service, query: &Query<'_>) -> Result<(), AskError> {
    let other: Answer = match service.mirror.as_ref().is_some_and(|m| m.answers) {
        true => service.ask_uncounted(query)?.answer,
        false => service.prepared(query, |q| service.index.query(q))?,
    };
    for score in &mut asked.answer.scores {
        if let Some(better) =
            other.scores.iter().find(|s| s.holder == score.holder && s.cached > score.cached)
        {
            *score = better.clone();
        }
    }
    Ok(())
}

/// A refused question, by the names that the fields have here.
pub(super) fn refuse(error: AskError) -> Refusal {
    let field = match error.field() {
        "hashes" => "seq_hashes",
        "additional_salt" => "additionalsalt",
        "candidates" => "instance_id",
        field => field,
    };
    let status = match error {
        AskError::NotShared(_) => StatusCode::NOT_IMPLEMENTED,
        AskError::SharedIndexGone(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    Refusal::new(status, field, error.to_string())
}

pub(super) fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|t| !t.is_empty())
}
