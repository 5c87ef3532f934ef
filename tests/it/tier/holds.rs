//! What a plan counts on in a node's tiers stays there while the transfer goes on.

use serde_json::{Value, json};

use super::cached;
use super::node::{Node, Pod, until};
use crate::support::{Engine, Kvd, file, record, stored_payload};

/// A plan for `tokens`: `prefill` prefills, and `decode`, where much waits, decodes.
fn plan(kvd: &Kvd, request: &str, tokens: &[u32]) -> Value {
    let pods = json!([
        {"instance_id": "prefill", "can_prefill": true, "compat_class": "c"},
        {"instance_id": "decode", "can_decode": true, "compat_class": "c",
            "load": {"waiting_tokens": "400000", "waiting_requests": 50}},
    ]);
    let plan = kvd.ok("/v1/transfers", &json!({
        "request_id": request, "model": "m", "purpose": "TRANSFER_PURPOSE_PREFILL_DECODE", "block_size": 16,
        "prompt": {"tokens": {"ids": tokens}}, "pods": pods, "connector": "TRANSFER_CONNECTOR_NIXL_PULL",
    }));
    assert_eq!(plan["transfer"]["choice"]["decision"], "TRANSFER_DECISION_DISAGG", "{plan}");
    plan
}

fn report(kvd: &Kvd, plan: &Value, phase: &str) -> Value {
    let id = plan["transfer"]["transfer_id"].as_str().expect("an id");
    let body =
        json!({"attempt": 1, "phase": format!("TRANSFER_PHASE_{phase}"), "plan_token": plan["plan_token"]});
    kvd.ok(&format!("/v1/transfers/{id}/report"), &body)["transfer"].take()
}

fn enforcement(kvd: &Kvd, plan: &Value) -> String {
    let id = plan["transfer"]["transfer_id"].as_str().expect("an id");
    let transfer = &kvd.get(&format!("/v1/transfers/{id}"))["transfer"];
    let name = transfer["enforcement"].as_str().expect("a name");
    name.strip_prefix("ENFORCEMENT_").expect("its prefix").to_owned()
}

#[test]
fn what_a_plan_counts_on_is_pinned_on_the_node_until_the_transfer_is_over() {
    let (data, folder) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let config =
        file(data.path(), "kvd.toml", "[[transfers.model]]\nname = \"m\"\nbytes_per_token = 131072\n");
    let kvd = Kvd::start_with(data.path(), &["--config", &config]);
    let mut node = Node::start(folder.path(), "");
    let mut engines = ["prefill", "decode"].map(Engine::open);
    engines[0].register_on(&kvd, "n1");
    engines[1].register(&kvd, "vLLM", 16);
    kvd.ok("/register", &node.registration());

    // The prefill pod computes ten blocks, offloads them, and forgets its own.
    let tokens: Vec<u32> = (0..16 * 10 + 5).collect();
    // Before that the other one called a block by the same name, which makes the node's names certain; it forgot it.
    let cleared = rmp_serde::to_vec(&json!([2.0, [{"type": "AllBlocksCleared"}], 0])).expect("encodes");
    engines[1].publish(&[record(0, stored_payload(1.0, 1000, &tokens[..16], 16))]);
    kvd.wait_for_seq("decode", 0);
    engines[0].publish(&[record(0, stored_payload(1.0, 1000, &tokens[..160], 16))]);
    kvd.wait_for_seq("prefill", 0);
    engines[1].publish(&[record(1, cleared.clone())]);
    let mut pod = Pod::connect(&node);
    pod.store(&(1000..1010).collect::<Vec<u64>>());
    kvd.wait("kvd to know of both", || cached(&kvd, "prefill", &tokens) == [160, 160, 0, 160]);

    // As long as some of it lies on the engine's device, nobody can promise it.
    let advisory = plan(&kvd, "on the device", &tokens);
    assert_eq!(enforcement(&kvd, &advisory), "ADVISORY");
    assert_eq!(node.usage()["pinned_blocks"], 0);

    engines[0].publish(&[record(1, cleared)]);
    kvd.wait("its own to be gone", || cached(&kvd, "prefill", &tokens) == [0, 160, 0, 160]);
    let plan_of_node = plan(&kvd, "on the node", &tokens);
    until("the node holds them", || node.usage()["pinned_blocks"] == 10);
    until("kvd says so", || enforcement(&kvd, &plan_of_node) == "ENFORCED");
    assert_eq!(kvd.metric("kvd_transfer_holds"), 1.0);
    assert_eq!(report(&kvd, &plan_of_node, "PREFILL_STARTED")["enforcement"], "ENFORCEMENT_ENFORCED");
    // What is prefilled is the engine's to keep.
    assert_eq!(report(&kvd, &plan_of_node, "PREFILL_DONE")["enforcement"], "ENFORCEMENT_ENGINE_ACKED");
    report(&kvd, &plan_of_node, "DONE");
    until("the node has let them go", || node.usage()["pinned_blocks"] == 0);
    assert_eq!((kvd.metric("kvd_transfer_holds"), kvd.metric("kvd_transfer_holds_failed_total")), (0.0, 0.0));

    // Nobody waits for a node that is gone, and nothing is promised.
    node.kill();
    let alone = plan(&kvd, "node is gone", &tokens);
    kvd.wait("kvd to have given up", || kvd.metric("kvd_transfer_holds_failed_total") == 1.0);
    assert_eq!(enforcement(&kvd, &alone), "ADVISORY");
}
