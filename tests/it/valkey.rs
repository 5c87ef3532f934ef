//! Two replicas that share an index on a real cluster.

#[path = "../../kvindex/valkey/tests/support/servers.rs"]
pub mod servers;

use std::path::Path;
use std::time::Instant;

use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use serde_json::{Value, json};
use servers::Servers;

use crate::support::{Engine, Kvd, record, stored_payload};

fn start(folder: &Path, servers: &Servers) -> Kvd {
    start_for(folder, servers, 3)
}

/// One that another takes for dead after so many seconds.
fn start_for(folder: &Path, servers: &Servers, lease: u32) -> Kvd {
    std::fs::create_dir_all(folder).expect("a directory");
    let urls = serde_json::to_string(&servers.config("it").urls).expect("text");
    let config = folder.join("kvd.toml");
    let text = format!("[index.valkey]\nurls = {urls}\nnamespace = \"it\"\nlease = \"{lease}s\"\n");
    std::fs::write(&config, text).expect("write");
    Kvd::start_with(&folder.join("data"), &["--config", config.to_str().expect("text")])
}

fn matched(kvd: &Kvd) -> (u16, Value) {
    let body = json!({"model": "m", "token_ids": (0..200).collect::<Vec<u32>>(), "block_size": 16});
    let (status, answer) = kvd.post("/query", &body);
    (status, if status == 200 { answer["default"]["pod"]["longest_matched"].clone() } else { answer })
}

/// A batch whose one store holds the first `blocks` blocks.
fn batch(seq: u64, blocks: u32) -> kvd::ctl::kvcap::Record {
    record(seq, stored_payload(seq as f64 + 1.0, 1, &(0..blocks * 16).collect::<Vec<u32>>(), 16))
}

#[test]
fn replicas_answer_from_one_index_and_one_writes_on_where_another_died() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(mut servers) = runtime.block_on(Servers::start(3, 0)) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let mut first = start(&folder.path().join("a"), &servers);
    let mut pod = Engine::open("pod");
    pod.register(&first, "vLLM", 16);
    pod.publish(&[batch(0, 2)]);
    first.wait("the first batch to be in the shared index", || matched(&first) == (200, json!(32)));
    assert_eq!(first.metric("kvd_shared_index_owned_publishers"), 1.0);

    // It follows the same engine and finds the other one writing.
    let second = start(&folder.path().join("b"), &servers);
    pod.register(&second, "vLLM", 16);
    pod.publish(&[batch(1, 3)]);
    for kvd in [&first, &second] {
        kvd.wait("both to say what is held", || matched(kvd) == (200, json!(48)));
    }
    assert_eq!(second.metric("kvd_shared_index_owned_publishers"), 0.0);

    first.crash();
    pod.publish(&[batch(2, 4)]);
    second.wait("the other to write on", || matched(&second) == (200, json!(64)));
    assert_eq!(second.metric("kvd_shared_index_owned_publishers"), 1.0);
    assert_eq!(second.metric("kvd_shared_index_breaks_total"), 0.0, "nothing was lost on the way");

    // Its own index knows, but it is not asked.
    (0..3).for_each(|node| servers.kill(node));
    second.wait("the servers to be missed", || matched(&second).0 == 503);
    assert!(matched(&second).1["error"].as_str().is_some_and(|e| e.starts_with("index.valkey: ")));
    (0..3).for_each(|node| servers.restart(node));
    second.wait("an answer again", || matched(&second).0 == 200);
    pod.publish(&[batch(3, 5)]);
    second.wait("all to be known again", || matched(&second) == (200, json!(80)));

    let body = json!({"instance_id": "pod", "type": "vLLM", "modelname": "m"});
    second.ok("/unregister", &body);
    second.wait("nothing to be left", || keys_left(&runtime, &servers) == 0);
}

#[test]
fn a_kvd_that_is_told_to_stop_lets_another_write_at_once() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(servers) = runtime.block_on(Servers::start(3, 0)) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let lease = 20;
    let mut first = start_for(&folder.path().join("a"), &servers, lease);
    let second = start_for(&folder.path().join("b"), &servers, lease);
    let mut pod = Engine::open("pod");
    pod.register(&first, "vLLM", 16);
    pod.publish(&[batch(0, 2)]);
    first.wait("the first batch to be in the shared index", || matched(&first) == (200, json!(32)));
    pod.register(&second, "vLLM", 16);
    pod.publish(&[batch(1, 3)]);
    second.wait("both to know", || matched(&second) == (200, json!(48)));
    first.stop();
    let stopped = Instant::now();
    second.wait("the other to write", || second.metric("kvd_shared_index_owned_publishers") == 1.0);
    assert!(stopped.elapsed().as_secs() < lease.into(), "before the lease has run out");
    assert_eq!(matched(&second), (200, json!(48)));
}

/// They are no peers of each other: what one knows of the other's routings it has from the servers.
#[test]
fn a_routing_announced_to_one_replica_counts_in_the_other_ones_next_answer() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(mut servers) = runtime.block_on(Servers::start(3, 0)) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let both = ["a", "b"].map(|name| start(&folder.path().join(name), &servers));
    let mut pod = Engine::open("pod");
    both.iter().for_each(|kvd| pod.register(kvd, "vLLM", 16));
    pod.publish(&[batch(0, 2)]);
    both.iter().for_each(|kvd| kvd.wait("the first batch", || matched(kvd) == (200, json!(32))));

    let client = |kvd: &Kvd| {
        let url = format!("http://{}", kvd.grpc);
        runtime.block_on(IndexServiceClient::connect(url)).expect("connect")
    };
    let prompt = Some(kv::Prompt {
        key: Some(kv::prompt::Key::Tokens(kv::TokenIds { ids: (0..80).collect() })),
        ..Default::default()
    });
    let speculative = |kvd: &Kvd| {
        let options = Some(kv::ScoreOptions { include_speculative: true, ..Default::default() });
        let request =
            kv::ScoreRequest { model: "m".into(), prompt: prompt.clone(), options, ..Default::default() };
        let answer = runtime.block_on(client(kvd).score(request)).expect("an answer").into_inner();
        answer.endpoints[0].speculative_blocks
    };
    let route = |kvd: &Kvd, ttl_ms: u32| {
        let routing = kv::RecordRoutingRequest {
            request_id: "r".into(),
            model: "m".into(),
            prompt: prompt.clone(),
            endpoints: vec![kv::RoutedEndpoint { instance_id: "pod".into(), dp_rank: 0 }],
            ttl_ms,
            ..Default::default()
        };
        runtime.block_on(client(kvd).record_routing(routing)).expect("noted")
    };
    let forget = |kvd: &Kvd| {
        let request = kv::ForgetRoutingRequest { request_id: "r".into() };
        runtime.block_on(client(kvd).forget_routing(request)).expect("an answer").into_inner().found
    };
    assert_eq!([speculative(&both[0]), speculative(&both[1])], [2, 2]);
    route(&both[0], 60_000);
    assert_eq!([speculative(&both[0]), speculative(&both[1])], [5, 5]);
    assert!(forget(&both[1]), "whichever is told");
    assert!(!forget(&both[1]));
    assert_eq!([speculative(&both[0]), speculative(&both[1])], [2, 2]);
    route(&both[1], 400);
    assert_eq!(speculative(&both[0]), 5);
    both[0].wait("its time to be over", || speculative(&both[0]) == 2);
    assert_eq!(both[1].metric("kvd_shared_index_routings_failed_total"), 0.0);

    // A scheduler goes on announcing while the servers are away.
    (0..3).for_each(|node| servers.kill(node));
    route(&both[0], 60_000);
    assert_eq!(both[0].metric("kvd_shared_index_routings_failed_total"), 1.0);
}

/// Keys on all servers, but for the numbers of generations, which must outlive what they are of.
fn keys_left(runtime: &tokio::runtime::Runtime, servers: &Servers) -> usize {
    let on =
        |node| runtime.block_on(servers.ask::<Vec<String>>(node, redis::cmd("KEYS").arg("*"))).expect("keys");
    (0..3).flat_map(on).filter(|key| !key.contains(":gen:")).count()
}
