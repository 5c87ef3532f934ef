//! Which interface of kvd is checked: gRPC or HTTP?

use kvproto::rpc::kv::{
    MmItem, Prompt, PublisherSpec, RegisterPublisherRequest, ScoreRequest, TokenIds,
    UnregisterPublisherRequest, prompt,
};
use serde_json::{Value, json};

use crate::ctl::capture::MmFeature;
use crate::ctl::client::{ClientError, Kvd, state_name};
use crate::ctl::http::HttpKvd;

/// A running kvd, reached one way or the other.
pub enum Target {
    /// Over `kv.v1`.
    Grpc(Kvd),
    /// Over HTTP, in the shape of RFC #1403.
    Http(HttpKvd),
}

/// A request whose answer is known.
pub struct Question<'a> {
    /// Who should hold it.
    pub publisher: &'a PublisherSpec,
    /// The prompt.
    pub tokens: &'a [u32],
    /// Adapter.
    pub lora: Option<&'a str>,
    /// Salt.
    pub cache_salt: Option<&'a str>,
    /// Multimodal items.
    pub items: &'a [MmFeature],
}

/// How far kvd has followed a publisher.
#[derive(Debug, Default)]
pub struct Progress {
    /// Where the publisher stands, in words.
    pub state: String,
    /// Last batch applied.
    pub last_seq: Option<u64>,
    /// Batches applied; `None` where the interface does not say.
    pub batches: Option<u64>,
    /// What went wrong last.
    pub last_error: String,
}

impl Target {
    /// Starts to follow `publisher`.
    pub async fn register(&self, publisher: &PublisherSpec) -> Result<(), ClientError> {
        let what = || format!("register {} rank {}", publisher.instance_id, publisher.dp_rank);
        match self {
            Target::Grpc(kvd) => {
                let request = RegisterPublisherRequest { publisher: Some(publisher.clone()) };
                kvd.ingest().register_publisher(request).await.map_err(|s| kvd.failed(what(), s))?;
            }
            Target::Http(kvd) => {
                kvd.post("/register", &as_json(publisher), what).await?;
            }
        }
        Ok(())
    }

    /// Stops to follow `publisher`.
    pub async fn unregister(&self, publisher: &PublisherSpec) -> Result<(), ClientError> {
        let what = || format!("unregister {} rank {}", publisher.instance_id, publisher.dp_rank);
        match self {
            Target::Grpc(kvd) => {
                let request = UnregisterPublisherRequest {
                    tenant_id: publisher.tenant_id.clone(),
                    model: publisher.model.clone(),
                    instance_id: publisher.instance_id.clone(),
                    dp_rank: Some(publisher.dp_rank),
                };
                kvd.ingest().unregister_publisher(request).await.map_err(|s| kvd.failed(what(), s))?;
            }
            Target::Http(kvd) => {
                kvd.post("/unregister", &as_json(publisher), what).await?;
            }
        }
        Ok(())
    }

    /// How far `publisher` has been followed; `None` if it is not registered.
    pub async fn progress(&self, publisher: &PublisherSpec) -> Result<Option<Progress>, ClientError> {
        match self {
            Target::Grpc(kvd) => {
                let all = kvd.publishers().await?;
                let found = all.into_iter().find(|p| {
                    p.spec.as_ref().is_some_and(|s| {
                        (&s.instance_id, s.dp_rank, &s.model)
                            == (&publisher.instance_id, publisher.dp_rank, &publisher.model)
                    })
                });
                Ok(found.map(|p| {
                    let f = p.freshness.unwrap_or_default();
                    Progress {
                        state: state_name(f.state()).into(),
                        last_seq: f.last_seq,
                        batches: Some(p.batches),
                        last_error: p.last_error,
                    }
                }))
            }
            Target::Http(kvd) => {
                let all = kvd.get("/publishers", || "list publishers".into()).await?;
                let found = all.as_array().into_iter().flatten().find(|p| {
                    p["instance_id"] == publisher.instance_id.as_str() && p["dp_rank"] == publisher.dp_rank
                });
                Ok(found.map(|p| Progress {
                    state: p["state"].as_str().unwrap_or_default().into(),
                    last_seq: p["last_seq"].as_u64(),
                    batches: p["batches"].as_u64(),
                    last_error: p["last_error"].as_str().unwrap_or_default().into(),
                }))
            }
        }
    }

    /// What kvd says the engine itself would report as cached, tokens. `None` if the answer
    /// does not speak of the publisher.
    pub async fn cached_tokens(&self, q: &Question<'_>) -> Result<Option<u64>, ClientError> {
        let what = || format!("score a prompt of {} tokens on {}", q.tokens.len(), q.publisher.instance_id);
        match self {
            Target::Grpc(kvd) => {
                let answer = kvd.index().score(score_request(q)).await.map_err(|s| kvd.failed(what(), s))?;
                let endpoints = answer.into_inner().endpoints;
                let found = endpoints
                    .iter()
                    .find(|e| e.instance_id == q.publisher.instance_id && e.dp_rank == q.publisher.dp_rank);
                Ok(found.map(|e| e.cached_tokens))
            }
            Target::Http(kvd) => {
                let answer = kvd.post("/query", &query(q), what).await?;
                let instances = answer.as_object().into_iter().flat_map(|tenants| tenants.values());
                let found = instances.filter_map(|i| i.get(&q.publisher.instance_id)).next();
                Ok(found.and_then(|i| i["cached_tokens_dp"][q.publisher.dp_rank.to_string()].as_u64()))
            }
        }
    }
}

fn score_request(q: &Question<'_>) -> ScoreRequest {
    ScoreRequest {
        model: q.publisher.model.clone(),
        tenant_id: q.publisher.tenant_id.clone(),
        candidates: vec![q.publisher.instance_id.clone()],
        prompt: Some(Prompt {
            key: Some(prompt::Key::Tokens(TokenIds { ids: q.tokens.to_vec() })),
            lora_name: q.lora.unwrap_or_default().into(),
            cache_salt: q.cache_salt.unwrap_or_default().into(),
            mm_items: q
                .items
                .iter()
                .map(|i| MmItem { hash: i.identifier.clone(), offset: i.offset, length: i.length })
                .collect(),
            ..Prompt::default()
        }),
        ..ScoreRequest::default()
    }
}

fn query(q: &Question<'_>) -> Value {
    let items = q.items.iter().map(|i| json!({"hash": i.identifier, "offset": i.offset, "length": i.length}));
    let mut body = json!({
        "model": q.publisher.model,
        "token_ids": q.tokens,
        "block_size": q.publisher.block_size,
        "tenant_id": q.publisher.tenant_id,
        "instance_id": q.publisher.instance_id,
        "mm_items": items.collect::<Vec<_>>(),
    });
    // The optional ones are left out rather than empty: an empty salt is a salt.
    for (field, value) in [("lora_name", q.lora), ("cache_salt", q.cache_salt)] {
        if let Some(value) = value {
            body[field] = value.into();
        }
    }
    body
}

/// A registration as HTTP takes it.
fn as_json(p: &PublisherSpec) -> Value {
    let mut body = json!({
        "type": p.r#type, "modelname": p.model, "tenant_id": p.tenant_id,
        "instance_id": p.instance_id, "dp_rank": p.dp_rank, "block_size": p.block_size,
    });
    for (field, value) in [
        ("endpoint", &p.endpoint),
        ("replay_endpoint", &p.replay_endpoint),
        ("bind", &p.bind),
        ("topic", &p.topic),
        ("hash_algo", &p.hash_algo),
        ("hash_seed", &p.hash_seed),
    ] {
        if !value.is_empty() {
            body[field] = value.as_str().into();
        }
    }
    if p.attention_chunk_size > 0 {
        body["attention_chunk_size"] = p.attention_chunk_size.into();
    }
    body
}
