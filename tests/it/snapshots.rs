//! kvd is killed at any moment, its snapshots are damaged: the next start is exact nevertheless.
//!
//! `KVD_KILLS=100 cargo test --test it killed` kills more often than an ordinary run does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvd::ctl::engine_sim::{EngineSim, SimConfig};
use kvd::ctl::kvcap::Record;
use serde_json::Value;

use crate::support::{Engine, Kvd, stream};

/// Recordings of different engines: block sizes, offload tiers, hybrid groups, another hash algorithm.
const STREAMS: [(&str, &str, u32); 4] = [
    ("vllm032-block64.kvcap", "vLLM", 64),
    ("vllm032-sched-offload-self-chunk1.kvcap", "vLLM", 16),
    ("vllm032-hash-xxhash_cbor-bytes-seed0.kvcap", "vLLM", 32),
    ("sglang0523-radix-page16.kvcap", "SGLang", 16),
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A configuration that writes a snapshot every few moments.
fn busy(folder: &Path) -> PathBuf {
    let path = folder.join("kvd.toml");
    fs::write(&path, "[snapshot]\ninterval = \"30ms\"\n").expect("write");
    path
}

fn start(data: &Path, config: &Path) -> Kvd {
    Kvd::start_with(data, &["--config", config.to_str().expect("text")])
}

fn snapshots(data: &Path, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(data.join("snapshots")).expect("the folder");
    let mut all: Vec<PathBuf> = all.map(|e| e.expect("an entry").path()).collect();
    all.retain(|p| p.to_str().is_some_and(|p| p.ends_with(ending)));
    all.sort();
    all
}

/// What a kvd that was never disturbed has after all of `records`.
fn undisturbed(records: &[Record], kind: &str, block_size: u32) -> Value {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let mut e = Engine::open("pod");
    e.register(&kvd, kind, block_size);
    e.publish(records);
    kvd.wait_for_seq("pod", records.last().expect("messages").number());
    kvd.get("/dump")
}

fn last_number(records: &[Record]) -> u64 {
    records.last().expect("messages").number()
}

#[test]
fn killed_at_any_moment_of_a_recorded_run_it_goes_on_exactly() {
    let kills: u64 = std::env::var("KVD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut rng = Rng(20_261_125);
    let (mut killed, mut from_snapshots) = (0, 0);
    while killed < kills {
        let (name, kind, block_size) = STREAMS[killed as usize % STREAMS.len()];
        let records = stream(name);
        let want = undisturbed(&records, kind, block_size);
        let folder = tempfile::tempdir().expect("a directory");
        let (data, config) = (folder.path().join("data"), busy(folder.path()));
        let mut kvd = start(&data, &config);
        let mut e = Engine::open("pod");
        e.register(&kvd, kind, block_size);
        let mut at = 0;
        let step = records.len() / 5 + 1;
        while at < records.len() {
            let n = (1 + rng.below(step as u64) as usize).min(records.len() - at);
            e.publish(&records[at..at + n]);
            at += n;
            std::thread::sleep(Duration::from_millis(rng.below(90)));
            kvd.crash();
            drop(kvd);
            kvd = start(&data, &config);
            killed += 1;
            from_snapshots += u64::from(kvd.metric("kvd_restored_publishers") > 0.0);
        }
        kvd.wait_for_seq("pod", last_number(&records));
        kvd.wait("the replay to end", || kvd.publisher("pod").is_some_and(|p| p["complete"] == true));
        assert_eq!(kvd.get("/dump"), want, "{name} after {killed} kills");
    }
    assert!(from_snapshots > 0, "no start of {killed} went on from a snapshot");
}

/// The engine keeps a few batches only: without the snapshot its history could not be had again.
#[test]
fn what_an_engine_no_longer_keeps_comes_from_the_snapshot() {
    let (name, kind, block_size) = STREAMS[0];
    let records = stream(name);
    let folder = tempfile::tempdir().expect("a directory");
    let data = folder.path().join("data");
    let mut kvd = Kvd::start(&data);
    let sim = EngineSim::open(&SimConfig { ring: 4, ..SimConfig::local() }).expect("free ports");
    let mut e = Engine { sim, instance: "pod".to_owned() };
    e.register(&kvd, kind, block_size);
    let half = records.len() / 2;
    e.publish(&records[..half]);
    kvd.wait_for_seq("pod", records[half - 1].number());
    // Told to stop, it writes a last one.
    kvd.stop();
    assert_eq!(snapshots(&data, ".kvs").len(), 1);
    // Missed while it is away, and still kept by the engine.
    e.publish(&records[half..half + 3]);
    drop(kvd);
    let kvd = Kvd::start(&data);
    e.wait_for_subscriber();
    e.publish(&records[half + 3..]);
    kvd.wait_for_seq("pod", last_number(&records));
    kvd.wait("the replay to end", || kvd.publisher("pod").is_some_and(|p| p["complete"] == true));
    assert_eq!(kvd.metric("kvd_restored_publishers"), 1.0);
    assert_eq!(kvd.get("/dump"), undisturbed(&records, kind, block_size));
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_one_before_taken() {
    let (name, kind, block_size) = STREAMS[0];
    let records = stream(name);
    let folder = tempfile::tempdir().expect("a directory");
    let data = folder.path().join("data");
    let mut e = Engine::open("pod");
    // Two runs, a snapshot at the end of each.
    let third = records.len() / 3;
    for run in 0..2 {
        let mut kvd = Kvd::start(&data);
        if run == 0 {
            e.register(&kvd, kind, block_size);
        } else {
            e.wait_for_subscriber();
        }
        e.publish(&records[run * third..(run + 1) * third]);
        kvd.wait_for_seq("pod", records[(run + 1) * third - 1].number());
        kvd.stop();
    }
    let files = snapshots(&data, ".kvs");
    assert_eq!(files.len(), 2);
    let mut bytes = fs::read(&files[1]).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&files[1], bytes).expect("write");

    let kvd = Kvd::start(&data);
    e.wait_for_subscriber();
    e.publish(&records[2 * third..]);
    kvd.wait_for_seq("pod", last_number(&records));
    kvd.wait("the replay to end", || kvd.publisher("pod").is_some_and(|p| p["complete"] == true));
    assert_eq!(kvd.metric("kvd_restored_publishers"), 1.0, "from the first");
    assert_eq!(snapshots(&data, ".bad").len(), 1);
    assert_eq!(kvd.get("/dump"), undisturbed(&records, kind, block_size));
}

/// Cut off anywhere: never taken for what it is not.
#[test]
fn a_snapshot_cut_short_is_not_taken() {
    let (name, kind, block_size) = STREAMS[3];
    let records = stream(name);
    let folder = tempfile::tempdir().expect("a directory");
    let data = folder.path().join("data");
    let mut kvd = Kvd::start(&data);
    let mut e = Engine::open("pod");
    e.register(&kvd, kind, block_size);
    e.publish(&records);
    kvd.wait_for_seq("pod", last_number(&records));
    let want = kvd.get("/dump");
    kvd.stop();
    let file = snapshots(&data, ".kvs").pop().expect("one");
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() - 9]).expect("write");
    let kvd = Kvd::start(&data);
    kvd.wait_for_seq("pod", last_number(&records));
    assert_eq!(kvd.metric("kvd_restored_publishers"), 0.0);
    assert_eq!(kvd.get("/dump"), want, "from the replay");
}
