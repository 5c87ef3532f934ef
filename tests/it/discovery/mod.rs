//! Engines that nobody registers: pods of a Kubernetes API server of our own, and a file.

mod churn;
mod selected;

use std::path::Path;
use std::time::Duration;

use kvd::ctl::kvcap::Record;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::apiserver::{Api, PODS};
use crate::support::{Engine, Kvd};

const NAMESPACE: &str = "engines";

/// A kvd that looks for pods of `api`, with more lines of configuration in `[[discovery.pods]]`.
fn kvd(folder: &Path, api: &Api, more: &str) -> Kvd {
    let kubeconfig = api.kubeconfig(folder, NAMESPACE);
    let config = folder.join("kvd.toml");
    let text = format!(
        "warmup_timeout = \"3s\"\n[ingest]\nmax_publishers = 4096\n\
         [discovery]\nkubeconfig = {kubeconfig:?}\n[[discovery.pods]]\n{more}\n"
    );
    std::fs::write(&config, text).expect("write");
    Kvd::start_with(&folder.join("data"), &["--config", config.to_str().expect("text")])
}

/// A ready pod at `ip` with the ports of events, replays and requests.
fn pod(name: &str, ip: &str, ports: [u16; 3]) -> Value {
    let [events, replay, serving] = ports;
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE, "name": name, "uid": format!("uid-{name}"),
            "labels": {"llm-d.ai/inference-serving": "true"},
            "annotations": {"kvd/model": "m", "kvd/serving-ports": serving.to_string()},
        },
        "spec": {"nodeName": "node-1", "containers": [
            {"name": "sidecar"},
            {"name": "engine", "ports": [
                {"name": "kv-events", "containerPort": events},
                {"name": "kv-replay", "containerPort": replay},
            ]},
        ]},
        "status": {
            "phase": "Running", "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {"name": "sidecar", "containerID": "c://s", "ready": true, "restartCount": 0, "image": "i", "imageID": "i"},
                {"name": "engine", "containerID": "c://1", "ready": true, "restartCount": 0, "image": "i", "imageID": "i"},
            ],
        },
    })
}

/// The port of an address, `tcp://127.0.0.1:5557`.
fn port(endpoint: &str) -> u16 {
    endpoint.rsplit_once(':').expect("a port").1.parse().expect("a number")
}

/// An engine, and the pod that it is.
fn engine(name: &str, serving: u16) -> (Engine, Value) {
    let engine = Engine::open(&format!("127.0.0.1:{serving}"));
    let replay = engine.sim.replay_endpoint().expect("it answers replays").to_owned();
    let ports = [port(engine.sim.endpoint()), port(&replay), serving];
    let pod = pod(name, "127.0.0.1", ports);
    (engine, pod)
}

fn publishers(kvd: &Kvd) -> Vec<String> {
    let all = kvd.get("/publishers");
    all.as_array()
        .expect("an array")
        .iter()
        .map(|p| p["instance_id"].as_str().expect("text").to_owned())
        .collect()
}

fn wait_for(kvd: &Kvd, expected: &[&str]) {
    kvd.wait(&format!("just {expected:?} to be followed"), || publishers(kvd) == expected);
}

#[test]
fn a_pod_is_followed_while_it_is_there_and_then_its_blocks_are_gone() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let (mut engine, pod) = engine("a", 18001);
    api.put(pod.clone());
    let kvd = kvd(folder.path(), &api, "");
    wait_for(&kvd, &["127.0.0.1:18001"]);
    engine.wait_for_subscriber();
    let seq = 0u64.to_be_bytes().to_vec();
    engine.publish(&[Record { topic: Vec::new(), seq, payload: batch(), received_ns: 0 }]);
    kvd.wait_for_seq("127.0.0.1:18001", 0);
    let question = json!({"model": "m", "token_ids": (1..=17).collect::<Vec<_>>(), "block_size": 16});
    let answer = kvd.ok("/query", &question);
    assert_eq!(answer["default"]["127.0.0.1:18001"]["longest_matched"], 16, "{answer}");
    let row = kvd.publisher("127.0.0.1:18001").expect("followed");
    assert_eq!((&row["source"], &row["source_object"]), (&json!("kubernetes"), &json!("engines/a")));

    api.delete(NAMESPACE, "a");
    let since = std::time::Instant::now();
    wait_for(&kvd, &[]);
    assert!(since.elapsed() < Duration::from_secs(12), "at once, not at the next list");
    let answer = kvd.ok("/query", &question);
    assert_eq!(answer["default"].get("127.0.0.1:18001"), None, "{answer}");
    assert_eq!(kvd.metric("kvd_discovery_left_total"), 1.0);
}

/// vLLM's batch of one event that stores the block 1..=16.
fn batch() -> Vec<u8> {
    use rmp_serde::to_vec;
    let tokens: Vec<u32> = (1..=16).collect();
    let event = ("BlockStored", vec![7u64], None::<u64>, tokens, 16u32, None::<u64>, Some("GPU"));
    to_vec(&(1.0f64, vec![event], 0u32)).expect("memory")
}

#[test]
fn what_a_pod_goes_through_is_followed_as_it_means() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let starting = |pod: &Value| {
        let mut pod = pod.clone();
        pod["status"]["conditions"][0]["status"] = "False".into();
        pod
    };
    let a = pod("a", "127.1.0.1", [5557, 5558, 8000]);
    api.put(starting(&a));
    let mut elsewhere = pod("b", "127.1.0.2", [5557, 5558, 8000]);
    elsewhere["metadata"]["namespace"] = "other".into();
    api.put(elsewhere);
    let mut unlabelled = pod("c", "127.1.0.3", [5557, 5558, 8000]);
    unlabelled["metadata"]["labels"] = json!({});
    api.put(unlabelled.clone());
    let mut nameless = pod("d", "127.1.0.4", [5557, 5558, 8000]);
    nameless["metadata"]["annotations"]["kvd/model"] = "".into();
    api.put(nameless.clone());

    let kvd = kvd(folder.path(), &api, "");
    kvd.wait("all pods to be seen", || kvd.metric("kvd_discovery_synced") == 1.0);
    assert_eq!(publishers(&kvd), Vec::<String>::new(), "not ready, elsewhere, unlabelled or without a model");
    let refused = &kvd.get("/discovery")["refused"];
    assert_eq!(refused[0]["object"], "engines/d", "{refused}");
    assert!(refused[0]["why"].as_str().expect("text").contains("kvd/model"), "{refused}");

    api.put(a.clone());
    wait_for(&kvd, &["127.1.0.1:8000"]);
    api.put(starting(&a));
    api.put(pod("e", "127.1.0.5", [5557, 5558, 8000]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.5:8000"]);
    // Its engine began anew, and is not ready yet.
    let mut restarted = starting(&a);
    restarted["status"]["containerStatuses"][1]["containerID"] = "c://2".into();
    api.put(restarted.clone());
    wait_for(&kvd, &["127.1.0.5:8000"]);
    restarted["status"]["conditions"][0]["status"] = "True".into();
    api.put(restarted.clone());
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.5:8000"]);
    restarted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(restarted);
    unlabelled["metadata"]["labels"] = json!({"llm-d.ai/inference-serving": "true"});
    unlabelled["metadata"]["annotations"]["kvd/ranks"] = "2".into();
    api.put(unlabelled.clone());
    wait_for(&kvd, &["127.1.0.3:8000", "127.1.0.3:8000", "127.1.0.5:8000"]);
    let all = kvd.get("/publishers");
    assert_eq!(all[1]["endpoint"], "tcp://127.1.0.3:5558", "the second rank's, one above");
    assert_eq!(all[1]["replay_endpoint"], "tcp://127.1.0.3:5559");
    unlabelled["metadata"]["labels"] = json!({});
    api.put(unlabelled);
    wait_for(&kvd, &["127.1.0.5:8000"]);
}

#[test]
fn what_went_while_kvd_was_away_goes_once_all_is_seen_and_not_before() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.put(pod("a", "127.1.0.1", [5557, 5558, 8000]));
    api.put(pod("b", "127.1.0.2", [5557, 5558, 8000]));
    let mut first = kvd(folder.path(), &api, "");
    wait_for(&first, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    let by_hand = json!({"endpoint": "tcp://127.1.0.9:5557", "type": "vLLM", "modelname": "m",
        "instance_id": "127.1.0.9:8000", "block_size": 16, "dp_rank": 0});
    first.ok("/register", &by_hand);
    first.crash();
    api.delete(NAMESPACE, "a");
    api.down(true);
    let second = kvd(folder.path(), &api, "");
    let everyone = ["127.1.0.1:8000", "127.1.0.2:8000", "127.1.0.9:8000"];
    second
        .wait("the cluster to have been asked in vain", || second.metric("kvd_discovery_errors_total") > 1.0);
    assert_eq!(publishers(&second), everyone, "it is not known who is gone");
    assert!(second.get("/discovery")["feeds"][0]["error"].is_string());
    api.down(false);
    wait_for(&second, &["127.1.0.2:8000", "127.1.0.9:8000"]);
    second.wait("that to be said", || second.metric("kvd_discovery_synced") == 1.0);
}

#[test]
fn watches_go_on_where_they_were_and_begin_anew_where_they_cannot() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.put(pod("a", "127.1.0.1", [5557, 5558, 8000]));
    let kvd = kvd(folder.path(), &api, "");
    wait_for(&kvd, &["127.1.0.1:8000"]);
    kvd.wait("a watch", || api.asked(PODS).watches == 1);

    // A connection that drops goes on from the last version.
    api.cut();
    api.put(pod("b", "127.1.0.2", [5557, 5558, 8000]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    assert_eq!(api.asked(PODS).lists, 1, "nothing was listed again");

    // What has passed since the last pod is known by bookmarks: forgetting it does no harm.
    api.bookmark();
    std::thread::sleep(Duration::from_millis(300));
    api.forget(false);
    api.cut();
    api.put(pod("c", "127.1.0.3", [5557, 5558, 8000]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000", "127.1.0.3:8000"]);
    assert_eq!((api.asked(PODS).lists, api.asked(PODS).refused), (1, 0), "the bookmark was enough");

    // A version that is forgotten is listed anew, in whichever way that is said, and what was deleted
    // meanwhile is noticed.
    for (by_status, gone) in [(false, "a"), (true, "b")] {
        let before = api.asked(PODS);
        api.down(true);
        api.delete(NAMESPACE, gone);
        api.bookmark();
        api.forget(by_status);
        api.down(false);
        kvd.wait("the pod to be missed", || publishers(&kvd).len() == if gone == "a" { 2 } else { 1 });
        let now = api.asked(PODS);
        assert!(now.lists == before.lists + 1 && now.watches > before.watches, "{now:?}");
        assert_eq!(now.refused, before.refused + 1);
    }
    wait_for(&kvd, &["127.1.0.3:8000"]);
}

#[test]
fn a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
    let folder = TempDir::new().expect("a directory");
    let (file, config) = (folder.path().join("engines.toml"), folder.path().join("kvd.toml"));
    let table = |n: u8| {
        format!(
            "[[publisher]]\nendpoint = \"tcp://127.1.0.{n}:5557\"\ntype = \"vLLM\"\nmodelname = \"m\"\n\
             instance_id = \"127.1.0.{n}:8000\"\nblock_size = 16\ndp_rank = 0\n"
        )
    };
    std::fs::write(&file, table(1) + &table(2)).expect("write");
    std::fs::write(&config, format!("[discovery]\nfile = {file:?}\n")).expect("write");
    let data = folder.path().join("data");
    let mut kvd = Kvd::start_with(&data, &["--config", config.to_str().expect("text")]);
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    assert_eq!(kvd.publisher("127.1.0.1:8000").expect("followed")["source"], "file");

    std::fs::write(&file, table(2) + &table(3) + "[[publisher]]\ntype = \"vLLM\"\n").expect("write");
    kvd.wait("the broken file to be seen", || kvd.metric("kvd_discovery_errors_total") == 1.0);
    let shown = kvd.get("/discovery");
    assert!(shown["feeds"][0]["error"].as_str().expect("text").starts_with("publisher number 3"), "{shown}");
    assert_eq!(publishers(&kvd), ["127.1.0.1:8000", "127.1.0.2:8000"]);

    std::fs::write(&file, table(2) + &table(3)).expect("write");
    wait_for(&kvd, &["127.1.0.2:8000", "127.1.0.3:8000"]);

    // Without discovery nobody would ever take back what was discovered before.
    kvd.crash();
    let kvd = Kvd::start(&data);
    wait_for(&kvd, &[]);
}
