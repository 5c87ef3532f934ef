//! Several servers in this process that fall silent, refuse and come back: there is always an answer, and it
//! says where it comes from.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvproto::hash::canonical::{self, Namespace};
use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_server::{IndexService, IndexServiceServer};
use kvproto::rpc::kv::prompt::Key;
use scorer_client::{
    Answer, BreakerRule, Endpoint, HedgeAfter, Origin, Prompt, ReplicaSettings, Replicas, RoutingCall,
    ScoreCall, ScoreError, Tier,
};
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Never part of what is tested.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Silent,
    Refuses,
}

/// One replica: how it behaves now, and what it was asked.
#[derive(Clone)]
struct Fake {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicU64>,
    last: Arc<Mutex<Option<kv::ScoreRequest>>>,
    routed: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }

    async fn behave(&self) -> Result<(), Status> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => Ok(()),
            Mood::Silent => std::future::pending().await,
            Mood::Refuses => Err(Status::unavailable("shutting down")),
        }
    }
}

#[tonic::async_trait]
impl IndexService for Fake {
    type ScoreStreamStream = BoxStream<kv::ScoreResponse>;
    type LocateBlocksStream = BoxStream<kv::BlockPlacement>;

    async fn score(&self, request: Request<kv::ScoreRequest>) -> Result<Response<kv::ScoreResponse>, Status> {
        self.asked.fetch_add(1, SeqCst);
        self.behave().await?;
        let request = request.into_inner();
        if request.model == "nonsense" {
            return Err(Status::invalid_argument("model: nonsense"));
        }
        let answer = kv::ScoreResponse { total_blocks: 77, ..kv::ScoreResponse::default() };
        *self.last.lock().unwrap() = Some(request);
        Ok(Response::new(answer))
    }

    async fn score_stream(
        &self,
        _: Request<Streaming<kv::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
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
        self.behave().await?;
        self.routed.lock().unwrap().push(request.into_inner().request_id);
        Ok(Response::new(kv::RecordRoutingResponse::default()))
    }

    async fn forget_routing(
        &self,
        request: Request<kv::ForgetRoutingRequest>,
    ) -> Result<Response<kv::ForgetRoutingResponse>, Status> {
        self.routed.lock().unwrap().push(format!("not {}", request.into_inner().request_id));
        Ok(Response::new(kv::ForgetRoutingResponse { found: true }))
    }

    async fn report_outcome(
        &self,
        _: Request<kv::ReportOutcomeRequest>,
    ) -> Result<Response<kv::ReportOutcomeResponse>, Status> {
        Ok(Response::new(kv::ReportOutcomeResponse::default()))
    }

    async fn report_outcomes(
        &self,
        _: Request<Streaming<kv::ReportOutcomeRequest>>,
    ) -> Result<Response<kv::ReportOutcomesResponse>, Status> {
        Ok(Response::new(kv::ReportOutcomesResponse::default()))
    }

    async fn get_hash_spec(
        &self,
        request: Request<kv::GetHashSpecRequest>,
    ) -> Result<Response<kv::HashSpec>, Status> {
        let model = request.into_inner().model;
        Ok(Response::new(kv::HashSpec {
            algorithm: canonical::ALGORITHM.to_owned(),
            seed: Namespace { salt: "", model: &model, lora: None }.seed().0,
            block_sizes: vec![4],
            ..kv::HashSpec::default()
        }))
    }
}

/// A server on `address`, which need not be free of an earlier one yet.
async fn serve(address: SocketAddr) -> (SocketAddr, Fake, tokio::task::JoinHandle<()>) {
    let fake = Fake {
        mood: Arc::new(Mutex::new(Mood::Well)),
        asked: Arc::default(),
        last: Arc::default(),
        routed: Arc::default(),
    };
    let incoming = TcpIncoming::bind(address).expect("a free port");
    let address = incoming.local_addr().expect("bound");
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<IndexServiceServer<Fake>>().await;
    let router = tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(IndexServiceServer::new(fake.clone()));
    let task = tokio::spawn(async move { router.serve_with_incoming(incoming).await.expect("serves") });
    (address, fake, task)
}

async fn fakes(n: usize) -> (Vec<SocketAddr>, Vec<Fake>) {
    let mut all = (Vec::new(), Vec::new());
    for _ in 0..n {
        let (address, fake, _) = serve(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        all.0.push(address);
        all.1.push(fake);
    }
    all
}

/// Deadlines that a loaded machine keeps, where a test is not about them.
fn settings(addresses: &[SocketAddr]) -> ReplicaSettings {
    ReplicaSettings {
        deadline: PATIENCE,
        hedge: HedgeAfter::Fixed(Duration::from_millis(20)),
        ..ReplicaSettings::new(addresses.iter().map(SocketAddr::to_string))
    }
}

fn call() -> ScoreCall {
    ScoreCall::new("m", Prompt::tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9])).candidates(["a", "b"])
}

fn from(answer: &Answer) -> Option<SocketAddr> {
    match answer.origin {
        Origin::Kvd { replica, .. } => Some(replica),
        Origin::LastKnown { .. } | Origin::Guess { .. } => None,
    }
}

async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn questions_are_spread_over_all_replicas() {
    let (addresses, fakes) = fakes(3).await;
    let kvd = Replicas::start(settings(&addresses)).await.expect("addresses");
    for _ in 0..60 {
        let answer = kvd.score(call()).await;
        assert!(answer.is_from_kvd());
        assert_eq!(answer.scores.total_blocks, 77);
    }
    for fake in &fakes {
        assert!(fake.asked() > 0);
    }
    assert_eq!(kvd.stats().answered, 60);
}

#[tokio::test]
async fn where_one_is_silent_another_is_asked_and_the_silent_one_is_left_alone_until_it_is_well() {
    let (addresses, fakes) = fakes(2).await;
    let breaker = BreakerRule { pause: Duration::from_millis(300), ..BreakerRule::default() };
    let deadline = Duration::from_millis(400);
    let kvd = Replicas::start(ReplicaSettings { breaker, deadline, ..settings(&addresses) });
    let kvd = kvd.await.expect("addresses");
    assert!(kvd.score(call()).await.is_from_kvd());
    fakes[0].be(Mood::Silent);
    let silent = |kvd: &Replicas| kvd.stats().replicas.into_iter().find(|r| r.address == addresses[0]);
    let silent = |kvd: &Replicas| silent(kvd).expect("one of ours");
    let began = Instant::now();
    while silent(&kvd).opened == 0 {
        // Attempts end at their own deadline, whoever answered meanwhile.
        assert_eq!(from(&kvd.score(call()).await), Some(addresses[1]));
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(kvd.stats().hedged > 0, "{:?}", kvd.stats());
    fakes[0].be(Mood::Well);
    until("it to be tried again", || !silent(&kvd).open).await;
    // It was slow when it was last asked, so its turn may take a while to come.
    let (before, began) = (fakes[0].asked(), Instant::now());
    while fakes[0].asked() == before {
        assert!(kvd.score(call()).await.is_from_kvd());
        assert!(began.elapsed() < PATIENCE, "it is never asked again");
    }
}

#[tokio::test]
async fn a_refusal_sends_the_question_to_the_next_at_once() {
    let (addresses, fakes) = fakes(3).await;
    let hedge = HedgeAfter::Never;
    let kvd = Replicas::start(ReplicaSettings { hedge, ..settings(&addresses) }).await.expect("addresses");
    fakes[0].be(Mood::Refuses);
    fakes[2].be(Mood::Refuses);
    for _ in 0..10 {
        assert_eq!(from(&kvd.score(call()).await), Some(addresses[1]));
    }
    let asked: Vec<u64> = fakes.iter().map(Fake::asked).collect();
    // Three times each, then they are left alone.
    assert_eq!(asked[1], 10);
    assert!(asked[0] <= 6 && asked[2] <= 6, "{asked:?}");
}

#[tokio::test]
async fn without_any_replica_the_answer_is_the_last_known_one_or_a_guess_and_says_so() {
    let (addresses, fakes) = fakes(2).await;
    let deadline = Duration::from_millis(150);
    let kvd = Replicas::start(ReplicaSettings { deadline, ..settings(&addresses) }).await.expect("addresses");
    until("an answer", || kvd.stats().replicas.iter().all(|r| r.serves)).await;
    while !kvd.score(call()).await.is_from_kvd() {}
    let prompt = || Prompt::tokens(&(0..128).collect::<Vec<u32>>());
    let b = Endpoint { instance: "b".into(), rank: 0 };
    assert!(kvd.record_routing(RoutingCall::new("r", "m", prompt()).to([b])));
    until("it to be told", || kvd.stats().routings_told == 1).await;
    fakes.iter().for_each(|f| f.be(Mood::Silent));
    let began = Instant::now();
    let answer = kvd.score(call()).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(answer.scores.total_blocks, 77);
    let Origin::LastKnown { why, .. } = &answer.origin else { panic!("{answer:?}") };
    assert_eq!(*why, ScoreError::Deadline { after: deadline });
    let answer = kvd.score(ScoreCall::new("m", prompt()).candidates(["a", "b"])).await;
    assert!(matches!(answer.origin, Origin::Guess { .. }));
    let cached: Vec<u64> = answer.scores.endpoints.iter().map(|e| e.cached_tokens).collect();
    assert_eq!((cached, answer.scores.degraded), (vec![0, 127], true));
    // Once both are known to be silent, nobody waits.
    loop {
        let answer = kvd.score(ScoreCall::new("m", prompt())).await;
        let Origin::Guess { why } = answer.origin else { panic!("{answer:?}") };
        if matches!(why, ScoreError::Unavailable { .. }) {
            break;
        }
        assert!(began.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_question_that_makes_no_sense_has_an_answer_too_and_blames_nobody() {
    let (addresses, fakes) = fakes(2).await;
    let hedge = HedgeAfter::Never;
    let kvd = Replicas::start(ReplicaSettings { hedge, ..settings(&addresses) }).await.expect("addresses");
    for _ in 0..8 {
        let answer = kvd.score(ScoreCall::new("nonsense", Prompt::tokens(&[1])).candidates(["a"])).await;
        let Origin::Guess { why: ScoreError::InvalidArgument { message } } = &answer.origin else {
            panic!("{answer:?}")
        };
        assert_eq!((message.as_str(), answer.scores.endpoints.len()), ("model: nonsense", 1));
    }
    assert_eq!(fakes.iter().map(Fake::asked).sum::<u64>(), 8);
    assert!(kvd.stats().replicas.iter().all(|r| !r.open && r.failures == 0));
}

#[tokio::test]
async fn a_replica_that_is_not_there_yet_is_asked_when_it_is() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("bound");
    drop(held);
    let kvd = Replicas::start(settings(&[address])).await.expect("an address");
    let answer = kvd.score(call()).await;
    assert!(matches!(&answer.origin, Origin::Guess { why: ScoreError::Unavailable { .. } }), "{answer:?}");
    let (_, _fake, _) = serve(address).await;
    let began = Instant::now();
    while !kvd.score(call()).await.is_from_kvd() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_name_that_stands_for_nothing_yields_guesses_and_what_is_no_place_is_refused() {
    let kvd = Replicas::start(ReplicaSettings::new(["nobody.invalid:1"])).await.expect("a place");
    let answer = kvd.score(call()).await;
    assert_eq!(answer.scores.endpoints.len(), 2);
    assert!(matches!(answer.origin, Origin::Guess { why: ScoreError::Unavailable { .. } }));
    assert!(Replicas::start(ReplicaSettings::new(["no port"])).await.is_err());
}

#[tokio::test]
async fn routings_are_told_in_order_and_dropped_where_too_many_wait() {
    let (addresses, fakes) = fakes(1).await;
    let kvd = Replicas::start(ReplicaSettings { routing_queue: 4, ..settings(&addresses) });
    let kvd = kvd.await.expect("addresses");
    let routed = |id: &str| kvd.record_routing(RoutingCall::new(id, "m", Prompt::tokens(&[1])));
    assert!(routed("one"));
    until("room", || fakes[0].routed.lock().unwrap().len() == 1).await;
    assert!(kvd.forget_routing("one"));
    until("both", || kvd.stats().routings_told == 2).await;
    assert_eq!(*fakes[0].routed.lock().unwrap(), ["one", "not one"]);
    fakes[0].be(Mood::Silent);
    let began = Instant::now();
    let taken = (0..1000).filter(|i| routed(&i.to_string())).count() as u64;
    // One in each lane waits for its answer, one more for its turn.
    assert!((4..=8).contains(&taken), "{taken}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(kvd.stats().routings_dropped, 1000 - taken);
    until("them to be given up", || kvd.stats().routings_failed == taken).await;
}

#[tokio::test]
async fn what_the_settings_say_goes_with_every_question_that_leaves_it_open() {
    let (addresses, fakes) = fakes(1).await;
    let kvd = Replicas::start(ReplicaSettings {
        block_size: 16,
        max_blocks: 256,
        tier_weights: vec![(Tier::Cpu, 0.5)],
        speculative: true,
        ..settings(&addresses)
    });
    let kvd = kvd.await.expect("addresses");
    assert!(kvd.score(call()).await.is_from_kvd());
    let got = fakes[0].last.lock().unwrap().take().expect("asked");
    let want = kv::ScoreOptions {
        tier_weights: vec![kv::TierWeight { tier: kv::Tier::Cpu as i32, weight: 0.5 }],
        max_blocks: 256,
        include_speculative: true,
        ..kv::ScoreOptions::default()
    };
    assert_eq!((got.block_size, got.options), (16, Some(want)));
    kvd.score(call().block_size(32).max_blocks(1).tier_weight(Tier::Cpu, 0.7)).await;
    let got = fakes[0].last.lock().unwrap().take().expect("asked");
    let options = got.options.expect("options");
    assert_eq!((got.block_size, options.max_blocks, options.tier_weights[0].weight), (32, 1, 0.7));
}

#[tokio::test]
async fn prompts_are_hashed_here_as_soon_as_it_is_known_how() {
    let (addresses, fakes) = fakes(1).await;
    let kvd = Replicas::start(ReplicaSettings { hash_here: true, ..settings(&addresses) });
    let kvd = kvd.await.expect("addresses");
    let began = Instant::now();
    let hashes = loop {
        assert!(kvd.score(call()).await.is_from_kvd() && began.elapsed() < PATIENCE);
        let got = fakes[0].last.lock().unwrap().take().expect("asked");
        match got.prompt.and_then(|p| p.key) {
            Some(Key::Hashes(hashes)) => break (hashes, got.block_size),
            Some(Key::TokenIdsLe(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => panic!("{other:?}"),
        }
    };
    let seed = Namespace { salt: "", model: "m", lora: None }.seed();
    let want: Vec<u64> =
        canonical::prompt_hashes(seed, &[1, 2, 3, 4, 5, 6, 7, 8], 4, canonical::PromptExtras::default())
            .map(|h| h.0)
            .collect();
    assert_eq!((hashes.0.hashes, hashes.1), (want, 4));
}

#[tokio::test]
async fn nothing_goes_on_when_the_last_handle_is_gone() {
    let (addresses, fakes) = fakes(1).await;
    let kvd = Replicas::start(settings(&addresses)).await.expect("addresses");
    let other = kvd.clone();
    drop(kvd);
    assert!(other.score(call()).await.is_from_kvd());
    assert_eq!(fakes[0].asked(), 1);
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    drop(other);
    let began = Instant::now();
    // Three at least: names, health, lanes.
    while tokio::runtime::Handle::current().metrics().num_alive_tasks() + 3 > alive {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
