//! How long did which question take, in the traces of whoever asked? OpenTelemetry, where it is configured.
//!
//! One span per question that is sampled, under the caller's if it sent a `traceparent`, with the names
//! and attributes that llm-d's indexer gives its own (`llm_d.kv_cache.score_tokens`). The write path has
//! none: a span per batch would cost more than applying it; `/metrics` says how that goes.
//!
//! Off unless `[traces] endpoint` is set: then a question costs a look at an `Option`.

mod parent;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use kvindex::{Prompt, Query};
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::serve::{AskError, Asked};

pub use parent::Parents;

/// The span's name.
const SCORE: &str = "llm_d.kv_cache.score_tokens";
/// How long an export may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where spans go, and of which questions.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector's OTLP address over gRPC, `http://host:port`.
    pub endpoint: String,
    /// What kvd is called there.
    pub service_name: String,
    /// Part of the questions without a caller's decision that are traced, 0 to 1.
    pub sample: f64,
}

/// Makes spans and sends them in the background.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Begins to send spans. Needs a runtime of tokio around it.
    ///
    /// # Errors
    /// If the address makes no sense; a collector that is not there yet is no error.
    pub fn start(config: &TracesConfig) -> Result<Traces, opentelemetry_otlp::ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(config.endpoint.clone())
            .with_timeout(PATIENCE)
            .build()?;
        let ours = Sampler::TraceIdRatioBased(config.sample);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            // Who asks decides, if it says so.
            .with_sampler(Sampler::ParentBased(Box::new(ours)))
            .with_resource(Resource::builder().with_service_name(config.service_name.clone()).build())
            .build();
        Ok(Traces { tracer: provider.tracer("kvd"), provider })
    }

    /// Tells of a question that was answered or refused `took` after it began.
    pub(crate) fn score(&self, query: &Query<'_>, asked: &Result<Asked, AskError>, took: Duration) {
        let end = SystemTime::now();
        let span = SpanBuilder::from_name(SCORE)
            .with_kind(SpanKind::Server)
            .with_start_time(end.checked_sub(took).unwrap_or(end));
        let mut span = self.tracer.build_with_context(span, &parent::current());
        if span.is_recording() {
            span.set_attributes(attributes(query, asked));
            if let Err(error) = asked {
                span.set_status(Status::error(error.to_string()));
            }
        }
        span.end_with_timestamp(end);
    }

    /// Sends what is left. Blocks for a while.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

fn attributes(query: &Query<'_>, asked: &Result<Asked, AskError>) -> Vec<KeyValue> {
    let model: StringValue = query.model.to_owned().into();
    let mut out = vec![KeyValue::new("gen_ai.request.model", model)];
    let mut add = |name: &'static str, value: Value| out.push(KeyValue::new(name, value));
    let count = |n: usize| Value::I64(i64::try_from(n).unwrap_or(i64::MAX));
    let hashes = match query.prompt {
        Prompt::Tokens { tokens, .. } => {
            add("llm_d.kv_cache.token_count", count(tokens.len()));
            None
        }
        Prompt::Local(h) => Some(h.len()),
        Prompt::Canonical(h) => Some(h.len()),
        Prompt::Engine(h) => Some(h.len()),
        Prompt::Llmd(h) => Some(h.len()),
    };
    add("llm_d.kv_cache.pod_count", count(query.instances.len()));
    let Ok(asked) = asked else { return out };
    let scores = &asked.answer.scores;
    let size = scores.iter().map(|s| s.block_size).find(|b| *b > 0).unwrap_or(0) as usize;
    let blocks = hashes.or(match query.prompt {
        Prompt::Tokens { tokens, .. } => tokens.len().checked_div(size),
        Prompt::Local(_) | Prompt::Canonical(_) | Prompt::Engine(_) | Prompt::Llmd(_) => None,
    });
    let found = scores.iter().map(|s| s.cached).max().unwrap_or(0) as usize;
    if let Some(blocks) = blocks {
        add("llm_d.kv_cache.block_keys.count", count(blocks));
        let ratio = if blocks == 0 { 0.0 } else { found as f64 / blocks as f64 };
        add("llm_d.kv_cache.block_hit_ratio", Value::F64(ratio));
    }
    add("llm_d.kv_cache.blocks_found", count(found));
    let weighted = || scores.iter().map(|s| s.weighted);
    add("llm_d.kv_cache.scorer.pods_scored", count(scores.len()));
    add("llm_d.kv_cache.score.max", Value::F64(weighted().fold(0.0, f64::max)));
    let mean = if scores.is_empty() { 0.0 } else { weighted().sum::<f64>() / scores.len() as f64 };
    add("llm_d.kv_cache.score.avg", Value::F64(mean));
    add("kvd.coverage", Value::F64(asked.coverage));
    out
}
