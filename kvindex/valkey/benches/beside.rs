//! The shared index beside the embedded one, in the same run: ingest, queries, memory. Every answer is compared.
//!
//! `cargo bench -p kvindex-valkey [-- routings]`: three masters on loopback (no replicas, nothing on disk), one client, eight pods.
//! The servers share the processors with the client, so a cluster of its own machines does better.

#[path = "../tests/support/servers.rs"]
mod servers;

use std::time::{Duration, Instant};

use kvindex::remote::{Change, changes};
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvindex_valkey::{Claim, Cursor, Health, Shared, Standing, Writer};
use kvproto::EngineHash;
use kvproto::event::{Batch, BatchBuilder, StoredFields};
use servers::Servers;

const HEALTH: Health = Health { live: true, complete: true };
const PODS: usize = 8;
const BLOCK: usize = 16;
/// Blocks per batch and batches per pod.
const BATCH: usize = 32;
const BATCHES: usize = 200;
const QUERIES: usize = 1500;
const LENGTHS: [usize; 2] = [24, 512];

/// Sequence `n` has tokens that no other has.
fn tokens(sequence: usize, blocks: usize) -> Vec<u32> {
    (0..blocks * BLOCK).map(|i| (sequence * 1_000_003 + i) as u32).collect()
}

/// `blocks` of a sequence from block `from` on.
fn store(sequence: usize, from: usize, blocks: usize, tokens: &[u32]) -> Batch<'static> {
    let name = |i: usize| EngineHash(((sequence as u64) << 32) | (i as u64 + 1));
    let parent = from.checked_sub(1).map(name);
    let fields = StoredFields { block_size: BLOCK as u32, parent, ..StoredFields::default() };
    let names: Vec<EngineHash> = (from..from + blocks).map(name).collect();
    let mut b = BatchBuilder::new(0.0, None);
    b.stored(fields, &names, &tokens[from * BLOCK..(from + blocks) * BLOCK], &[]);
    b.build()
}

struct Pod {
    id: HolderId,
    spec: HolderSpec,
    writer: Box<Writer>,
    seq: u64,
}

impl Pod {
    async fn write(&mut self, told: &[Change]) {
        let cursor = Cursor { seq: Some(self.seq), ts: self.seq as f64, note: vec![] };
        self.writer.apply(told, cursor, HEALTH).await.expect("servers that answer");
        self.seq += 1;
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    // Cargo runs benches of a workspace with `--bench`, and `cargo test` without.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let Some(servers) = Servers::start(3, 0).await else { return };
    let shared = Shared::connect(kvindex_valkey::Config {
        lease: Duration::from_secs(120),
        ..servers.config("bench")
    })
    .await
    .expect("servers that answer");
    let index = Index::new(IndexConfig::default());
    let mut pods = Vec::new();
    for n in 0..PODS {
        let spec = HolderSpec::new("t", "m", &format!("10.0.0.{n}:8000"), 0);
        let id = index.attach(spec.clone());
        shared.attach_as(id, spec.clone()).expect("an engine");
        let claim = shared.claim(id, "bench", None).await.expect("servers that answer");
        let Claim::Ours(writer) = claim else { panic!("nobody else writes") };
        pods.push(Pod { id, spec, writer, seq: 0 });
    }
    if std::env::args().any(|a| a == "routings") {
        for (n, pod) in pods.iter_mut().enumerate() {
            // So that its block size is known.
            let batch = store(n, 0, 1, &tokens(n, 1));
            index.apply(pod.id, &batch);
            let told = changes(&pod.spec, &batch);
            pod.write(&told).await;
        }
        return routings(&servers, &shared, &index, &pods).await;
    }
    let before = memory(&servers).await;
    println!("| ingest, {PODS} pods, batches of {BATCH} blocks | blocks/s |");
    println!("|---|---|");
    for (row, merged) in [1, 16].into_iter().enumerate() {
        let each: Vec<Vec<Batch<'_>>> = (0..PODS).map(|pod| batches(row, pod)).collect();
        let began = Instant::now();
        for (pod, batches) in pods.iter().zip(&each) {
            batches.iter().for_each(|b| _ = index.apply(pod.id, b));
        }
        let embedded = began.elapsed();
        let began = Instant::now();
        let writing = pods.iter_mut().zip(&each).map(|(pod, batches)| async move {
            for some in batches.chunks(merged) {
                let told: Vec<Change> = some.iter().flat_map(|b| changes(&pod.spec, b)).collect();
                pod.write(&told).await;
            }
        });
        futures::future::join_all(writing).await;
        let blocks = (PODS * BATCHES * BATCH) as f64;
        let per_second = |t: Duration| blocks / t.as_secs_f64();
        println!("| shared, {merged} batches in a commit | {:.0} |", per_second(began.elapsed()));
        println!("| embedded | {:.0} |", per_second(embedded));
    }
    let blocks = (2 * PODS * BATCHES * BATCH) as u64;
    let bytes = memory(&servers).await - before;
    println!("\nservers: {} bytes a block and pod ({blocks} of them)\n", bytes / blocks);

    for (n, blocks) in LENGTHS.into_iter().enumerate() {
        let (sequence, tokens) = (900_000 + n, tokens(900_000 + n, blocks));
        for (i, pod) in pods.iter_mut().enumerate() {
            let batch = store(sequence, 0, blocks * (i + 1) / PODS, &tokens);
            index.apply(pod.id, &batch);
            let told = changes(&pod.spec, &batch);
            pod.write(&told).await;
        }
    }
    println!("| prompt, {PODS} pods | shared p50 | shared p99 | embedded p50 | embedded p99 |");
    println!("|---|---|---|---|---|");
    for (n, blocks) in LENGTHS.into_iter().enumerate() {
        let held = tokens(900_000 + n, blocks);
        let other = tokens(999_999, blocks);
        for (what, tokens) in [("held by all to some depth", &held), ("held by none", &other)] {
            let query = Query::new("t", "m", Prompt::tokens(tokens));
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..QUERIES {
                let began = Instant::now();
                let asked = shared.query(&query).await.expect("servers that answer");
                ours.push(began.elapsed());
                let began = Instant::now();
                let answer = index.query(&query);
                theirs.push(began.elapsed());
                let numbers = |a: &kvindex::Answer| -> Vec<(u32, u64)> {
                    a.scores.iter().map(|s| (s.cached, s.cached_tokens)).collect()
                };
                assert_eq!(numbers(&asked.answer), numbers(&answer), "an answer that differs");
                assert!(asked.vouched.iter().all(|v| v.standing == Standing::Live));
            }
            let [a, b, c, d] =
                [at(&mut ours, 50), at(&mut ours, 99), at(&mut theirs, 50), at(&mut theirs, 99)];
            println!("| {blocks} blocks, {what} | {a} µs | {b} µs | {c} µs | {d} µs |");
        }
    }
    routings(&servers, &shared, &index, &pods).await;
}

/// A routing announced to one replica, and a question of another that counts it.
async fn routings(servers: &Servers, shared: &Shared, index: &Index, pods: &[Pod]) {
    let other = Shared::connect(servers.config("bench")).await.expect("servers that answer");
    for pod in pods {
        other.attach_as(pod.id, pod.spec.clone()).expect("an engine");
    }
    println!("\n| routing | announce p50 | p99 | question elsewhere p50 | p99 | embedded, both p50 |");
    println!("|---|---|---|---|---|---|");
    for (n, blocks) in LENGTHS.into_iter().enumerate() {
        let (mut announced, mut asked, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..QUERIES {
            let prompt = tokens(700_000 + n * QUERIES + i, blocks);
            let query = Query { speculative: true, ..Query::new("t", "m", Prompt::tokens(&prompt)) };
            let (request, to) = (format!("{n} {i}"), pods[i % PODS].id);
            let began = Instant::now();
            let embedded_pairs = index.announce(&request, &query, &[to], u64::MAX);
            let answer = index.query(&query);
            own.push(began.elapsed());
            let to_come = index.to_come(&query, &[to]);
            let began = Instant::now();
            let pairs = shared.announce(&request, &to_come, Duration::from_secs(2)).await.expect("servers");
            announced.push(began.elapsed());
            let began = Instant::now();
            let elsewhere = other.query(&query).await.expect("servers that answer").answer;
            asked.push(began.elapsed());
            let numbers =
                |a: &kvindex::Answer| -> Vec<u32> { a.scores.iter().map(|s| s.speculative).collect() };
            assert_eq!(
                (numbers(&elsewhere), pairs),
                (numbers(&answer), embedded_pairs),
                "an answer that differs"
            );
            assert_eq!(pairs, blocks);
            index.forget(&request);
        }
        let [a, b, c] = [at(&mut announced, 50), at(&mut announced, 99), at(&mut asked, 50)];
        let [d, e] = [at(&mut asked, 99), at(&mut own, 50)];
        println!("| {blocks} blocks to one of {PODS} pods | {a} µs | {b} µs | {c} µs | {d} µs | {e} µs |");
    }
}

fn batches(row: usize, pod: usize) -> Vec<Batch<'static>> {
    let per_sequence = 8;
    (0..BATCHES)
        .map(|n| {
            // Half of all sequences are held by all pods.
            let sequence = row * 1000
                + n / per_sequence * 10
                + if n % (2 * per_sequence) < per_sequence { 9 } else { pod };
            let tokens = tokens(sequence, per_sequence * BATCH);
            store(sequence, n % per_sequence * BATCH, BATCH, &tokens)
        })
        .collect()
}

fn at(times: &mut [Duration], percent: usize) -> u128 {
    times.sort_unstable();
    times[times.len() * percent / 100].as_micros()
}

/// Bytes that all servers use.
async fn memory(servers: &Servers) -> u64 {
    let mut all = 0;
    for node in 0..3 {
        let info: String = servers.ask(node, redis::cmd("INFO").arg("memory")).await.expect("an answer");
        let used = info.lines().find_map(|l| l.strip_prefix("used_memory:")).expect("used memory");
        all += used.trim().parse::<u64>().expect("a number");
    }
    all
}
