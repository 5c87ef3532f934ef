//! `disk`: how fast does the store write and read, beside the disk itself?
//!
//! The disk itself is one preallocated file with `O_DIRECT`, in the same process, in turns with
//! the store. All writes end with what makes them durable: the file is synced, the store commits
//! every 64 MiB and at the end. Before `write` and `write chains` the store gives all its blocks up, so it
//! writes over used slots; `write, full` finds a full store, and gives up a block anywhere for each that it
//! writes. The first round is not counted: space that was never written is slower.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvtier::policy::Owner;
use kvtier::store::{Backend, Buffer, Get, Layout, Put, Read, Store, StoreKey, parents_first};

use super::Rounds;
use crate::Setting;
use crate::machine::{self, Watch};
use crate::report::{Passes, Table, Verdict, print_others};

/// MiB written and read in each round, unless asked for otherwise.
const MIB: usize = 512;
/// Readers and writers at a time.
const THREADS: usize = 8;
/// Bytes between two commits.
const COMMIT: usize = 64 << 20;
/// The first workload that reads.
const READS: usize = 4;
/// Bytes of a chain that are stored together: what the store writes at once.
const CHAIN: usize = 1 << 20;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rounds: Rounds,
    /// Mapped files in place of direct I/O
    #[arg(long)]
    mapped: bool,
    /// Blocks that a store is opened again with; 0 to leave it out
    #[arg(long, default_value_t = 1_000_000)]
    reopen: u32,
}

/// What a round came to.
#[derive(Default)]
struct Rates {
    mib_per_second: Passes,
    cpu_per_gib: Passes,
    written: Passes,
}

struct Rig {
    raw: File,
    store: Store,
    bytes: usize,
    count: usize,
    /// Blocks that are stored together as a chain.
    chain: usize,
    /// Of each thread, filled with what cannot be compressed.
    buffers: Vec<Mutex<Buffer>>,
    /// Rounds so far, so that no two of them store the same blocks.
    round: u64,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new(["KiB", "what", "MiB/s", "of raw", "CPU s per GiB", "bytes written per byte"]);
    let folder = args.rounds.folder.join("kvd-benches-disk");
    let backend = if args.mapped { Backend::Mapped } else { Backend::Direct };
    for kib in &args.rounds.kib {
        std::fs::create_dir_all(&folder).context("make the folder")?;
        let mut rig = Rig::new(&folder, kib << 10, args.rounds.mib.unwrap_or(MIB) << 20, backend)?;
        let what = ["write raw", "write", "write chains", "write, full", "read raw", "read"];
        let mut rates: [Rates; 6] = Default::default();
        for pass in 0..=setting.passes {
            let watch = Watch::start(&[]);
            for (at, rates) in rates.iter_mut().enumerate() {
                rig.prepare(at)?;
                let (began, cpu, io) = (Instant::now(), cpu(), written());
                match at {
                    0 => rig.write_raw()?,
                    1 => rig.write(1, &mut verdict)?,
                    2 => rig.write(rig.chain, &mut verdict)?,
                    3 => rig.replace(&mut verdict)?,
                    4 => rig.read_raw()?,
                    _ => rig.read(&mut verdict),
                }
                if pass > 0 {
                    rates.note((rig.count * rig.bytes) as f64, began.elapsed(), cpu, io);
                }
            }
            if pass > 0 {
                others.add(watch.others());
            }
        }
        for (at, (what, rates_of)) in what.iter().zip(&rates).enumerate() {
            let raw = &rates[if at < READS { 0 } else { READS }];
            let part = rates_of.mib_per_second.median() / raw.mib_per_second.median();
            table.row(vec![
                kib.to_string(),
                (*what).to_owned(),
                rates_of.mib_per_second.cell(0),
                format!("{:.0} %", 100.0 * part),
                rates_of.cpu_per_gib.cell(2),
                if at < READS { rates_of.written.cell(3) } else { String::new() },
            ]);
        }
        drop(rig);
        std::fs::remove_dir_all(&folder).context("remove the folder")?;
    }
    table.print();
    print_others(&others);
    if args.reopen > 0 {
        std::fs::create_dir_all(&folder).context("make the folder")?;
        reopen(&folder, args.reopen, backend, &mut verdict)?;
        std::fs::remove_dir_all(&folder).context("remove the folder")?;
    }
    Ok(verdict)
}

impl Rates {
    fn note(&mut self, bytes: f64, took: Duration, cpu_before: Duration, written_before: u64) {
        self.mib_per_second.add(bytes / 1_048_576.0 / took.as_secs_f64());
        self.cpu_per_gib.add((cpu() - cpu_before).as_secs_f64() / (bytes / 1_073_741_824.0));
        self.written.add((written() - written_before) as f64 / bytes);
    }
}

/// Processor time of this process.
fn cpu() -> Duration {
    machine::process_cpu(std::process::id())
}

/// Bytes that this process had written to disks.
pub(super) fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("write_bytes: "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn key(round: u64, number: usize) -> StoreKey {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&round.to_le_bytes());
    hash[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    StoreKey::new(1, 0, &hash).expect("32 bytes are a hash")
}

/// Fills a payload with what cannot be compressed.
fn fill(payload: &mut [u8], seed: u64) {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in payload.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Changes the parts of a payload that tell whose it is: filling all of it would be measured.
fn stamp(payload: &mut [u8], round: u64, number: usize) {
    for page in payload.chunks_mut(4096) {
        page[..8].copy_from_slice(&round.to_le_bytes());
        page[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    }
}

fn is_stamped(payload: &[u8], round: u64, number: usize) -> bool {
    payload
        .chunks(4096)
        .all(|page| page[..8] == round.to_le_bytes() && page[8..16] == (number as u64).to_le_bytes())
}

impl Rig {
    fn new(folder: &Path, bytes: usize, all: usize, backend: Backend) -> anyhow::Result<Rig> {
        let chain = (CHAIN / bytes).max(1);
        let count = (all / bytes).max(THREADS * chain);
        let mut buffers = Vec::new();
        for thread in 0..THREADS {
            let mut buffer = Buffer::new(chain * bytes).context("get memory")?;
            fill(&mut buffer, thread as u64);
            buffers.push(Mutex::new(buffer));
        }
        let path = folder.join("raw");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).custom_flags(o_direct());
        let raw = options.open(path).context("open the raw file")?;
        let slots = count as u32;
        let layout = Layout { block_bytes: bytes, slots, segment_slots: ((1 << 30) / bytes as u32).max(1) };
        let (store, _) = Store::open(folder, layout, backend).context("open the store")?;
        Ok(Rig { raw, store, bytes, count, chain, buffers, round: 0 })
    }

    /// Empties the store before it is written.
    fn prepare(&mut self, at: usize) -> anyhow::Result<()> {
        if at == 1 || at == 2 {
            for number in 0..self.count {
                self.store.remove(key(self.round, number));
            }
            self.store.commit().context("commit")?;
            self.round += 1;
        }
        Ok(())
    }

    /// Lets all threads take pieces of `step` numbers until all are taken.
    fn share(
        &self,
        step: usize,
        work: impl Fn(usize, &mut [u8]) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (next, work) = (&next, &work);
                    scope.spawn(move || {
                        let mut buffer = self.buffers[thread].lock().expect("no thread panics");
                        let buffer = &mut buffer[..step * self.bytes];
                        loop {
                            let first = next.fetch_add(step, Ordering::Relaxed);
                            if first >= self.count {
                                return Ok(());
                            }
                            work(first, buffer)?;
                        }
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|t| t.join().expect("no thread panics"))
        })
    }

    fn write_raw(&self) -> anyhow::Result<()> {
        self.share(1, |number, buffer| {
            stamp(buffer, self.round, number);
            self.raw.write_all_at(buffer, (number * self.bytes) as u64).context("write the raw file")
        })?;
        self.raw.sync_data().context("sync the raw file")
    }

    fn write(&self, chain: usize, verdict: &mut Verdict) -> anyhow::Result<()> {
        let since_commit = AtomicUsize::new(0);
        self.share(chain, |first, buffer| {
            let numbers = first..self.count.min(first + chain);
            for (number, payload) in numbers.clone().zip(buffer.chunks_mut(self.bytes)) {
                stamp(payload, self.round, number);
            }
            let block = |(number, payload)| Put {
                key: key(self.round, number),
                after: None,
                owner: Owner(0),
                payload,
            };
            let blocks: Vec<Put<'_>> = numbers.zip(buffer.chunks(self.bytes)).map(block).collect();
            for result in self.store.put(&blocks) {
                result.context("put")?;
            }
            self.commit_now_and_then(&since_commit, blocks.len())
        })?;
        self.all_stored(verdict)
    }

    /// Writes to a full store: for each block, one of the last round goes, in no order.
    fn replace(&mut self, verdict: &mut Verdict) -> anyhow::Result<()> {
        let since_commit = AtomicUsize::new(0);
        let last = self.round;
        self.round += 1;
        self.share(1, |number, buffer| {
            ensure!(
                self.store.remove(key(last, self.scattered(number))),
                "a block of the last round is gone"
            );
            stamp(buffer, self.round, number);
            let block = Put { key: key(self.round, number), after: None, owner: Owner(0), payload: buffer };
            self.store.put(&[block]).remove(0).context("put")?;
            self.commit_now_and_then(&since_commit, 1)
        })?;
        self.all_stored(verdict)
    }

    fn commit_now_and_then(&self, since_commit: &AtomicUsize, blocks: usize) -> anyhow::Result<()> {
        if since_commit.fetch_add(blocks * self.bytes, Ordering::Relaxed) > COMMIT {
            since_commit.store(0, Ordering::Relaxed);
            self.store.commit().context("commit")?;
        }
        Ok(())
    }

    fn all_stored(&self, verdict: &mut Verdict) -> anyhow::Result<()> {
        self.store.commit().context("commit")?;
        let blocks = self.store.stats().blocks;
        verdict.note((blocks != self.count).then(|| format!("{blocks} of {} blocks stored", self.count)));
        Ok(())
    }

    /// The numbers in no order.
    fn scattered(&self, number: usize) -> usize {
        let step = (self.count * 5 / 8) | 1;
        let coprime = (step..).step_by(2).find(|s| gcd(*s, self.count) == 1).unwrap_or(1);
        number * coprime % self.count
    }

    fn read_raw(&self) -> anyhow::Result<()> {
        self.share(1, |number, buffer| {
            let at = self.scattered(number) * self.bytes;
            self.raw.read_exact_at(buffer, at as u64).context("read the raw file")
        })
    }

    fn read(&self, verdict: &mut Verdict) {
        let wrong = AtomicUsize::new(0);
        let read = self.share(1, |number, buffer| {
            let number = self.scattered(number);
            let read = self.store.get(&mut [Get { key: key(self.round, number), into: buffer }]);
            let right = read[0] == Read::Hit && is_stamped(buffer, self.round, number);
            wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
            Ok(())
        });
        verdict.checked += self.count as u64 - 1;
        let wrong = wrong.into_inner();
        verdict.note((wrong > 0 || read.is_err()).then(|| format!("{wrong} blocks read wrong")));
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The flag that opens a file past the page cache.
fn o_direct() -> i32 {
    if cfg!(target_arch = "aarch64") { 0o200_000 } else { 0o40_000 }
}

/// How long until a store of so many small blocks is open again?
fn reopen(folder: &Path, blocks: u32, backend: Backend, verdict: &mut Verdict) -> anyhow::Result<()> {
    let layout = Layout { block_bytes: 4096, slots: blocks, segment_slots: 1 << 18 };
    let (store, _) = Store::open(folder, layout, backend).context("open the store")?;
    let payload = vec![7; 4096];
    let mut before = None;
    for first in (0..blocks as usize).step_by(256) {
        let block = |number| {
            let key = key(0, number);
            let after = before.replace(key.id());
            Put { key, after, owner: Owner(0), payload: &payload }
        };
        let puts: Vec<Put<'_>> = (first..(first + 256).min(blocks as usize)).map(block).collect();
        ensure!(store.put(&puts).iter().all(Result::is_ok), "a block was not stored");
    }
    store.commit().context("commit")?;
    drop(store);
    let (began, before) = (Instant::now(), machine::thread_cpu());
    let (store, records) = Store::open(folder, layout, backend).context("open the store again")?;
    let (took, busy) = (began.elapsed(), machine::thread_cpu() - before);
    let held = store.stats().blocks;
    verdict.note((held != blocks as usize).then(|| format!("{held} of {blocks} blocks found again")));
    let ordered = parents_first(&records);
    let in_order = began.elapsed();
    println!(
        "\n{} blocks can be looked up after {:.2} s ({:.2} s of processor time), are in order, parents first, after {:.2} s",
        ordered.len(),
        took.as_secs_f64(),
        busy.as_secs_f64(),
        in_order.as_secs_f64()
    );
    Ok(())
}
