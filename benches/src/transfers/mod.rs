//! How soon do requests get their first token, by who decides where prefill happens and what moves?
//!
//! A cluster is simulated step by step ([`world`]); the rules of others and kvd's planner route the
//! same requests through it, knowing the same ([`view`]). README.md says what is modelled.

mod net;
mod planned;
mod plot;
mod rules;
mod view;
mod world;

use std::path::PathBuf;

use kvd::ctl::simulate::pod::Engine;
use kvd::ctl::simulate::workload::{BLOCK, Dice, GONE, Job, Workload};
use kvd::transfer::plan::Policy;

use crate::report::Verdict;
use crate::tier::made_up::{self, Kind};
use net::Speeds;
use planned::Planned;
use rules::{Conditional, Dynamo, LlmD};
use view::Router;
use world::{Cluster, Outcome};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recorded traces in Mooncake's format
    #[arg(value_name = "FILE")]
    traces: Vec<PathBuf>,
    /// Pods: half prefill, half decode
    #[arg(long, value_delimiter = ',', default_values_t = [16])]
    pods: Vec<usize>,
    /// Part of the prefill pods' time that computing everything once would take
    #[arg(long, value_delimiter = ',', default_values_t = [0.7])]
    load: Vec<f64>,
    /// Made-up traces of these seeds
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    seeds: Vec<u64>,
    /// Only made-up traces whose name begins with one of these: chat, agents, documents, mixed
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// No more requests than these of each trace
    #[arg(long, default_value_t = 12_031)]
    requests: usize,
    /// A picture of the results
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Only who is named by a part of these; the verdict needs all
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The planner's prices of work, of holding up a request, of a place in ms, and of storing
    #[arg(long, value_delimiter = ',')]
    prices: Vec<f64>,
}

/// Llama-3 8B on a fast GPU. The planner's starting values are others: 0.2 ms, 15 ms, 20 GB/s, 5 s.
const ENGINE: Engine = Engine {
    token_s: 0.17e-3,
    parity: 26_600.0,
    step_s: 8e-3,
    running_s: 0.05e-3,
    read_s: 128.0 * 1024.0 / 2e12,
    budget: 2048,
    gpu: 900,
    cpu: 2000,
    load: 20e9,
    token_bytes: 128 << 10,
};
const SPEEDS: Speeds = Speeds { card: 18e9, uplink: 54e9, rack: 8 };

/// Who decides, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    TogetherLlmD,
    TogetherDynamo,
    AlwaysLlmD,
    AlwaysDynamo,
    Threshold(u32),
    ThresholdPull,
    Bounding,
    BoundingOrLoad,
    Kvd,
    KvdNoPull,
    KvdMixed,
}

impl Who {
    const ALL: [Who; 12] = [
        Who::TogetherLlmD,
        Who::TogetherDynamo,
        Who::AlwaysLlmD,
        Who::AlwaysDynamo,
        Who::Threshold(16),
        Who::Threshold(2048),
        Who::ThresholdPull,
        Who::Bounding,
        Who::BoundingOrLoad,
        Who::Kvd,
        Who::KvdNoPull,
        Who::KvdMixed,
    ];

    fn name(self) -> String {
        match self {
            Who::TogetherLlmD => "no disaggregation, llm-d's scorers".into(),
            Who::TogetherDynamo => "no disaggregation, Dynamo's cost".into(),
            Who::AlwaysLlmD => "always, llm-d's scorers".into(),
            Who::AlwaysDynamo => "always, Dynamo's cost".into(),
            Who::Threshold(n) => format!("llm-d's threshold, {n} tokens"),
            Who::ThresholdPull => "llm-d's threshold and pulls".into(),
            Who::Bounding => "Dynamo's isl_bounding".into(),
            Who::BoundingOrLoad => "Dynamo's isl_or_load".into(),
            Who::Kvd => "**kvd**".into(),
            Who::KvdNoPull => "kvd, no pulls".into(),
            Who::KvdMixed => "kvd, all pods alike".into(),
        }
    }

    /// Whether every pod does both.
    fn mixed(self) -> bool {
        matches!(self, Who::TogetherLlmD | Who::TogetherDynamo | Who::KvdMixed)
    }

    fn is_ours(self) -> bool {
        matches!(self, Who::Kvd | Who::KvdNoPull | Who::KvdMixed)
    }

    fn router(self, pods: usize, policy: &Policy) -> Box<dyn Router> {
        let llmd = |threshold, pulls| Box::new(LlmD { threshold, pulls, count: 0 });
        let dynamo = |kind| Box::new(Dynamo { kind });
        let kvd = |pulls| {
            let (bytes, parity) = (ENGINE.token_bytes, ENGINE.parity);
            let room = ENGINE.gpu as u64 * u64::from(BLOCK);
            Box::new(Planned::new(pods, SPEEDS.rack, bytes, parity, room, pulls, policy.clone()))
        };
        match self {
            Who::TogetherLlmD => llmd(None, false),
            Who::AlwaysLlmD => llmd(Some(0), false),
            Who::Threshold(n) => llmd(Some(n), false),
            Who::ThresholdPull => llmd(Some(16), true),
            Who::TogetherDynamo => dynamo(Conditional::Together),
            Who::AlwaysDynamo => dynamo(Conditional::Always),
            Who::Bounding => dynamo(Conditional::Bounding),
            Who::BoundingOrLoad => dynamo(Conditional::BoundingOrLoad),
            Who::Kvd | Who::KvdMixed => kvd(true),
            Who::KvdNoPull => kvd(false),
        }
    }
}

/// Prints a table per trace, cluster and load.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut policy = Policy::default();
    if let [crowd, stall, seat_ms, keep] = args.prices[..] {
        policy.keep = keep;
        (policy.crowd, policy.stall) = (crowd, stall);
        policy.seat = std::time::Duration::from_secs_f64(seat_ms / 1e3);
    }
    let mut workloads = Vec::new();
    for path in &args.traces {
        workloads.push(Workload::read(path)?);
    }
    for seed in &args.seeds {
        let made = Kind::ALL.iter().map(|kind| made_up(*kind, *seed));
        let meant = |w: &Workload| args.kinds.is_empty() || args.kinds.iter().any(|k| w.name.starts_with(k));
        workloads.extend(made.filter(meant));
    }
    let mut verdict = Verdict::default();
    let mut panels = Vec::new();
    for workload in &workloads {
        for (&pods, &load) in args.pods.iter().flat_map(|p| args.load.iter().map(move |l| (p, l))) {
            let workload = workload.clone().first(args.requests);
            let workload = workload.at_load(load, pods / 2, ENGINE.token_s, ENGINE.parity);
            let mut rows = Vec::new();
            let named = |w: &Who| args.only.is_empty() || args.only.iter().any(|o| w.name().contains(o));
            for who in Who::ALL.into_iter().filter(named) {
                let cluster = Cluster {
                    engine: ENGINE,
                    speeds: SPEEDS,
                    pods,
                    mixed: who.mixed(),
                    setup: 1.5e-3,
                    handshake: 4.0,
                };
                rows.push((who, world::play(&workload, cluster, who.router(pods, &policy).as_mut())));
            }
            let n = workload.jobs.len();
            let title =
                format!("{}, {n} requests, {} P + {} D, load {load}", workload.name, pods / 2, pods / 2);
            let floor = workload.floor(ENGINE.token_s, ENGINE.parity);
            table(&title, &mut rows, &floor, &mut verdict);
            panels
                .push(plot::Panel::new(title, &rows.iter().map(|(w, o)| (w.name(), o)).collect::<Vec<_>>()));
        }
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&panels))?;
    }
    Ok(verdict)
}

/// A made-up trace; its answers are as long as people's conversations have them.
fn made_up(kind: Kind, seed: u64) -> Workload {
    let trace = made_up::make(kind, seed);
    let mut dice = Dice::new(seed.wrapping_mul(0x9e37_79b9));
    let jobs = trace.requests.iter().map(|r| Job {
        at: r.at as f64 / 1e3,
        chain: r.chain.clone(),
        // The last block is followed by part of another.
        tokens: r.chain.len() as u32 * BLOCK + 1 + (dice.unit() * f64::from(BLOCK - 1)) as u32,
        // Log-normal around 250, as the recorded conversations are around 350 on average.
        output: (250.0 * (dice.normal() * 0.9).exp()).clamp(1.0, 4000.0) as u32,
        gone: dice.unit() < GONE,
    });
    Workload { name: trace.name.clone(), jobs: jobs.collect() }
}

fn table(title: &str, rows: &mut [(Who, Outcome)], floor: &[f64], verdict: &mut Verdict) {
    println!("\n### {title}\n");
    println!(
        "| who decides | TTFT p50 s | p90 s | p99 s | TPOT p90 ms | moved TB | kept TB·s | stranded TB·s | computed Mtok | of it held elsewhere | here / elsewhere / pull / both % |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
    for (who, o) in rows.iter_mut() {
        o.ttft.sort_by(f64::total_cmp);
        o.tpot.sort_by(f64::total_cmp);
        let all: u32 = o.decided.iter().sum();
        let share = o.decided.map(|n| (100.0 * f64::from(n) / f64::from(all)).round());
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {} / {} / {} / {} |",
            who.name(),
            at(&o.ttft, 0.5),
            at(&o.ttft, 0.9),
            at(&o.ttft, 0.99),
            1e3 * at(&o.tpot, 0.9),
            o.moved as f64 / 1e12,
            o.kept / 1e12,
            o.stranded / 1e12,
            o.computed as f64 / 1e6,
            o.recomputed as f64 / 1e6,
            share[0],
            share[1],
            share[2],
            share[3],
        );
    }
    println!(
        "| *nobody waits, all is at hand* | {:.2} | {:.2} | {:.2} | | | | | | | |",
        at(floor, 0.5),
        at(floor, 0.9),
        at(floor, 0.99)
    );
    judge(title, rows, verdict);
}

/// What kvd's planner gains on the best of the others.
fn judge(title: &str, rows: &[(Who, Outcome)], verdict: &mut Verdict) {
    let p90 = |o: &Outcome| at(&o.ttft, 0.9);
    let best = rows.iter().filter(|r| !r.0.is_ours()).min_by(|a, b| p90(&a.1).total_cmp(&p90(&b.1)));
    let ours = rows.iter().find(|r| r.0 == Who::Kvd);
    let always =
        rows.iter().filter(|r| matches!(r.0, Who::AlwaysLlmD | Who::AlwaysDynamo)).map(|r| r.1.moved);
    let (Some((name, best)), Some((_, ours)), Some(always)) = (best, ours, always.min()) else { return };
    let gain = 100.0 * (1.0 - p90(ours) / p90(best));
    println!(
        "\nkvd's p90 is {gain:.0} % below that of the best other ({}); it moves {:.0} % of what always disaggregating does.",
        name.name(),
        100.0 * ours.moved as f64 / always as f64
    );
    for (who, o) in rows {
        let lost = o.ttft.len() != ours.ttft.len();
        verdict.note(lost.then(|| format!("{title}: {} served {} requests", who.name(), o.ttft.len())));
    }
}

fn at(sorted: &[f64], p: f64) -> f64 {
    sorted.get(((p * sorted.len() as f64).ceil() as usize).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
