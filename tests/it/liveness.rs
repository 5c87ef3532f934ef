//! Engines die, hang, and are left behind by whoever registered them: nothing of them is promised.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::{Engine, Kvd, record, stored_payload};

/// A health endpoint on a free port that says whether `well`, for as long as the test's process lives.
fn health(well: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it listens");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let mut request = [0u8; 1024];
            // One that asks nothing is answered all the same.
            let _ = connection.read(&mut request);
            let status = if well.load(Relaxed) { "200 OK" } else { "503 Service Unavailable" };
            let _ = write!(connection, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    format!("http://{address}/health")
}

fn start(dead_after: &str) -> (tempfile::TempDir, Kvd) {
    let data = tempfile::tempdir().expect("a directory");
    let file = data.path().join("kvd.toml");
    std::fs::write(&file, format!("[ingest]\ndead_after = \"{dead_after}\"\n")).expect("a file");
    let kvd = Kvd::start_with(data.path(), &["--config", file.to_str().expect("text")]);
    (data, kvd)
}

fn cached(kvd: &Kvd, tokens: &[u32]) -> Value {
    let body = json!({"model": "m", "token_ids": tokens, "block_size": 16});
    kvd.ok("/query", &body)["default"]["pod"]["longest_matched"].clone()
}

fn state(kvd: &Kvd) -> Value {
    kvd.publisher("pod").expect("registered")["state"].clone()
}

#[test]
fn an_engine_that_is_killed_is_unreachable_then_dead_then_learnt_again() {
    let (_data, kvd) = start("1s");
    let tokens: Vec<u32> = (0..32).collect();
    let mut engine = Engine::open("pod");
    engine.register(&kvd, "vLLM", 16);
    engine.publish(&[record(0, stored_payload(1.0, 1, &tokens, 16))]);
    kvd.wait_for_seq("pod", 0);
    assert_eq!(cached(&kvd, &tokens), 32);
    drop(engine);
    let mut was_unreachable = false;
    kvd.wait("dead", || {
        was_unreachable |= state(&kvd) == "unreachable";
        state(&kvd) == "dead"
    });
    assert!(was_unreachable, "there is a time when nobody knows");
    assert_eq!(cached(&kvd, &tokens), 0);
    assert_eq!(kvd.publisher("pod").expect("registered")["blocks"], 0);
    assert_eq!(kvd.metric("kvd_deaths_total"), 1.0);

    let mut engine = Engine::open("pod");
    engine.register(&kvd, "vLLM", 16);
    engine.publish(&[record(0, stored_payload(9.0, 1, &tokens, 16))]);
    kvd.wait_for_seq("pod", 0);
    assert_eq!((state(&kvd), cached(&kvd, &tokens)), ("live".into(), 32.into()));
}

#[test]
fn an_engine_that_hangs_is_dead_while_its_health_endpoint_says_so() {
    let (_data, kvd) = start("1s");
    let tokens: Vec<u32> = (0..32).collect();
    let well = Arc::new(AtomicBool::new(true));
    let mut engine = Engine::open("pod");
    let mut registration = engine.registration("vLLM", 16);
    registration["health_url"] = health(Arc::clone(&well)).into();
    kvd.ok("/register", &registration);
    engine.wait_for_subscriber();
    engine.publish(&[record(0, stored_payload(1.0, 1, &tokens, 16))]);
    kvd.wait_for_seq("pod", 0);
    well.store(false, Relaxed);
    kvd.wait("dead", || state(&kvd) == "dead");
    assert_eq!(cached(&kvd, &tokens), 0);
    well.store(true, Relaxed);
    kvd.wait("learnt again", || state(&kvd) == "live" && cached(&kvd, &tokens) == 32);
}

#[test]
fn a_registration_that_nobody_renews_ends_and_does_not_come_back_with_a_restart() {
    let (_data, kvd) = start("30s");
    let engine = Engine::open("pod");
    let mut registration = engine.registration("vLLM", 16);
    registration["lease_seconds"] = 1.into();
    kvd.ok("/register", &registration);
    assert_eq!(kvd.publisher("pod").expect("registered")["lease_seconds"], 1);
    kvd.wait("the end of the lease", || kvd.publisher("pod").is_none());
    // That is on disk a moment later, and for certain when a later registration is acknowledged.
    let later = Engine::open("later");
    kvd.ok("/register", &later.registration("vLLM", 16));
    let kvd = kvd.crash_and_restart();
    assert!(kvd.publisher("later").is_some() && kvd.publisher("pod").is_none());
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let (_data, kvd) = start("30s");
    let engine = Engine::open("pod");
    for (url, why) in [("https://a/health", "http://"), ("http:///x", "no host"), ("http://a b/", "space")] {
        let mut registration = engine.registration("vLLM", 16);
        registration["health_url"] = url.into();
        let (status, said) = kvd.post("/register", &registration);
        assert_eq!(status, 400, "{said}");
        let said = said.to_string();
        assert!(said.contains("health_url") && said.contains(why), "{said}");
    }
}
