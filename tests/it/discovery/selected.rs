//! Pods that an InferencePool selects, and those that EndpointSlices of a Service name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{NAMESPACE, kvd, pod, publishers, wait_for};
use crate::apiserver::{Api, OLD_POOLS, PODS, POOLS, SLICES};
use crate::support::Kvd;

const POOL: &str = "pool_name = \"llama\"";
const SERVICE: &str = "service_name = \"vllm\"";

/// A pool of `llama`'s name.
fn pool(labels: Value, ports: &[u16]) -> Value {
    let ports: Vec<_> = ports.iter().map(|n| json!({"number": n})).collect();
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"namespace": NAMESPACE, "name": "llama"},
        "spec": {"selector": {"matchLabels": labels}, "targetPorts": ports, "endpointPickerRef": {"name": "epp"}},
    })
}

/// A pod with labels of its own, which says nothing of where it serves.
fn labelled(name: &str, ip: &str, labels: Value) -> Value {
    let mut pod = pod(name, ip, [5557, 5558, 8000]);
    pod["metadata"]["labels"] = labels;
    pod["metadata"]["annotations"].as_object_mut().expect("a map").remove("kvd/serving-ports");
    pod
}

/// A slice of `vllm`'s that names pods.
fn slice(name: &str, pods: &[String]) -> Value {
    let endpoint = |pod: &String| {
        json!({"addresses": ["10.9.9.9"], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": pod, "namespace": NAMESPACE}})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"kubernetes.io/service-name": "vllm"}},
        "ports": [], "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn named(pods: &[&str]) -> Vec<String> {
    pods.iter().map(|p| (*p).to_owned()).collect()
}

/// Why the feed whose name begins so cannot be read.
fn error(kvd: &Kvd, feed: &str) -> Option<String> {
    let shown = kvd.get("/discovery");
    let feeds = shown["feeds"].as_array().expect("a list").clone();
    let found = feeds.iter().find(|f| f["name"].as_str().expect("text").starts_with(feed));
    found.unwrap_or_else(|| panic!("{feed}: {shown}"))["error"].as_str().map(str::to_owned)
}

#[test]
fn a_pool_says_which_pods_are_followed_and_where_they_serve() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.install(POOLS);
    api.put(labelled("a", "127.1.0.1", json!({"app": "llama", "role": "decode"})));
    api.put(labelled("b", "127.1.0.2", json!({"app": "llama", "role": "prefill"})));
    api.put(labelled("c", "127.1.0.3", json!({"app": "qwen", "role": "decode"})));
    let mut other = pool(json!({"app": "qwen"}), &[7000]);
    other["metadata"]["name"] = "qwen".into();
    api.put(other);
    let kvd = kvd(folder.path(), &api, POOL);
    kvd.wait("all to be seen", || kvd.metric("kvd_discovery_synced") == 1.0);
    assert_eq!(publishers(&kvd), Vec::<String>::new(), "another pool's are not this one's");
    let why = error(&kvd, "inferencepools engines llama");
    assert_eq!(why.as_deref(), Some("there is no such InferencePool"));

    api.put(pool(json!({"app": "llama"}), &[8000]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    assert_eq!(error(&kvd, "inferencepools engines llama"), None);
    // All labels must be there; each target port is an instance, of a rank.
    api.put(pool(json!({"role": "decode", "app": "llama"}), &[8000, 8001]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.1:8001"]);
    let all = kvd.get("/publishers");
    assert_eq!((&all[1]["dp_rank"], &all[1]["endpoint"]), (&json!(1), &json!("tcp://127.1.0.1:5558")));
    // What a pod says of itself is heard as ever.
    let mut own = labelled("a", "127.1.0.1", json!({"app": "llama", "role": "decode"}));
    own["metadata"]["annotations"]["kvd/serving-ports"] = "9000".into();
    api.put(own);
    wait_for(&kvd, &["127.1.0.1:9000"]);

    // What makes no sense changes nothing.
    let mut broken = pool(json!({"app": "qwen"}), &[8000]);
    broken["spec"]["targetPorts"] = json!([{"number": 80_000}]);
    api.put(broken);
    kvd.wait("the broken pool to be seen", || error(&kvd, "inferencepools").is_some());
    assert!(error(&kvd, "inferencepools").expect("an error").starts_with("spec: "));
    api.put(pool(json!({}), &[8000]));
    kvd.wait("the empty selector to be seen", || {
        error(&kvd, "inferencepools").is_some_and(|e| e.contains("every pod of the namespace"))
    });
    assert_eq!(publishers(&kvd), ["127.1.0.1:9000"]);

    api.put(pool(json!({"app": "qwen"}), &[8000]));
    wait_for(&kvd, &["127.1.0.3:8000"]);
    api.delete_of(POOLS, NAMESPACE, "llama");
    wait_for(&kvd, &[]);
    api.put(labelled("d", "127.1.0.4", json!({"app": "qwen"})));
    api.put(pool(json!({"app": "qwen"}), &[8000]));
    wait_for(&kvd, &["127.1.0.3:8000", "127.1.0.4:8000"]);
    // One that is being deleted is gone already.
    let mut going = pool(json!({"app": "qwen"}), &[8000]);
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(going);
    wait_for(&kvd, &[]);
}

#[test]
fn pools_of_the_older_api_are_read_as_they_were_written() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.install(OLD_POOLS);
    api.put(labelled("a", "127.1.0.1", json!({"app": "llama"})));
    api.put(json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
        "metadata": {"namespace": NAMESPACE, "name": "llama"},
        "spec": {"selector": {"app": "llama"}, "targetPortNumber": 8100, "extensionRef": {"name": "epp"}},
    }));
    let old = format!("{POOL}\npool_group = \"inference.networking.x-k8s.io\"");
    let kvd = kvd(folder.path(), &api, &old);
    wait_for(&kvd, &["127.1.0.1:8100"]);
}

#[test]
fn a_cluster_without_pools_says_so_and_everything_else_goes_on() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.put(pod("a", "127.1.0.1", [5557, 5558, 8000]));
    api.put(pod("b", "127.1.0.2", [5557, 5558, 8000]));
    api.put(labelled("c", "127.1.0.3", json!({"app": "llama"})));
    let both = format!("{POOL}\n[[discovery.pods]]");
    let mut first = kvd(folder.path(), &api, &both);
    wait_for(&first, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    first.wait("all to be seen", || first.metric("kvd_discovery_synced") == 1.0);
    let why = error(&first, "inferencepools").expect("it is said");
    assert!(why.starts_with("this cluster has no InferencePool of inference.networking.k8s.io/v1"), "{why}");
    assert_eq!(first.metric("kvd_discovery_feeds_failing"), 1.0);
    api.delete(NAMESPACE, "a");
    wait_for(&first, &["127.1.0.2:8000"]);

    // Who went while kvd was away is left although pools cannot be listed.
    first.crash();
    api.delete(NAMESPACE, "b");
    let second = kvd(folder.path(), &api, &both);
    wait_for(&second, &[]);

    // It is noticed when they are there.
    api.install(POOLS);
    api.put(pool(json!({"app": "llama"}), &[8000]));
    wait_for(&second, &["127.1.0.3:8000"]);
    second.wait("nothing to be wrong any more", || error(&second, "inferencepools").is_none());
}

#[test]
fn a_service_s_slices_name_the_pods_and_endpoints_that_are_followed() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        api.put(labelled(name, &format!("127.1.0.{}", n + 1), json!({"app": name})));
    }
    let kvd = kvd(folder.path(), &api, &format!("{SERVICE}\nmodelname = \"m\""));
    kvd.wait("all to be seen", || kvd.metric("kvd_discovery_synced") == 1.0);
    let why = error(&kvd, "endpointslices engines vllm");
    assert_eq!(why.as_deref(), Some("there is no EndpointSlice of that Service"));

    api.put(slice("s1", &named(&["a", "b", "later"])));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    api.put(slice("s2", &named(&["b", "c"])));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000", "127.1.0.3:8000"]);
    api.delete_of(SLICES, NAMESPACE, "s1");
    wait_for(&kvd, &["127.1.0.2:8000", "127.1.0.3:8000"]);
    api.put(labelled("later", "127.1.0.4", json!({})));
    api.put(slice("s2", &named(&["c", "later"])));
    wait_for(&kvd, &["127.1.0.3:8000", "127.1.0.4:8000"]);
    api.delete(NAMESPACE, "c");
    wait_for(&kvd, &["127.1.0.4:8000"]);
    let mut foreign = slice("s3", &named(&["a"]));
    foreign["metadata"]["labels"]["kubernetes.io/service-name"] = "other".into();
    api.put(foreign);

    // Engines that are no pods: what the slice says is true of them.
    let mut outside = slice("outside", &[]);
    outside["metadata"]["annotations"] = json!({"kvd/model": "n", "kvd/serving-ports": "9000"});
    outside["ports"] = json!([{"name": "kv-events", "port": 6000}, {"name": "kv-replay", "port": 6100}]);
    outside["endpoints"] = json!([
        {"addresses": ["127.1.1.1"]},
        {"addresses": ["127.1.1.2"], "conditions": {"ready": false}},
        {"addresses": ["127.1.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    api.put(outside.clone());
    wait_for(&kvd, &["127.1.0.4:8000", "127.1.1.1:9000"]);
    let row = kvd.publisher("127.1.1.1:9000").expect("followed");
    assert_eq!(
        (&row["model"], &row["endpoint"], &row["replay_endpoint"], &row["source_object"]),
        (
            &json!("n"),
            &json!("tcp://127.1.1.1:6000"),
            &json!("tcp://127.1.1.1:6100"),
            &json!("engines/127.1.1.1")
        )
    );
    // Not ready any more: it goes on; ready: it begins.
    outside["endpoints"][0]["conditions"] = json!({"ready": false});
    outside["endpoints"][1]["conditions"] = json!({"ready": true});
    api.put(outside.clone());
    wait_for(&kvd, &["127.1.0.4:8000", "127.1.1.1:9000", "127.1.1.2:9000"]);
    outside["endpoints"] = json!([{"addresses": ["127.1.1.2"]}]);
    api.put(outside.clone());
    wait_for(&kvd, &["127.1.0.4:8000", "127.1.1.2:9000"]);
    outside["addressType"] = "FQDN".into();
    outside["endpoints"] = json!([{"addresses": ["engine.example"]}]);
    api.put(outside);
    wait_for(&kvd, &["127.1.0.4:8000"]);
    let refused = || kvd.get("/discovery")["refused"][0]["object"].clone();
    kvd.wait("the name to be refused", || refused() == "engines/engine.example");
}

#[test]
fn watches_of_pools_and_slices_go_on_where_they_were_and_begin_anew_where_they_cannot() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.install(POOLS);
    let kinds = [POOLS, SLICES];
    api.put(labelled("a", "127.1.0.1", json!({"app": "one"})));
    api.put(labelled("b", "127.1.0.2", json!({"app": "two"})));
    api.put(labelled("c", "127.1.0.3", json!({"app": "three"})));
    api.put(pool(json!({"app": "one"}), &[8000]));
    api.put(slice("s", &named(&["c"])));
    let kvd = kvd(folder.path(), &api, &format!("{POOL}\n[[discovery.pods]]\n{SERVICE}"));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.3:8000"]);
    kvd.wait("watches", || kinds.iter().all(|k| api.asked(k).watches == 1));

    // From the last version after a dropped connection.
    api.cut();
    api.put(pool(json!({"app": "two"}), &[8000]));
    api.put(slice("s", &named(&["a"])));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.2:8000"]);
    // From the last bookmark where everything before it is forgotten.
    api.bookmark();
    std::thread::sleep(Duration::from_millis(300));
    api.forget(false);
    api.cut();
    api.put(pool(json!({"app": "three"}), &[8000]));
    wait_for(&kvd, &["127.1.0.1:8000", "127.1.0.3:8000"]);
    for kind in kinds {
        let asked = api.asked(kind);
        assert_eq!((asked.lists, asked.refused), (1, 0), "{kind}: nothing was listed again");
    }
    // Listed anew where the version is forgotten, in whichever way that is said.
    for (by_status, now) in [(false, "127.1.0.2:8000"), (true, "127.1.0.3:8000")] {
        let before = kinds.map(|kind| api.asked(kind));
        api.down(true);
        kvd.wait("the cluster to be missed", || error(&kvd, "inferencepools").is_some());
        api.delete_of(POOLS, NAMESPACE, "llama");
        api.delete_of(SLICES, NAMESPACE, "s");
        api.put(slice("t", &named(&[if by_status { "c" } else { "b" }])));
        api.bookmark();
        api.forget(by_status);
        api.down(false);
        wait_for(&kvd, &[now]);
        for (kind, before) in kinds.into_iter().zip(before) {
            let asked = api.asked(kind);
            assert_eq!((asked.lists, asked.refused), (before.lists + 1, before.refused + 1), "{kind}");
        }
        api.put(pool(json!({"app": "one"}), &[8000]));
        wait_for(&kvd, &["127.1.0.1:8000", now]);
    }
}

const FLEET: u32 = 400;
const CHANGES: u32 = 500;

/// Pods come, go and are replaced, slices name some of them and then others, and the pool changes its mind,
/// while connections drop and versions are forgotten: in the end just those are followed who are selected.
#[test]
fn whatever_pools_slices_and_pods_go_through_nobody_is_missed_or_left_over() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    api.install(POOLS);
    let address = |n: u32| format!("127.3.{}.{}", n / 200, n % 200 + 1);
    let place = |n: u32, life: u32| {
        let mut pod = labelled(&format!("p{n}"), &address(n), json!({"third": (n % 3).to_string()}));
        pod["metadata"]["uid"] = format!("{n}-{life}").into();
        pod
    };
    let mut here: BTreeSet<u32> = (0..FLEET).collect();
    here.iter().for_each(|n| api.put(place(*n, 0)));
    let mut slices: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut third = 0;
    let of_third = |third: u32| pool(json!({"third": third.to_string()}), &[8000]);
    api.put(of_third(third));
    let kvd = kvd(folder.path(), &api, &format!("{POOL}\n[[discovery.pods]]\n{SERVICE}"));
    kvd.wait("the first to be followed", || !publishers(&kvd).is_empty());

    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % u64::from(below)) as u32
    };
    let start = Instant::now();
    for i in 1..=CHANGES {
        let n = draw(FLEET);
        match draw(8) {
            0 => {
                let slice_of: Vec<u32> = (0..draw(60)).map(|_| draw(FLEET)).collect();
                let number = draw(6);
                let names: Vec<_> = slice_of.iter().map(|n| format!("p{n}")).collect();
                api.put(slice(&format!("s{number}"), &names));
                slices.insert(number, slice_of);
            }
            1 => {
                let number = draw(6);
                api.delete_of(SLICES, NAMESPACE, &format!("s{number}"));
                slices.remove(&number);
            }
            2 if i % 4 == 0 => {
                third = draw(3);
                api.put(of_third(third));
            }
            3 | 4 => {
                api.delete(NAMESPACE, &format!("p{n}"));
                here.remove(&n);
            }
            _ => {
                api.put(place(n, i));
                here.insert(n);
            }
        }
        match i % 100 {
            40 => api.cut(),
            80 => {
                api.forget(i % 200 < 100);
                api.cut();
            }
            _ => {}
        }
        let due = start + Duration::from_millis(5) * i;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let named: BTreeSet<u32> = slices.values().flatten().copied().collect();
    let is_selected = |n: &&u32| **n % 3 == third || named.contains(n);
    let mut expected: Vec<_> =
        here.iter().filter(is_selected).map(|n| format!("{}:8000", address(*n))).collect();
    expected.sort();
    let mut followed = Vec::new();
    let until = Instant::now() + Duration::from_secs(120);
    while followed != expected {
        assert!(Instant::now() < until, "{followed:?} instead of {expected:?}, {}", kvd.get("/discovery"));
        std::thread::sleep(Duration::from_millis(50));
        followed = publishers(&kvd);
    }
    assert!([PODS, POOLS, SLICES].iter().all(|kind| api.asked(kind).refused > 0), "versions were forgotten");
    kvd.wait("nothing to be left to do", || publishers(&kvd) == expected);
}
