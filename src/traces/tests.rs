//! A collector of our own, and what it is told.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use kvindex::{Index, IndexConfig, TierWeights};
use kvproto::Tier;
use kvproto::rpc::kv;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tower::ServiceExt;

use super::{Traces, TracesConfig};
use crate::ingest::{IngestConfig, Publishers};
use crate::serve::{Limits, Service, grpc, http};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).expect("the test listens");
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

struct Rig {
    service: Arc<Service>,
    told: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
}

impl Rig {
    /// A kvd with one pod that holds four blocks of the prompt 1, 2, 3 ….
    async fn start(sample: f64) -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (tell, told) = mpsc::unbounded_channel();
        let collector = TraceServiceServer::new(Collector(tell));
        let incoming = TcpIncoming::from(listener);
        tokio::spawn(
            tonic::transport::Server::builder().add_service(collector).serve_with_incoming(incoming),
        );

        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None).unwrap();
        publishers.begin();
        let mut service = Service::new(index, publishers, Limits::default(), TierWeights::default());
        let config = TracesConfig { endpoint, service_name: "kvd-test".into(), sample };
        service.traces = Some(Traces::start(&config).unwrap());
        let service = Arc::new(service);
        let kvd = Rig { service, told };
        let spec = r#"{"endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "a",
            "block_size": 4, "dp_rank": 0}"#;
        kvd.post("/register", spec, None).await;
        let holder = kvd.service.publishers.list()[0].holder;
        let tokens: Vec<u32> = (1..=16).collect();
        let hashes: Vec<_> = (0..4).map(kvproto::EngineHash).collect();
        let mut batch = kvproto::event::BatchBuilder::new(0.0, None);
        let fields = kvproto::event::StoredFields { block_size: 4, tier: Tier::Gpu, ..Default::default() };
        batch.stored(fields, &hashes, &tokens, &[]);
        kvd.service.index.apply(holder, &batch.build());
        kvd
    }

    async fn post(&self, path: &str, body: &str, traceparent: Option<&str>) {
        let mut request = Request::builder().method("POST").uri(path);
        if let Some(parent) = traceparent {
            request = request.header("traceparent", parent);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = http::router(Arc::clone(&self.service)).oneshot(request).await.unwrap();
        assert!(answer.status().is_success() || path == "/query", "{}", answer.status());
    }

    /// Everything that the collector was told until traces were stopped.
    async fn spans(mut self) -> Vec<Span> {
        let service = Arc::clone(&self.service);
        tokio::task::spawn_blocking(move || service.traces.as_ref().unwrap().stop()).await.unwrap();
        let mut spans = Vec::new();
        while let Ok(request) = self.told.try_recv() {
            for resource in request.resource_spans {
                let of = &resource.resource.as_ref().unwrap().attributes;
                let name = of.iter().find(|a| a.key == "service.name").unwrap();
                assert_eq!(text(name.value.as_ref().unwrap().value.as_ref()), "kvd-test");
                spans.extend(resource.scope_spans.into_iter().flat_map(|s| s.spans));
            }
        }
        spans
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::StringValue(s)) => s.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::DoubleValue(x)) => x.to_string(),
        other => panic!("{other:?}"),
    }
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == name).unwrap_or_else(|| panic!("no {name}"));
    text(found.value.as_ref().unwrap().value.as_ref())
}

const QUERY: &str =
    r#"{"model": "m", "block_size": 4, "token_ids": [1,2,3,4,5,6,7,8,9,10,11,12,50,51,52,53,54,55,56,57]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_a_span_with_llm_ds_attributes() {
    let kvd = Rig::start(1.0).await;
    kvd.post("/query", QUERY, None).await;
    kvd.post("/query", r#"{"model": "m", "block_size": 4294967295, "token_ids": [1]}"#, None).await;
    let spans = kvd.spans().await;
    assert_eq!(spans.len(), 2);
    let span = &spans[0];
    assert_eq!(span.name, "llm_d.kv_cache.score_tokens");
    assert!(span.parent_span_id.is_empty() && span.end_time_unix_nano >= span.start_time_unix_nano);
    for (name, value) in [
        ("gen_ai.request.model", "m"),
        ("llm_d.kv_cache.token_count", "20"),
        ("llm_d.kv_cache.pod_count", "0"),
        ("llm_d.kv_cache.block_keys.count", "5"),
        ("llm_d.kv_cache.blocks_found", "3"),
        ("llm_d.kv_cache.block_hit_ratio", "0.6"),
        ("llm_d.kv_cache.scorer.pods_scored", "1"),
        ("llm_d.kv_cache.score.max", "3"),
        ("llm_d.kv_cache.score.avg", "3"),
        ("kvd.coverage", "0"),
    ] {
        assert_eq!(attribute(span, name), value, "{name}");
    }
    let refused = spans[1].status.as_ref().unwrap();
    assert!(refused.code == 2 && refused.message.contains("block_size"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_traces_is_the_parent_and_decides() {
    let kvd = Rig::start(0.0).await;
    let of = |flags: &str| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
    kvd.post("/query", QUERY, None).await;
    kvd.post("/query", QUERY, Some(&of("00"))).await;
    kvd.post("/query", QUERY, Some("nonsense")).await;
    kvd.post("/query", QUERY, Some(&of("01"))).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server =
        tokio::spawn(grpc::serve(Arc::clone(&kvd.service), listener, None, None, std::future::pending()));
    let mut client = kv::index_service_client::IndexServiceClient::connect(address).await.unwrap();
    let key = kv::prompt::Key::Tokens(kv::TokenIds { ids: (1..=8).collect() });
    let request = kv::ScoreRequest {
        model: "m".into(),
        prompt: Some(kv::Prompt { key: Some(key), ..Default::default() }),
        ..Default::default()
    };
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("traceparent", of("01").parse().unwrap());
    client.score(request).await.unwrap();
    server.abort();

    let spans = kvd.spans().await;
    assert_eq!(spans.len(), 2, "the last over HTTP, and the one over gRPC");
    for span in spans {
        assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_up_nobody() {
    let mut kvd = Rig::start(1.0).await;
    let config =
        TracesConfig { endpoint: "http://127.0.0.1:9".into(), service_name: "kvd".into(), sample: 1.0 };
    let service = Arc::get_mut(&mut kvd.service).unwrap();
    service.traces = Some(Traces::start(&config).unwrap());
    let began = std::time::Instant::now();
    for _ in 0..1000 {
        kvd.post("/query", QUERY, None).await;
    }
    assert!(began.elapsed() < Duration::from_secs(30));
}
