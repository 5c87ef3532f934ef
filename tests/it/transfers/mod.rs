//! Transfers that go wrong, over real sockets, with engines that keep blocks as NIXL's connector does.

mod engines;
mod rig;
mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use engines::{LEASE, Prefiller, Stranded};
use rig::{
    Agent, Caller, nothing_reserved, question, register, start, start_replicas, state, sum, unregister,
};

use crate::support::{Kvd, signal};

const P: &str = "10.0.1.1:8000";
const D: &str = "10.0.2.1:8000";
const E: &str = "10.0.2.2:8000";
const SOON: Duration = Duration::from_secs(5);

struct Cluster {
    kvd: Kvd,
    engine: Prefiller,
    agent: Agent,
    _data: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let data = tempfile::tempdir().expect("a directory");
        let kvd = start(data.path(), "", &[]);
        for pod in [P, D, E] {
            register(&kvd, pod);
        }
        let engine = Prefiller::default();
        let agent = Agent::watch(&kvd, &engine);
        Cluster { kvd, engine, agent, _data: data }
    }

    /// A request whose blocks wait on the prefill pod.
    fn ready(&self, request: &str, decode: &[&str]) -> Caller {
        let mut caller = Caller::plan(&self.kvd, &question(request, &[P], decode));
        caller.prefilled(&self.kvd, &self.engine);
        caller
    }

    /// What was kept for nobody, once nothing is kept any more.
    fn stranded(&self) -> Stranded {
        thread::sleep(LEASE);
        self.engine.stranded()
    }
}

#[test]
fn a_transfer_that_goes_well_is_planned_once_and_leaves_nothing() {
    let c = Cluster::start();
    let asked = question("r", &[P], &[D]);
    let mut caller = Caller::plan(&c.kvd, &asked);
    assert_eq!((caller.prefill().as_str(), caller.decode().as_str()), (P, D));
    let again = c.kvd.ok("/v1/transfers", &asked);
    assert_eq!(again["transfer"]["transfer_id"], caller.id().as_str());
    assert_eq!((&again["repeated"], &again["artefacts"]), (&json!(true), &caller.plan["artefacts"]));
    let (status, other) = c.kvd.post("/v1/transfers", &question("r", &[P], &[D, E]));
    assert_eq!((status, other["field"].as_str()), (409, Some("request_id")));

    let prefill = caller.plan["artefacts"]["prefill_kv_transfer_params"].as_str().expect("text");
    assert!(prefill.contains("\"do_remote_decode\":true"), "{prefill}");
    assert!(sum(&c.kvd, "kvd_pinned_bytes") > 0.0);
    caller.prefilled(&c.kvd, &c.engine);
    let over = Arc::new(AtomicBool::new(false));
    assert_eq!(caller.report(&c.kvd, "PULL_STARTED", json!({})), "PULLING");
    c.engine.heartbeats(&caller.id(), Arc::clone(&over));
    // A report that comes again, and one that comes late, change nothing.
    assert_eq!(caller.report(&c.kvd, "PULL_STARTED", json!({})), "PULLING");
    assert_eq!(caller.report(&c.kvd, "PREFILL_STARTED", json!({})), "PULLING");
    over.store(true, Ordering::Relaxed);
    c.engine.released(&caller.id());
    let measured = json!({"transfer_ms": 40, "moved_bytes": "1073741824"});
    assert_eq!(caller.report(&c.kvd, "DONE", measured), "DONE");
    nothing_reserved(&c.kvd);
    let links = c.kvd.get("/v1/links");
    assert_eq!((&links["links"][0]["warm"], &links["links"][0]["transfers"]), (&json!(true), &json!("1")));
}

#[test]
fn the_blocks_of_a_client_that_cancels_between_prefill_and_decode_are_free_at_once() {
    let c = Cluster::start();
    let caller = c.ready("r", &[D]);
    c.engine.abandoned(&caller.id());
    let cancel = json!({"plan_token": caller.plan["plan_token"], "cause": "client_gone"});
    c.kvd.ok(&format!("/v1/transfers/{}/cancel", caller.id()), &cancel);
    let event = c.agent.wait("STRANDED", &caller.id(), SOON);
    assert_eq!(
        (&event["pod"]["instance_id"], &event["transfer"]["cause"]),
        (&json!(P), &json!("client_gone"))
    );
    nothing_reserved(&c.kvd);
    below_a_tenth(c.stranded());
}

#[test]
fn the_blocks_of_a_sidecar_that_dies_without_a_word_are_free_long_before_the_lease_ends() {
    let c = Cluster::start();
    let caller = c.ready("r", &[D]);
    c.engine.abandoned(&caller.id());
    let event = c.agent.wait("STRANDED", &caller.id(), SOON);
    assert_eq!(event["transfer"]["cause"], "never_pulled");
    let left: u64 = event["lease_left_ms"].as_str().expect("a number").parse().expect("a number");
    assert!(left > 5_000, "told {left} ms before the lease ends");
    nothing_reserved(&c.kvd);
    below_a_tenth(c.stranded());
}

#[test]
fn a_finished_prefill_goes_to_another_decode_pod_when_the_first_rejects_it() {
    let c = Cluster::start();
    let mut caller = c.ready("r", &[D, E]);
    let first = caller.decode();
    caller.report(&c.kvd, "PULL_STARTED", json!({}));
    let (_, reply) = caller.try_report(&c.kvd, "FAILED", json!({"cause": "rejected", "replan": true}));
    assert_eq!(state(&reply["transfer"]), "READY", "{reply}");
    assert_eq!(caller.plan["transfer"]["attempt"], 2);
    assert_ne!(caller.decode(), first);
    assert!(c.engine.readable(&caller.id()));
    assert_eq!(caller.report(&c.kvd, "PULL_STARTED", json!({})), "PULLING");
    c.engine.released(&caller.id());
    assert_eq!(caller.report(&c.kvd, "DONE", json!({})), "DONE");
    assert!(c.agent.find("STRANDED", &caller.id()).is_none());
    nothing_reserved(&c.kvd);
}

#[test]
fn a_decode_pod_that_rejects_what_no_other_can_take_leaves_nothing_for_long() {
    let c = Cluster::start();
    let mut caller = c.ready("r", &[D]);
    c.engine.abandoned(&caller.id());
    assert_eq!(caller.report(&c.kvd, "FAILED", json!({"cause": "rejected"})), "FAILED");
    c.agent.wait("STRANDED", &caller.id(), SOON);
    nothing_reserved(&c.kvd);
    below_a_tenth(c.stranded());
}

#[test]
fn whoever_waits_for_a_prefill_pod_that_dies_is_told_long_before_a_timeout() {
    let c = Cluster::start();
    let caller = c.ready("r", &[D]);
    // Wanted, and renewed while it waits in the decode pod's queue.
    let waiting = Instant::now();
    while waiting.elapsed() < Duration::from_millis(1_000) {
        assert_eq!(state(&caller.renew(&c.kvd)), "READY");
        thread::sleep(Duration::from_millis(20));
    }
    unregister(&c.kvd, P);
    c.kvd.wait("the transfer to fail", || state(&caller.renew(&c.kvd)) == "FAILED");
    assert_eq!(caller.now(&c.kvd)["cause"], "source_gone", "and not that some time has run out");
    assert!(c.agent.find("STRANDED", &caller.id()).is_none(), "the blocks died with their pod");
    nothing_reserved(&c.kvd);
}

#[test]
fn a_prefill_pod_that_is_killed_fails_its_transfers_and_is_planned_with_no_more() {
    use crate::support::{Engine, record, stored_payload};
    let data = tempfile::tempdir().expect("a directory");
    let kvd = start(data.path(), "[ingest]\ndead_after = \"1s\"\n", &[]);
    [D, E].iter().for_each(|pod| register(&kvd, pod));
    let engine = Prefiller::default();
    let mut pod = Engine::open(P);
    pod.register(&kvd, "vLLM", 16);
    pod.publish(&[record(0, stored_payload(1.0, 1, &(0..32).collect::<Vec<_>>(), 16))]);
    kvd.wait_for_seq(P, 0);
    let mut caller = Caller::plan(&kvd, &question("r", &[P], &[D]));
    caller.prefilled(&kvd, &engine);
    drop(pod);
    kvd.wait("the transfer to fail", || state(&caller.renew(&kvd)) == "FAILED");
    assert_eq!(caller.now(&kvd)["cause"], "source_gone");
    nothing_reserved(&kvd);
    let plan = kvd.ok("/v1/transfers", &question("again", &[P], &[D]));
    let choice = &plan["transfer"]["choice"];
    assert_eq!(choice["decision"], "TRANSFER_DECISION_LOCAL", "{choice}");
}

#[test]
fn the_blocks_for_a_decode_pod_that_dies_are_free_before_its_heartbeats_wear_off() {
    let c = Cluster::start();
    let mut caller = c.ready("r", &[D]);
    caller.report(&c.kvd, "PULL_STARTED", json!({}));
    let dead = Arc::new(AtomicBool::new(false));
    c.engine.heartbeats(&caller.id(), Arc::clone(&dead));
    thread::sleep(Duration::from_millis(400));
    dead.store(true, Ordering::Relaxed);
    unregister(&c.kvd, D);
    c.engine.abandoned(&caller.id());
    let event = c.agent.wait("STRANDED", &caller.id(), SOON);
    assert_eq!(event["transfer"]["cause"], "destination_gone");
    nothing_reserved(&c.kvd);
    below_a_tenth(c.stranded());
}

#[test]
fn a_kvd_that_is_killed_goes_on_where_it_was() {
    let data = tempfile::tempdir().expect("a directory");
    let mut kvd = start(data.path(), "sync_plans = true\n", &[]);
    let engine = Prefiller::default();
    let asked = question("wanted", &[P], &[D]);
    let mut wanted = Caller::plan(&kvd, &asked);
    wanted.prefilled(&kvd, &engine);
    assert_eq!(wanted.report(&kvd, "PULL_STARTED", json!({})), "PULLING");
    let mut left = Caller::plan(&kvd, &question("left", &[P], &[D]));
    left.prefilled(&kvd, &engine);
    let planned = Caller::plan(&kvd, &question("planned", &[P], &[D]));
    let deadlines =
        |t: &serde_json::Value| (t["state_deadline_at_ms"].clone(), t["overall_deadline_at_ms"].clone());
    let before = deadlines(&wanted.now(&kvd));
    kvd.crash();
    let kvd = start(data.path(), "sync_plans = true\n", &[]);

    let now = wanted.now(&kvd);
    assert_eq!((state(&now).as_str(), &now["recovered"], deadlines(&now)), ("PULLING", &json!(true), before));
    let again = kvd.ok("/v1/transfers", &asked);
    assert_eq!(again["transfer"]["transfer_id"], wanted.id().as_str(), "the key is known again");
    assert_eq!(wanted.report(&kvd, "DONE", json!({})), "DONE");
    kvd.wait("what nobody goes on with to expire", || {
        state_of(&kvd, &left) == "EXPIRED" && state_of(&kvd, &planned) == "EXPIRED"
    });
    nothing_reserved(&kvd);
}

fn state_of(kvd: &Kvd, caller: &Caller) -> String {
    state(&caller.now(kvd))
}

#[test]
fn a_lease_shorter_than_the_queue_is_noticed_before_blocks_are_read_that_are_gone() {
    let c = Cluster::start();
    let mut caller = c.ready("r", &[D]);
    // The request waits in front of the decode pod until after the engine's lease.
    c.agent.wait("STRANDED", &caller.id(), SOON);
    thread::sleep(LEASE);
    assert!(!c.engine.readable(&caller.id()));
    let (status, reply) = caller.try_report(&c.kvd, "PULL_STARTED", json!({}));
    assert_eq!((status, state(&reply["transfer"]).as_str()), (200, "EXPIRED"), "it must not be decoded");
    assert_eq!(reply["applied"], json!(null), "{reply}");
    // The request goes on as another transfer, with the next attempt.
    let first = caller.id();
    let (_, reply) = caller.try_report(&c.kvd, "FAILED", json!({"cause": "lease_expired", "replan": true}));
    assert_eq!(reply["replan"]["transfer"]["attempt"], 2, "{reply}");
    assert_eq!(state(&reply["replan"]["transfer"]), "PLANNED");
    assert_ne!(caller.id(), first);
}

#[test]
fn a_replica_that_is_cut_off_is_replaced_and_steps_down_when_it_is_back() {
    let data = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let replicas = start_replicas(&[data[0].path(), data[1].path()]);
    let engine = Prefiller::default();
    let mut caller = Caller::plan(&replicas[0], &question("r", &[P], &[D]));
    // Whichever replica is asked, the home answers.
    let again = replicas[1].ok("/v1/transfers", &question("r", &[P], &[D]));
    assert_eq!(again["transfer"]["transfer_id"], caller.id().as_str());
    let reserved = |kvd: &Kvd| sum(kvd, "kvd_link_inflight_bytes") > 0.0;
    let home = replicas.iter().position(reserved).expect("one has it");
    assert!(!reserved(&replicas[1 - home]), "and only one");
    let (home, other) = (&replicas[home], &replicas[1 - home]);
    caller.prefilled(other, &engine);
    assert_eq!(state(&caller.now(home)), "READY", "what the other was told, the home knows");

    signal(home.pid(), Signal::STOP);
    let (status, reply) = caller.try_report(other, "PULL_STARTED", json!({}));
    assert_eq!((status, &reply["adopted"]), (200, &json!(true)), "{reply}");
    assert_eq!(state(&reply["transfer"]), "PULLING");
    assert!(reserved(other));
    signal(home.pid(), Signal::CONT);
    home.wait("the home to step down", || !reserved(home));
    assert_eq!(caller.report(home, "DONE", json!({})), "DONE", "the home asks the new owner");
    assert_eq!(sum(other, "kvd_transfers_adopted_total"), 1.0);
    nothing_reserved(home);
    nothing_reserved(other);
    let (status, _) = replicas[0].post(
        &format!("/v1/transfers/{}/report", caller.id()),
        &json!({"attempt": 1, "phase": "TRANSFER_PHASE_DONE", "plan_token": "made-up"}),
    );
    assert_eq!(status, 400);
}

#[test]
fn a_scheduler_plans_and_reports_with_the_client_it_links() {
    use scorer_client::{PlanCall, Prompt, Retry, ScorerClient, kv};
    let data = tempfile::tempdir().expect("a directory");
    let kvd = start(data.path(), "", &[]);
    let pod = |instance: &str, prefill: bool| kv::TransferPod {
        instance_id: instance.to_owned(),
        can_prefill: prefill,
        can_decode: !prefill,
        compat_class: "c".to_owned(),
        load: Some(kv::PodLoad { waiting_tokens: if prefill { 0 } else { 400_000 }, ..Default::default() }),
        ..Default::default()
    };
    let tokens: Vec<u32> = (0..8192).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = ScorerClient::builder(format!("http://{}", kvd.grpc)).deadline(Duration::from_secs(20));
        let client = client.connect().await.expect("connect");
        let call = || {
            let call = PlanCall::new("r", "m", Prompt::tokens(&tokens)).pods([pod(P, true), pod(D, false)]);
            call.decode(D, 0).pass_through("{\"of_mine\": 7}")
        };
        let mut planned = client.plan(call(), Retry::default()).await.expect("a plan");
        assert!(planned.moves(), "{}", planned.plan.explanation);
        let again = client.plan(call(), Retry::default()).await.expect("the same plan");
        assert!(again.plan.repeated);
        let done = planned.report(kv::TransferPhase::PrefillDone);
        let done = done
            .prefill_answer("{\"remote_block_ids\": [[1]]}", None)
            .prefilled(8192, Duration::from_secs(1));
        let reply = client.report(done, Retry::default()).await.expect("a reply");
        assert!(reply.applied && reply.decode_kv_transfer_params.contains("remote_block_ids"));
        assert!(reply.decode_kv_transfer_params.contains("of_mine"), "{}", reply.decode_kv_transfer_params);
        let transfer = reply.transfer.clone().expect("a transfer");
        assert_eq!(transfer.enforcement(), kv::Enforcement::EngineAcked);
        planned.answered(&reply);
        let over = planned.report(kv::TransferPhase::Done).measured(1 << 30, Duration::from_millis(70));
        let reply = client.report(over.clone(), Retry::default()).await.expect("a reply");
        assert_eq!(reply.transfer.expect("a transfer").state(), kv::TransferState::Done);
        let reply = client.report(over, Retry::default()).await.expect("a reply");
        assert!(!reply.applied, "said twice, it changes nothing");
    });
    nothing_reserved(&kvd);
}

#[test]
fn what_makes_no_sense_is_refused_by_its_field() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = start(data.path(), "", &[]);
    let whole = question("r", &[P], &[D]);
    for (field, value, status) in [
        ("request_id", json!(""), 400),
        ("request_id", json!("x".repeat(5000)), 429),
        ("model", json!(""), 400),
        ("purpose", json!("TRANSFER_PURPOSE_TEA"), 400),
        ("purpose", json!("TRANSFER_PURPOSE_PULL"), 400),
        ("connector", json!(77), 400),
        ("prompt_tokens", json!("99999999999"), 400),
        ("kv_transfer_params", json!("[1]"), 400),
        ("kv_transfer_params", json!("{"), 400),
        ("pods", json!([{"instance_id": "a"}, {"instance_id": "a"}]), 400),
        ("pods", json!([{"instance_id": ""}]), 400),
        ("prompt", json!({}), 400),
        ("prompt", json!({"score_token": "ffff"}), 404),
    ] {
        let mut body = whole.clone();
        body[field] = value.clone();
        let (got, answer) = kvd.post("/v1/transfers", &body);
        assert_eq!(got, status, "{field} = {value}: {answer}");
        assert!(answer["field"].is_string(), "{answer}");
    }
    let caller = Caller::plan(&kvd, &whole);
    for (body, status, field) in [
        (json!({"attempt": 1}), 400, "phase"),
        (json!({"attempt": 9, "phase": "TRANSFER_PHASE_DONE"}), 409, "attempt"),
        (json!({"attempt": 1, "epoch": "99999", "phase": "TRANSFER_PHASE_DONE"}), 409, "epoch"),
        (json!({"attempt": 1, "phase": "TRANSFER_PHASE_DONE", "plan_token": "AAAA"}), 400, "plan_token"),
        (
            json!({"attempt": 1, "phase": "TRANSFER_PHASE_PREFILL_DONE", "kv_transfer_params": "7"}),
            400,
            "kv_transfer_params",
        ),
    ] {
        let (got, answer) = kvd.post(&format!("/v1/transfers/{}/report", caller.id()), &body);
        assert_eq!((got, answer["field"].as_str()), (status, Some(field)), "{body}: {answer}");
    }
    for (path, status) in
        [("/v1/transfers/xyz", 400), ("/v1/transfers/00000000000000000000000000000000", 404)]
    {
        let (got, answer) = kvd.post(&format!("{path}/report"), &json!({"phase": "TRANSFER_PHASE_DONE"}));
        assert_eq!(got, status, "{path}: {answer}");
    }
    let slow = json!({"from": {"instance_id": P}, "to": {"instance_id": D}, "bytes_per_second": "0"});
    assert_eq!(kvd.post("/v1/links", &slow).0, 400);
    assert_eq!(state(&caller.now(&kvd)), "PLANNED", "nothing of that did anything");
}

#[test]
fn an_engine_that_evicts_what_is_to_be_pulled_makes_the_plan_stale() {
    use crate::support::{Engine, record};
    let c = Cluster::start();
    let mut source = Engine::open("10.0.3.1:8000");
    source.register(&c.kvd, "vLLM", 16);
    let tokens: Vec<u32> = (0..40_000).collect();
    let hashes: Vec<u64> = (100..2_600).collect();
    let stored = json!({
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": null, "token_ids": tokens,
        "block_size": 16, "lora_id": null, "medium": "CPU", "lora_name": null,
        // With these a block below the GPU is named in full.
        "extra_keys": vec![serde_json::Value::Null; 2_500],
    });
    let payload = rmp_serde::to_vec(&json!([1.0, [stored], 0])).expect("encodes");
    source.publish(&[record(0, payload)]);
    c.kvd.wait_for_seq(&source.instance, 0);
    let asked = json!({
        "request_id": "pull", "model": "m", "purpose": "TRANSFER_PURPOSE_PULL",
        "prompt": {"tokens": {"ids": (0..40_100).collect::<Vec<_>>()}},
        "decode_instance_id": D,
        "pods": [{"instance_id": D, "compat_class": "c"}, {"instance_id": source.instance, "compat_class": "c", "wire": {"p2p": "10.0.3.1:7777"}}],
        "connector": "TRANSFER_CONNECTOR_OFFLOADING",
    });
    let plan = c.kvd.ok("/v1/transfers", &asked);
    let decision = &plan["transfer"]["choice"]["decision"];
    assert_eq!(decision, "TRANSFER_DECISION_PULL", "{}: {}", plan["reason"], plan["explanation"]);
    let id = plan["transfer"]["transfer_id"].as_str().expect("an id").to_owned();
    let evicted = json!({"type": "BlockRemoved", "block_hashes": [300], "medium": "CPU"});
    let payload = rmp_serde::to_vec(&json!([2.0, [evicted], 0])).expect("encodes");
    source.publish(&[record(1, payload)]);
    let event = c.agent.wait("PLAN_STALE", &id, SOON);
    assert_eq!(event["transfer"]["stale"], true);
}

/// Bytes times seconds in vain, against what the engine's own timeouts leave.
fn below_a_tenth(s: Stranded) {
    println!(
        "stranded: {:.2} GB·s, engines alone {:.2} GB·s, {:.1} %",
        s.was / 1e9,
        s.alone / 1e9,
        100.0 * s.was / s.alone
    );
    assert!(s.alone > 0.0, "something was stranded");
    assert!(s.was <= 0.1 * s.alone, "{s:?}");
}
