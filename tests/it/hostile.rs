//! Junk on every socket: kvd lives, memory stays bounded, and what is valid stays exact.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvd::ctl::kvcap::Record;
use serde_json::json;

use crate::support::{Engine, Kvd, record, stored_payload, stream};

/// Payloads that are no batch, or batches without a single event that can be applied.
fn junk_payloads() -> Vec<Vec<u8>> {
    let valid = stored_payload(1.0, 1, &(0..32).collect::<Vec<_>>(), 16);
    let mut out = vec![
        vec![],
        vec![0xc1],
        b"not msgpack at all".to_vec(),
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0x93, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xff, 0xff, 0xff, 0xff],
        [vec![0x91; 200_000], vec![0xc0]].concat(),
        rmp_serde::to_vec(&json!([1.0, [["NoSuchEvent", 1, 2]], 0])).expect("encodes"),
        rmp_serde::to_vec(&json!([1.0, [{"type": "BlockStored", "block_hashes": "x"}], 0])).expect("encodes"),
        rmp_serde::to_vec(&json!({"a": 1})).expect("encodes"),
        vec![0xff; 10 << 20],
    ];
    out.extend((1..valid.len()).step_by(7).map(|n| valid[..n].to_vec()));
    out
}

#[test]
fn junk_beside_a_valid_stream_leaves_it_exact() {
    let data = tempfile::tempdir().expect("a directory");
    let mut kvd = Kvd::start(data.path());
    let records = stream("vllm032-block64.kvcap");
    let mut clean = Engine::open("clean");
    let mut dirty = Engine::open("dirty");
    clean.register(&kvd, "vLLM", 64);
    // Without a replay, of which junk would be a part: what that says of an engine depends on when it is asked.
    let mut registration = dirty.registration("vLLM", 64);
    registration.as_object_mut().expect("an object").remove("replay_endpoint");
    kvd.ok("/register", &registration);
    dirty.wait_for_subscriber();
    clean.publish(&records);

    let before = kvd.memory();
    let junk = junk_payloads();
    for (i, r) in records.iter().enumerate() {
        for (k, payload) in junk.iter().enumerate() {
            // Numbers of all kinds: huge, zero, the next, the last.
            let seq = [u64::MAX - 5, 0, r.number() + 1, r.number().saturating_sub(1)][(i + k) % 4];
            dirty.publish(&[Record { topic: b"kv@clean@m".to_vec(), ..record(seq, payload.clone()) }]);
        }
        for seq in [vec![], vec![1; 7], vec![0xff; 9], vec![0; 23]] {
            dirty.publish(&[Record {
                topic: vec![0xff; 300],
                seq,
                payload: r.payload.clone(),
                received_ns: 0,
            }]);
        }
        dirty.publish(std::slice::from_ref(r));
        // What waits on its way is bounded, and nothing can be asked for again.
        kvd.wait_for_seq("dirty", r.number());
    }
    let last = records.last().expect("messages").number();
    kvd.wait_for_seq("clean", last);
    kvd.wait_for_seq("dirty", last);

    let rows = |instance: &str| {
        let all = kvd.get(&format!("/dump?instance_id={instance}"));
        let mut rows: Vec<(String, u64, Option<u64>)> = all
            .as_array()
            .expect("an array")
            .iter()
            .filter(|r| r["instance"] == instance)
            .map(|r| (r["tier"].to_string(), r["block"].as_u64().expect("a hash"), r["depth"].as_u64()))
            .collect();
        rows.sort();
        rows
    };
    assert!(!rows("clean").is_empty());
    assert_eq!(rows("clean"), rows("dirty"));
    let status = kvd.publisher("dirty").expect("registered");
    assert!(status["malformed"].as_u64() > Some(100), "junk is counted: {status}");
    assert_eq!(status["restarts"], 0, "junk is no restart: {status}");
    assert!(kvd.is_alive());
    let grown = kvd.memory().saturating_sub(before);
    assert!(grown < 512 << 20, "memory grew by {grown} bytes");
}

#[test]
fn messages_of_any_shape_and_bytes_that_are_no_zmq_do_no_harm() {
    let data = tempfile::tempdir().expect("a directory");
    let mut kvd = Kvd::start(data.path());
    let context = zmq::Context::new();
    let socket = context.socket(zmq::XPUB).expect("a socket");
    socket.bind("tcp://127.0.0.1:*").expect("a free port");
    let endpoint = socket.get_last_endpoint().expect("bound").expect("text");
    kvd.ok(
        "/register",
        &json!({"endpoint": endpoint, "type": "vLLM", "modelname": "m", "instance_id": "odd", "block_size": 16,
                "dp_rank": 0}),
    );
    socket.recv_bytes(0).expect("a subscription");
    let tokens: Vec<u32> = (0..32).collect();
    for n in [1, 2, 4, 5, 40] {
        let frames: Vec<Vec<u8>> = (0..n).map(|i| vec![i as u8; 64]).collect();
        socket.send_multipart(frames, 0).expect("send");
    }
    let good: [Vec<u8>; 3] = [vec![], 0u64.to_be_bytes().to_vec(), stored_payload(1.0, 7, &tokens, 16)];
    socket.send_multipart(good, 0).expect("send");
    kvd.wait_for_seq("odd", 0);
    let body = json!({"model": "m", "token_ids": (0..40).collect::<Vec<u32>>(), "block_size": 16});
    assert_eq!(kvd.ok("/query", &body)["default"]["odd"]["longest_matched"], 32);
    assert!(kvd.publisher("odd").expect("registered")["malformed"].as_u64() >= Some(5));

    // Bytes that are neither HTTP nor HTTP/2 on the listeners.
    for address in [kvd.http.clone(), kvd.grpc.clone()] {
        let mut s = TcpStream::connect(&address).expect("connect");
        s.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        s.write_all(&[0xff; 4096]).expect("write");
        // An error or the end of the stream are both fine; hanging would not be.
        let _ = s.read(&mut [0; 64]);
    }
    assert!(kvd.is_alive());
}

#[test]
fn bodies_up_to_16_mb_are_taken_and_larger_ones_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let mut kvd = Kvd::start(data.path());
    let long: Vec<u32> = (0..1_000_000).map(|i| 100_000 + i % 50_000).collect();
    let body = json!({"model": "m", "token_ids": long, "block_size": 16});
    let (status, answer) = kvd.post("/query", &body);
    assert_eq!((status, answer), (200, json!({})));
    for junk in [vec![b'['; 10 << 20], vec![0xff; 10 << 20], br#"{"model":"m","token_ids":[1,2"#.to_vec()] {
        let (status, answer) = kvd.post_bytes("/query", &junk);
        assert!((400..500).contains(&status), "{status} {answer}");
    }
    let (status, _) = kvd.post_bytes("/query", &vec![b' '; 17 << 20]);
    assert_eq!(status, 413);
    assert!(kvd.is_alive());
}
