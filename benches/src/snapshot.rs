//! `snapshot`: what does it cost to write down what an index holds, and to read it again?
//!
//! One thread writes and one reads, into memory: disks and networks are measured elsewhere. Beside it,
//! ingest and questions on two threads of their own, with and without a cut under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvindex::snapshot::{Cursor, Restore, Writer};
use kvindex::{Blocks, HolderId, HolderSpec, Index, IndexConfig};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{Batch, EngineHash, LocalHash, Tier};

use crate::Setting;
use crate::machine::{Watch, thread_cpu};
use crate::report::{Passes, Table, Verdict, differs, print_others};
use crate::server::MODEL;
use crate::workload::{BLOCK, Random};

/// Blocks that conversations of one kind begin with.
const PROMPT: u64 = 64;
/// Such beginnings.
const PROMPTS: u64 = 64;
/// Pods that publish while the others are cut.
const LIVE: usize = 8;
/// Bytes of one step, and how much longer than a step the rest after it is.
const STEP: usize = 64 << 10;
const REST: u32 = 4;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Distinct blocks
    #[arg(long, default_value_t = 10_000_000)]
    blocks: u64,
    /// Pods
    #[arg(long, default_value_t = 64)]
    pods: usize,
    /// Pods that hold each conversation, one row for each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    shared: Vec<usize>,
    /// Blocks of one conversation after what it begins with
    #[arg(long, default_value_t = 256)]
    conversation: u64,
    /// How long ingest and questions run, with and without a cut
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let (mut verdict, mut others) = (Verdict::default(), Passes::default());
    let mut table = Table::new([
        "pods per block",
        "distinct blocks",
        "bytes per block",
        "bytes per (block, pod)",
        "write, s",
        "write, CPU s",
        "longest step, ms",
        "restore, s",
        "restore, CPU s",
    ]);
    let mut live = Table::new([
        "pods per block",
        "ingest, Mblocks/s",
        "with a cut",
        "less",
        "questions/s",
        "with a cut",
        "less",
        "cut, MB/s",
    ]);
    for &shared in &args.shared {
        let mut columns: [Passes; 8] = Default::default();
        let mut beside: [Passes; 7] = Default::default();
        for _ in 0..setting.passes {
            let watch = Watch::start(&[]);
            let (index, pods) = fill(args, shared);
            let bytes = snapshot(&index, &pods, &mut columns, &mut verdict);
            read(&bytes, &index, &pods, &mut columns, &mut verdict);
            drop(bytes);
            let without = go_on(args, &index, &pods, false);
            let with = go_on(args, &index, &pods, true);
            let less = |a: f64, b: f64| (1.0 - b / a) * 100.0;
            let values = [
                without.ingest / 1e6,
                with.ingest / 1e6,
                less(without.ingest, with.ingest),
                without.questions,
                with.questions,
                less(without.questions, with.questions),
                with.cut / 1e6,
            ];
            beside.iter_mut().zip(values).for_each(|(c, v)| c.add(v));
            others.add(watch.others());
        }
        let mut row = vec![shared.to_string()];
        row.extend(columns.iter().zip([0, 2, 2, 2, 2, 2, 2, 2]).map(|(c, digits)| c.cell(digits)));
        table.row(row);
        let mut row = vec![shared.to_string()];
        row.extend(beside.iter().zip([2, 2, 1, 0, 0, 1, 1]).map(|(c, digits)| c.cell(digits)));
        live.row(row);
    }
    println!(
        "{} pods; conversations of {} blocks after one of {PROMPTS} beginnings of {PROMPT}\n",
        args.pods, args.conversation
    );
    table.print();
    println!(
        "\nan ingest thread ({LIVE} more pods), a thread that asks, and a cut that rests {REST} times as long as it works\n"
    );
    live.print();
    print_others(&others);
    Ok(verdict)
}

/// The own hash and the engines' name of block `i` of a chain.
fn block(chain: u64, i: u64) -> (LocalHash, EngineHash) {
    let mut random = Random(chain << 24 | i);
    (LocalHash(random.draw()), EngineHash(random.draw()))
}

/// Blocks `from..to` of a conversation, as an event after those before.
fn conversation(chain: u64, from: u64, to: u64) -> Batch<'static> {
    let name = |i: u64| match i < PROMPT {
        true => block(chain % PROMPTS, i),
        false => block(PROMPTS + chain, i),
    };
    let (locals, names): (Vec<_>, Vec<_>) = (from..to).map(name).unzip();
    let parent = from.checked_sub(1).map(|i| name(i).1);
    let mut b = BatchBuilder::new(0.0, None);
    b.hashed(StoredFields { parent, block_size: BLOCK, ..Default::default() }, &names, &locals);
    b.build()
}

fn spec(pod: usize) -> HolderSpec {
    HolderSpec::new("default", MODEL, &format!("pod-{pod}"), 0)
}

fn fill(args: &Args, shared: usize) -> (Arc<Index>, Vec<HolderId>) {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods: Vec<HolderId> = (0..args.pods).map(|p| index.attach(spec(p))).collect();
    for chain in 0..args.blocks / args.conversation {
        for s in 0..shared {
            let pod = pods[(chain as usize + s) % pods.len()];
            let end = PROMPT + args.conversation;
            // As it is prefilled: what it begins with, then turns.
            index.apply(pod, &conversation(chain, 0, PROMPT));
            for from in (PROMPT..end).step_by(64) {
                index.apply(pod, &conversation(chain, from, end.min(from + 64)));
            }
        }
    }
    (index, pods)
}

fn snapshot(
    index: &Arc<Index>,
    pods: &[HolderId],
    columns: &mut [Passes; 8],
    verdict: &mut Verdict,
) -> Vec<u8> {
    let s = index.stats();
    let mut bytes = Vec::with_capacity(s.blocks as usize * 17 + s.entries as usize / 8);
    let mut longest = Duration::ZERO;
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut writer = Writer::new(index.clone());
    let mut step = |writer: &mut Writer, bytes: &mut Vec<u8>| {
        let began = Instant::now();
        let more = writer.step(STEP, bytes).expect("nothing is applied").is_more();
        longest = longest.max(began.elapsed());
        more
    };
    for (i, pod) in pods.iter().enumerate() {
        writer.begin(*pod, &(i as u32).to_le_bytes(), Cursor::default()).expect("attached");
        while step(&mut writer, &mut bytes) {}
    }
    writer.begin_ghosts().expect("no part is open");
    while step(&mut writer, &mut bytes) {}
    let totals = writer.finish(&mut bytes).expect("no part is open");
    let (took, cpu) = (began.elapsed(), thread_cpu() - cpu);
    verdict.note(differs("blocks written", totals.blocks, s.blocks));
    let (blocks, size) = (s.blocks as f64, bytes.len() as f64);
    let values = [
        blocks,
        size / blocks,
        size / s.entries as f64,
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
    ];
    columns.iter_mut().zip(values).for_each(|(c, v)| c.add(v));
    bytes
}

fn read(bytes: &[u8], old: &Index, pods: &[HolderId], columns: &mut [Passes; 8], verdict: &mut Verdict) {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let ids: Vec<HolderId> = (0..pods.len()).map(|p| index.attach(spec(p))).collect();
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut restore = Restore::new(index.clone());
    for piece in bytes.chunks(1 << 20) {
        let who = |label: &[u8]| Some(u32::from_le_bytes(label.try_into().ok()?) as usize);
        restore.feed(piece, |found| ids.get(who(found.label)?).copied()).expect("a snapshot of ours");
    }
    let restored = restore.restored().filter(|r| r.outcome.is_ok()).count();
    restore.finish().expect("complete");
    let (took, cpu) = (began.elapsed(), thread_cpu() - cpu);
    verdict.note(differs("pods restored", restored, pods.len()));
    for (pod, id) in pods.iter().zip(&ids) {
        verdict.note(differs("digest", index.digest(*id), old.digest(*pod)));
    }
    columns[6].add(took.as_secs_f64());
    columns[7].add(cpu.as_secs_f64());
}

/// What happened in a second.
struct Rates {
    ingest: f64,
    questions: f64,
    cut: f64,
}

/// Ingest and questions for a while, with pods being cut over and over or not.
fn go_on(args: &Args, index: &Arc<Index>, pods: &[HolderId], cut: bool) -> Rates {
    let stop = AtomicBool::new(false);
    let (stored, asked, written) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let live: Vec<HolderId> = (0..LIVE).map(|p| index.attach(spec(pods.len() + p))).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| publish(args, index, &live, &stop, &stored));
        scope.spawn(|| ask(args, index, &stop, &asked));
        if cut {
            scope.spawn(|| cut_slowly(index, pods, &stop, &written));
        }
        std::thread::sleep(Duration::from_secs(args.seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let took = began.elapsed().as_secs_f64();
    live.iter().for_each(|id| assert!(index.detach(*id)));
    let rate = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64 / took;
    Rates { ingest: rate(&stored), questions: rate(&asked), cut: rate(&written) }
}

/// Conversations come in, and the oldest go when a pod has 100.
fn publish(args: &Args, index: &Index, live: &[HolderId], stop: &AtomicBool, stored: &AtomicU64) {
    let end = PROMPT + args.conversation;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let chain = 1 << 32 | n;
        let pod = live[n as usize % live.len()];
        index.apply(pod, &conversation(chain, 0, end));
        let old = n.checked_sub(100 * live.len() as u64);
        if let Some(old) = old.map(|o| 1 << 32 | o) {
            let mut b = BatchBuilder::new(0.0, None);
            let names: Vec<_> = (PROMPT..end).rev().map(|i| block(PROMPTS + old, i).1).collect();
            b.removed(&names, Tier::Gpu, 0);
            index.apply(pod, &b.build());
        }
        stored.fetch_add(end, Ordering::Relaxed);
    }
}

fn ask(args: &Args, index: &Index, stop: &AtomicBool, asked: &AtomicU64) {
    let mut matcher = index.matcher("default", MODEL, "").expect("pods are attached");
    let chains = args.blocks / args.conversation;
    let mut random = Random(3);
    while !stop.load(Ordering::Relaxed) {
        let chain = random.below(chains);
        let prompt: Vec<LocalHash> = (0..PROMPT)
            .map(|i| block(chain % PROMPTS, i).0)
            .chain((PROMPT..PROMPT + args.conversation).map(|i| block(PROMPTS + chain, i).0))
            .collect();
        let best = matcher.ask(Blocks::Local(&prompt)).best();
        assert_eq!(u64::from(best), PROMPT + args.conversation, "what is held is found");
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

fn cut_slowly(index: &Arc<Index>, pods: &[HolderId], stop: &AtomicBool, written: &AtomicU64) {
    let mut bytes = Vec::new();
    loop {
        let mut writer = Writer::new(index.clone());
        for pod in pods {
            writer.begin(*pod, b"", Cursor::default()).expect("attached");
            loop {
                let began = Instant::now();
                let more = writer.step(STEP, &mut bytes).expect("nothing is applied").is_more();
                written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                bytes.clear();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(began.elapsed() * REST);
                if !more {
                    break;
                }
            }
        }
    }
}
