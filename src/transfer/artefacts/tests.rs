//! One golden file per connector and decision, in `golden/`, written by
//! `UPDATE_GOLDEN=1 cargo test -p kvd --lib artefacts` and reviewed as a diff.

use std::path::Path;
use std::sync::Arc;

use kvproto::Tier;
use serde_json::{Map, Value, json};

use super::*;
use crate::transfer::types::{Choice, Decision, Endpoint, Estimate, Wire};

fn pod(name: &str, rank: u32) -> Endpoint {
    Endpoint { instance: name.into(), rank }
}

fn leg(kind: LegKind, from: &Endpoint, to: &Endpoint) -> Leg {
    let (from, to) = (from.clone(), to.clone());
    Leg { kind, from, to, tier: Tier::Cpu, tokens: 512, blocks: 32, bytes: 64 << 20, pinned_bytes: 64 << 20 }
}

fn choice(decision: Decision) -> Choice {
    let (p, d, s) = (pod("10.0.0.1:8000", 1), pod("10.0.0.2:8000", 2), pod("[fd00::3]:8000", 1));
    let hands_over = matches!(decision, Decision::Disagg | Decision::DisaggWithPull);
    let mut legs = Vec::new();
    if matches!(decision, Decision::Pull | Decision::DisaggWithPull) {
        legs.push(leg(LegKind::Pull, &s, if hands_over { &p } else { &d }));
    }
    if hands_over {
        legs.push(leg(LegKind::Handover, &p, &d));
    }
    let prefill = hands_over.then_some(p);
    Choice { decision, prefill, decode: Some(d), legs, prefill_tokens: 9, estimate: Estimate::default() }
}

/// The prefill pod is described in full, the source only as far as `pull` says.
fn wire(pull: &'static str) -> impl Fn(&Endpoint) -> Wire {
    move |e| {
        let source = &*e.instance == "[fd00::3]:8000";
        let some = |yes: bool, what: &str| yes.then(|| Arc::from(what));
        Wire {
            bootstrap: some(!source, "10.0.0.1:8998"),
            engine_id: some(!source, "5d0c-engine"),
            p2p: some(!source || pull == "p2p", if source { "[fd00::3]:7777" } else { "10.0.0.1:7777" }),
            control: some(source && pull == "control", "[fd00::3]:25000"),
        }
    }
}

/// What vLLM 0.33 answers to a prefill, with a key nobody knows yet.
fn answer() -> Map<String, Value> {
    let Value::Object(map) = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[3, 4, 5]],
        "remote_engine_id": "5d0c-engine", "remote_request_id": "cmpl-7", "remote_host": "10.0.0.1", "remote_port": 5601,
        "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 521, "remote_blocks_expiry_time": null,
        "transfer_mode": "pull", "remote_prefill_cached_tokens": 0, "remote_registration_generation": 2, "of_tomorrow": {"a": [1]}
    }) else {
        panic!("an object")
    };
    map
}

struct Case {
    connector: Connector,
    decision: Decision,
    pull: &'static str,
    answered: bool,
}

fn made(case: &Case) -> Artefacts {
    let choice = choice(case.decision);
    let (wire, answer) = (wire(case.pull), answer());
    let Value::Object(pass_through) =
        json!({"of_the_caller": 1, "do_remote_decode": "not the caller's to say"})
    else {
        panic!("an object")
    };
    make(&Brief {
        choice: &choice,
        connector: case.connector,
        transfer_id: "000102030405060708090a0b0c0d0e0f",
        attempt: 2,
        request_id: "req-1",
        wire: &wire,
        pull_hashes: &[1, u64::MAX],
        prefill_answer: case.answered.then_some(&answer),
        pass_through: &pass_through,
    })
}

fn text(a: &Artefacts) -> String {
    let headers: Map<String, Value> = a.headers.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    let value = json!({
        "headers": headers, "prefill kv_transfer_params": a.prefill_params, "decode kv_transfer_params": a.decode_params,
        "kv_hints": a.kv_hints, "body of both": a.body,
    });
    serde_json::to_string_pretty(&value).expect("plain JSON") + "\n"
}

#[test]
fn artefacts_are_as_written_in_their_golden_files() {
    use Connector::{Mooncake, NixlPull, NixlPush, Offloading, Sglang};
    use Decision::{Disagg, DisaggWithPull, Local, Pull};
    let case = |connector, decision, pull, answered| Case { connector, decision, pull, answered };
    let cases = [
        ("nixl_pull_before_prefill", case(NixlPull, Disagg, "", false)),
        ("nixl_pull_after_prefill", case(NixlPull, Disagg, "", true)),
        ("nixl_push_after_prefill", case(NixlPush, Disagg, "", true)),
        ("nixl_with_pull_from_p2p", case(NixlPull, DisaggWithPull, "p2p", false)),
        ("nixl_with_pull_by_hint", case(NixlPull, DisaggWithPull, "control", false)),
        ("mooncake", case(Mooncake, Disagg, "", false)),
        ("offloading", case(Offloading, Disagg, "", false)),
        ("offloading_with_pull", case(Offloading, DisaggWithPull, "p2p", false)),
        ("offloading_pull", case(Offloading, Pull, "p2p", false)),
        ("pull_by_hint", case(Offloading, Pull, "control", false)),
        ("sglang", case(Sglang, Disagg, "", false)),
        ("local", case(NixlPull, Local, "", false)),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/transfer/artefacts/golden");
    let mut wrong = Vec::new();
    for (name, case) in &cases {
        let (file, got) = (dir.join(format!("{name}.json")), text(&made(case)));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, got).expect("write a golden file");
        } else if std::fs::read_to_string(&file).ok().as_ref() != Some(&got) {
            wrong.push(format!("{name}: got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let files = std::fs::read_dir(&dir).expect("the golden files").count();
    assert_eq!(files, cases.len(), "every golden file has its case");
}

#[test]
fn the_engines_answer_is_handed_over_word_for_word() {
    let case = Case { connector: Connector::NixlPull, decision: Decision::Disagg, pull: "", answered: true };
    let mut decode = made(&case).decode_params.expect("the answer");
    assert_eq!(decode.remove("of_the_caller"), Some(json!(1)));
    assert_eq!(decode, answer());
}

#[test]
fn a_new_attempt_meets_elsewhere() {
    let choice = choice(Decision::Disagg);
    let (wire, none) = (wire(""), Map::new());
    for connector in [Connector::Mooncake, Connector::Offloading, Connector::Sglang] {
        let at = |attempt| {
            let a = make(&Brief {
                choice: &choice,
                connector,
                transfer_id: "0f",
                attempt,
                request_id: "",
                wire: &wire,
                pull_hashes: &[],
                prefill_answer: None,
                pass_through: &none,
            });
            (a.prefill_params, a.body)
        };
        assert_ne!(at(1), at(2), "{connector:?}");
    }
}

#[test]
fn a_request_id_that_cannot_stand_in_a_header_is_left_out() {
    let choice = choice(Decision::Local);
    let (wire, none) = (wire(""), Map::new());
    for bad in ["a b", "a\r\nx-evil: 1", "é"] {
        let a = make(&Brief {
            choice: &choice,
            connector: Connector::NixlPull,
            transfer_id: "0f",
            attempt: 1,
            request_id: bad,
            wire: &wire,
            pull_hashes: &[],
            prefill_answer: None,
            pass_through: &none,
        });
        assert!(a.headers.iter().all(|(name, _)| name != "x-request-id"), "{bad:?}");
    }
}
