//! An upgrade as Kubernetes does it: one replica after the other is told to stop and started again, while schedulers
//! ask those that are ready.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::ctl::kvcap::Record;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Engine, Kvd};

/// Blocks that are stored before the upgrade begins, and while it goes on.
const BEFORE: u64 = 20;
const MEANWHILE: u64 = 20;

/// vLLM's batch `seq`, which stores block `seq` of one long prompt.
fn batch(seq: u64) -> Record {
    let tokens: Vec<u32> = (0..16).map(|i| (seq * 16 + i) as u32).collect();
    let parent = seq.checked_sub(1).map(|p| p + 1000);
    let event = ("BlockStored", vec![seq + 1000], parent, tokens, 16u32, None::<u64>, Some("GPU"));
    let payload = rmp_serde::to_vec(&(seq as f64, vec![event], 0u32)).expect("memory");
    Record { topic: Vec::new(), seq: seq.to_be_bytes().to_vec(), payload, received_ns: 0 }
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn is_ready(http: &str) -> bool {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2))).build().into();
    agent.get(format!("http://{http}/readyz")).call().is_ok()
}

fn ask(http: &str, question: &Value) -> Option<u64> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
    let mut answer = agent.post(format!("http://{http}/query")).send_json(question).ok()?;
    let answer: Value = answer.body_mut().read_json().ok()?;
    answer["default"]["e"]["longest_matched"].as_u64()
}

#[test]
fn a_rolling_restart_under_load_fails_no_question_and_every_answer_is_exact() {
    let folder = TempDir::new().expect("a directory");
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string();
    let addresses = [free(), free(), free()];
    let start = |i: usize| Kvd::replica(&folder.path().join(i.to_string()), &addresses[i], &addresses, "");
    let mut replicas: Vec<Kvd> = (0..3).map(start).collect();
    let mut engine = Engine::open("e");
    replicas[0].ok("/register", &engine.registration("vLLM", 16));
    for kvd in &replicas {
        kvd.wait("every replica to follow the engine", || kvd.publisher("e").is_some());
    }
    replicas[0].wait("three subscribers", || engine.sim.subscribers().expect("sockets") >= 3);
    let stored = AtomicU64::new(0);
    let mut publish = |n: u64| {
        for _ in 0..n {
            let seq = stored.load(Relaxed);
            engine.publish(&[batch(seq)]);
            stored.store(seq + 1, Relaxed);
        }
    };
    publish(BEFORE);
    for kvd in &replicas {
        kvd.wait_for_seq("e", BEFORE - 1);
        kvd.wait("every replica to be ready", || is_ready(&kvd.http));
    }

    // Whom the ready service sends to, as the kubelet's probes see it.
    let service = Arc::new(Mutex::new(replicas.iter().map(|k| k.http.clone()).collect::<Vec<_>>()));
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let tokens: Vec<u32> = (0..(BEFORE * 16 + 1) as u32).collect();
    let question = json!({"model": "m", "token_ids": tokens, "block_size": 16});
    std::thread::scope(|scope| {
        // Also where this fails: the scope waits for its threads.
        let _stop = StopOnDrop(&stop);
        for scheduler in 0..2 {
            let (service, question) = (Arc::clone(&service), &question);
            let (stop, asked, failed) = (&stop, &asked, &failed);
            scope.spawn(move || {
                let mut turn = scheduler;
                while !stop.load(Relaxed) {
                    let ready = service.lock().expect("sound").clone();
                    turn += 1;
                    // A replica that has just gone is asked in vain; then the next one is.
                    let answer =
                        (0..ready.len()).find_map(|i| ask(&ready[(turn + i) % ready.len()], question));
                    asked.fetch_add(1, Relaxed);
                    if answer != Some(BEFORE * 16) {
                        failed.fetch_add(1, Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for i in 0..3 {
            let others: Vec<String> = (0..3).filter(|o| *o != i).map(|o| replicas[o].http.clone()).collect();
            replicas[i].stop();
            *service.lock().expect("sound") = others.clone();
            publish(MEANWHILE / 4);
            replicas[i] = start(i);
            let kvd = &replicas[i];
            kvd.wait("it to be ready again", || is_ready(&kvd.http));
            // Ready means that it knows all: asked the moment it is.
            let now = stored.load(Relaxed);
            assert_eq!(ask(&kvd.http, &question), Some(BEFORE * 16), "replica {i} as soon as it is ready");
            kvd.wait_for_seq("e", now - 1);
            *service.lock().expect("sound") = others.into_iter().chain([kvd.http.clone()]).collect();
        }
    });
    let (asked, failed) = (asked.load(Relaxed), failed.load(Relaxed));
    assert!(asked > 100, "{asked} questions");
    assert_eq!(failed, 0, "of {asked}");
    let all: Vec<u32> = (0..(stored.load(Relaxed) * 16 + 1) as u32).collect();
    let question = json!({"model": "m", "token_ids": all, "block_size": 16});
    for kvd in &replicas {
        assert_eq!(ask(&kvd.http, &question), Some(stored.load(Relaxed) * 16), "nothing was lost meanwhile");
    }
    eprintln!("{asked} questions during the upgrade, none failed");
}
