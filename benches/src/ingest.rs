//! `ingest`: what does it cost to decode and apply an engine's events?
//!
//! Payloads as they come off the socket, decoded and applied on one thread. Nothing waits, so
//! processor time is the measure; allocations are counted on the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

use kvindex::{Applied, HolderId, HolderSpec, Index, IndexConfig, Query};
use kvproto::engine::{Engine, decode};

use crate::Setting;
use crate::alloc::asked;
use crate::engine::{Store, payload, stores};
use crate::machine::{Watch, thread_cpu};
use crate::report::{Passes, Table, Verdict, differs, print_others};
use crate::server::MODEL;
use crate::workload::{BLOCK, Prompt, Random};

/// Blocks of one conversation.
const CONVERSATION: usize = 1024;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods that publish
    #[arg(long, default_value_t = 64)]
    pods: usize,
    /// Conversations of 1024 blocks per pod, all of them different
    #[arg(long, default_value_t = 8)]
    conversations: usize,
    /// Blocks per event
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    blocks: Vec<usize>,
    /// Events per batch
    #[arg(long, default_value_t = 10)]
    events: usize,
    /// Also write the payloads to this folder, for `peer-bench payloads` of benches/peers
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
}

/// Batches in the order they come, and what is held when the last one is applied.
struct Stream {
    /// Pod and payload.
    before: Vec<(usize, Vec<u8>)>,
    timed: Vec<(usize, Vec<u8>)>,
    /// Blocks stored by the timed batches; as many are removed when `full`.
    blocks: usize,
    full: bool,
    /// By pod: a conversation that it holds in the end.
    held: Vec<Prompt>,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new([
        "caches",
        "blocks per event",
        "Mblocks per CPU s",
        "decoding alone, Mblocks per CPU s",
        "CPU us per block",
        "events per CPU s",
        "allocations per block",
        "bytes asked for per block",
    ]);
    for full in [false, true] {
        for &blocks in &args.blocks {
            let stream = Stream::new(args, blocks.clamp(1, CONVERSATION), full);
            if let Some(folder) = &args.save {
                stream.save(
                    &folder.join(format!("{}-{blocks}.payloads", if full { "full" } else { "filling" })),
                )?;
            }
            let mut columns: [Passes; 6] = Default::default();
            for _ in 0..setting.passes {
                let watch = Watch::start(&[]);
                pass(args, &stream, blocks, &mut columns, &mut verdict);
                others.add(watch.others());
            }
            let caches = if full { "full: each block evicts one" } else { "filling" };
            let mut row = vec![caches.to_owned(), blocks.to_string()];
            row.extend(columns.iter().zip([2, 2, 3, 0, 2, 0]).map(|(c, digits)| c.cell(digits)));
            table.row(row);
        }
    }
    println!("{} pods, {} events a batch, blocks of {BLOCK} tokens\n", args.pods, args.events);
    table.print();
    print_others(&others);
    Ok(verdict)
}

fn pass(args: &Args, stream: &Stream, per_event: usize, columns: &mut [Passes; 6], verdict: &mut Verdict) {
    let index = Index::new(IndexConfig::default());
    let holders: Vec<HolderId> = (0..args.pods)
        .map(|i| index.attach(HolderSpec::new("default", MODEL, &format!("pod-{i}"), 0)))
        .collect();
    for (pod, bytes) in &stream.before {
        index.apply(holders[*pod], &decode(Engine::Vllm, bytes).expect("a batch of our own"));
    }

    let (cpu, began) = (thread_cpu(), Instant::now());
    let mut events = 0;
    for (_, bytes) in &stream.timed {
        events += decode(Engine::Vllm, bytes).expect("a batch of our own").len();
    }
    let decoding = thread_cpu() - cpu;
    std::hint::black_box((events, began));

    let (cpu, memory) = (thread_cpu(), asked());
    let mut applied = Applied::default();
    let mut skipped = 0;
    for (pod, bytes) in &stream.timed {
        let batch = decode(Engine::Vllm, bytes).expect("a batch of our own");
        skipped += batch.skipped.unknown + batch.skipped.malformed;
        add(&mut applied, index.apply(holders[*pod], &batch));
    }
    let (took, now) = ((thread_cpu() - cpu).as_secs_f64(), asked());

    let blocks = stream.blocks as f64;
    let values = [
        blocks / took / 1e6,
        blocks / decoding.as_secs_f64() / 1e6,
        took / blocks * 1e6,
        blocks / per_event as f64 / took,
        (now.calls - memory.calls) as f64 / blocks,
        (now.bytes - memory.bytes) as f64 / blocks,
    ];
    columns.iter_mut().zip(values).for_each(|(c, v)| c.add(v));
    stream.check(&index, applied, skipped, verdict);
}

impl Stream {
    fn new(args: &Args, per_event: usize, full: bool) -> Stream {
        let mut random = Random(5);
        let mut conversations = |n: usize| -> Vec<Prompt> {
            (0..n).map(|_| Prompt::random(&mut random, CONVERSATION * BLOCK as usize)).collect()
        };
        let (mut before, mut timed, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for pod in 0..args.pods {
            let new = conversations(args.conversations);
            let old = conversations(if full { args.conversations } else { 0 });
            for old in &old {
                let stores: Vec<Store<'_>> = stores(old, 0, CONVERSATION, CONVERSATION).collect();
                before.push((pod, payload(&stores, &[])));
            }
            // What is evicted is what was used longest ago, the end of a conversation first.
            let mut evicted = old.iter().flat_map(|p| p.hashes.iter().rev().copied());
            for prompt in &new {
                let events: Vec<Store<'_>> = stores(prompt, 0, CONVERSATION, per_event).collect();
                for batch in events.chunks(args.events.max(1)) {
                    let blocks = batch.iter().map(|s| s.hashes.len()).sum();
                    let evicted: Vec<u64> = evicted.by_ref().take(blocks).collect();
                    timed.push((pod, payload(batch, &evicted)));
                }
            }
            held.extend(new.into_iter().next());
        }
        interleave(&mut timed, args.pods);
        Stream { before, timed, blocks: args.pods * args.conversations * CONVERSATION, full, held }
    }

    /// Each payload behind its pod and its length, little-endian, 32 bits.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut out = Vec::new();
        for (pod, payload) in self.before.iter().chain(&self.timed) {
            out.extend((*pod as u32).to_le_bytes());
            out.extend((payload.len() as u32).to_le_bytes());
            out.extend(payload);
        }
        fs::write(path, out).with_context(|| format!("write {}", path.display()))
    }

    fn check(&self, index: &Index, applied: Applied, skipped: u32, verdict: &mut Verdict) {
        let blocks = self.blocks as u32;
        let removed = if self.full { blocks } else { 0 };
        let want = Applied { stored: blocks, removed, ..Applied::default() };
        verdict.note(differs("applied", applied, want));
        verdict.note(differs("events skipped", skipped, 0));
        verdict.note(differs("blocks in the index", index.stats().blocks, u64::from(blocks)));
        for (pod, prompt) in self.held.iter().enumerate() {
            let query = Query::new("default", MODEL, kvindex::Prompt::tokens(&prompt.tokens));
            let cached: Vec<u32> = index.query(&query).scores.iter().map(|s| s.cached).collect();
            let want: Vec<u32> =
                (0..self.held.len()).map(|p| if p == pod { CONVERSATION as u32 } else { 0 }).collect();
            verdict.note(differs(format_args!("conversation of pod {pod}"), cached, want));
        }
    }
}

/// Takes one batch of each pod in turn, as they would arrive.
fn interleave(batches: &mut Vec<(usize, Vec<u8>)>, pods: usize) {
    let each = batches.len() / pods.max(1);
    let mut places: Vec<Option<(usize, Vec<u8>)>> = batches.drain(..).map(Some).collect();
    for turn in 0..each {
        for pod in 0..pods {
            batches.extend(places[pod * each + turn].take());
        }
    }
}

fn add(sum: &mut Applied, one: Applied) {
    let Applied { stored, removed, cleared, unknown_removed, orphans, refused } = one;
    sum.stored += stored;
    sum.removed += removed;
    sum.cleared += cleared;
    sum.unknown_removed += unknown_removed;
    sum.orphans += orphans;
    sum.refused += refused;
}
