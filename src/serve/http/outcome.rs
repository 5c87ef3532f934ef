//! What did the engine really have? `/report_outcome`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::error::{Refusal, json};
use super::query::{non_empty, refuse};
use super::{Http, body};
use crate::outcome::predictions::RequestName;
use crate::serve::DEFAULT_TENANT;
use crate::serve::outcome::{Received, Report};
use crate::serve::routing::Endpoint;

#[derive(Debug, Deserialize)]
struct ReportBody {
    request_id: Option<String>,
    #[serde(alias = "modelname", alias = "model_name")]
    model: Option<String>,
    tenant_id: Option<String>,
    instance_id: Option<String>,
    dp_rank: Option<u32>,
    cached_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

#[derive(Serialize)]
struct Reported {
    verdict: &'static str,
    /// `null` where nothing was predicted.
    predicted_tokens: Option<u64>,
    tokens_now: Option<u64>,
}

/// `POST /report_outcome`
pub(super) async fn report(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Refusal> {
    let arrived = http.bodies.read(request).await?;
    let body: ReportBody = body::parse(&arrived.bytes)?;
    let required = |text, field| non_empty(text).ok_or_else(|| Refusal::missing(field));
    let report = Report {
        tenant: non_empty(&body.tenant_id).unwrap_or(DEFAULT_TENANT),
        model: required(&body.model, "model")?,
        name: RequestName::Id(required(&body.request_id, "request_id")?),
        endpoint: Endpoint {
            instance: required(&body.instance_id, "instance_id")?.to_owned(),
            rank: body.dp_rank.unwrap_or(0),
        },
        cached_tokens: body.cached_tokens.ok_or_else(|| Refusal::missing("cached_tokens"))?,
        prompt_tokens: body.prompt_tokens,
    };
    let (verdict, counts) = match http.service.report_outcome(&report).map_err(refuse)? {
        Received::Compared { verdict, predicted, now } => (verdict.name(), Some((predicted, now))),
        Received::UnderReview { predicted, now } => ("under_review", Some((predicted, now))),
        Received::NoPrediction => ("no_prediction", None),
        Received::Repeated => ("repeated", None),
    };
    let (predicted_tokens, tokens_now) = counts.unzip();
    Ok(json(StatusCode::OK, &Reported { verdict, predicted_tokens, tokens_now }))
}
