//! kvd dies or comes late, engines restart: what was missed is fetched, nothing stale stays.

use serde_json::json;

use crate::support::{Engine, Kvd, record, stored_payload, stream};

fn cached(kvd: &Kvd, instance: &str, tokens: &[u32]) -> u64 {
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 16});
    kvd.ok("/query", &body)["default"][instance]["longest_matched"].as_u64().expect("a number")
}

#[test]
fn registrations_survive_a_kill_and_the_history_is_fetched_again() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let mut e = Engine::open("pod");
    e.register(&kvd, "vLLM", 64);
    let records = stream("vllm032-block64.kvcap");
    let half = records.len() / 2;
    e.publish(&records[..half]);
    kvd.wait_for_seq("pod", records[half - 1].number());
    let before = kvd.get("/dump");

    let kvd = kvd.crash_and_restart();
    kvd.wait_for_seq("pod", records[half - 1].number());
    assert_eq!(kvd.get("/dump"), before);
    // Its history may have come before its live connection is noticed.
    kvd.wait("all to be known", || kvd.publisher("pod").is_some_and(|p| p["complete"] == true));
    let status = kvd.publisher("pod").expect("registered");
    assert!(status["replays"].as_u64() > Some(0), "{status}");

    e.publish(&records[half..]);
    kvd.wait_for_seq("pod", records.last().expect("messages").number());
}

#[test]
fn a_kvd_that_comes_late_learns_what_was_published_before() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let mut e = Engine::open("pod");
    let tokens: Vec<u32> = (0..4096).collect();
    let batches: Vec<_> = (0..256u64)
        .map(|i| {
            let own = &tokens[16 * i as usize..16 * (i as usize + 1)];
            record(i, stored_payload(1.0 + i as f64, 1000 + i, own, 16))
        })
        .collect();
    e.publish(&batches);
    kvd.ok("/register", &e.registration("vLLM", 16));
    kvd.wait_for_seq("pod", 255);
    assert_eq!(cached(&kvd, "pod", &tokens[1600..1632]), 16);
}

#[test]
fn an_engine_restart_forgets_what_was_held() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let mut e = Engine::open("pod");
    e.register(&kvd, "vLLM", 16);
    let old: Vec<u32> = (0..32).collect();
    let new: Vec<u32> = (500..532).collect();
    e.publish(&[
        record(0, stored_payload(10.0, 1, &old, 16)),
        record(1, stored_payload(11.0, 50, &(100..132).collect::<Vec<_>>(), 16)),
    ]);
    kvd.wait_for_seq("pod", 1);
    assert_eq!(cached(&kvd, "pod", &old), 32);
    e.publish(&[record(0, stored_payload(20.0, 9, &new, 16))]);
    kvd.wait_for_seq("pod", 0);
    assert_eq!((cached(&kvd, "pod", &old), cached(&kvd, "pod", &new)), (0, 32));
    assert_eq!(kvd.publisher("pod").expect("registered")["restarts"], 1);
}

#[test]
fn the_same_pod_with_a_new_endpoint_replaces_the_old() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let tokens: Vec<u32> = (0..32).collect();
    let mut old = Engine::open("pod");
    old.register(&kvd, "vLLM", 16);
    old.publish(&[record(0, stored_payload(1.0, 1, &tokens, 16))]);
    kvd.wait_for_seq("pod", 0);
    assert_eq!(cached(&kvd, "pod", &tokens), 32);
    let mut new = Engine::open("pod");
    new.register(&kvd, "vLLM", 16);
    assert_eq!(cached(&kvd, "pod", &tokens), 0);
    assert_eq!(kvd.get("/publishers").as_array().expect("an array").len(), 1);
    new.publish(&[record(0, stored_payload(2.0, 1, &tokens[..16], 16))]);
    kvd.wait("the new endpoint's blocks", || cached(&kvd, "pod", &tokens) == 16);
}
