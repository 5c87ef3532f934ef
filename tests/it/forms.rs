//! One engine's history in other words: other hash seeds, other wire versions.

use serde_json::{Value, json};

use crate::support::{Engine, Kvd, fixtures, stream};

/// Prompts of a recorded run, with the salt each was sent with.
fn prompts(run: &str) -> Vec<(Value, Value)> {
    let doc = std::fs::read(fixtures().join(format!("{run}.json"))).expect("a committed recording");
    let doc: Value = serde_json::from_slice(&doc).expect("valid JSON");
    let steps = doc["steps"].as_array().expect("steps").clone();
    steps
        .into_iter()
        .filter(|s| s["prompt_token_ids"].is_array())
        .map(|s| (s["prompt_token_ids"].clone(), s["cache_salt"].clone()))
        .collect()
}

/// What every pod is said to hold of each prompt: one list per pod.
fn answers(kvd: &Kvd, pods: &[&str], prompts: &[(Value, Value)], block_size: u32) -> Vec<Vec<Value>> {
    let mut out = vec![vec![]; pods.len()];
    for (tokens, salt) in prompts {
        let mut body = json!({"model": "m", "token_ids": tokens, "block_size": block_size});
        if salt.is_string() {
            body["cache_salt"] = salt.clone();
        }
        let answer = kvd.ok("/query", &body);
        for (pod, out) in pods.iter().zip(&mut out) {
            let mut one = answer["default"][*pod].clone();
            assert!(one.is_object(), "{pod} is in {answer}");
            one["cached_tokens_dp"] = Value::Null;
            out.push(one);
        }
    }
    out
}

#[test]
fn two_pods_with_different_hash_seeds_give_the_same_answers() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let runs = ["vllm032-hash-sha256_cbor-seed0", "vllm032-hash-sha256_cbor-seed42"];
    let mut engines: Vec<Engine> = runs.iter().map(|r| Engine::open(r)).collect();
    for e in &mut engines {
        e.register(&kvd, "vLLM", 32);
    }
    for (run, e) in runs.iter().zip(&mut engines) {
        let records = stream(&format!("{run}.kvcap"));
        e.publish(&records);
        kvd.wait_for_seq(run, records.last().expect("messages").number());
    }
    let got = answers(&kvd, &runs, &prompts(runs[0]), 32);
    assert_eq!(got[0], got[1]);
    assert!(got[0].iter().any(|a| a["cached_tokens"].as_u64() > Some(0)), "something is cached");
}

#[test]
fn nine_wire_versions_of_one_history_give_the_same_answers() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let versions = [
        "vllm092", "vllm0102", "vllm0141", "vllm0181", "vllm0202", "vllm0221", "vllm0240", "vllm0280",
        "vllm0330",
    ];
    let mut engines: Vec<Engine> = versions.iter().map(|v| Engine::open(v)).collect();
    for e in &mut engines {
        e.register(&kvd, "vLLM", 32);
    }
    // The recordings are several runs one after the other; the first 50 messages are of the
    // run whose prompts are asked for, and hold no salts that the oldest versions leave out.
    let plain: Vec<(Value, Value)> =
        prompts("vllm032-main-b32").into_iter().filter(|(_, salt)| !salt.is_string()).collect();
    let mut positive = 0;
    for cut in [10, 25] {
        for (version, e) in versions.iter().zip(&mut engines) {
            let records = stream(&format!("{version}-reencoded.kvcap"));
            let from = if cut == 10 { 0 } else { 10 };
            e.publish(&records[from..cut]);
            kvd.wait_for_seq(version, records[cut - 1].number());
        }
        let got = answers(&kvd, &versions, &plain, 32);
        for (version, one) in versions.iter().zip(&got) {
            assert_eq!(one, &got[8], "{version} after {cut} messages");
        }
        positive += got[0].iter().filter(|a| a["cached_tokens"].as_u64() > Some(0)).count();
    }
    assert!(positive > 5, "something is cached: {positive}");
}
