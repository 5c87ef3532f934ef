//! `kvctl simulate`: what would routing by kvd's answers bring on this trace?
//!
//! The requests of a trace are played against simulated pods, once for every rule that is compared. Engines
//! are simulated step by step ([`pod`]: chunked prefill, continuous batching, a cache that forgets what was
//! used longest ago); kvd's part is kvd's own index, fed with the events of these engines.
//!
//! [`cache`], [`pod`], [`trace`] and [`workload`] serve `kvd-benches`, too.

pub mod cache;
mod cluster;
mod plot;
pub mod pod;
mod rules;
pub mod trace;
pub mod workload;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::{Global, Outcome, UsageError};
use cluster::{Played, Setup, fits, play};
use pod::Engine;
use rules::Who;
use workload::{BLOCK, Workload};

/// Llama-3 8B on a fast GPU.
const DEFAULT_ENGINE: Engine = Engine {
    token_s: 0.17e-3,
    parity: 26_600.0,
    step_s: 8e-3,
    running_s: 0.05e-3,
    read_s: 128.0 * 1024.0 / 2e12,
    budget: 2048,
    gpu: 900,
    cpu: 0,
    load: 20e9,
    token_bytes: 128 << 10,
};

/// What `simulate` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
A trace is a JSON object a line, as Mooncake publishes them: timestamp (ms), input_length, output_length, \
hash_ids (one per 512 tokens; equal ids are equal prefixes).

Examples:
  kvctl simulate --trace conversation_trace.jsonl
  kvctl simulate --trace conversation_trace.jsonl --pods 16 --schedulers 3 --svg routing.svg")]
pub struct SimulateArgs {
    /// Requests to play
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Pods, each with one engine
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pods: u16,
    /// Schedulers that take turns and do not talk to each other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    schedulers: u16,
    /// Part of the pods' time that computing every block once would take: the trace is thinned out, or laid over
    /// itself, until it does; 0 = play it as it is
    #[arg(long, default_value_t = 0.5)]
    load: f64,
    /// Tokens that an engine's cache on the GPU has room for
    #[arg(long, default_value_t = 460_800, value_parser = clap::value_parser!(u32).range(1024..))]
    gpu_tokens: u32,
    /// Tokens that it has room for in host memory
    #[arg(long, default_value_t = 0)]
    cpu_tokens: u32,
    /// Tokens of a short prompt that an engine computes in a second
    #[arg(long, default_value_t = 5900.0)]
    prefill_speed: f64,
    /// Milliseconds until kvd knows of a change of a cache
    #[arg(long, default_value_t = 20.0)]
    delay: f64,
    /// Seconds that a routing counts which was announced to kvd
    #[arg(long, default_value_t = 2.0)]
    announced_for: f64,
    /// What a prefix counts against a queue (2) and a full cache (2)
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 2.0, 3.0, 5.0, 8.0, 12.0])]
    weights: Vec<f64>,
    /// No more requests than these
    #[arg(long)]
    requests: Option<usize>,
    /// Draw the results
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One rule at one weight, and what came of it.
struct Row {
    who: Who,
    /// What a prefix counts; none for rules that do not look.
    weight: Option<f64>,
    played: Played,
}

impl Row {
    fn hits(&self) -> f64 {
        self.played.found as f64 / (self.played.tokens as f64).max(1.0)
    }

    /// Seconds to the first token that this part of the requests kept.
    fn ttft(&self, part: f64) -> f64 {
        let sorted = &self.played.ttft;
        let at = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
    }
}

/// Plays the trace by every rule, and writes what came of each.
pub fn run(global: &Global, args: &SimulateArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let setup = setup(args)?;
    let (workload, left_out) = workload(args, &setup)?;
    let blind = Who::BLIND.map(|who| (who, None));
    let seeing = Who::SEEING.into_iter().flat_map(|who| args.weights.iter().map(move |w| (who, Some(*w))));
    let runs: Vec<(Who, Option<f64>)> = blind.into_iter().chain(seeing).collect();
    let bar = global.progress(runs.len() as u64, "runs");
    let rows: Vec<Row> = runs
        .into_iter()
        .map(|(who, weight)| {
            bar.set_message(who.name());
            let mut rule = who.rule(&setup, weight.unwrap_or(0.0), &workload.jobs);
            let played = play(&workload.jobs, setup, rule.as_mut());
            bar.inc(1);
            Row { who, weight, played }
        })
        .collect();
    bar.finish_and_clear();
    if global.json {
        json_rows(&rows, out)?;
    } else {
        table(&workload, left_out, args, &rows, out)?;
    }
    if let Some(path) = &args.svg {
        let title = format!("{}, {} requests, {} pods", workload.name, workload.jobs.len(), setup.pods);
        std::fs::write(path, plot::svg(&title, &rows))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(Outcome::Ok)
}

fn setup(args: &SimulateArgs) -> anyhow::Result<Setup> {
    let within = |name: &str, value: f64, least: f64, most: f64| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(UsageError(format!("--{name}: {value} is not within {least} and {most}")))
    };
    within("load", args.load, 0.0, 100.0)?;
    for weight in &args.weights {
        within("weights", *weight, 0.0, 1e6)?;
    }
    let engine = Engine {
        token_s: 1.0 / within("prefill-speed", args.prefill_speed, 1.0, 1e9)?,
        gpu: (args.gpu_tokens / BLOCK) as usize,
        cpu: (args.cpu_tokens / BLOCK) as usize,
        ..DEFAULT_ENGINE
    };
    let delay = within("delay", args.delay, 0.0, 60_000.0)? / 1e3;
    let announced_for = within("announced-for", args.announced_for, 0.0, 3600.0)?;
    let (pods, schedulers) = (usize::from(args.pods), usize::from(args.schedulers));
    Ok(Setup { engine, pods, schedulers, delay, announced_for })
}

/// What is played, and how many requests are longer than an engine has room for.
fn workload(args: &SimulateArgs, setup: &Setup) -> anyhow::Result<(Workload, usize)> {
    let mut workload = Workload::read(&args.trace)?.first(args.requests.unwrap_or(usize::MAX));
    let all = workload.jobs.len();
    workload.jobs.retain(|job| fits(&setup.engine, job));
    let left_out = all - workload.jobs.len();
    anyhow::ensure!(!workload.jobs.is_empty(), "{}: no request that fits", args.trace.display());
    if args.load > 0.0 {
        workload = workload.at_load(args.load, setup.pods, setup.engine.token_s, setup.engine.parity);
    }
    Ok((workload, left_out))
}

fn table(
    workload: &Workload,
    left_out: usize,
    args: &SimulateArgs,
    rows: &[Row],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "{}: {} requests, {} pods, {} schedulers, load {}, events {} ms late",
        workload.name,
        workload.jobs.len(),
        args.pods,
        args.schedulers,
        args.load,
        args.delay
    )?;
    if left_out > 0 {
        writeln!(out, "{left_out} requests are longer than an engine's cache, and are left out")?;
    }
    writeln!(
        out,
        "\n| rule                    | prefix counts | hit ratio % | busiest / mean | TTFT p50 s | p90 s | p99 s |"
    )?;
    writeln!(
        out,
        "|-------------------------|--------------:|------------:|---------------:|-----------:|------:|------:|"
    )?;
    for row in rows {
        writeln!(
            out,
            "| {:<23} | {:>13} | {:>11.1} | {:>14.3} | {:>10.2} | {:>5.2} | {:>5.2} |",
            row.who.name(),
            row.weight.map_or_else(|| "–".to_owned(), |w| w.to_string()),
            100.0 * row.hits(),
            row.played.imbalance,
            row.ttft(0.5),
            row.ttft(0.9),
            row.ttft(0.99),
        )?;
    }
    let baseline =
        rows.iter().filter(|r| r.who == Who::Approximate).min_by(|a, b| a.ttft(0.9).total_cmp(&b.ttft(0.9)));
    let Some(baseline) = baseline else { return Ok(()) };
    writeln!(
        out,
        "\nAt the load balance that approximate prefixes have at their best p90 ({:.3}), hits are:",
        baseline.played.imbalance
    )?;
    for who in Who::SEEING {
        let curve: Vec<(f64, f64)> =
            rows.iter().filter(|r| r.who == who).map(|r| (r.played.imbalance, r.hits())).collect();
        match at_balance(curve, baseline.played.imbalance) {
            Some(hits) => writeln!(out, "  {:<23} {:.1} %", who.name(), 100.0 * hits)?,
            None => writeln!(out, "  {:<23} (not among its weights)", who.name())?,
        }
    }
    Ok(())
}

/// What a curve through (imbalance, hit ratio) says at an imbalance, between two of its points.
fn at_balance(mut curve: Vec<(f64, f64)>, imbalance: f64) -> Option<f64> {
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, hits)) = curve.iter().find(|(x, _)| *x == imbalance) {
        return Some(*hits);
    }
    let pair = curve.windows(2).find(|w| w[0].0 < imbalance && imbalance < w[1].0)?;
    let part = (imbalance - pair[0].0) / (pair[1].0 - pair[0].0);
    Some(pair[0].1 + part * (pair[1].1 - pair[0].1))
}

fn json_rows(rows: &[Row], out: &mut dyn Write) -> anyhow::Result<()> {
    for row in rows {
        let object = json!({
            "rule": row.who.name(),
            "prefix_weight": row.weight,
            "requests": row.played.ttft.len(),
            "prompt_tokens": row.played.tokens,
            "cached_tokens": row.played.found,
            "hit_ratio": row.hits(),
            "imbalance": row.played.imbalance,
            "ttft_seconds": { "p50": row.ttft(0.5), "p90": row.ttft(0.9), "p99": row.ttft(0.99) },
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::{Dice, Job};

    /// Conversations whose turns share a beginning, in more blocks than one pod has room for.
    fn conversations(n: u32, turns: u32) -> Vec<Job> {
        let mut dice = Dice::new(5);
        let mut jobs = Vec::new();
        for c in 0..n {
            for turn in 1..=turns {
                let chain: Vec<u32> = (0..8 * turn).map(|b| c * 100 + b).collect();
                let at = f64::from(turn) * 60.0 + dice.unit() * 50.0;
                jobs.push(Job { at, tokens: 512 * chain.len() as u32 + 1, chain, output: 100, gone: false });
            }
        }
        jobs.sort_by(|a, b| a.at.total_cmp(&b.at));
        jobs
    }

    fn played(who: Who, jobs: &[Job], schedulers: usize) -> Row {
        let setup = Setup { engine: DEFAULT_ENGINE, pods: 4, schedulers, delay: 0.02, announced_for: 2.0 };
        let mut rule = who.rule(&setup, 3.0, jobs);
        Row { who, weight: Some(3.0), played: play(jobs, setup, rule.as_mut()) }
    }

    #[test]
    fn rules_that_know_of_prefixes_find_more_and_the_index_most_where_schedulers_are_several() {
        let jobs = conversations(60, 4);
        let hits = |who, schedulers| played(who, &jobs, schedulers).hits();
        let (random, approximate) = (hits(Who::Random, 1), hits(Who::Approximate, 1));
        assert!(approximate > random + 0.1, "{approximate} {random}");
        let (apart, exact) = (hits(Who::Approximate, 3), hits(Who::Exact, 3));
        assert!(exact > apart + 0.05, "{exact} {apart}");
        assert!(hits(Who::Announced, 3) >= exact - 0.02);
    }

    #[test]
    fn what_was_computed_and_what_was_found_is_the_prompts() {
        let jobs = conversations(5, 3);
        let row = played(Who::LeastLoad, &jobs, 1);
        assert_eq!(row.played.tokens, jobs.iter().map(|j| u64::from(j.tokens)).sum::<u64>());
        assert_eq!(row.played.ttft.len(), jobs.len());
        // Nothing is found before it was computed: the first turn of each never is.
        let later: usize = jobs.iter().map(|j| j.chain.len() - 8).sum();
        assert!(row.played.found <= later as u64 * u64::from(BLOCK));
        assert_eq!(played(Who::LeastLoad, &jobs, 1).played, row.played);
    }

    #[test]
    fn a_curve_is_read_between_its_points_and_not_beyond() {
        let curve = vec![(2.0, 0.4), (1.0, 0.2), (3.0, 0.5)];
        assert_eq!(at_balance(curve.clone(), 1.5).map(|h| (h * 1e6).round()), Some(3e5));
        assert_eq!(at_balance(curve.clone(), 3.0), Some(0.5));
        assert_eq!(at_balance(curve.clone(), 3.1), None);
        assert_eq!(at_balance(curve, 0.9), None);
    }
}
