//! A node's tiers beside kvd: what they hold is what kvd counts for the node's pods, also when either
//! of them dies; and the process by itself.

mod hints;
mod holds;
mod node;
mod process;
mod pulls;

use std::path::Path;
use std::time::{Duration, Instant};

use kvd::tier::config::Model;
use kvd::tier::run::Running;
use kvd::tier::{TierArgs, TierConfig};
use kvtier::node::{PoolId, Stored, Tiers};
use kvtier::policy::Owner;
use kvtier::store::{Put, StoreKey};
use serde_json::json;

use crate::support::{Engine, Kvd, record, stored_payload};

const BYTES: usize = 4096;

fn config(folder: &Path, at: Option<&Running>) -> TierConfig {
    let args = TierArgs {
        node: Some("n1".into()),
        folder: Some(folder.to_owned()),
        ram: Some("96KiB".into()),
        disk: Some("1MiB".into()),
        socket: Some(folder.join("socket")),
        ..TierArgs::default()
    };
    let mut config = TierConfig::load(&args).expect("a configuration");
    let (publish, replay) = match at {
        Some(running) => (running.sockets[0].publish.clone(), running.sockets[0].replay.clone()),
        None => ("tcp://127.0.0.1:*".into(), "tcp://127.0.0.1:*".into()),
    };
    config.models = vec![Model { name: "m".into(), publish, replay }];
    config
}

fn registration(running: &Running) -> serde_json::Value {
    node::registration("n1", &running.sockets[0].publish, &running.sockets[0].replay)
}

/// Offers blocks that the engine calls by `hashes`, as a chain.
fn store(running: &Running, hashes: std::ops::Range<u64>) -> usize {
    let pool: PoolId = running.node.pool(BYTES).expect("a pool");
    let owner: Owner = running.node.owner("m", "").expect("an owner");
    let key = |hash: u64| StoreKey::new(7, 0, &hash.to_be_bytes()).expect("eight bytes");
    let payload = vec![3; BYTES];
    let puts: Vec<Put<'_>> = hashes
        .clone()
        .map(|hash| {
            let after = (hash > hashes.start).then(|| key(hash - 1).id());
            Put { key: key(hash), after, owner, payload: &payload }
        })
        .collect();
    running.node.store(pool, &puts).iter().filter(|stored| **stored == Stored::Kept).count()
}

/// Tokens of the prompt that a pod has, by tier: GPU, CPU, disk, and in all.
fn cached(kvd: &Kvd, pod: &str, tokens: &[u32]) -> [u64; 4] {
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 16});
    let answer = kvd.ok("/query", &body);
    let of = |what: &str| answer["default"][pod][what].as_u64().expect("a number");
    [of("GPU"), of("CPU"), of("DISK"), of("longest_matched")]
}

#[test]
fn what_a_node_holds_is_counted_for_its_pods_and_stays_so_through_restarts() {
    let (data, folder) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let kvd = Kvd::start(data.path());
    let mut pod = Engine::open("pod");
    pod.register_on(&kvd, "n1");
    let tokens: Vec<u32> = (0..16 * 20).collect();
    pod.publish(&[record(0, stored_payload(1.0, 1000, &tokens[..], 16))]);
    kvd.wait_for_seq("pod", 0);

    let running = Running::start(&config(folder.path(), None)).expect("a node");
    kvd.ok("/register", &registration(&running));
    assert_eq!(store(&running, 1000..1020), 20);
    kvd.wait("kvd to know what is in RAM", || cached(&kvd, "pod", &tokens) == [320, 320, 0, 320]);
    running.node.drain();
    kvd.wait("all to be on disk", || cached(&kvd, "pod", &tokens)[2] == 320);
    let publishers = kvd.get("/publishers");
    assert!(publishers.to_string().contains("n1"), "{publishers}");

    // The pod begins anew, with nothing but a first block that says how it calls them.
    pod.publish(&[record(0, stored_payload(500.0, 1000, &tokens[..16], 16))]);
    kvd.wait("the pod's own blocks to be gone", || cached(&kvd, "pod", &tokens)[0] == 16);
    assert_eq!(cached(&kvd, "pod", &tokens)[2..], [320, 320]);

    // The node dies: what is on disk is still there, what was in RAM is not.
    running.node.commit().expect("written down");
    let again = config(folder.path(), Some(&running));
    drop(running);
    let running = Running::start(&again).expect("a node");
    kvd.wait("RAM to be empty", || cached(&kvd, "pod", &tokens) == [16, 0, 320, 320]);

    // kvd dies: it asks for what it missed. The node tells names alone, and the pod what is in one.
    let kvd = kvd.crash_and_restart();
    kvd.wait("kvd to have asked", || cached(&kvd, "pod", &tokens) == [16, 0, 16, 16]);
    pod.publish(&[record(1, stored_payload(501.0, 1000, &tokens[..], 16))]);
    kvd.wait("the names to be understood", || cached(&kvd, "pod", &tokens) == [320, 0, 320, 320]);
    kvd.wait("all to be known", || kvd.publisher("n1").is_some_and(|p| p["complete"] == true));
    running.end(Duration::from_secs(5));
}

#[test]
fn a_change_is_on_the_wire_within_milliseconds() {
    let folder = tempfile::tempdir().expect("a directory");
    let running = Running::start(&config(folder.path(), None)).expect("a node");
    let subscriber = zmq::Context::new().socket(zmq::SUB).expect("a socket");
    subscriber.connect(&running.sockets[0].publish).expect("connected");
    subscriber.set_subscribe(b"kv@n1@m").expect("subscribed");
    subscriber.set_rcvtimeo(5000).expect("set");
    // A subscription takes a moment to arrive.
    let mut first = 0;
    subscriber.set_rcvtimeo(50).expect("set");
    while subscriber.recv_multipart(0).is_err() {
        first += 1;
        store(&running, first..first + 1);
        assert!(first < 100, "nothing is published");
    }
    subscriber.set_rcvtimeo(5000).expect("set");
    while subscriber.poll(zmq::POLLIN, 200).expect("poll") > 0 {
        subscriber.recv_multipart(0).expect("a batch");
    }
    let mut took: Vec<Duration> = (1000..1060)
        .map(|hash| {
            let began = Instant::now();
            assert_eq!(store(&running, hash..hash + 1), 1);
            // What made room for it is told first, in batches of its own.
            let frames = subscriber.recv_multipart(0).expect("a batch");
            let took = began.elapsed();
            assert_eq!(frames[0], b"kv@n1@m");
            while subscriber.poll(zmq::POLLIN, 20).expect("poll") > 0 {
                subscriber.recv_multipart(0).expect("a batch");
            }
            took
        })
        .collect();
    took.sort();
    // The goal is 5 ms at the 99th percentile of a quiet machine; here it is that nothing waits for a timer.
    println!("median {:?}, worst {:?}", took[30], took[59]);
    assert!(took[30] < Duration::from_millis(500), "{took:?}");
}
