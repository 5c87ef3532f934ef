//! A request is routed, and its blocks are in RAM before the engine asks.

use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use kvproto::rpc::kv::ingest_service_client::IngestServiceClient;
use kvtier::agent::Outcome;

use super::cached;
use super::node::{Node, Pod, until};
use crate::support::{Engine, Kvd, file, record, stored_payload};

const TO_DISK: [&str; 6] = ["tier", "move", "--from", "cpu", "--to", "disk"];

/// Tells kvd that a request with this prompt was routed to `pod`.
pub fn route(kvd: &Kvd, request: &str, pod: &str, tokens: &[u32]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = IndexServiceClient::connect(format!("http://{}", kvd.grpc)).await.expect("connect");
        let tokens = kv::TokenIds { ids: tokens.to_vec() };
        let prompt = kv::Prompt { key: Some(kv::prompt::Key::Tokens(tokens)), ..kv::Prompt::default() };
        let endpoint = kv::RoutedEndpoint { instance_id: pod.into(), dp_rank: 0 };
        let routed = kv::RecordRoutingRequest {
            request_id: request.into(),
            model: "m".into(),
            prompt: Some(prompt),
            endpoints: vec![endpoint],
            ttl_ms: 10_000,
            ..kv::RecordRoutingRequest::default()
        };
        client.record_routing(routed).await.expect("noted");
    });
}

/// Blocks that kvd knows to be in the node's RAM.
fn known_in_ram(kvd: &Kvd) -> u32 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = IngestServiceClient::connect(format!("http://{}", kvd.grpc)).await.expect("connect");
        let listed = client.list_publishers(kv::ListPublishersRequest {}).await.expect("a list").into_inner();
        let tiers = listed.publishers.iter().find(|p| p.spec.as_ref().is_some_and(|s| s.instance_id == "n1"));
        let of_cpu = |count: &&kv::TierCount| count.tier() == kv::Tier::Cpu;
        tiers.expect("registered").by_tier.iter().find(of_cpu).map_or(0, |count| count.blocks)
    })
}

#[test]
fn what_a_routed_request_will_ask_for_is_brought_up_from_disk() {
    let (data, folder) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let kvd = Kvd::start(data.path());
    let node = Node::start(folder.path(), "");
    let mut engine = Engine::open("pod");
    engine.register_on(&kvd, "n1");
    kvd.ok("/register", &node.registration());

    // The engine computes ten blocks and offloads them; they go to disk.
    let tokens: Vec<u32> = (0..16 * 10 + 5).collect();
    engine.publish(&[record(0, stored_payload(1.0, 1000, &tokens[..160], 16))]);
    let numbers: Vec<u64> = (1000..1010).collect();
    let mut pod = Pod::connect(&node);
    pod.store(&numbers);
    let (content, said) = node.kvctl_on(&TO_DISK, &numbers);
    assert!(content, "{said}");
    kvd.wait("kvd to know of the disk", || cached(&kvd, "pod", &tokens) == [160, 0, 160, 160]);
    // What it has on its device it does not wait for.
    route(&kvd, "warm", "pod", &tokens);
    // It begins anew with the first two blocks alone.
    engine.publish(&[record(0, stored_payload(500.0, 1000, &tokens[..32], 16))]);
    kvd.wait("its own blocks to be gone", || cached(&kvd, "pod", &tokens)[0] == 32);
    assert_eq!(node.usage()["ram_blocks"], 0);

    route(&kvd, "cold", "pod", &tokens);
    until("eight blocks are in RAM", || node.usage()["ram_blocks"] == 8);
    kvd.wait("kvd to hear it", || kvd.metric("kvd_hint_blocks_total") == 8.0);
    assert_eq!(kvd.metric("kvd_hints_total"), 1.0);
    let metrics = node.metrics();
    assert!(metrics.contains("kvd_tier_hints_known_total 8"), "{metrics}");
    assert!(metrics.contains("kvd_tier_hints_unknown_total 0"), "{metrics}");
    assert_eq!(pod.load(&numbers), [Outcome::Ok; 10]);
    assert!(node.metrics().contains("loaded_blocks_total{block_bytes=\"4096\",tier=\"cpu\"} 8"));
    // All of it is in RAM or on the device now: nothing is left to bring up.
    kvd.wait("kvd to know that they are in RAM", || known_in_ram(&kvd) == 8);
    route(&kvd, "warm again", "pod", &tokens);
    assert_eq!(kvd.metric("kvd_hints_total"), 1.0);

    // A node that hangs keeps nobody waiting.
    engine.publish(&[record(0, stored_payload(900.0, 1000, &tokens[..16], 16))]);
    kvd.wait("one block less on the device", || cached(&kvd, "pod", &tokens)[0] == 16);
    node.pause();
    route(&kvd, "nobody", "pod", &tokens);
    assert_eq!(kvd.metric("kvd_hints_failed_total"), 0.0, "it was answered before that was given up");
    kvd.wait("kvd to have given up", || kvd.metric("kvd_hints_failed_total") == 1.0);
}

#[test]
fn a_node_that_wants_a_token_is_told_by_a_kvd_that_has_one() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| file(folder.path(), name, text);
    let (routes, writes) =
        (file("routes", "a-token-that-may-route"), file("writes", "a-token-that-may-write"));
    let security = format!("[security]\nroute_tokens = {routes:?}\nwrite_tokens = {writes:?}\n");
    let node = Node::start(folder.path(), &security);
    let with = |config: &str, name: &str| {
        let config = file(&format!("{name}.toml"), config);
        Kvd::start_with(&folder.path().join(name), &["--config", &config])
    };
    let knows = with(&format!("[security]\ntier_token = {routes:?}\n"), "knows");
    let knows_not = with("", "knows-not");
    let tokens: Vec<u32> = (0..16 * 4 + 5).collect();
    let mut engine = Engine::open("pod");
    for kvd in [&knows, &knows_not] {
        engine.register_on(kvd, "n1");
        kvd.ok("/register", &node.registration());
    }
    engine.publish(&[record(0, stored_payload(1.0, 1000, &tokens[..64], 16))]);
    let numbers: Vec<u64> = (1000..1004).collect();
    Pod::connect(&node).store(&numbers);
    assert!(!node.kvctl_on(&TO_DISK, &numbers).0, "kvctl needs a token as well");
    let (content, said) = node.kvctl_on(&[&["--token-file", &writes], &TO_DISK[..]].concat(), &numbers);
    assert!(content, "{said}");
    let on_disk = |kvd: &Kvd| cached(kvd, "pod", &tokens) == [64, 0, 64, 64];
    knows.wait("both to know of the disk", || on_disk(&knows) && on_disk(&knows_not));
    // Its device is empty again.
    engine.publish(&[record(0, stored_payload(500.0, 1000, &tokens[..16], 16))]);
    let is_anew = |kvd: &Kvd| cached(kvd, "pod", &tokens)[0] == 16;
    knows.wait("both to see it", || is_anew(&knows) && is_anew(&knows_not));

    route(&knows_not, "in vain", "pod", &tokens);
    knows_not.wait("it to be refused", || knows_not.metric("kvd_hints_failed_total") == 1.0);
    assert_eq!(node.usage()["ram_blocks"], 0);
    route(&knows, "cold", "pod", &tokens);
    until("three blocks are in RAM", || node.usage()["ram_blocks"] == 3);
    knows.wait("the answer", || knows.metric("kvd_hints_total") == 1.0);
}
