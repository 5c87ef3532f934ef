//! How fast is kvd, and are its answers right while it is?
//!
//! Each subcommand is one workload of README.md, which says what it measures and what makes a
//! run valid. Every answer that is timed is also checked; the exit code is 1 when any is wrong.

mod agent;
mod alloc;
mod engine;
mod grpc;
mod http;
mod http_client;
mod ingest;
mod machine;
mod plan;
mod plan_parts;
mod recovery;
mod replicas;
mod report;
mod score;
mod server;
mod snapshot;
mod throughput;
mod tier;
mod transfers;
mod visible;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Verdict;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Workloads and measurements of kvd.
#[derive(Debug, Parser)]
#[command(
    name = "kvd-benches",
    after_help = "Exit codes: 0 every answer was right, 1 some were wrong, 2 it did not run."
)]
struct Cli {
    /// How often the whole is repeated; the tables give the median of the passes and their range
    #[arg(long, global = true, default_value_t = 5)]
    passes: usize,
    /// The kvd to measure; the one beside this program unless set
    #[arg(long, global = true, value_name = "FILE")]
    kvd: Option<PathBuf>,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// How long after an engine publishes a block does an answer count it?
    Visible(visible::Args),
    /// How long does POST /query take, beside Dynamo's standalone indexer?
    Http(http::Args),
    /// How long does one Score take, on the server and for its client?
    Score(score::Args),
    /// How many Scores a second do local clients get?
    Throughput(throughput::Args),
    /// What does it cost to decode and apply an engine's events?
    Ingest(ingest::Args),
    /// How soon does kvd know again what it knew, from its disk and from another replica?
    Recovery(recovery::Args),
    /// What does a scheduler notice when one of three replicas stalls or dies?
    Replicas(replicas::Args),
    /// What does it cost to write down what the index holds, and to read it again?
    Snapshot(snapshot::Args),
    /// How often does the tier policy have what is asked for, beside published policies?
    Tier(tier::Args),
    /// How fast does the store write and read, beside the disk itself?
    Disk(tier::disk::Args),
    /// What does it cost to write down which block is in which slot, in a flat table and in RocksDB?
    Records(tier::records::Args),
    /// How fast do blocks come from another node's RAM, beside the bytes alone over TCP?
    Pulls(tier::pulls::Args),
    /// How long does PlanTransfer take, and how many does one processor make?
    Plan(plan::Args),
    /// How many transfers does one processor plan in a second?
    PlanParts(plan_parts::Args),
    /// How soon come first tokens, by who decides where prefill happens and what moves?
    Transfers(transfers::Args),
    /// What does it cost an engine to ask its node's agent?
    Agent(agent::Args),
}

/// What every workload is given.
struct Setting {
    passes: usize,
    kvd: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(verdict) => {
            println!("\nanswers checked: {}, wrong: {}", verdict.checked, verdict.wrong);
            if let Some(first) = verdict.first {
                println!("first wrong: {first}");
            }
            if verdict.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Verdict> {
    let setting = Setting { passes: cli.passes.max(1), kvd: cli.kvd.map_or_else(server::beside_us, Ok)? };
    machine::print_header();
    let verdict = match cli.workload {
        Workload::Visible(args) => visible::run(&setting, &args),
        Workload::Http(args) => http::run(&setting, &args),
        Workload::Score(args) => score::run(&setting, &args),
        Workload::Throughput(args) => throughput::run(&setting, &args),
        Workload::Ingest(args) => ingest::run(&setting, &args),
        Workload::Recovery(args) => recovery::run(&setting, &args),
        Workload::Replicas(args) => replicas::run(&setting, &args),
        Workload::Snapshot(args) => snapshot::run(&setting, &args),
        Workload::Tier(args) => tier::run(&args),
        Workload::Disk(args) => tier::disk::run(&setting, &args),
        Workload::Records(args) => tier::records::run(&args),
        Workload::Pulls(args) => tier::pulls::run(&setting, &args),
        Workload::Plan(args) => plan::run(&setting, &args),
        Workload::PlanParts(args) => plan_parts::run(&setting, &args),
        Workload::Transfers(args) => transfers::run(&args),
        Workload::Agent(args) => agent::run(&setting, &args),
    };
    println!("\nload average after: {}", machine::load());
    verdict
}
