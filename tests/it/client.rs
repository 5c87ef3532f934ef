//! A scheduler with three replicas of kvd, one of which stalls, is killed, and comes back: every question has an
//! answer, and each is exact or says that it is not.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scorer_client::{
    Endpoint, HedgeAfter, Origin, Prompt, ReplicaSettings, ReplicaStatus, Replicas, RoutingCall, ScoreCall,
};

use crate::support::{Engine, Kvd, record, signal, stored_payload};

/// What a loaded machine keeps; `kvd-benches replicas` measures with the deadline that schedulers have.
const DEADLINE: Duration = Duration::from_secs(2);

pub struct Rig {
    folder: tempfile::TempDir,
    addresses: Vec<String>,
    pub replicas: Vec<Kvd>,
    runtime: tokio::runtime::Runtime,
    client: Replicas,
    // Alive as long as the test is.
    _engine: Engine,
}

impl Rig {
    /// Three replicas that follow one engine, which holds the first 4 blocks of a prompt.
    pub fn start() -> Rig {
        let folder = tempfile::tempdir().expect("a directory");
        let held: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses: Vec<String> =
            held.iter().map(|l| l.local_addr().expect("bound").to_string()).collect();
        drop(held);
        let start =
            |i: usize| Kvd::replica(&folder.path().join(i.to_string()), &addresses[i], &addresses, "");
        let replicas: Vec<Kvd> = (0..3).map(start).collect();
        for kvd in &replicas {
            kvd.wait("the replicas to meet", || kvd.metric("kvd_peers_connected") == 2.0);
        }
        let mut engine = Engine::open("10.0.0.1:8000");
        replicas[0].ok("/register", &engine.registration("vLLM", 16));
        engine.publish(&[record(0, stored_payload(1.0, 1, &tokens(0)[..64], 16))]);
        replicas.iter().for_each(|kvd| kvd.wait_for_seq("10.0.0.1:8000", 0));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let settings = ReplicaSettings {
            deadline: DEADLINE,
            hedge: HedgeAfter::Fixed(Duration::from_millis(20)),
            ..ReplicaSettings::new(&addresses)
        };
        let client = runtime.block_on(Replicas::start(settings)).expect("addresses");
        Rig { folder, addresses, replicas, runtime, client, _engine: engine }
    }

    /// Asks so often; every answer must be exact or say that it is not. How many are kvd's.
    fn ask(&self, times: usize) -> usize {
        let ask = || {
            let began = Instant::now();
            let call = ScoreCall::new("m", Prompt::tokens(&tokens(0))).candidates(["10.0.0.1:8000"]);
            let answer = self.runtime.block_on(self.client.score(call));
            assert!(began.elapsed() < 5 * DEADLINE, "{:?}", began.elapsed());
            assert_eq!(answer.scores.endpoints.len(), 1, "{answer:?}");
            let cached = answer.scores.endpoints[0].cached_tokens;
            match answer.origin {
                Origin::Kvd { .. } | Origin::LastKnown { .. } => assert_eq!(cached, 64, "{answer:?}"),
                Origin::Guess { .. } => assert!(answer.scores.degraded && cached == 0, "{answer:?}"),
            }
            answer.is_from_kvd()
        };
        (0..times).filter(|_| ask()).count()
    }

    fn seen(&self, i: usize) -> ReplicaStatus {
        let address: SocketAddr = self.addresses[i].parse().expect("an address");
        self.client.stats().replicas.into_iter().find(|r| r.address == address).expect("one of ours")
    }

    /// Asks until `ready`; answers all the while.
    fn ask_until(&self, what: &str, ready: impl Fn(&Rig) -> bool) {
        self.replicas[0].wait(what, || {
            assert_eq!(self.ask(1), 1, "while waiting for {what}");
            ready(self)
        });
    }
}

/// A prompt of five blocks.
fn tokens(first: u32) -> Vec<u32> {
    (first..first + 80).collect()
}

#[test]
fn a_scheduler_does_not_notice_that_a_replica_stalls_or_dies_or_comes_back() {
    let mut rig = Rig::start();
    assert_eq!(rig.ask(50), 50);
    signal(rig.replicas[1].pid(), Signal::STOP);
    rig.ask_until("the stalled one to be left alone", |rig| rig.seen(1).open);
    let before = rig.seen(1).failures;
    assert_eq!(rig.ask(50), 50);
    assert!(rig.seen(1).failures - before < 5, "{:?}", rig.seen(1));
    signal(rig.replicas[1].pid(), Signal::CONT);
    let before = rig.seen(1).answers;
    rig.ask_until("it to be asked again", |rig| rig.seen(1).answers > before + 5);

    rig.replicas[2].crash();
    rig.ask_until("the killed one to be left alone", |rig| rig.seen(2).open);
    assert_eq!(rig.ask(50), 50);
    let folder = rig.folder.path().join("2");
    rig.replicas[2] = Kvd::replica(&folder, &rig.addresses[2], &rig.addresses, "");
    rig.replicas[2].wait_for_seq("10.0.0.1:8000", 0);
    let before = rig.seen(2).answers;
    rig.ask_until("its successor to be asked", |rig| rig.seen(2).answers > before + 5);
}

#[test]
fn without_any_replica_a_scheduler_is_told_what_was_known_or_guessed() {
    let mut rig = Rig::start();
    assert_eq!(rig.ask(5), 5);
    let routed = Endpoint { instance: "10.0.0.1:8000".into(), rank: 0 };
    let routing = RoutingCall::new("r", "m", Prompt::tokens(&tokens(1000))).to([routed]);
    assert!(rig.client.record_routing(routing));
    rig.replicas[0].wait("the routing to be told", || rig.client.stats().routings_told == 1);
    rig.replicas.iter_mut().for_each(Kvd::crash);
    assert_eq!(rig.ask(50), 0);
    let ask = |first| {
        let call = ScoreCall::new("m", Prompt::tokens(&tokens(first))).candidates(["10.0.0.1:8000", "other"]);
        let answer = rig.runtime.block_on(rig.client.score(call));
        assert!(matches!(answer.origin, Origin::Guess { .. }), "{answer:?}");
        answer.scores.endpoints.iter().map(|e| e.cached_tokens).collect::<Vec<_>>()
    };
    // Guesses are in blocks of 64 tokens where nothing else is said.
    assert_eq!((ask(1000), ask(2000)), (vec![64, 0], vec![0, 0]));
}
