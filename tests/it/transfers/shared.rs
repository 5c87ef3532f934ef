//! Two replicas that share a ledger on a real cluster.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::engines::Prefiller;
use super::rig::{Caller, nothing_reserved, question, start_shared, state, sum};
use super::{D, P};
use crate::support::{Kvd, signal};
use crate::valkey::servers::Servers;

/// How long a replica that is not heard of stays home.
const LEASE: Duration = Duration::from_secs(2);

fn start(servers: &Servers, folder: &Path, names: [&str; 2]) -> [Kvd; 2] {
    names.map(|name| start_shared(&folder.join(name), &servers.config("ledger").urls, LEASE))
}

fn servers(masters: usize, replicas: usize) -> Option<(tokio::runtime::Runtime, Servers)> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let servers = runtime.block_on(Servers::start(masters, replicas))?;
    Some((runtime, servers))
}

/// Says a caller's word until somebody hears it: replicas say when they are not certain.
fn insist(caller: &mut Caller, kvd: &Kvd, phase: &str) -> serde_json::Value {
    let began = Instant::now();
    loop {
        match caller.try_report(kvd, phase, json!({})) {
            (200, reply) => return reply,
            (status, reply) => {
                assert!(status == 503 && began.elapsed() < Duration::from_secs(15), "{status}: {reply}");
            }
        }
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_transfer_is_planned_at_one_reported_at_the_other_and_survives_its_home() {
    let Some((_runtime, servers)) = servers(3, 0) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let [mut home, other] = start(&servers, folder.path(), ["a", "b"]);
    let engine = Prefiller::default();
    let asked = question("r", &[P], &[D]);
    let mut caller = Caller::plan(&home, &asked);
    // Whoever is asked for the same request comes to the same plan.
    let again = other.ok("/v1/transfers", &asked);
    assert_eq!((&again["transfer"]["transfer_id"], &again["repeated"]), (&json!(caller.id()), &json!(true)));
    let (status, refused) = other.post("/v1/transfers", &question("r", &[P], &[D, "10.0.2.9:8000"]));
    assert_eq!(status, 409, "{refused}");

    caller.prefilled(&other, &engine);
    assert_eq!(state(&caller.now(&home)), "READY", "what the other was told, the home knows");
    assert_eq!(state(&caller.now(&other)), "READY", "and any replica reads");
    let listed = other.get("/v1/transfers");
    assert_eq!(listed["transfers"][0]["transfer_id"], json!(caller.id()));
    assert!(sum(&home, "kvd_pinned_bytes") > 0.0 && sum(&other, "kvd_pinned_bytes") == 0.0, "one home");
    assert_eq!(insist(&mut caller, &other, "PULL_STARTED")["transfer"]["state"], "TRANSFER_STATE_PULLING");

    let mut left = Caller::plan(&home, &question("left", &[P], &[D]));
    left.report(&home, "PREFILL_STARTED", json!({}));
    let deadlines =
        |c: &Caller| ["state_deadline_at_ms", "overall_deadline_at_ms"].map(|at| c.now(&other)[at].clone());
    let before = [deadlines(&caller), deadlines(&left)];
    home.crash();
    // No token: it is the servers who know.
    caller.plan["plan_token"] = json!("");
    other.wait("the other to be home", || sum(&other, "kvd_transfers_adopted_total") == 2.0);
    assert_eq!([deadlines(&caller), deadlines(&left)], before, "nobody has longer because of that");
    let now = caller.now(&other);
    assert_eq!((state(&now).as_str(), &now["recovered"]), ("PULLING", &json!(true)));
    assert!(sum(&other, "kvd_pinned_bytes") > 0.0);
    assert_eq!(insist(&mut caller, &other, "DONE")["transfer"]["state"], "TRANSFER_STATE_DONE");
    let reply = insist(&mut caller, &other, "DONE");
    assert_eq!(
        (&reply["applied"], state(&reply["transfer"]).as_str()),
        (&json!(null), "DONE"),
        "released once"
    );

    // The one that is back is home to what is new, and reads what is old.
    let back = start_shared(&folder.path().join("a"), &servers.config("ledger").urls, LEASE);
    assert_eq!(state(&caller.now(&back)), "DONE");
    assert_eq!(back.ok("/v1/transfers", &asked)["transfer"]["transfer_id"], json!(caller.id()));
    back.wait("what nobody goes on with to end", || state(&left.now(&back)) == "FAILED");
    nothing_reserved(&other);
    nothing_reserved(&back);
}

#[test]
fn a_home_that_was_paused_does_not_speak_of_what_has_another_home() {
    let Some((_runtime, servers)) = servers(3, 0) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let [old, new] = start(&servers, folder.path(), ["a", "b"]);
    let engine = Prefiller::default();
    let mut caller = Caller::plan(&old, &question("r", &[P], &[D]));
    caller.prefilled(&old, &engine);
    assert_eq!(insist(&mut caller, &old, "PULL_STARTED")["transfer"]["state"], "TRANSFER_STATE_PULLING");
    signal(old.pid(), Signal::STOP);
    new.wait("the other to be home", || sum(&new, "kvd_transfers_adopted_total") == 1.0);
    assert_eq!(insist(&mut caller, &new, "DONE")["transfer"]["state"], "TRANSFER_STATE_DONE");
    signal(old.pid(), Signal::CONT);
    // Told that it failed, the old home must not believe that it may say so.
    let reply = insist(&mut caller, &old, "FAILED");
    assert_eq!(state(&reply["transfer"]), "DONE");
    old.wait("it to have let go", || sum(&old, "kvd_link_inflight_bytes") == 0.0);
    assert_eq!(state(&caller.now(&old)), "DONE");
    assert_eq!(state(&caller.now(&new)), "DONE");
    nothing_reserved(&new);
    // It plans again.
    let mut next = Caller::plan(&old, &question("next", &[P], &[D]));
    assert_eq!(insist(&mut next, &new, "DONE")["transfer"]["state"], "TRANSFER_STATE_DONE");
    nothing_reserved(&old);
}

#[test]
fn a_replica_that_is_told_to_stop_lets_another_be_home_at_once() {
    let Some((_runtime, servers)) = servers(3, 0) else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let long = Duration::from_secs(60);
    let urls = servers.config("ledger").urls;
    let [mut home, other] = ["a", "b"].map(|name| start_shared(&folder.path().join(name), &urls, long));
    let engine = Prefiller::default();
    let mut caller = Caller::plan(&home, &question("r", &[P], &[D]));
    caller.prefilled(&home, &engine);
    home.stop();
    let stopped = Instant::now();
    other.wait("the other to be home", || sum(&other, "kvd_transfers_adopted_total") == 1.0);
    assert!(stopped.elapsed() < long / 4, "long before the lease would have run out");
    assert_eq!(insist(&mut caller, &other, "DONE")["transfer"]["state"], "TRANSFER_STATE_DONE");
    nothing_reserved(&other);
}
