//! The services over a real port, with batches put into the index by hand.

mod outcomes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvindex::{HolderId, Index, IndexConfig, TierWeights};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::rpc::indexer::GetPodScoresRequest;
use kvproto::rpc::indexer::indexer_service_client::IndexerServiceClient;
use kvproto::rpc::kv;
use kvproto::rpc::kv::admin_service_client::AdminServiceClient;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use kvproto::rpc::kv::ingest_service_client::IngestServiceClient;
use kvproto::rpc::kv::prompt::Key;
use kvproto::{EngineHash, Tier};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::ingest::testing::dialled;
use crate::ingest::{IngestConfig, Publishers};
use crate::publisher::PublisherSpec;
use crate::serve::{Limits, Service};

/// A server on a port of its own; it stops when the test ends.
struct Kvd {
    service: Arc<Service>,
    channel: Channel,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
}

const A: &str = "10.0.0.1:8000";
const B: &str = "10.0.0.2:8000";

impl Kvd {
    async fn start() -> Kvd {
        Kvd::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Kvd {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None).unwrap();
        publishers.begin();
        let service = Arc::new(Service::new(index, publishers, limits, TierWeights::default()));
        service.set_ready(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(super::serve(Arc::clone(&service), listener, None, None, async {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Kvd { service, channel, stop, served }
    }

    fn index(&self) -> IndexServiceClient<Channel> {
        IndexServiceClient::new(self.channel.clone())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// Registers a publisher whose endpoint nobody listens on; returns its holder.
    fn register(&self, instance: &str, rank: u32) -> HolderId {
        self.service
            .publishers
            .register(PublisherSpec { dp_rank: rank, ..dialled(instance, "tcp://127.0.0.1:9") })
            .unwrap();
        let of =
            |p: &crate::publisher::PublisherStatus| p.spec.instance_id == instance && p.spec.dp_rank == rank;
        self.service.publishers.list().iter().find(|p| of(p)).unwrap().holder
    }

    /// Stores the first `blocks` blocks of 4 of the prompt 1, 2, 3 …, named 100, 101 …, one
    /// by one: several in an event would be one chunk of an offload tier.
    fn store(&self, holder: HolderId, blocks: u32, tier: Tier) {
        let name = |block: u32| EngineHash(100 + u64::from(block));
        let mut batch = BatchBuilder::new(0.0, None);
        for block in 0..blocks {
            let parent = block.checked_sub(1).map(name);
            let fields = StoredFields { parent, block_size: 4, tier, ..Default::default() };
            let tokens: Vec<u32> = (4 * block + 1..=4 * block + 4).collect();
            batch.stored(fields, &[name(block)], &tokens, &[]);
        }
        self.service.index.apply(holder, &batch.build());
    }
}

/// The prompt 1, 2, 3 … of `n` tokens.
fn tokens(n: u32) -> Option<kv::Prompt> {
    prompt(Key::Tokens(kv::TokenIds { ids: (1..=n).collect() }))
}

fn prompt(key: Key) -> Option<kv::Prompt> {
    Some(kv::Prompt { key: Some(key), ..kv::Prompt::default() })
}

fn hashes(kind: kv::HashKind, hashes: Vec<u64>) -> Option<kv::Prompt> {
    prompt(Key::Hashes(kv::BlockHashes { kind: kind.into(), hashes }))
}

fn ask(prompt: Option<kv::Prompt>) -> kv::ScoreRequest {
    kv::ScoreRequest { model: "m".to_owned(), prompt, ..kv::ScoreRequest::default() }
}

/// Instance, cached blocks, cached tokens.
fn short(r: &kv::ScoreResponse) -> Vec<(&str, u32, u64)> {
    r.endpoints.iter().map(|e| (e.instance_id.as_str(), e.cached_blocks, e.cached_tokens)).collect()
}

#[tokio::test]
async fn a_prompt_is_scored_for_every_candidate() {
    let kvd = Kvd::start().await;
    let (a, b) = (kvd.register(A, 0), kvd.register(B, 0));
    kvd.store(a, 3, Tier::Gpu);
    kvd.store(b, 1, Tier::Gpu);
    kvd.store(b, 2, Tier::Cpu);

    let request = kv::ScoreRequest { request_id: "r".to_owned(), seq: 7, ..ask(tokens(14)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert_eq!((r.request_id.as_str(), r.seq, r.total_blocks, r.block_size_tokens), ("r", 7, 3, 4));
    assert_eq!(short(&r), [(A, 3, 12), (B, 2, 8)]);
    let b = &r.endpoints[1];
    assert_eq!((b.weighted_blocks, b.match_blocks), (1.8, 1));
    let count = |tier: kv::Tier, blocks| kv::TierCount { tier: tier.into(), blocks };
    assert_eq!(b.by_tier, [count(kv::Tier::Gpu, 1), count(kv::Tier::Cpu, 2)]);
    // Nothing was received over the publisher's socket, and the answer says so.
    let f = b.freshness.unwrap();
    assert_eq!((f.state(), f.complete, f.last_seq), (kv::PublisherState::Connecting, false, None));
    assert!(r.degraded);
    assert_eq!(r.coverage, 0.0);

    let bytes: Vec<u8> = (1..=14u32).flat_map(u32::to_le_bytes).collect();
    let by_bytes = kvd.index().score(ask(prompt(Key::TokenIdsLe(Bytes::from(bytes))))).await.unwrap();
    assert_eq!(short(&by_bytes.into_inner()), short(&r));

    // Worked on apart from the short ones.
    let long = kvd.index().score(ask(tokens(40_000))).await.unwrap().into_inner();
    assert_eq!((long.total_blocks, short(&long)), (10_000, vec![(A, 3, 12), (B, 2, 8)]));
}

#[tokio::test]
async fn candidates_are_found_by_either_form_of_their_name_and_the_others_are_missing() {
    let kvd = Kvd::start().await;
    let six = kvd.register("fd00::1:8000", 0);
    kvd.store(six, 1, Tier::Gpu);
    kvd.register(B, 0);
    let candidates = ["[fd00::1]:8000", "10.0.0.9:8000"].map(str::to_owned).to_vec();
    let r = kvd.index().score(kv::ScoreRequest { candidates, ..ask(tokens(5)) }).await.unwrap().into_inner();
    assert_eq!(short(&r), [("[fd00::1]:8000", 1, 4)]);
    assert_eq!(r.missing_candidates, ["10.0.0.9:8000"]);
    assert!(!r.unknown_model);
}

#[tokio::test]
async fn an_unknown_model_is_an_answer() {
    let kvd = Kvd::start().await;
    let request = kv::ScoreRequest { candidates: vec![A.to_owned()], ..ask(tokens(5)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert!(r.unknown_model && r.degraded && r.endpoints.is_empty());
    assert_eq!(r.missing_candidates, [A]);
}

#[tokio::test]
async fn the_best_k_come_first() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(A, 1), (B, 3), ("10.0.0.3:8000", 2)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let options = Some(kv::ScoreOptions { top_k: 2, ..Default::default() });
    let r = kvd.index().score(kv::ScoreRequest { options, ..ask(tokens(13)) }).await.unwrap().into_inner();
    assert_eq!(short(&r), [(B, 3, 12), ("10.0.0.3:8000", 2, 8)]);
}

#[tokio::test]
async fn blocks_can_be_asked_for_by_hash() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let engine = ask(hashes(kv::HashKind::Engine, vec![100, 101, 102]));
    let r = kvd.index().score(engine).await.unwrap().into_inner();
    assert_eq!((r.total_blocks, r.endpoints[0].cached_blocks), (3, 2));

    let spec = kv::GetHashSpecRequest { model: "m".to_owned(), ..Default::default() };
    let spec = kvd.index().get_hash_spec(spec).await.unwrap().into_inner();
    assert_eq!((spec.algorithm.as_str(), &spec.block_sizes[..]), ("kvd-xxh3-64/1", &[4][..]));
    let vector = &spec.vectors[0];
    assert_eq!(
        (vector.block_size, &vector.token_ids[..], vector.seq_hashes.len()),
        (4, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..], 2)
    );
    // The example is the prompt stored above, so its hashes must find it.
    let canonical = |block_size| kv::ScoreRequest {
        block_size,
        ..ask(hashes(kv::HashKind::Canonical, vector.seq_hashes.clone()))
    };
    for block_size in [0, 4] {
        let r = kvd.index().score(canonical(block_size)).await.unwrap().into_inner();
        assert_eq!(r.endpoints[0].cached_blocks, 2, "block_size {block_size}");
    }
    let refused = kvd.index().score(canonical(8)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "block_size: hashes are of 8-token blocks, the engines asked about use [4]"
    );
    let refused = kvd.index().score(ask(hashes(kv::HashKind::LlmdXxh64, vec![1]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("hashes: llm-d's xxh64 keys are not indexed"), "{refused}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_field() {
    let limits = Limits { max_tokens: 100, max_candidates: 2, max_text_bytes: 64, ..Limits::default() };
    let kvd = Kvd::start_with(limits).await;
    let a = kvd.register(A, 0);
    kvd.store(a, 1, Tier::Gpu);
    let item = |offset, length| kv::MmItem { hash: "i".to_owned(), offset, length };
    let with_items = |mm_items| tokens(8).map(|p| kv::Prompt { mm_items, ..p });
    let weights = |tier_weights| Some(kv::ScoreOptions { tier_weights, ..Default::default() });
    let weight = |tier: i32, weight| kv::TierWeight { tier, weight };
    let many = vec![A.to_owned(); 3];
    let cases: Vec<(Code, &str, kv::ScoreRequest)> = vec![
        (Code::InvalidArgument, "model: empty", kv::ScoreRequest { model: String::new(), ..ask(tokens(8)) }),
        (Code::InvalidArgument, "prompt: missing", ask(None)),
        (Code::InvalidArgument, "prompt: missing", ask(Some(kv::Prompt::default()))),
        (
            Code::InvalidArgument,
            "token_ids_le: 3 bytes are no multiple of 4",
            ask(prompt(Key::TokenIdsLe(Bytes::from_static(b"abc")))),
        ),
        (Code::ResourceExhausted, "token_ids: 101 is over the limit of 100", ask(tokens(101))),
        (
            Code::ResourceExhausted,
            "hashes: 101 is over the limit of 100",
            ask(hashes(kv::HashKind::Engine, vec![1; 101])),
        ),
        (
            Code::ResourceExhausted,
            "candidates: 3 is over the limit of 2",
            kv::ScoreRequest { candidates: many, ..ask(tokens(8)) },
        ),
        (
            Code::ResourceExhausted,
            "request_id: 65 is over the limit of 64",
            kv::ScoreRequest { request_id: "x".repeat(65), ..ask(tokens(8)) },
        ),
        (
            Code::InvalidArgument,
            "block_size: 65537 is outside 1..65536",
            kv::ScoreRequest { block_size: 65537, ..ask(tokens(8)) },
        ),
        (Code::InvalidArgument, "mm_items: item 0 has length 0", ask(with_items(vec![item(3, 0)]))),
        (
            Code::InvalidArgument,
            "tier_weights: a weight is outside 0..1000000",
            kv::ScoreRequest { options: weights(vec![weight(1, f64::NAN)]), ..ask(tokens(8)) },
        ),
        (
            Code::InvalidArgument,
            "tier_weights: 77 is no tier that has a weight",
            kv::ScoreRequest { options: weights(vec![weight(77, 1.0)]), ..ask(tokens(8)) },
        ),
        (
            Code::NotFound,
            "score_token: unknown or expired, send the prompt again",
            ask(prompt(Key::ScoreToken("x".to_owned()))),
        ),
    ];
    for (code, message, request) in cases {
        let refused = kvd.index().score(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, message));
    }
}

#[tokio::test]
async fn a_conversation_goes_on_with_its_new_tokens_alone() {
    let kvd = Kvd::start().await;
    let holder = kvd.register(A, 0);
    kvd.store(holder, 5, Tier::Gpu);
    let options = Some(kv::ScoreOptions { want_score_token: true, ..Default::default() });
    let first = kv::ScoreRequest { options: options.clone(), ..ask(tokens(10)) };
    let first = kvd.index().score(first).await.unwrap().into_inner();
    assert_eq!(short(&first), [(A, 2, 8)]);

    // Its last block was not whole; with what follows it is.
    let more = |continues: &str, ids: std::ops::RangeInclusive<u32>| {
        let key = Some(Key::Tokens(kv::TokenIds { ids: ids.collect() }));
        Some(kv::Prompt { key, continues: continues.to_owned(), ..kv::Prompt::default() })
    };
    let second = kv::ScoreRequest { options, ..ask(more(&first.score_token, 11..=17)) };
    let second = kvd.index().score(second).await.unwrap().into_inner();
    assert_eq!((short(&second), second.total_blocks), (vec![(A, 4, 16)], 4));
    let third = ask(more(&second.score_token, 18..=21));
    assert_eq!(short(&kvd.index().score(third).await.unwrap().into_inner()), [(A, 5, 20)]);

    let cases = [
        ("score_token: unknown or expired, send the prompt again", more("ff", 11..=17)),
        (
            "continues: that prompt was given in another form",
            Some(kv::Prompt {
                continues: first.score_token.clone(),
                ..hashes(kv::HashKind::Engine, vec![1]).unwrap_or_default()
            }),
        ),
        (
            "cache_salt: differs from that of the prompt that is continued",
            more(&first.score_token, 11..=17).map(|p| kv::Prompt { cache_salt: "s".to_owned(), ..p }),
        ),
        (
            "continues: a score_token already is a whole prompt",
            prompt(Key::ScoreToken(first.score_token.clone()))
                .map(|p| kv::Prompt { continues: first.score_token.clone(), ..p }),
        ),
    ];
    for (message, prompt) in cases {
        assert_eq!(kvd.index().score(ask(prompt)).await.unwrap_err().message(), message);
    }
}

#[tokio::test]
async fn a_score_token_stands_for_its_prompt() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let options = Some(kv::ScoreOptions { want_score_token: true, ..Default::default() });
    let r = kvd.index().score(kv::ScoreRequest { options, ..ask(tokens(9)) }).await.unwrap().into_inner();
    let again = kvd.index().score(ask(prompt(Key::ScoreToken(r.score_token)))).await.unwrap().into_inner();
    assert_eq!(short(&again), [(A, 2, 8)]);
    assert_eq!(again.total_blocks, 2);
    assert_eq!(again.score_token, "");
}

/// Speculative blocks of `instance` for the prompt of 13 tokens.
async fn speculative(kvd: &Kvd, instance: &str) -> u32 {
    let options = Some(kv::ScoreOptions { include_speculative: true, ..Default::default() });
    let request = kv::ScoreRequest { options, candidates: vec![instance.to_owned()], ..ask(tokens(13)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert_eq!(r.endpoints[0].cached_blocks, 1, "announced blocks are not cached ones");
    r.endpoints[0].speculative_blocks
}

#[tokio::test]
async fn routed_blocks_count_as_speculative_until_they_are_forgotten() {
    let kvd = Kvd::start().await;
    for instance in [A, B] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, 1, Tier::Gpu);
    }
    let to = |instance: &str, dp_rank| kv::RoutedEndpoint { instance_id: instance.to_owned(), dp_rank };
    let route = kv::RecordRoutingRequest {
        request_id: "r".to_owned(),
        model: "m".to_owned(),
        prompt: tokens(13),
        endpoints: vec![to(A, 0), to(A, 1), to("10.0.0.9:8000", 0)],
        ttl_ms: 60_000,
        ..Default::default()
    };
    let r = kvd.index().record_routing(route.clone()).await.unwrap().into_inner();
    assert_eq!(r.recorded_blocks, 3);
    assert_eq!(r.missing_endpoints, [to(A, 1), to("10.0.0.9:8000", 0)]);
    assert_eq!((speculative(&kvd, A).await, speculative(&kvd, B).await), (3, 1));

    let forget = || kv::ForgetRoutingRequest { request_id: "r".to_owned() };
    assert!(kvd.index().forget_routing(forget()).await.unwrap().into_inner().found);
    assert!(!kvd.index().forget_routing(forget()).await.unwrap().into_inner().found);
    assert_eq!(speculative(&kvd, A).await, 1);

    let refusals = [
        ("request_id: empty", kv::RecordRoutingRequest { request_id: String::new(), ..route.clone() }),
        ("endpoints: empty", kv::RecordRoutingRequest { endpoints: vec![], ..route.clone() }),
        ("ttl_ms: 60001 is over 60000", kv::RecordRoutingRequest { ttl_ms: 60_001, ..route.clone() }),
    ];
    for (message, request) in refusals {
        let refused = kvd.index().record_routing(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, message));
    }
    let many = kv::RecordRoutingRequest { endpoints: vec![to(A, 0); 65], ..route.clone() };
    assert_eq!(kvd.index().record_routing(many).await.unwrap_err().code(), Code::ResourceExhausted);
    let by_engine_hash =
        kv::RecordRoutingRequest { prompt: hashes(kv::HashKind::Engine, vec![100]), ..route };
    assert_eq!(kvd.index().record_routing(by_engine_hash).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn routed_blocks_stop_counting_by_themselves() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 1, Tier::Gpu);
    for ttl_ms in [1, 30] {
        let route = kv::RecordRoutingRequest {
            request_id: "r".to_owned(),
            model: "m".to_owned(),
            prompt: tokens(13),
            endpoints: vec![kv::RoutedEndpoint { instance_id: A.to_owned(), dp_rank: 0 }],
            ttl_ms,
            ..Default::default()
        };
        kvd.index().record_routing(route).await.unwrap();
        // Ends only if the expiry happens, whenever that is; the second round shows that the
        // task wakes up again.
        while speculative(&kvd, A).await != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_stream_answers_in_order_and_goes_on_after_a_bad_question() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let questions: Vec<kv::ScoreRequest> = (0..100)
        .map(|seq| kv::ScoreRequest {
            seq,
            request_id: seq.to_string(),
            ..ask(tokens(if seq == 50 { 0 } else { 9 }))
        })
        .map(|q| if q.seq == 60 { kv::ScoreRequest { model: String::new(), ..q } } else { q })
        .collect();
    let mut answers = kvd.index().score_stream(tokio_stream::iter(questions)).await.unwrap().into_inner();
    for seq in 0..100 {
        let r = answers.next().await.unwrap().unwrap();
        assert_eq!((r.seq, r.request_id.as_str()), (seq, seq.to_string().as_str()));
        if seq == 60 {
            assert_eq!(
                (Code::from(r.error_code), r.error_message.as_str()),
                (Code::InvalidArgument, "model: empty")
            );
        } else {
            assert_eq!((r.error_code, r.endpoints[0].cached_blocks), (0, if seq == 50 { 0 } else { 2 }));
        }
    }
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn each_block_is_located() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(A, 2), (B, 1)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let request = kv::LocateBlocksRequest { model: "m".to_owned(), prompt: tokens(13), ..Default::default() };
    let blocks: Vec<kv::BlockPlacement> =
        kvd.index().locate_blocks(request).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    let who = |b: &kv::BlockPlacement| {
        (b.block, b.holders.iter().map(|h| h.instance_id.clone()).collect::<Vec<_>>(), b.seq_hash.is_some())
    };
    let expected = [(0, vec![A.to_owned(), B.to_owned()], true), (1, vec![A.to_owned()], true)];
    assert_eq!(blocks.iter().map(who).collect::<Vec<_>>(), expected);
    assert_eq!(blocks[0].holders[0].tiers, [i32::from(kv::Tier::Gpu)]);
}

#[tokio::test]
async fn llmd_clients_get_raw_scores_of_pods_with_the_first_block() {
    let kvd = Kvd::start().await;
    for (instance, rank, blocks) in [(A, 0, 2), (A, 1, 1), (B, 0, 3)] {
        let holder = kvd.register(instance, rank);
        kvd.store(holder, blocks, Tier::Cpu);
    }
    kvd.register("10.0.0.3:8000", 0);
    let mut client = IndexerServiceClient::new(kvd.channel.clone());
    let request = |prompt: &str, pods: &[&str]| GetPodScoresRequest {
        prompt: prompt.to_owned(),
        model_name: "m".to_owned(),
        pod_identifiers: pods.iter().map(|p| (*p).to_owned()).collect(),
    };
    let json = "[1,2,3,4,5,6,7,8,9,10,11,12,13]";
    let scores = client.get_pod_scores(request(json, &[])).await.unwrap().into_inner().scores;
    let got: Vec<_> = scores.iter().map(|s| (s.pod.as_str(), s.data_parallel_rank)).collect();
    assert_eq!(got, [(A, Some(0)), (A, Some(1)), (B, None)]);
    for (s, expected) in scores.iter().zip([1.6, 0.8, 2.4]) {
        assert!((s.score - expected).abs() < 1e-9, "{s:?}");
    }
    let only = client.get_pod_scores(request(json, &[B])).await.unwrap().into_inner().scores;
    assert_eq!(only.len(), 1);
    let refused = client.get_pod_scores(request("Hello", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no tokenizer"), "{refused}");
}

#[tokio::test]
async fn a_dump_goes_on_after_any_of_its_chunks() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(B, 9000), (A, 3)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let dump = async |resume_token: String| -> Vec<kv::DumpChunk> {
        let request = kv::DumpRequest { resume_token, ..Default::default() };
        kvd.admin().dump(request).await.unwrap().into_inner().map(Result::unwrap).collect().await
    };
    let chunks = dump(String::new()).await;
    let rows = |chunks: &[kv::DumpChunk]| chunks.iter().flat_map(|c| c.rows.clone()).collect::<Vec<_>>();
    let all = rows(&chunks);
    assert_eq!(all.len(), 9003);
    assert_eq!(
        (all[0].instance_id.as_str(), all[0].block, all[0].depth, all[0].parent),
        (A, 100, Some(0), None)
    );
    assert_eq!((all[1].block, all[1].depth, all[1].parent), (101, Some(1), Some(100)));
    assert_eq!(all[3].instance_id, B);
    assert!(chunks.len() >= 4);
    let mut sent = 0;
    for chunk in &chunks {
        sent += chunk.rows.len();
        assert_eq!(rows(&dump(chunk.resume_token.clone()).await), all[sent..]);
    }
    let request = kv::DumpRequest { resume_token: "nonsense".to_owned(), ..Default::default() };
    let refused = kvd.admin().dump(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "resume_token: not one that Dump gave out")
    );
    let only_a = kv::DumpRequest { instance_id: A.to_owned(), ..Default::default() };
    let only_a: Vec<_> =
        kvd.admin().dump(only_a).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    assert_eq!(rows(&only_a), all[..3]);
}

#[tokio::test]
async fn a_score_is_explained_block_by_block() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let request = |instance: &str| kv::ExplainScoreRequest {
        score: Some(ask(tokens(13))),
        instance_id: instance.to_owned(),
        dp_rank: 0,
    };
    let r = kvd.admin().explain_score(request(A)).await.unwrap().into_inner();
    assert_eq!(r.score.unwrap().cached_tokens, 8);
    let tiers: Vec<usize> = r.blocks.iter().map(|b| b.tiers.len()).collect();
    assert_eq!(tiers, [1, 1, 0]);
    assert!(r.steps.last().unwrap().contains('8'), "{:?}", r.steps);
    let refused = kvd.admin().explain_score(request(B)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(
        refused.message(),
        "instance_id: 10.0.0.2:8000 with dp_rank 0 is not registered for this model and tenant"
    );
}

#[tokio::test]
async fn publishers_come_and_go() {
    let kvd = Kvd::start().await;
    let mut client = IngestServiceClient::new(kvd.channel.clone());
    let spec = kv::PublisherSpec {
        model: "m".to_owned(),
        instance_id: "[fd00::1]:8000".to_owned(),
        r#type: "SGLang".to_owned(),
        endpoint: "tcp://127.0.0.1:9".to_owned(),
        block_size: 4,
        ..Default::default()
    };
    let request = || kv::RegisterPublisherRequest { publisher: Some(spec.clone()) };
    assert!(!client.register_publisher(request()).await.unwrap().into_inner().replaced);
    let listed = client.list_publishers(kv::ListPublishersRequest {}).await.unwrap().into_inner().publishers;
    assert_eq!(listed.len(), 1);
    let as_registered = kv::PublisherSpec { tenant_id: "default".to_owned(), ..spec.clone() };
    assert_eq!(listed[0].spec.as_ref(), Some(&as_registered));
    let stats = kvd.admin().stats(kv::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.publishers, stats.live_publishers), (1, 0));

    let gone =
        kv::UnregisterPublisherRequest { instance_id: "fd00::1:8000".to_owned(), ..Default::default() };
    let removed = client.unregister_publisher(gone).await.unwrap().into_inner().removed;
    assert_eq!(removed, [as_registered]);
    assert!(kvd.index().score(ask(tokens(5))).await.unwrap().into_inner().unknown_model);
    let refused = client.register_publisher(kv::RegisterPublisherRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "publisher: missing"));
}

#[tokio::test]
async fn health_follows_readiness() {
    let kvd = Kvd::start().await;
    let health = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(kvd.channel.clone());
        client.check(request).await.map(|r| r.into_inner().status())
    };
    for service in ["", "liveness", "readiness", "kv.v1.IndexService"] {
        // The server reports its services once it runs, which may be after the first call.
        while health(service).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(health(service).await.unwrap(), ServingStatus::Serving, "{service}");
    }
    kvd.service.set_ready(false);
    while health("kv.v1.IndexService").await.unwrap() == ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    assert_eq!(health("readiness").await.unwrap(), ServingStatus::NotServing);
    assert_eq!(health("liveness").await.unwrap(), ServingStatus::Serving);
    assert_eq!(health("nobody").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_shutdown_ends_readiness_and_the_server_with_clients_connected() {
    let kvd = Kvd::start().await;
    assert!(kvd.index().score(ask(tokens(5))).await.is_ok());
    kvd.stop.send(()).unwrap();
    kvd.served.await.unwrap().unwrap();
    assert!(!kvd.service.is_ready());
    assert!(IndexServiceClient::new(kvd.channel).score(ask(tokens(5))).await.is_err());
}

#[tokio::test]
async fn the_services_describe_themselves() {
    use tonic_reflection::pb::{v1, v1alpha};

    let kvd = Kvd::start().await;
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "indexer.v1.IndexerService",
        "kv.v1.AdminService",
        "kv.v1.IndexService",
        "kv.v1.IngestService",
        "kv.v1.PeerService",
        "kv.v1.TierService",
        "kv.v1.TransferService",
    ];
    let ask = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1::ServerReflectionRequest { message_request: Some(ask), ..Default::default() };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(kvd.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    names.sort_unstable();
    assert_eq!(names, expected);

    // Older clients ask by the older name.
    let ask = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1alpha::ServerReflectionRequest { message_request: Some(ask), ..Default::default() };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(kvd.channel.clone());
    assert!(client.server_reflection_info(tokio_stream::iter([ask])).await.is_ok());
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
    let kvd = Kvd::start_with(Limits { max_body_bytes: 1000, ..Limits::default() }).await;
    let refused = kvd.index().score(ask(tokens(1000))).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(kvd.index().score(ask(tokens(10))).await.is_ok());
}
