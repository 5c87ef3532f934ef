//! How fast are blocks kept on a disk: kvtier's store, a file per block, and foyer, beside the disk itself?
//!
//! In turns, in one process: eight threads write blocks that cannot be compressed, until all of them are on the disk and
//! would survive a crash as far as each way promises that. Then every block is read again and compared. A round is
//! not counted for a way that lost or changed a block.

mod ways;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use ways::{Files, Foyer, Kvtier, Raw, Way};

/// Writers at a time.
const THREADS: usize = 8;

/// See the module.
#[derive(Debug, Parser)]
struct Args {
    /// Where to: a folder on the disk to measure
    folder: PathBuf,
    /// Block size in KiB
    #[arg(long, default_value_t = 64)]
    kib: usize,
    /// MiB written in each round
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// Rounds, after one that is not counted
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What every way is to store.
#[derive(Clone, Copy)]
struct Load {
    bytes: usize,
    count: usize,
    round: u64,
}

impl Load {
    /// Block `number`: filled with what cannot be compressed, every page of it telling whose it is.
    fn fill(&self, number: usize, block: &mut [u8]) {
        for (page, bytes) in block.chunks_mut(4096).enumerate() {
            bytes[..8].copy_from_slice(&self.round.to_le_bytes());
            bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
            bytes[16..24].copy_from_slice(&(page as u64).to_le_bytes());
        }
    }

    fn is_right(&self, number: usize, block: &[u8]) -> bool {
        let mut wanted = noise(self.bytes);
        self.fill(number, &mut wanted);
        *block == *wanted
    }
}

/// Bytes that cannot be compressed, the same every time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(word).collect()
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let (bytes, count) = (args.kib << 10, (args.mib << 10) / args.kib);
    let folder = args.folder.join("kvd-disk-peers");
    std::fs::create_dir_all(&folder).context("make the folder")?;
    let mut ways: Vec<Box<dyn Way>> = vec![
        Box::new(Raw::new(&folder, bytes, count)?),
        Box::new(Kvtier::new(&folder, bytes, count)?),
        Box::new(Files::new(&folder)),
        Box::new(Foyer::new(&folder)?),
    ];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut wrong = 0;
    for round in 0..=args.rounds as u64 {
        let load = Load { bytes, count, round };
        for (way, rates) in ways.iter_mut().zip(&mut rates) {
            way.prepare(&load)?;
            let began = Instant::now();
            way.write(&load).with_context(|| way.name())?;
            let rate = (bytes * count) as f64 / 1_048_576.0 / began.elapsed().as_secs_f64();
            let bad = way.check(&load).with_context(|| way.name())?;
            wrong += bad;
            if bad > 0 {
                eprintln!("{}: {bad} of {count} blocks are not what was written", way.name());
            } else if round > 0 {
                rates.push(rate);
            }
        }
    }
    std::fs::remove_dir_all(&folder).context("remove the folder")?;
    println!("| {} KiB, {THREADS} threads, {} MiB a round | MiB/s | of raw |", args.kib, args.mib);
    println!("| --- | ---: | ---: |");
    let raw = median(&mut rates[0]).0;
    for (way, rates) in ways.iter().zip(&mut rates) {
        let (middle, low, high) = median(rates);
        println!("| {} | {middle:.0} ({low:.0}–{high:.0}) | {:.0} % |", way.name(), 100.0 * middle / raw);
    }
    println!("\nblocks read again: {}, wrong: {wrong}", (args.rounds + 1) * count * ways.len());
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The one in the middle, the least and the most.
fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    (at(values.len() / 2), at(0), at(values.len().wrapping_sub(1)))
}
