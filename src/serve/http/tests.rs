//! The paths and their answers, with batches put into the index by hand.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use kvindex::{HolderId, Index, IndexConfig, TierWeights};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::{EngineHash, Tier};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::ingest::{IngestConfig, Publishers};
use crate::serve::{Limits, Service};

pub(super) const A: &str = "10.0.0.1:8000";
pub(super) const B: &str = "10.0.0.2:8000";

pub(super) struct Kvd {
    service: Arc<Service>,
    pub(super) router: Router,
}

impl Kvd {
    pub(super) fn start() -> Kvd {
        Kvd::start_with(Limits::default())
    }

    fn start_with(limits: Limits) -> Kvd {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None).unwrap();
        publishers.begin();
        let service = Arc::new(Service::new(index, publishers, limits, TierWeights::default()));
        Kvd { router: super::router(Arc::clone(&service)), service }
    }

    pub(super) async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, Body::empty()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.send("POST", path, body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The status of a refusal, the field it names and what it says.
    pub(super) async fn refused(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> (u16, String, String) {
        let (status, body) = self.send(method, path, body).await;
        assert!(status.is_client_error(), "{status}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        (status.as_u16(), text("field"), text("error"))
    }

    pub(super) async fn register(&self, instance: &str, rank: u32) -> HolderId {
        let answer = self.post("/register", registration(instance, rank)).await;
        assert_eq!(answer, json!({"status": "registered successfully", "instance_id": instance}));
        let list = self.service.publishers.list();
        list.iter().find(|p| p.spec.instance_id == instance && p.spec.dp_rank == rank).unwrap().holder
    }

    /// Stores blocks `from..to` (of 4 tokens) of the prompt 1, 2, 3 …, named 100, 101 ….
    pub(super) fn store(&self, holder: HolderId, from: u32, to: u32, tier: Tier) {
        let tokens: Vec<u32> = (4 * from + 1..=4 * to).collect();
        let name = |i: u32| EngineHash(100 + u64::from(i));
        let hashes: Vec<EngineHash> = (from..to).map(name).collect();
        let parent = from.checked_sub(1).map(name);
        let mut batch = BatchBuilder::new(0.0, None);
        let fields = StoredFields { block_size: 4, tier, parent, ..Default::default() };
        batch.stored(fields, &hashes, &tokens, &[]);
        self.service.index.apply(holder, &batch.build());
    }
}

/// A registration of an engine whose endpoint nobody listens on.
fn registration(instance: &str, rank: u32) -> Value {
    json!({
        "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m",
        "instance_id": instance, "block_size": 4, "dp_rank": rank,
    })
}

/// The prompt 1, 2, 3 … of `n` tokens.
pub(super) fn prompt(n: u32) -> Value {
    json!({"model": "m", "block_size": 4, "token_ids": (1..=n).collect::<Vec<u32>>()})
}

#[tokio::test]
async fn an_answer_gives_tokens_by_instance_tier_and_rank() {
    let kvd = Kvd::start();
    let a0 = kvd.register(A, 0).await;
    let a1 = kvd.register(A, 1).await;
    kvd.register(B, 0).await;
    kvd.store(a0, 0, 3, Tier::Gpu);
    kvd.store(a0, 0, 1, Tier::Cpu);
    kvd.store(a1, 0, 2, Tier::Gpu);
    let (status, body) = kvd.send("POST", "/query", prompt(14).to_string()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        body,
        r#"{"default":{"10.0.0.1:8000":{"longest_matched":12,"GPU":12,"CPU":4,"DISK":0,"DP":{"0":12,"1":8},"#
            .to_owned()
            + r#""cached_tokens":12,"cached_tokens_dp":{"0":12,"1":8}},"10.0.0.2:8000":{"longest_matched":0,"#
            + r#""GPU":0,"CPU":0,"DISK":0,"DP":{"0":0},"cached_tokens":0,"cached_tokens_dp":{"0":0}}}}"#
    );
}

#[tokio::test]
async fn an_outcome_is_reported_under_the_id_that_the_question_named() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    let tokens: Vec<u32> = (1..=13).collect();
    kvd.post("/query", json!({"model": "m", "token_ids": tokens, "request_id": "r"})).await;
    let report = json!({"request_id": "r", "model": "m", "instance_id": A, "cached_tokens": 12});
    let answer = kvd.post("/report_outcome", report.clone()).await;
    assert_eq!(answer, json!({"verdict": "exact", "predicted_tokens": 12, "tokens_now": 12}));
    let answer = kvd.post("/report_outcome", report).await;
    assert_eq!(answer, json!({"verdict": "repeated", "predicted_tokens": null, "tokens_now": null}));
    let row = &kvd.get("/publishers").await[0];
    assert_eq!((&row["outcomes"]["exact"], &row["outcomes"]["too_low"]), (&json!(1), &json!(0)));
    let without = json!({"request_id": "r", "model": "m", "instance_id": A}).to_string();
    let (status, field, _) = kvd.refused("POST", "/report_outcome", without).await;
    assert_eq!((status, field.as_str()), (400, "cached_tokens"));
}

#[tokio::test]
async fn disk_and_shared_storage_count_together() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    kvd.store(a, 0, 1, Tier::Disk);
    kvd.store(a, 1, 2, Tier::Shared);
    assert_eq!(kvd.post("/query", prompt(14)).await["default"][A]["DISK"], 8);
}

#[tokio::test]
async fn counts_are_whole_blocks_of_the_size_asked_for_and_cached_tokens_stay_exact() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    let mut asked = prompt(14);
    asked["block_size"] = json!(8);
    let answer = kvd.post("/query", asked).await;
    assert_eq!(answer["default"][A]["longest_matched"], 8);
    assert_eq!(answer["default"][A]["cached_tokens"], 12);
    let mut unsaid = prompt(14);
    unsaid.as_object_mut().unwrap().remove("block_size");
    assert_eq!(kvd.post("/query", unsaid).await["default"][A]["longest_matched"], 12);
}

#[tokio::test]
async fn an_instance_id_leaves_the_others_out_and_an_unknown_model_answers_empty() {
    let kvd = Kvd::start();
    kvd.register(A, 0).await;
    kvd.register(B, 0).await;
    let mut asked = prompt(8);
    asked["instance_id"] = json!(B);
    let answer = kvd.post("/query", asked.clone()).await;
    assert_eq!(answer["default"].as_object().unwrap().keys().collect::<Vec<_>>(), [B]);
    asked["instance_id"] = json!("10.9.9.9:1");
    assert_eq!(kvd.post("/query", asked.clone()).await, json!({"default": {}}));
    asked["model"] = json!("another");
    assert_eq!(kvd.post("/query", asked.clone()).await, json!({}));
    assert_eq!(kvd.post("/query_by_hash", json!({"model": "x", "seq_hashes": [1]})).await, json!({}));
}

#[tokio::test]
async fn dynamos_shape_counts_each_tier_with_the_faster_ones() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 2, Tier::Gpu);
    kvd.store(a, 2, 3, Tier::Cpu);
    let answer = kvd.post("/query?format=dynamo", prompt(13)).await;
    assert_eq!(
        answer,
        json!({
            "scores": {A: {"0": 8}},
            "frequencies": [],
            "instances": {A: {"longest_matched": 12, "gpu": 8, "dp": {"0": 12}, "cpu": 12, "disk": 12}},
        })
    );
    assert_eq!(kvd.refused("POST", "/query?format=xml", "{}").await.1, "format");
}

#[tokio::test]
async fn hashes_are_found_whether_they_are_canonical_or_the_engines() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    let seed = Namespace { salt: "", model: "m", lora: None }.seed();
    let tokens: Vec<u32> = (1..=12).collect();
    let canonical: Vec<u64> = prompt_hashes(seed, &tokens, 4, PromptExtras::default()).map(|h| h.0).collect();
    for hashes in [json!(canonical), json!(["100", "0x65", 102])] {
        for name in ["seq_hashes", "block_hashes", "block_hash"] {
            let answer =
                kvd.post("/query_by_hash", json!({"model": "m", "block_size": 4, name: hashes})).await;
            assert_eq!(answer["default"][A]["longest_matched"], 12, "{hashes}");
            assert_eq!(answer["default"][A]["GPU"], 12, "{hashes}");
        }
    }
    let answer =
        kvd.post("/query_by_hash", json!({"model": "m", "block_size": 4, "seq_hashes": [100, 7, 102]}));
    assert_eq!(answer.await["default"][A]["longest_matched"], 4);
}

#[tokio::test]
async fn multimodal_items_and_salts_name_other_blocks() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    let matched = async |key: &str, value: Value| {
        let mut asked = prompt(14);
        asked[key] = value;
        kvd.post("/query", asked).await["default"][A]["longest_matched"].as_u64().unwrap()
    };
    assert_eq!(matched("mm_items", json!([{"hash": "cat", "offset": 5, "length": 2}])).await, 4);
    let out_of_order =
        json!([{"hash": "dog", "offset": 9, "length": 1}, {"hash": "cat", "offset": 8, "length": 1}]);
    assert_eq!(matched("mm_items", out_of_order).await, 8);
    assert_eq!(matched("cache_salt", json!("s")).await, 0);
    assert_eq!(matched("lora_name", json!("l")).await, 0);
    for (key, none) in [("mm_items", json!([])), ("cache_salt", json!("")), ("lora_name", Value::Null)] {
        assert_eq!(matched(key, none).await, 12, "{key}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_field() {
    let kvd = Kvd::start_with(Limits { max_tokens: 100, ..Limits::default() });
    let changed = |key: &str, value: Value| {
        let mut body = prompt(8);
        body[key] = value;
        body.to_string()
    };
    for (key, value) in [
        ("token_ids", json!([1, -1])),
        ("token_ids", json!([1, 1u64 << 32])),
        ("token_ids", json!([1.5])),
        ("token_ids", json!("1 2 3")),
        ("token_ids", Value::Null),
        ("token_ids", json!(vec![1; 101])),
        ("block_size", json!(0)),
        ("block_size", json!(65537)),
        ("block_size", json!(-16)),
        ("block_size", json!("16")),
        ("model", json!("")),
        ("model", json!(7)),
        ("model", json!("m".repeat(5000))),
        ("lora_name", json!(["a"])),
        ("mm_items", json!([{"hash": "cat", "offset": 3, "length": 0}])),
        ("mm_items", json!([{"hash": "cat", "offset": -1, "length": 2}])),
        ("mm_items", json!([{"offset": 1, "length": 2}])),
    ] {
        let (status, field, error) = kvd.refused("POST", "/query", changed(key, value.clone())).await;
        assert_eq!((status, field.as_str()), (400, key), "{value}: {error}");
    }
    for (key, value) in
        [("seq_hashes", json!([1.5])), ("seq_hashes", json!(["x"])), ("seq_hashes", json!(vec![1; 101]))]
    {
        let body = json!({"model": "m", "block_size": 4, key: value}).to_string();
        assert_eq!(kvd.refused("POST", "/query_by_hash", body).await.1, key);
    }
    for (path, missing) in
        [("/query", "token_ids"), ("/query_by_hash", "seq_hashes"), ("/register", "endpoint")]
    {
        let (status, field, _) = kvd.refused("POST", path, "{}").await;
        assert_eq!((status, field.as_str()), (400, missing));
    }
    for path in ["/query", "/query_by_hash", "/register", "/unregister"] {
        let (status, field, error) = kvd.refused("POST", path, "{\"model\": \"m\",\n !}").await;
        assert_eq!((status, field.as_str()), (400, "body"), "{path}");
        assert!(error.contains("line 2 column 2"), "{error}");
        assert_eq!(kvd.refused("POST", path, &b"\xff\xfe{"[..]).await.1, "body");
    }
}

#[tokio::test]
async fn hashes_of_a_block_size_that_no_engine_has_are_refused() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 1, Tier::Gpu);
    let body = json!({"model": "m", "block_size": 16, "seq_hashes": [100]}).to_string();
    assert_eq!(kvd.refused("POST", "/query_by_hash", body).await.1, "block_size");
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_refused_in_json() {
    let kvd = Kvd::start();
    let (status, field, _) = kvd.refused("GET", "/queries", Body::empty()).await;
    assert_eq!((status, field.as_str()), (404, "path"));
    let (status, field, _) = kvd.refused("GET", "/query", Body::empty()).await;
    assert_eq!((status, field.as_str()), (405, "method"));
    let (status, _, _) = kvd.refused("POST", "/dump", Body::empty()).await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_under_it_is_read() {
    let kvd = Kvd::start_with(Limits { max_body_bytes: 1 << 20, ..Limits::default() });
    let long = format!("{}{}", " ".repeat(1 << 20), prompt(4));
    let (status, field, _) = kvd.refused("POST", "/query", long).await;
    assert_eq!((status, field.as_str()), (413, "body"));
    let body = prompt(4).to_string();
    let fitting = format!("{}{body}", " ".repeat((1 << 20) - body.len()));
    assert_eq!(kvd.send("POST", "/query", fitting).await.0, StatusCode::OK);
}

#[tokio::test]
async fn registrations_are_listed_replaced_and_removed() {
    let kvd = Kvd::start();
    kvd.register(A, 0).await;
    kvd.register(A, 1).await;
    kvd.register(B, 0).await;
    let mut moved = registration(A, 1);
    moved["endpoint"] = json!("tcp://127.0.0.1:10");
    moved["type"] = json!("sglang");
    kvd.post("/register", moved).await;

    let rows = kvd.get("/publishers").await;
    let rows = rows.as_array().unwrap();
    let named: Vec<_> = rows.iter().map(|r| (r["instance_id"].as_str().unwrap(), &r["dp_rank"])).collect();
    assert_eq!(named, [(A, &json!(0)), (A, &json!(1)), (B, &json!(0))]);
    assert_eq!((&rows[1]["endpoint"], &rows[1]["type"]), (&json!("tcp://127.0.0.1:10"), &json!("SGLang")));
    assert_eq!((&rows[0]["model"], &rows[0]["tenant_id"]), (&json!("m"), &json!("default")));
    assert_eq!((&rows[0]["block_size"], &rows[0]["observed_block_size"]), (&json!(4), &Value::Null));

    let workers = kvd.get("/workers").await;
    assert_eq!(workers[0]["dp_ranks"], json!([0, 1]));
    assert_eq!(workers[0]["endpoints"], json!({"0": "tcp://127.0.0.1:9", "1": "tcp://127.0.0.1:10"}));
    assert_eq!(workers.as_array().unwrap().len(), 2);

    let removed = kvd.post("/unregister", registration(A, 1)).await;
    let one =
        json!({"status": "unregistered successfully", "removed_instances": ["10.0.0.1:8000|default|1"]});
    assert_eq!(removed, one);
    let again = kvd.post("/unregister", registration(A, 1)).await;
    assert_eq!(again["removed_instances"], json!([]));
    kvd.post("/unregister", json!({"instance_id": A})).await;
    assert_eq!(kvd.get("/publishers").await.as_array().unwrap().len(), 1);
    assert_eq!(kvd.refused("POST", "/unregister", "{}").await.1, "instance_id");
}

#[tokio::test]
async fn a_dump_is_one_row_per_block_and_tier_and_can_be_filtered() {
    let kvd = Kvd::start();
    assert_eq!(kvd.get("/dump").await, json!([]));
    let a = kvd.register(A, 0).await;
    let b = kvd.register(B, 3).await;
    kvd.store(a, 0, 2, Tier::Gpu);
    kvd.store(a, 0, 1, Tier::Disk);
    let mut batch = BatchBuilder::new(0.0, None);
    let orphan = StoredFields { block_size: 4, parent: Some(EngineHash(1)), ..Default::default() };
    batch.stored(orphan, &[EngineHash(u64::MAX)], &[1, 2, 3, 4], &[]);
    kvd.service.index.apply(b, &batch.build());
    let row = |instance: &str, rank: u32, tier: &str, block: u64, depth: Value| json!({"instance": instance, "dp_rank": rank, "tier": tier, "block": block, "depth": depth});
    let of_b = row(B, 3, "gpu", u64::MAX, Value::Null);
    let all = json!([
        row(A, 0, "gpu", 100, json!(0)),
        row(A, 0, "disk", 100, json!(0)),
        row(A, 0, "gpu", 101, json!(1)),
        of_b
    ]);
    assert_eq!(kvd.get("/dump").await, all);
    assert_eq!(kvd.get("/dump?instance_id=10.0.0.2:8000").await, json!([of_b]));
    assert_eq!(kvd.get("/dump?model=other").await, json!([]));
    assert_eq!(kvd.get("/dump?tenant_id=default&model=m").await, all);
}

#[tokio::test]
async fn health_follows_the_service() {
    let kvd = Kvd::start();
    assert_eq!(kvd.send("GET", "/healthz", Body::empty()).await.0, StatusCode::OK);
    assert_eq!(kvd.send("GET", "/readyz", Body::empty()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    kvd.service.set_ready(true);
    assert_eq!(kvd.send("GET", "/readyz", Body::empty()).await.0, StatusCode::OK);
    assert!(kvd.send("GET", "/", Body::empty()).await.1.contains("docs/http.md"));
}

#[tokio::test]
async fn metrics_are_in_the_format_that_scrapers_read() {
    let kvd = Kvd::start();
    let a = kvd.register("pod \"a\"\\\n:1", 0).await;
    kvd.store(a, 0, 2, Tier::Gpu);
    kvd.post("/query", prompt(8)).await;
    let request = Request::builder().uri("/metrics").body(Body::empty()).unwrap();
    let response = kvd.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    let (_, text) = kvd.send("GET", "/metrics", Body::empty()).await;
    let samples = crate::metrics::tests::parse(&text);
    assert_eq!(samples["kvd_queries_total"], 1.0);
    assert_eq!(samples["kvd_query_tokens_total"], 8.0);
    assert_eq!(samples["kvd_query_seconds_count"], 1.0);
    assert_eq!(samples["kvd_query_seconds_bucket{le=\"+Inf\"}"], 1.0);
    assert_eq!(samples["kvd_tier_blocks{tier=\"gpu\"}"], 2.0);
    let of_a = "{tenant=\"default\",model=\"m\",instance=\"pod \\\"a\\\"\\\\\\n:1\",dp_rank=\"0\"}";
    assert_eq!(samples[&format!("kvd_publisher_blocks{of_a}")], 2.0);
}
