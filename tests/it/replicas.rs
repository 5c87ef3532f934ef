//! Three replicas: what one is told the others know, one that is killed comes back from the others.

use std::net::TcpListener;
use std::path::Path;

use kvd::ctl::engine_sim::{EngineSim, SimConfig};
use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use serde_json::{Value, json};

use crate::support::{Engine, Kvd, record, stored_payload, stream};

/// Addresses that are free just now.
fn free(n: usize) -> Vec<String> {
    let held: Vec<TcpListener> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    held.iter().map(|l| l.local_addr().expect("bound").to_string()).collect()
}

fn replicas(folder: &Path, addresses: &[String]) -> Vec<Kvd> {
    let start = |(i, grpc): (usize, &String)| Kvd::replica(&folder.join(i.to_string()), grpc, addresses, "");
    addresses.iter().enumerate().map(start).collect()
}

fn meet(all: &[Kvd]) {
    for kvd in all {
        kvd.wait("the replicas to meet", || kvd.metric("kvd_peers_connected") == (all.len() - 1) as f64);
    }
}

fn complete(kvd: &Kvd, instance: &str, seq: u64) {
    kvd.wait_for_seq(instance, seq);
    kvd.wait("the history to be known", || kvd.publisher(instance).is_some_and(|p| p["complete"] == true));
}

#[test]
fn what_one_replica_is_told_the_others_know_and_forget() {
    let folder = tempfile::tempdir().expect("a directory");
    let addresses = free(3);
    let all = replicas(folder.path(), &addresses);
    meet(&all);
    let mut e = Engine::open("pod");
    all[0].ok("/register", &e.registration("vLLM", 16));
    e.publish(&[record(0, stored_payload(1.0, 1, &(0..32).collect::<Vec<u32>>(), 16))]);
    for kvd in &all {
        complete(kvd, "pod", 0);
    }
    all[2].ok("/unregister", &json!({"instance_id": "pod", "type": "vLLM", "modelname": "m"}));
    for kvd in &all {
        kvd.wait("the removal", || kvd.publisher("pod").is_none());
    }
}

#[test]
fn a_routing_announced_to_one_counts_at_the_others() {
    let folder = tempfile::tempdir().expect("a directory");
    let addresses = free(2);
    let all = replicas(folder.path(), &addresses);
    meet(&all);
    let mut e = Engine::open("pod");
    all[0].ok("/register", &e.registration("vLLM", 16));
    e.publish(&[record(0, stored_payload(1.0, 1, &(900..932).collect::<Vec<u32>>(), 16))]);
    all.iter().for_each(|kvd| complete(kvd, "pod", 0));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let prompt = kv::Prompt {
        key: Some(kv::prompt::Key::Tokens(kv::TokenIds { ids: (0..64).collect() })),
        ..kv::Prompt::default()
    };
    let speculative = |kvd: &Kvd| {
        runtime.block_on(async {
            let mut client =
                IndexServiceClient::connect(format!("http://{}", kvd.grpc)).await.expect("connect");
            let options = kv::ScoreOptions { include_speculative: true, ..Default::default() };
            let request = kv::ScoreRequest {
                model: "m".into(),
                prompt: Some(prompt.clone()),
                options: Some(options),
                ..Default::default()
            };
            client.score(request).await.expect("an answer").into_inner().endpoints[0].speculative_blocks
        })
    };
    assert_eq!(speculative(&all[1]), 0);
    let endpoint = kv::RoutedEndpoint { instance_id: "pod".into(), dp_rank: 0 };
    runtime.block_on(async {
        let mut client =
            IndexServiceClient::connect(format!("http://{}", all[0].grpc)).await.expect("connect");
        let routing = kv::RecordRoutingRequest {
            request_id: "r".into(),
            model: "m".into(),
            prompt: Some(prompt.clone()),
            endpoints: vec![endpoint],
            ttl_ms: 60_000,
            ..Default::default()
        };
        client.record_routing(routing).await.expect("noted");
    });
    all[1].wait("the routing", || speculative(&all[1]) == 4);
    runtime.block_on(async {
        let mut client =
            IndexServiceClient::connect(format!("http://{}", all[0].grpc)).await.expect("connect");
        client.forget_routing(kv::ForgetRoutingRequest { request_id: "r".into() }).await.expect("forgotten");
    });
    all[1].wait("it to be taken back", || speculative(&all[1]) == 0);
}

/// The engine keeps a few batches only, and the killed replica's disk is gone: what it knows again can
/// only come from another replica.
#[test]
fn a_replica_that_lost_everything_begins_from_another() {
    let folder = tempfile::tempdir().expect("a directory");
    let addresses = free(3);
    let mut all = replicas(folder.path(), &addresses);
    meet(&all);
    let records = stream("vllm032-sched-offload-self-chunk1.kvcap");
    let sim = EngineSim::open(&SimConfig { ring: 4, ..SimConfig::local() }).expect("free ports");
    let mut e = Engine { sim, instance: "pod".to_owned() };
    all[0].ok("/register", &e.registration("vLLM", 16));
    for kvd in &all {
        kvd.wait("the registration", || kvd.publisher("pod").is_some());
    }
    // A first message shows that all three listen.
    e.wait_for_subscriber();
    let half = records.len() / 2;
    for (i, r) in records[..half].iter().enumerate() {
        e.publish(std::slice::from_ref(r));
        if i % 3 == 2 || i + 1 == half {
            // Slowly enough that four batches are never too few.
            all.iter().for_each(|kvd| kvd.wait_for_seq("pod", r.number()));
        }
    }
    all[1].crash();
    std::fs::remove_dir_all(folder.path().join("1")).expect("its disk");
    let again = Kvd::replica(&folder.path().join("1"), &addresses[1], &addresses, "");
    complete(&again, "pod", records[half - 1].number());
    assert_eq!(again.metric("kvd_restored_publishers"), 1.0);
    all[1] = again;
    for (i, r) in records[half..].iter().enumerate() {
        e.publish(std::slice::from_ref(r));
        if i % 3 == 2 {
            all.iter().for_each(|kvd| kvd.wait_for_seq("pod", r.number()));
        }
    }
    let last = records.last().expect("messages").number();
    let dumps: Vec<Value> = all
        .iter()
        .map(|kvd| {
            complete(kvd, "pod", last);
            kvd.get("/dump")
        })
        .collect();
    assert_eq!(dumps[0], dumps[1]);
    assert_eq!(dumps[0], dumps[2]);
    // And they find so themselves.
    all[1].wait("a comparison", || all[1].metric("kvd_peer_digests_total") > 0.0);
    assert_eq!(all[1].metric("kvd_peer_digests_differing_total"), 0.0);
}
