//! `agent`: what does it cost an engine to ask its node's agent, and are bytes copied on the way?
//!
//! The agent is in this process, over a real node in the folder given; the engine is another
//! process, in Python, as vLLM's scheduler is, and one in Rust for what the socket itself costs.
//! Loads from disk are of a node without RAM.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kvtier::agent::{Agent, Client, Config, Connect, Hello, Outcome, VERSION, features};
use kvtier::node::{Node, NodeConfig, Publish};
use kvtier::{policy, store};
use memmap2::MmapMut;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::Setting;
use crate::machine::Watch;
use crate::report::{Latencies, Passes, Table, Verdict, differs, print_others};

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to: a folder on a disk
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// A Python with msgspec
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Calls of each kind in a pass
    #[arg(long, default_value_t = 4000)]
    rounds: usize,
    /// Keys of a lookup
    #[arg(long, default_value_t = 1000)]
    keys: usize,
    /// MiB loaded from disk in a pass
    #[arg(long, default_value_t = 256)]
    mib: usize,
}

/// Bytes of a block where calls are measured, and where loads are.
const SMALL: usize = 64 << 10;
const LARGE: usize = 512 << 10;
/// Blocks that are there.
const BLOCKS: u32 = 64;
const SLOTS: u32 = 64;

#[derive(Debug)]
struct Deaf;

impl Publish for Deaf {
    fn publish(&self, _stream: u32, _seq: u64, _payload: &[u8]) {}
}

/// A node, its movers and its agent.
struct Rig {
    agent: Option<Agent>,
    node: Arc<Node>,
    movers: Vec<std::thread::JoinHandle<()>>,
}

impl Rig {
    fn new(folder: &Path, ram: u64, disk: u64) -> anyhow::Result<Rig> {
        std::fs::create_dir_all(folder).context("make the folder")?;
        let began = Instant::now();
        let config = NodeConfig {
            name: "bench".to_owned(),
            folder: folder.join("node"),
            ram_bytes: ram,
            disk_bytes: disk,
            pools: 2,
            backend: store::Backend::Auto,
            policy: policy::Config::default(),
            patience: Duration::from_millis(100),
            clock: Arc::new(move || began.elapsed().as_millis() as u64),
            shared: None,
        };
        let node = Arc::new(Node::open(config, Arc::new(Deaf))?);
        let mover = |_| {
            let node = node.clone();
            std::thread::spawn(move || node.work())
        };
        let movers = (0..2).map(mover).collect();
        let agent = Agent::start(node.clone(), Config::at(folder.join("agent.sock")))?;
        node.recover()?;
        Ok(Rig { agent: Some(agent), node, movers })
    }

    fn socket(&self) -> anyhow::Result<&Path> {
        self.agent.as_ref().map(Agent::socket).context("the agent runs")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.agent = None;
        self.node.close();
        for mover in self.movers.drain(..) {
            let _ = mover.join();
        }
    }
}

/// An engine's memory.
struct Memory {
    file: OwnedFd,
    map: MmapMut,
    block_bytes: usize,
}

impl Memory {
    fn new(block_bytes: usize) -> anyhow::Result<Memory> {
        let file = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, u64::from(SLOTS) * block_bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
        // SAFETY: the agent writes only to slots of jobs that have not ended, and those are not
        // looked at.
        let map = unsafe { MmapMut::map_mut(&std::fs::File::from(file.try_clone()?)) }?;
        Ok(Memory { file, map, block_bytes })
    }

    fn slot(&mut self, slot: u32) -> &mut [u8] {
        let at = slot as usize * self.block_bytes;
        &mut self.map[at..at + self.block_bytes]
    }

    fn connect(&self, socket: &Path) -> anyhow::Result<Client> {
        let hello = Hello {
            version: VERSION,
            features: features::LEASES,
            engine: "bench",
            model: "bench",
            salt: "",
            fingerprint: 0,
            hash_bytes: 32,
            groups: vec![16],
            block_bytes: self.block_bytes,
            slots: SLOTS,
            stride: self.block_bytes,
            offset: 0,
        };
        let to = Connect { socket, region: Some(self.file.as_fd()), patience: Duration::from_secs(30) };
        Ok(Client::connect(to, &hello)?)
    }
}

/// As in agent.py.
fn key(number: u64) -> Vec<u8> {
    let mut key = number.to_le_bytes().repeat(4);
    key.extend([0; 4]);
    key
}

/// Stores blocks `first` and on, each full of its number.
fn put(client: &mut Client, memory: &mut Memory, first: u64, count: u32) -> anyhow::Result<()> {
    for slot in 0..count {
        let number = (first + u64::from(slot)).to_le_bytes();
        memory.slot(slot).as_chunks_mut().0.fill(number);
    }
    let keys: Vec<u8> = (first..first + u64::from(count)).flat_map(key).collect();
    let slots: Vec<u32> = (0..count).collect();
    let after = first.checked_sub(1).map(key);
    client.store(first, after.as_deref(), &keys, &slots)?;
    let outcomes = wait(client)?;
    ensure!(outcomes.iter().all(|o| *o == Outcome::Ok), "stored: {outcomes:?}");
    Ok(())
}

/// The outcomes of the one job there is.
fn wait(client: &mut Client) -> anyhow::Result<Vec<Outcome>> {
    for _ in 0..30 {
        if let Some(ended) = client.poll(Duration::from_secs(1))?.pop() {
            return Ok(ended.outcomes);
        }
    }
    bail!("a job does not end")
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let folder = args.folder.join("kvd-benches-agent");
    calls(setting, args, &folder, &mut verdict, &mut others)?;
    loads(setting, args, &folder, &mut verdict, &mut others)?;
    print_others(&others);
    Ok(verdict)
}

fn calls(
    setting: &Setting,
    args: &Args,
    folder: &Path,
    verdict: &mut Verdict,
    others: &mut Passes,
) -> anyhow::Result<()> {
    let rig = Rig::new(folder, 64 << 20, 0)?;
    let mut memory = Memory::new(SMALL)?;
    let mut client = memory.connect(rig.socket()?)?;
    put(&mut client, &mut memory, 0, BLOCKS)?;
    let lookup = format!("lookup of {} keys", args.keys);
    let rust = [format!("Rust: {lookup}"), "Rust: lease in RAM".to_owned()];
    let python = [
        ("lookup", format!("Python: {lookup}")),
        ("lease", "Python: lease in RAM".to_owned()),
        ("submit", "Python: submit of a load".to_owned()),
        ("poll", "Python: poll of an ended job".to_owned()),
    ];
    let mut results = vec![[Passes::default(), Passes::default()]; rust.len() + python.len()];
    for _ in 0..setting.passes {
        let watch = Watch::start(&[]);
        let own = [lookups(&mut client, args, verdict)?, leases(&mut client, args, verdict)?];
        others.add(watch.others());
        let engine = from_python(rig.socket()?, args, verdict)?;
        let theirs = python.iter().map(|(name, _)| engine.get(*name).context("the engine measured it"));
        let theirs = theirs.collect::<anyhow::Result<Vec<_>>>()?;
        let theirs = theirs.into_iter().map(|nanos| {
            let mut latencies = Latencies::default();
            let nanos = nanos.as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64);
            nanos.for_each(|nanos| latencies.add(Duration::from_nanos(nanos)));
            latencies
        });
        for (result, mut latencies) in results.iter_mut().zip(own.into_iter().chain(theirs)) {
            let [p50, p99] = latencies.percentiles([0.5, 0.99]);
            result[0].add(p50 * 1000.0);
            result[1].add(p99 * 1000.0);
        }
    }
    let mut table = Table::new(["call", "p50 us", "p99 us"]);
    for (what, [p50, p99]) in rust.into_iter().chain(python.map(|p| p.1)).zip(&results) {
        table.row(vec![what, p50.cell(1), p99.cell(1)]);
    }
    table.print();
    drop(client);
    drop(rig);
    std::fs::remove_dir_all(folder).context("remove the folder")
}

fn lookups(client: &mut Client, args: &Args, verdict: &mut Verdict) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    for round in 0..args.rounds as u64 {
        let number = |at: u64| if at.is_multiple_of(16) { at % 64 } else { 1_000_000 + round * 4096 + at };
        let keys: Vec<u8> = (0..args.keys as u64).flat_map(|at| key(number(at))).collect();
        let began = Instant::now();
        let places = client.lookup(&keys)?;
        latencies.add(began.elapsed());
        let right = places.iter().enumerate().all(|(at, place)| (*place != 0) == at.is_multiple_of(16));
        verdict.note((!right || places.len() != args.keys).then(|| "a lookup".to_owned()));
    }
    Ok(latencies)
}

fn leases(client: &mut Client, args: &Args, verdict: &mut Verdict) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    for round in 0..args.rounds as u64 {
        let number = round % u64::from(BLOCKS);
        let name = key(number);
        let began = Instant::now();
        let leases = client.lease(&name)?;
        latencies.add(began.elapsed());
        let mut bytes = [0; 8];
        let read = leases[0].is_some_and(|leased| client.read(leased, &mut bytes));
        verdict.note(differs("a leased block", read.then_some(bytes), Some(number.to_le_bytes())));
        client.release(&leases.into_iter().flatten().collect::<Vec<_>>())?;
    }
    Ok(latencies)
}

fn from_python(
    socket: &Path,
    args: &Args,
    verdict: &mut Verdict,
) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let package = concat!(env!("CARGO_MANIFEST_DIR"), "/../kvtier/python");
    let output = Command::new(&args.python)
        .args(["-c", include_str!("agent.py")])
        .arg(socket)
        .args([args.rounds.to_string(), args.keys.to_string(), SMALL.to_string()])
        .env("PYTHONPATH", package)
        .output()
        .context("run python")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut said: serde_json::Value = serde_json::from_slice(&output.stdout).context("read what it said")?;
    let count = |name: &str| said[name].as_u64().unwrap_or(0);
    let (checked, wrong) = (count("checked"), count("wrong"));
    verdict.merge(Verdict { checked, wrong, first: (wrong > 0).then(|| "from Python".to_owned()) });
    match said["took"].take() {
        serde_json::Value::Object(took) => Ok(took),
        other => bail!("{other} for what calls took"),
    }
}

fn loads(
    setting: &Setting,
    args: &Args,
    folder: &Path,
    verdict: &mut Verdict,
    others: &mut Passes,
) -> anyhow::Result<()> {
    let bytes = (args.mib as u64) << 20;
    let count = bytes / LARGE as u64;
    let rig = Rig::new(folder, 0, bytes + bytes / 4)?;
    let mut memory = Memory::new(LARGE)?;
    let mut client = memory.connect(rig.socket()?)?;
    for first in (0..count).step_by(SLOTS as usize) {
        put(&mut client, &mut memory, first, SLOTS.min((count - first) as u32))?;
        rig.node.commit()?;
    }
    let counted = |client: &mut Client, name: &str| -> anyhow::Result<u64> {
        let stats = client.stats()?;
        stats.into_iter().find(|(n, _)| n == name).map(|(_, count)| count).context("the agent counts it")
    };
    let (mut rate, mut copied) = (Passes::default(), Passes::default());
    for _ in 0..setting.passes {
        let before = [counted(&mut client, "pool_copied_bytes")?, counted(&mut client, "loaded_bytes")?];
        let watch = Watch::start(&[]);
        let began = Instant::now();
        let mut waited = Duration::ZERO;
        for first in (0..count).step_by(SLOTS as usize) {
            let part = SLOTS.min((count - first) as u32);
            let keys: Vec<u8> = (first..first + u64::from(part)).flat_map(key).collect();
            client.load(first, &keys, &(0..part).collect::<Vec<u32>>())?;
            let outcomes = wait(&mut client)?;
            // Comparing is not part of what is timed.
            let checking = Instant::now();
            for (slot, outcome) in outcomes.into_iter().enumerate() {
                let number = (first + slot as u64).to_le_bytes();
                let right = memory.slot(slot as u32).as_chunks().0.iter().all(|word| *word == number);
                verdict.note(
                    (outcome != Outcome::Ok || !right).then(|| format!("block {}", first + slot as u64)),
                );
            }
            waited += checking.elapsed();
        }
        let took = (began.elapsed() - waited).as_secs_f64();
        others.add(watch.others());
        rate.add(args.mib as f64 / took);
        let after = [counted(&mut client, "pool_copied_bytes")?, counted(&mut client, "loaded_bytes")?];
        let loaded = after[1] - before[1];
        verdict.note(differs("bytes loaded", loaded, bytes));
        copied.add((after[0] - before[0]) as f64 / loaded as f64);
    }
    println!();
    let mut table = Table::new(["loads from disk", "MiB/s", "bytes copied per byte"]);
    table.row(vec![format!("{} KiB blocks, {SLOTS} a job", LARGE >> 10), rate.cell(0), copied.cell(3)]);
    table.print();
    drop(client);
    drop(rig);
    std::fs::remove_dir_all(folder).context("remove the folder")
}
