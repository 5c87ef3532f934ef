//! The HTTP answers, key by key: routers of other projects read them.

use serde_json::{Value, json};

use crate::support::{Engine, Kvd, record, stored_payload};

/// A kvd that follows two ranks of one instance: rank 0 has three blocks of the prompt 0..64,
/// rank 1 one.
fn two_ranks() -> (tempfile::TempDir, Kvd, [Engine; 2]) {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let tokens: Vec<u32> = (0..48).collect();
    let mut engines = [0u32, 1].map(|rank| {
        let mut e = Engine::open("10.0.0.1:8000");
        let mut body = e.registration("vLLM", 16);
        body["dp_rank"] = json!(rank);
        let answer = kvd.ok("/register", &body);
        assert_eq!(answer, json!({"status": "registered successfully", "instance_id": "10.0.0.1:8000"}));
        e.wait_for_subscriber();
        e
    });
    engines[0].publish(&[record(0, stored_payload(1.0, 100, &tokens, 16))]);
    engines[1].publish(&[record(0, stored_payload(1.0, 900, &tokens[..16], 16))]);
    kvd.wait("both ranks", || {
        let all = kvd.get("/publishers");
        all.as_array().expect("an array").iter().filter(|p| p["last_seq"] == 0).count() == 2
    });
    (data, kvd, engines)
}

#[test]
fn query_answers_in_the_conductors_shape() {
    let (_data, kvd, _engines) = two_ranks();
    let tokens: Vec<u32> = (0..64).collect();
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 16});
    let expected = json!({"default": {"10.0.0.1:8000": {
        "longest_matched": 48, "GPU": 48, "CPU": 0, "DISK": 0, "DP": {"0": 48, "1": 16},
        "cached_tokens": 48, "cached_tokens_dp": {"0": 48, "1": 16},
    }}});
    assert_eq!(kvd.ok("/query", &body), expected);

    // The last prompt token is never cached, but it is held.
    let body = json!({"model": "m", "token_ids": tokens[..48], "block_size": 16});
    let answer = kvd.ok("/query", &body);
    let pod = &answer["default"]["10.0.0.1:8000"];
    assert_eq!((&pod["longest_matched"], &pod["cached_tokens"]), (&json!(48), &json!(32)));

    // Counted in larger blocks than the engine's: whole ones only.
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 32});
    assert_eq!(kvd.ok("/query", &body)["default"]["10.0.0.1:8000"]["longest_matched"], 32);

    let body = json!({"model": "other", "token_ids": tokens, "block_size": 16});
    assert_eq!(kvd.ok("/query", &body), json!({}));
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 16, "instance_id": "10.0.0.1:8000"});
    assert_eq!(kvd.ok("/query", &body), expected);
}

#[test]
fn dump_lists_every_block_once_per_rank_and_tier() {
    let (_data, kvd, _engines) = two_ranks();
    let rows = kvd.get("/dump");
    let mut rows: Vec<Value> = rows.as_array().expect("an array").clone();
    rows.sort_by_key(|r| (r["dp_rank"].as_u64(), r["block"].as_u64()));
    let row = |rank: u32, tier: &str, block: u64, depth: u32| json!({"instance": "10.0.0.1:8000", "dp_rank": rank, "tier": tier, "block": block, "depth": depth});
    let tier = rows[0]["tier"].as_str().expect("a tier").to_owned();
    assert!(tier.eq_ignore_ascii_case("gpu"));
    assert_eq!(
        rows,
        [row(0, &tier, 100, 0), row(0, &tier, 101, 1), row(0, &tier, 102, 2), row(1, &tier, 900, 0)]
    );
}

#[test]
fn wrong_requests_are_refused_by_the_name_of_the_field() {
    let (_data, kvd, _engines) = two_ranks();
    type Change = dyn Fn(&mut Value);
    let query = |change: &Change| {
        let mut body = json!({"model": "m", "token_ids": [1, 2, 3], "block_size": 16});
        change(&mut body);
        kvd.post("/query", &body)
    };
    let cases: [(&str, &Change); 8] = [
        ("block_size", &|b| b["block_size"] = json!(0)),
        ("block_size", &|b| b["block_size"] = json!(65537)),
        ("block_size", &|b| b["block_size"] = json!("16")),
        ("token_ids", &|b| b["token_ids"] = json!([1, -2])),
        ("token_ids", &|b| b["token_ids"] = json!([1, 4294967296u64])),
        ("token_ids", &|b| b["token_ids"] = json!([1.5])),
        ("token_ids", &|b| b["token_ids"] = json!("1 2 3")),
        ("model", &|b| {
            b.as_object_mut().expect("an object").remove("model");
        }),
    ];
    for (field, change) in cases {
        let (status, answer) = query(change);
        assert!((400..500).contains(&status), "{field}: {status} {answer}");
        assert!(answer.to_string().contains(field), "{field} is named: {answer}");
    }
    let (status, answer) = kvd.post("/nowhere", &json!({}));
    assert_eq!(status, 404);
    assert!(answer["error"].is_string(), "{answer}");
    let (status, answer) = kvd.post("/register", &json!({"type": "vLLM", "modelname": "m"}));
    assert!((400..500).contains(&status), "{answer}");
    assert!(answer["error"].is_string(), "{answer}");
}

#[test]
fn unregister_takes_the_pod_and_its_blocks_out() {
    let (_data, kvd, engines) = two_ranks();
    let mut body = engines[0].registration("vLLM", 16);
    let answer = kvd.ok("/unregister", &body);
    assert_eq!(
        answer,
        json!({"status": "unregistered successfully", "removed_instances": ["10.0.0.1:8000|default|0"]})
    );
    assert_eq!(kvd.get("/dump").as_array().expect("an array").len(), 1);
    body["dp_rank"] = json!(1);
    kvd.ok("/unregister", &body);
    assert_eq!(kvd.get("/publishers"), json!([]));
    let query = json!({"model": "m", "token_ids": [1, 2], "block_size": 16});
    assert_eq!(kvd.ok("/query", &query), json!({}));
}
