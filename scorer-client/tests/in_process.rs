//! The client against a server in the same process: do fields arrive, and errors as what they are?

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvproto::hash::canonical::{self, Namespace, PromptExtras};
use kvproto::hash::llmd;
use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_server::{IndexService, IndexServiceServer};
use kvproto::rpc::kv::prompt::Key;
use scorer_client::{
    ConnectError, Endpoint, EngineHash, HashSpecCall, HasherError, MmItem, Outcome, OutcomeCall, Outcomes,
    Prompt, PromptHasher, PublisherState, RoutingCall, ScoreCall, ScoreError, ScorerClient, SeqHash,
    StreamAnswer, Tier, Verdict,
};
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream::{self, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

/// What the server was asked last; models named `never`, `refuse …` misbehave.
#[derive(Clone, Default)]
struct Server {
    score: Arc<Mutex<Option<kv::ScoreRequest>>>,
    routing: Arc<Mutex<Option<kv::RecordRoutingRequest>>>,
    outcome: Arc<Mutex<Option<kv::ReportOutcomeRequest>>>,
    hash_spec: Arc<Mutex<Option<kv::GetHashSpecRequest>>>,
}

fn answer(request: &kv::ScoreRequest) -> Result<kv::ScoreResponse, Status> {
    match request.model.as_str() {
        "refuse argument" => {
            return Err(Status::invalid_argument("prompt.token_ids_le: not a multiple of 4"));
        }
        "refuse unavailable" => return Err(Status::unavailable("shutting down")),
        "refuse deadline" => return Err(Status::deadline_exceeded("too slow")),
        "refuse quota" => return Err(Status::resource_exhausted("over quota")),
        "refuse cancelled" => return Err(Status::cancelled("for reasons of its own")),
        _ => {}
    }
    Ok(kv::ScoreResponse {
        seq: request.seq,
        request_id: request.request_id.clone(),
        total_blocks: 9,
        block_size_tokens: 16,
        endpoints: vec![kv::EndpointScore {
            instance_id: "10.0.0.1:8000".into(),
            dp_rank: 3,
            block_size_tokens: 32,
            cached_blocks: 8,
            by_tier: vec![kv::TierCount { tier: kv::Tier::Cpu as i32, blocks: 2 }],
            cumulative_by_tier: vec![
                kv::TierCount { tier: kv::Tier::Gpu as i32, blocks: 5 },
                kv::TierCount { tier: kv::Tier::Shared as i32, blocks: 8 },
                kv::TierCount { tier: 99, blocks: 1 },
            ],
            weighted_blocks: 6.5,
            match_blocks: 6,
            cached_tokens: 1 << 40,
            speculative_blocks: 10,
            mm_match_blocks: 4,
            suspect_blocks: 12,
            distrusted_blocks: 13,
            freshness: Some(kv::Freshness {
                state: kv::PublisherState::Partial as i32,
                silent_ms: 1500,
                staleness_ms: 20,
                complete: true,
                last_seq: Some(0),
            }),
        }],
        missing_candidates: vec!["gone:1".into()],
        unknown_model: false,
        degraded: true,
        score_token: "token".into(),
        coverage: 0.5,
        block_size_mismatch: vec!["other:1".into()],
        ..kv::ScoreResponse::default()
    })
}

#[tonic::async_trait]
impl IndexService for Server {
    type ScoreStreamStream = BoxStream<kv::ScoreResponse>;
    type LocateBlocksStream = BoxStream<kv::BlockPlacement>;

    async fn score(&self, request: Request<kv::ScoreRequest>) -> Result<Response<kv::ScoreResponse>, Status> {
        let request = request.into_inner();
        if request.model == "never" {
            std::future::pending::<()>().await;
        }
        let answer = answer(&request);
        *self.score.lock().unwrap() = Some(request);
        answer.map(Response::new)
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<kv::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let answers = request.into_inner().map(|request| {
            let request = request?;
            if request.model == "break" {
                return Err(Status::unavailable("going"));
            }
            Ok(answer(&request).unwrap_or_else(|status| kv::ScoreResponse {
                seq: request.seq,
                error_code: status.code() as i32,
                error_message: status.message().to_owned(),
                ..kv::ScoreResponse::default()
            }))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn locate_blocks(
        &self,
        _: Request<kv::LocateBlocksRequest>,
    ) -> Result<Response<Self::LocateBlocksStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    async fn record_routing(
        &self,
        request: Request<kv::RecordRoutingRequest>,
    ) -> Result<Response<kv::RecordRoutingResponse>, Status> {
        let request = request.into_inner();
        let missing_endpoints = request.endpoints[1..].to_vec();
        *self.routing.lock().unwrap() = Some(request);
        Ok(Response::new(kv::RecordRoutingResponse { recorded_blocks: 7, missing_endpoints }))
    }

    async fn forget_routing(
        &self,
        request: Request<kv::ForgetRoutingRequest>,
    ) -> Result<Response<kv::ForgetRoutingResponse>, Status> {
        Ok(Response::new(kv::ForgetRoutingResponse { found: request.into_inner().request_id == "known" }))
    }

    async fn report_outcome(
        &self,
        request: Request<kv::ReportOutcomeRequest>,
    ) -> Result<Response<kv::ReportOutcomeResponse>, Status> {
        let request = request.into_inner();
        // The number of cached tokens chooses the verdict.
        let verdict = request.cached_tokens as i32;
        *self.outcome.lock().unwrap() = Some(request);
        Ok(Response::new(kv::ReportOutcomeResponse { verdict, predicted_tokens: 32, tokens_now: 48 }))
    }

    async fn report_outcomes(
        &self,
        request: Request<Streaming<kv::ReportOutcomeRequest>>,
    ) -> Result<Response<kv::ReportOutcomesResponse>, Status> {
        let reports = request.into_inner().collect::<Vec<_>>().await.len() as u64;
        let verdict = kv::OutcomeVerdict::Exact.into();
        Ok(Response::new(kv::ReportOutcomesResponse {
            counts: vec![kv::OutcomeCount { verdict, reports }],
            refused: 1,
            first_error: "model: empty".into(),
        }))
    }

    async fn get_hash_spec(
        &self,
        request: Request<kv::GetHashSpecRequest>,
    ) -> Result<Response<kv::HashSpec>, Status> {
        let request = request.into_inner();
        let names = Namespace { salt: "s", model: &request.model, lora: Some(request.lora_name.as_str()) };
        let tokens: Vec<u32> = (1..=8).collect();
        let extras = PromptExtras { cache_salt: Some("x"), ..PromptExtras::default() };
        let hashes = canonical::prompt_hashes(names.seed(), &tokens, 4, extras).map(|h| h.0).collect();
        let spec = kv::HashSpec {
            algorithm: canonical::ALGORITHM.into(),
            seed: names.seed().0,
            block_sizes: vec![4, 16],
            description: "words".into(),
            vectors: vec![kv::HashVector {
                block_size: 4,
                token_ids: tokens.clone(),
                cache_salt: "x".into(),
                seq_hashes: hashes,
            }],
            additional_salt: "s".into(),
        };
        *self.hash_spec.lock().unwrap() = Some(request);
        Ok(Response::new(spec))
    }
}

/// A server on a free port; it ends with the returned handle's `abort`.
async fn serve(server: Server) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap();
    let task = tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(IndexServiceServer::new(server))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    (addr, task)
}

/// A client that is in no hurry, so that a slow machine fails no test.
async fn client(addr: SocketAddr) -> ScorerClient {
    let builder = ScorerClient::builder(format!("http://{addr}")).deadline(Duration::from_secs(60));
    builder.connect().await.unwrap()
}

#[tokio::test]
async fn every_field_of_a_question_arrives() {
    let server = Server::default();
    let kvd = client(serve(server.clone()).await.0).await;
    let prompt = Prompt::tokens(&[1, 0x01020304]).lora("adapter").cache_salt("salt").items([MmItem {
        identifier: "img",
        offset: 5,
        length: 6,
    }]);
    let prompt = prompt.continues("earlier");
    let call = ScoreCall::new("m", prompt)
        .request_id("r")
        .tenant("t")
        .candidates(["a:1", "b:2"])
        .block_size(32)
        .tier_weight(Tier::Disk, 0.25)
        .max_blocks(11)
        .top_k(2)
        .speculative()
        .want_score_token();
    kvd.score(call).await.unwrap();
    let want = kv::ScoreRequest {
        request_id: "r".into(),
        model: "m".into(),
        tenant_id: "t".into(),
        prompt: Some(kv::Prompt {
            key: Some(Key::TokenIdsLe(vec![1, 0, 0, 0, 4, 3, 2, 1].into())),
            lora_name: "adapter".into(),
            cache_salt: "salt".into(),
            mm_items: vec![kv::MmItem { hash: "img".into(), offset: 5, length: 6 }],
            continues: "earlier".into(),
        }),
        candidates: vec!["a:1".into(), "b:2".into()],
        block_size: 32,
        options: Some(kv::ScoreOptions {
            tier_weights: vec![kv::TierWeight { tier: kv::Tier::Disk as i32, weight: 0.25 }],
            max_blocks: 11,
            include_speculative: true,
            top_k: 2,
            want_score_token: true,
        }),
        seq: 0,
    };
    assert_eq!(server.score.lock().unwrap().take(), Some(want));
}

#[tokio::test]
async fn a_prompt_travels_in_the_form_it_was_given_in() {
    let server = Server::default();
    let kvd = client(serve(server.clone()).await.0).await;
    let hashes =
        |kind: kv::HashKind, hashes: Vec<u64>| Key::Hashes(kv::BlockHashes { kind: kind as i32, hashes });
    let of_fnv = [llmd::RequestKey(5)];
    for (prompt, key, block_size) in [
        (Prompt::packed_tokens(vec![1, u32::MAX]), Key::Tokens(kv::TokenIds { ids: vec![1, u32::MAX] }), 0),
        (Prompt::token_bytes(vec![1, 2, 3]), Key::TokenIdsLe(vec![1, 2, 3].into()), 0),
        (Prompt::canonical([SeqHash(1), SeqHash(2)], 16), hashes(kv::HashKind::Canonical, vec![1, 2]), 16),
        (Prompt::engine([EngineHash(u64::MAX)], 64), hashes(kv::HashKind::Engine, vec![u64::MAX]), 64),
        (Prompt::llmd(llmd::Algo::CborFnv, of_fnv, 16), hashes(kv::HashKind::LlmdCborFnv, vec![5]), 16),
        (Prompt::llmd(llmd::Algo::Xxh64, of_fnv, 16), hashes(kv::HashKind::LlmdXxh64, vec![5]), 16),
        (Prompt::scored("token"), Key::ScoreToken("token".into()), 0),
    ] {
        kvd.score(ScoreCall::new("m", prompt)).await.unwrap();
        let got = server.score.lock().unwrap().take().unwrap();
        assert_eq!((got.prompt.unwrap().key, got.block_size), (Some(key), block_size));
    }
}

#[tokio::test]
async fn every_field_of_an_answer_comes_back() {
    let kvd = client(serve(Server::default()).await.0).await;
    let scores = kvd.score(ScoreCall::new("m", Prompt::tokens(&[])).request_id("r")).await.unwrap();
    assert_eq!(scores.request_id, "r");
    assert_eq!((scores.total_blocks, scores.block_size), (9, 16));
    assert_eq!(scores.missing_candidates, ["gone:1"]);
    assert_eq!(scores.block_size_mismatch, ["other:1"]);
    assert_eq!((scores.unknown_model, scores.degraded, scores.coverage), (false, true, 0.5));
    assert_eq!(scores.score_token.as_deref(), Some("token"));
    let [e] = &scores.endpoints[..] else { panic!("one endpoint") };
    assert_eq!(e.endpoint, Endpoint { instance: "10.0.0.1:8000".into(), rank: 3 });
    assert_eq!((e.block_size, e.cached_blocks, e.match_blocks), (32, 8, 6));
    assert_eq!(e.by_tier, [0, 2, 0, 0, 0]);
    assert_eq!(e.cumulative_by_tier, [5, 0, 0, 8, 1]);
    assert_eq!((e.weighted_blocks, e.cached_tokens), (6.5, 1 << 40));
    assert_eq!((e.speculative_blocks, e.mm_match_blocks, e.suspect_blocks), (10, 4, 12));
    assert_eq!(e.distrusted_blocks, 13);
    let f = e.freshness;
    assert_eq!((f.state, f.complete, f.last_seq), (PublisherState::Partial, true, Some(0)));
    assert_eq!((f.silent, f.staleness), (Duration::from_millis(1500), Duration::from_millis(20)));
}

#[tokio::test]
async fn errors_are_told_apart() {
    let kvd = client(serve(Server::default()).await.0).await;
    let ask = async |model: &str| kvd.score(ScoreCall::new(model, Prompt::tokens(&[1]))).await.unwrap_err();
    let argument = ScoreError::InvalidArgument { message: "prompt.token_ids_le: not a multiple of 4".into() };
    assert_eq!(ask("refuse argument").await, argument);
    assert_eq!(ask("refuse unavailable").await, ScoreError::Unavailable { message: "shutting down".into() });
    assert_eq!(ask("refuse deadline").await, ScoreError::Deadline { after: Duration::from_secs(60) });
    let quota = ScoreError::Refused { code: Code::ResourceExhausted, message: "over quota".into() };
    assert_eq!(ask("refuse quota").await, quota);
    let cancelled = ScoreError::Refused { code: Code::Cancelled, message: "for reasons of its own".into() };
    assert_eq!(ask("refuse cancelled").await, cancelled);
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let kvd = client(serve(Server::default()).await.0).await;
    let hurried = kvd.with_deadline(Duration::from_millis(20));
    let error = hurried.score(ScoreCall::new("never", Prompt::tokens(&[1]))).await;
    assert_eq!(error, Err(ScoreError::Deadline { after: Duration::from_millis(20) }));
    // The connection survives it.
    kvd.score(ScoreCall::new("m", Prompt::tokens(&[1]))).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_its_return_is_noticed() {
    let (addr, server) = serve(Server::default()).await;
    server.abort();
    let _ = server.await;
    let builder = ScorerClient::builder(format!("http://{addr}"));
    let error = builder.clone().connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    let kvd = builder.deadline(Duration::from_secs(60)).connect_lazy().unwrap();
    let ask = async || kvd.score(ScoreCall::new("m", Prompt::tokens(&[1]))).await;
    let error = ask().await.unwrap_err();
    assert!(matches!(error, ScoreError::Unavailable { .. }), "{error:?}");

    let again = TcpIncoming::bind(addr).unwrap();
    let service = IndexServiceServer::new(Server::default());
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(again));
    ask().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_call_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (peer, _) = listener.accept().await.unwrap();
            // As soon as something arrives, hang up.
            let _ = peer.readable().await;
            drop(peer);
        }
    });
    let builder = ScorerClient::builder(format!("http://{addr}")).deadline(Duration::from_secs(60));
    let kvd = builder.connect_lazy().unwrap();
    let error = kvd.score(ScoreCall::new("m", Prompt::tokens(&[1]))).await.unwrap_err();
    assert!(matches!(error, ScoreError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_an_address_is_refused_at_once() {
    let error = ScorerClient::connect("not an address").await.unwrap_err();
    assert!(matches!(error, ConnectError::Endpoint { .. }), "{error:?}");
}

#[tokio::test]
async fn routing_is_noted_and_taken_back() {
    let server = Server::default();
    let kvd = client(serve(server.clone()).await.0).await;
    let [a, b] = ["a:1", "b:2"].map(|i| Endpoint { instance: i.into(), rank: 1 });
    let call = RoutingCall::new("r", "m", Prompt::canonical([SeqHash(9)], 16))
        .tenant("t")
        .to([a, b.clone()])
        .ttl(Duration::from_micros(1));
    let routed = kvd.record_routing(call).await.unwrap();
    assert_eq!((routed.recorded_blocks, routed.missing_endpoints), (7, vec![b]));
    let got = server.routing.lock().unwrap().take().unwrap();
    assert_eq!((got.request_id.as_str(), got.model.as_str(), got.tenant_id.as_str()), ("r", "m", "t"));
    assert_eq!((got.block_size, got.ttl_ms), (16, 1));
    assert!(kvd.forget_routing("known").await.unwrap());
    assert!(!kvd.forget_routing("unknown").await.unwrap());
}

#[tokio::test]
async fn a_hasher_made_from_the_servers_spec_hashes_as_the_server_does() {
    let server = Server::default();
    let kvd = client(serve(server.clone()).await.0).await;
    let call = HashSpecCall::new("m").tenant("t").lora("l").additional_salt("s");
    let spec = kvd.hash_spec(call).await.unwrap();
    let asked = server.hash_spec.lock().unwrap().take().unwrap();
    assert_eq!((asked.tenant_id.as_str(), asked.additional_salt.as_deref()), ("t", Some("s")));
    assert_eq!((&spec.block_sizes[..], spec.description.as_str()), (&[4, 16][..], "words"));
    let hasher = PromptHasher::new(&spec, 4).unwrap();
    assert_eq!(hasher.prompt(&spec.vectors[0].tokens, Some("x"), &[]), {
        Prompt::canonical(spec.vectors[0].hashes.iter().copied(), 4)
    });
    let plain = hasher.prompt(&[1, 2, 3, 4], None, &[]);
    assert_eq!(plain, hasher.prompt(&[1, 2, 3, 4, 5], Some(""), &[]));
    let item = [MmItem { identifier: "img", offset: 3, length: 1 }];
    assert_ne!(plain, hasher.prompt(&[1, 2, 3, 4], None, &item));
}

#[tokio::test]
async fn a_hasher_that_would_disagree_is_not_made() {
    let kvd = client(serve(Server::default()).await.0).await;
    let spec = kvd.hash_spec(HashSpecCall::new("m")).await.unwrap();
    assert_eq!(PromptHasher::new(&spec, 0).unwrap_err(), HasherError::BlockSize { block_size: 0 });
    let mut other = spec.clone();
    other.algorithm = "kvd-xxh3-64/2".into();
    let theirs = "kvd-xxh3-64/2".to_owned();
    assert_eq!(PromptHasher::new(&other, 4).unwrap_err(), HasherError::Algorithm { theirs });
    let mut wrong = spec.clone();
    wrong.vectors[0].hashes[1].0 ^= 1;
    assert_eq!(PromptHasher::new(&wrong, 4).unwrap_err(), HasherError::Vector { index: 0 });
    let mut short = spec;
    short.vectors[0].hashes.pop();
    assert_eq!(PromptHasher::new(&short, 4).unwrap_err(), HasherError::Vector { index: 0 });
}

#[tokio::test]
async fn a_stream_answers_each_question_by_its_number() {
    let kvd = client(serve(Server::default()).await.0).await;
    let (mut sender, mut receiver) = kvd.score_stream(4).await.unwrap();
    let ask = |model: &str| ScoreCall::new(model, Prompt::tokens(&[1])).request_id(model);
    assert_eq!(sender.send(ask("m")).await, Ok(1));
    assert_eq!(sender.send(ask("refuse argument")).await, Ok(2));
    let first = receiver.recv().await.unwrap().unwrap();
    assert_eq!((first.seq, first.scores.unwrap().request_id.as_str()), (1, "m"));
    let message = "prompt.token_ids_le: not a multiple of 4".into();
    let second = StreamAnswer { seq: 2, scores: Err(ScoreError::InvalidArgument { message }) };
    assert_eq!(receiver.recv().await, Ok(Some(second)));
    drop(sender);
    assert_eq!(receiver.recv().await, Ok(None));
}

#[tokio::test]
async fn a_stream_that_breaks_says_why() {
    let kvd = client(serve(Server::default()).await.0).await;
    let (mut sender, mut receiver) = kvd.score_stream(1).await.unwrap();
    sender.send(ScoreCall::new("break", Prompt::tokens(&[1]))).await.unwrap();
    assert_eq!(receiver.recv().await, Err(ScoreError::Unavailable { message: "going".into() }));
}

#[tokio::test]
async fn outcomes_arrive_and_their_verdicts_come_back() {
    let server = Server::default();
    let kvd = client(serve(server.clone()).await.0).await;
    let endpoint = Endpoint { instance: "a:1".into(), rank: 2 };
    let call = |cached| OutcomeCall::new("r", "m", endpoint.clone(), cached);
    let too_high = kvd.report_outcome(call(5).tenant("t").score_token("s").prompt_tokens(99)).await.unwrap();
    assert_eq!(too_high, Outcome { verdict: Verdict::TooHigh, predicted_tokens: 32, tokens_now: 48 });
    let want = kv::ReportOutcomeRequest {
        request_id: "r".into(),
        model: "m".into(),
        tenant_id: "t".into(),
        instance_id: "a:1".into(),
        dp_rank: 2,
        cached_tokens: 5,
        prompt_tokens: Some(99),
        score_token: "s".into(),
    };
    assert_eq!(server.outcome.lock().unwrap().take(), Some(want));
    // A verdict of a later version is none that this one can act on.
    for (number, verdict) in [(1, Verdict::Exact), (8, Verdict::NoPrediction), (77, Verdict::Unclear)] {
        assert_eq!(kvd.report_outcome(call(number)).await.unwrap().verdict, verdict);
    }
    let outcomes = kvd.report_outcomes(vec![call(1), call(2)]).await.unwrap();
    let want =
        Outcomes { counts: vec![(Verdict::Exact, 2)], refused: 1, first_error: Some("model: empty".into()) };
    assert_eq!(outcomes, want);
}
