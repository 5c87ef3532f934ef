//! The same operation streams against kvd's index and the published ones.
//!
//! `stream` is what happens, `workload` makes it up, `peer` is what an index must offer, `peers`
//! are the indexes, `measure` times them and checks their answers, `report` makes tables. The
//! README says how to run it and what a valid run is.

mod alloc;
mod hash;
mod limits;
mod measure;
mod payloads;
mod peer;
mod peers;
mod plot;
mod report;
mod stream;
mod workload;

use std::fs::OpenOptions;
use std::io::{BufReader, Write, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use measure::Effort;
use report::Line;
use stream::Stream;
use workload::{Eviction, adversarial, deep, mooncake, trace};

/// Requests made up where there is no trace: as many as Mooncake's has.
const INVENTED_REQUESTS: usize = 12_031;

/// Measures indexes of who holds which prefix on equal operation streams.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the stream of a conversation service.
    Mooncake {
        /// A trace in the form of Mooncake's; without one, a made-up one.
        #[arg(long)]
        trace: Option<PathBuf>,
        /// Tokens per block: 512, 256, ... 16.
        #[arg(long, default_value_t = 16)]
        block_size: u32,
        #[arg(long, default_value_t = 64)]
        pods: u32,
        /// Blocks that each pod's cache has room for.
        #[arg(long, default_value_t = 24_576)]
        capacity: usize,
        #[arg(long, value_enum, default_value_t = Eviction::Tail)]
        evict: Eviction,
        #[arg(long, default_value_t = 42)]
        seed: u64,
        out: PathBuf,
    },
    /// Writes a stream of prompts of 128k tokens.
    Deep {
        #[arg(long, default_value_t = 64)]
        pods: u32,
        #[arg(long, default_value_t = 256)]
        sessions: u64,
        /// Pods that each session is stored on at first.
        #[arg(long, default_value_t = 2)]
        copies: usize,
        #[arg(long, default_value_t = 2000)]
        questions: usize,
        #[arg(long, default_value_t = 42)]
        seed: u64,
        out: PathBuf,
    },
    /// Writes a stream that is hard to answer exactly.
    Adversarial {
        #[arg(long, default_value_t = 8)]
        pods: u32,
        #[arg(long, default_value_t = 200_000)]
        rounds: usize,
        #[arg(long, default_value_t = 42)]
        seed: u64,
        out: PathBuf,
    },
    /// Says what is in a stream.
    Show { stream: PathBuf },
    /// Measures one index on a stream.
    Bench {
        stream: PathBuf,
        peer: String,
        /// Questions asked on the final state.
        #[arg(long, default_value_t = 2000)]
        questions: usize,
        /// How often each of them.
        #[arg(long, default_value_t = 5)]
        passes: usize,
        /// Distinct blocks that indexes may size their tables for beforehand; 0 = let them grow.
        #[arg(long, default_value_t = 0)]
        expected_blocks: usize,
        /// Ask the kernel for huge pages behind large allocations.
        #[arg(long)]
        huge_pages: bool,
        /// Append the result to this file too.
        #[arg(long)]
        append: Option<PathBuf>,
    },
    /// Measures what one index takes per (block, pod) pair.
    Memory {
        peer: String,
        #[arg(long, default_value_t = 1_000_000)]
        entries: usize,
        /// Pods that hold each block.
        #[arg(long, default_value_t = 1)]
        share: usize,
        #[arg(long, default_value_t = 64)]
        pods: u32,
        /// Append the result to this file too.
        #[arg(long)]
        append: Option<PathBuf>,
    },
    /// Makes tables of results read from standard input.
    Table,
    /// Makes a picture (SVG) of results read from standard input.
    Plot,
    /// Measures what it costs to decode and apply engines' payloads, beside Dynamo.
    Payloads {
        /// Written by `kvd-benches ingest --save`.
        files: Vec<PathBuf>,
        #[arg(long, default_value_t = 5)]
        passes: usize,
    },
    /// Measures what this machine allows: memory latency, probes, hashing, comparing.
    Limits,
}

/// Calls `measure::$f` for the index of that name.
macro_rules! with_peer {
    ($name:expr, $block_size:expr, $f:ident $(, $arg:expr)*) => {
        match ($name, $block_size) {
            ("kvd-local", _) => measure::$f::<peers::kvd::ByLocal>($($arg),*),
            ("kvd-seq", _) => measure::$f::<peers::kvd::BySequence>($($arg),*),
            ("kvd-canonical", _) => measure::$f::<peers::kvd::Canonical>($($arg),*),
            ("kvd-tokens", 16) => measure::$f::<peers::kvd::ByTokens<16>>($($arg),*),
            ("kvd-tokens", 512) => measure::$f::<peers::kvd::ByTokens<512>>($($arg),*),
            ("smg-chain", _) => measure::$f::<peers::smg::Chain<false>>($($arg),*),
            ("smg-chain-map", _) => measure::$f::<peers::smg::Chain<true>>($($arg),*),
            ("dynamo-crtc", _) => measure::$f::<peers::dynamo::Compressed>($($arg),*),
            ("dynamo-radix", _) => measure::$f::<peers::dynamo::Radix>($($arg),*),
            ("dynamo-positional", _) => measure::$f::<peers::dynamo::Positional<false>>($($arg),*),
            ("dynamo-positional-bin", _) => measure::$f::<peers::dynamo::Positional<true>>($($arg),*),
            ("flat-map", _) => measure::$f::<peers::flat::Flat<false>>($($arg),*),
            ("flat-map-seq", _) => measure::$f::<peers::flat::Flat<true>>($($arg),*),
            ("proto-strand", _) => measure::$f::<peers::strand::Strand<false>>($($arg),*),
            ("proto-strand-seq", _) => measure::$f::<peers::strand::Strand<true>>($($arg),*),
            (name, block_size) => bail!("there is no index {name} for blocks of {block_size} tokens"),
        }
    };
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Mooncake { trace, block_size, pods, capacity, evict, seed, out } => {
            ensure!(
                block_size > 0 && trace::BLOCK.is_multiple_of(block_size),
                "blocks must divide 512 tokens"
            );
            let requests = match trace {
                Some(path) => trace::read(&path)?,
                None => trace::invent(INVENTED_REQUESTS, seed),
            };
            write(&mooncake::stream(&requests, block_size, pods, capacity, evict, seed), &out)
        }
        Command::Deep { pods, sessions, copies, questions, seed, out } => {
            write(&deep::stream(pods, sessions, copies, questions, seed), &out)
        }
        Command::Adversarial { pods, rounds, seed, out } => {
            write(&adversarial::stream(pods, rounds, seed), &out)
        }
        Command::Show { stream } => {
            println!("{}", Stream::load(&stream)?.summary());
            Ok(())
        }
        Command::Bench { stream: path, peer, questions, passes, expected_blocks, huge_pages, append } => {
            if huge_pages {
                alloc::use_huge_pages();
            }
            let stream = Stream::load(&path)?;
            ensure!(questions > 0 && !measure::pick(&stream, 1).is_empty(), "the stream asks nothing");
            let effort = Effort { questions, passes, expected_blocks };
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let record = with_peer!(peer.as_str(), stream.block_size, run, &name, &stream, effort);
            say(&Line::Speed(Box::new(record)), append.as_deref())
        }
        Command::Memory { peer, entries, share, pods, append } => {
            ensure!(share > 0 && share <= pods as usize, "as many pods as hold a block, or more");
            let memory = with_peer!(peer.as_str(), 16, memory, entries, share, pods, 16);
            say(&Line::Memory(memory), append.as_deref())
        }
        Command::Table => {
            print!("{}", report::tables(&report::read(BufReader::new(stdin()))?));
            Ok(())
        }
        Command::Plot => {
            print!("{}", plot::plot(&report::read(BufReader::new(stdin()))?));
            Ok(())
        }
        Command::Payloads { files, passes } => {
            alloc::count_calls();
            files.iter().try_for_each(|file| payloads::run(file, passes))
        }
        Command::Limits => {
            limits::run();
            Ok(())
        }
    }
}

fn write(stream: &Stream, out: &Path) -> Result<()> {
    println!("{}: {}", out.display(), stream.summary());
    stream.save(out)
}

fn say(line: &Line, append: Option<&Path>) -> Result<()> {
    let line = serde_json::to_string(line)?;
    println!("{line}");
    if let Some(path) = append {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.with_context(|| format!("open {}", path.display()))?;
        writeln!(file, "{line}")?;
    }
    Ok(())
}
