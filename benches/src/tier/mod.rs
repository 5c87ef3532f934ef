//! How often does the tier policy have what is asked for, and what does it cost?
//!
//! Runs the policy of `kvtier` itself, without payloads, on recorded and made-up traces, beside
//! published policies and the best that could be done. Of a prompt only the blocks contiguous
//! from its root count as hits; then what is missing is stored.

pub mod disk;
pub mod made_up;
pub mod pulls;
pub mod records;
mod rivals;

use std::path::PathBuf;

use kvtier::policy::{BlockId, Config, Move, Owner, Planner, Ranking, Shadows, Tier};

use crate::machine;
use crate::report::Verdict;
use kvd::ctl::simulate::trace::Trace;
use made_up::Kind;

/// Goals on the recorded conversations: blocks, hit ratio in percent.
const GOALS: [(u32, f64); 4] = [(2_000, 9.5), (5_000, 16.0), (10_000, 22.5), (20_000, 29.9)];
/// How far below the best published policy is still good, in percentage points.
const BEHIND: f64 = 1.0;

/// How much `disk` and `pulls` move, and where to.
#[derive(Debug, clap::Args)]
struct Rounds {
    /// Where to: a folder on the disk to measure; blocks that are pulled stay in RAM
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Block sizes in KiB
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 2048])]
    kib: Vec<usize>,
    /// MiB in each round; by default 512 on a disk and 256 that are pulled
    #[arg(long)]
    mib: Option<usize>,
}

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recorded traces in Mooncake's format; the goals for the conversation trace apply to one
    /// whose name begins with "conversation"
    #[arg(value_name = "FILE")]
    traces: Vec<PathBuf>,
    /// Blocks that the cache holds
    #[arg(long, value_delimiter = ',', default_values_t = GOALS.map(|g| g.0))]
    blocks: Vec<u32>,
    /// Made-up traces of each kind
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Blocks remembered without a copy
    #[arg(long, default_value_t = 50_000)]
    remembered: u32,
}

/// Prints the tables; a goal that is missed counts as wrong.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut traces = Vec::new();
    for path in &args.traces {
        traces.push(Trace::read(path)?);
    }
    for kind in Kind::ALL {
        traces.extend((1..=args.seeds).map(|seed| made_up::make(kind, seed)));
    }
    let mut verdict = Verdict::default();
    println!("### one tier: hits in percent of the blocks asked for\n");
    print!("| trace | blocks ");
    Ranking::ALL.iter().for_each(|r| print!("| {} ", name(*r)));
    rivals::ALL.iter().for_each(|r| print!("| {} ", r.0));
    println!("| Belady | ours - best | ns per access | bytes per block |");
    println!("|---|---:{}|---:|---:|---:|---:|", "|---:".repeat(Ranking::ALL.len() + rivals::ALL.len()));
    for trace in &traces {
        for &blocks in &args.blocks {
            one_tier(trace, blocks, args.remembered, &mut verdict);
        }
    }
    println!("\n### two tiers\n");
    println!(
        "| trace | RAM | disk | hits % | RAM hits % | disk writes / 100 blocks | LRU hits % | LRU RAM hits % | LRU writes / 100 |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for trace in &traces {
        for (cpu, disk) in [(1_000, 5_000), (2_000, 10_000), (5_000, 20_000)] {
            two_tiers(trace, cpu, disk, args.remembered);
        }
    }
    println!("\n### shadows of 10000 blocks: hits in percent, sampled and in full\n");
    for trace in &traces {
        shadows(trace, 10_000, args.remembered);
    }
    Ok(verdict)
}

fn name(ranking: Ranking) -> &'static str {
    match ranking {
        Ranking::Hazard => "**hazard**",
        Ranking::Lru => "leaf LRU",
        Ranking::S3Fifo => "leaf S3-FIFO",
        Ranking::AgeOverReuse => "age/(1+reuse)",
    }
}

/// What one run of a planner came to.
struct Outcome {
    hits: f64,
    cpu_hits: f64,
    nanos: f64,
    bytes: f64,
    disk_writes: f64,
}

/// Ids spread over 128 bits, as hashes are.
fn id(block: u32) -> BlockId {
    BlockId(u128::from(block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn play(trace: &Trace, config: Config) -> Outcome {
    let mut planner = Planner::new(config);
    let chains: Vec<Vec<BlockId>> =
        trace.requests.iter().map(|r| r.chain.iter().map(|b| id(*b)).collect()).collect();
    let (mut hits, mut cpu_hits, mut writes) = (0, 0, 0);
    let (mut moves, began) = (Vec::new(), machine::thread_cpu());
    for (request, chain) in trace.requests.iter().zip(&chains) {
        let found = planner.lookup(request.at, chain, &mut moves);
        hits += found.total();
        cpu_hits += found.cpu;
        planner.store(request.at, None, chain, Owner(0), &mut moves);
        let to_disk =
            |m: &&Move| matches!(m, Move::Copy { to: Tier::Disk, .. } | Move::Take { to: Tier::Disk, .. });
        writes += moves.iter().filter(to_disk).count();
        moves.clear();
    }
    let nanos = (machine::thread_cpu() - began).as_nanos() as f64;
    let accesses = trace.accesses() as f64;
    let (bytes, known) = planner.memory();
    Outcome {
        hits: 100.0 * f64::from(hits) / accesses,
        cpu_hits: 100.0 * f64::from(cpu_hits) / accesses,
        nanos: nanos / accesses,
        bytes: bytes as f64 / known as f64,
        disk_writes: 100.0 * writes as f64 / accesses,
    }
}

fn one_tier(trace: &Trace, blocks: u32, remembered: u32, verdict: &mut Verdict) {
    let ours: Vec<Outcome> = Ranking::ALL
        .into_iter()
        .map(|ranking| play(trace, Config { ranking, cpu: blocks, remembered, ..Config::default() }))
        .collect();
    let theirs: Vec<f64> = rivals::ALL
        .iter()
        .map(|(_, make)| {
            let mut cache = make(blocks as usize, trace.blocks as usize);
            100.0 * rivals::hit_ratio(cache.as_mut(), trace)
        })
        .collect();
    let limit = 100.0 * rivals::belady(trace, blocks as usize);
    print!("| {} | {blocks} ", trace.name);
    ours.iter().for_each(|o| print!("| {:.2} ", o.hits));
    theirs.iter().for_each(|hits| print!("| {hits:.2} "));
    let (hazard, best) = (&ours[0], theirs.iter().copied().fold(0.0, f64::max));
    let ahead = hazard.hits - best;
    println!("| {limit:.2} | {ahead:+.2} | {:.0} | {:.1} |", hazard.nanos, hazard.bytes);

    let what = format!("{}, {blocks} blocks", trace.name);
    let goal = GOALS.iter().find(|g| trace.name.starts_with("conversation") && g.0 == blocks);
    if let Some((_, goal)) = goal {
        let missed = hazard.hits < *goal;
        verdict.note(missed.then(|| format!("{what}: {:.2} % hit, {goal} % wanted", hazard.hits)));
    }
    verdict.note((ahead < -BEHIND).then(|| format!("{what}: {:.2} points behind the best", -ahead)));
    verdict.note((hazard.bytes > 64.0).then(|| format!("{what}: {:.1} bytes per block", hazard.bytes)));
}

fn two_tiers(trace: &Trace, cpu: u32, disk: u32, remembered: u32) {
    let config = Config { cpu, disk, remembered, ..Config::default() };
    let ours = play(trace, config.clone());
    let lru = play(trace, Config { ranking: Ranking::Lru, ..config });
    println!(
        "| {} | {cpu} | {disk} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.1} |",
        trace.name, ours.hits, ours.cpu_hits, ours.disk_writes, lru.hits, lru.cpu_hits, lru.disk_writes
    );
}

fn shadows(trace: &Trace, blocks: u32, remembered: u32) {
    let mut shadows = Shadows::new(blocks, remembered);
    for request in &trace.requests {
        let chain: Vec<BlockId> = request.chain.iter().map(|b| id(*b)).collect();
        shadows.request(request.at, &chain);
    }
    print!("{}:", trace.name);
    for shadow in shadows.so_far() {
        let config = Config { ranking: shadow.ranking, cpu: blocks, remembered, ..Config::default() };
        let full = play(trace, config).hits;
        let sampled = 100.0 * shadow.hit_ratio;
        print!(" {} {sampled:.2} / {full:.2};", name(shadow.ranking));
    }
    println!();
}
