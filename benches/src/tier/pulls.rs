//! `pulls`: how fast do blocks come from another node's RAM, beside the bytes alone over TCP?
//!
//! Two nodes in this process, and one connection on loopback, in turns: bytes of the same size that one
//! thread writes and another reads, and a pull of as many blocks, which are found by 64 bits of their
//! names, verified on both sides and kept in RAM. Loopback has no wire: what is compared is what the
//! processors do. Every block that was pulled is read again and compared.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvtier::node::{Node, NodeConfig, PoolId, Publish, Stored, Tiers};
use kvtier::policy::{Config, Owner};
use kvtier::pull::{PullConfig, Puller, Secret, Source, SourceConfig, Wish};
use kvtier::store::{Backend, Get, Put, Read, StoreKey};

use super::Rounds;
use crate::Setting;
use crate::machine::Watch;
use crate::report::{Passes, Table, Verdict, print_others};

/// MiB in each round, unless asked for otherwise.
const MIB: usize = 256;
const MODEL: &str = "m";
const FINGERPRINT: u128 = 7;
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Debug)]
struct Nobody;

impl Publish for Nobody {
    fn publish(&self, _: u32, _: u64, _: &[u8]) {}
}

/// A node with RAM alone.
fn open(folder: &Path, name: &str, ram_bytes: u64) -> anyhow::Result<Arc<Node>> {
    let began = Instant::now();
    let config = NodeConfig {
        name: name.to_owned(),
        folder: folder.join(name),
        ram_bytes,
        disk_bytes: 0,
        pools: 1,
        backend: Backend::Auto,
        policy: Config::default(),
        patience: Duration::from_millis(100),
        clock: Arc::new(move || began.elapsed().as_millis() as u64),
        shared: None,
    };
    let node = Node::open(config, Arc::new(Nobody)).context("open a node")?;
    node.recover().context("open a node")?;
    node.name_model(FINGERPRINT, MODEL).context("name a model")?;
    Ok(Arc::new(node))
}

fn key(block: u64) -> StoreKey {
    StoreKey::new(FINGERPRINT, 0, &block.to_be_bytes()).expect("8 bytes are a hash")
}

fn payload(block: u64, bytes: usize) -> Vec<u8> {
    (block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().repeat(bytes / 8)
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new(["KiB", "bytes alone, MiB/s", "pulls, MiB/s", "of bytes alone"]);
    let folder = args.rounds.folder.join("kvd-benches-pulls");
    let mib = args.rounds.mib.unwrap_or(MIB);
    for kib in &args.rounds.kib {
        let (bytes, count) = (kib << 10, ((mib << 10) / kib).max(1) as u64);
        let rig = Rig::new(&folder, bytes, count)?;
        let (mut alone, mut pulls) = (Passes::default(), Passes::default());
        // The first round is not counted: memory that was never touched is slower.
        for pass in 0..=setting.passes {
            let watch = Watch::start(&[]);
            let took = [bytes_alone(bytes, count)?, rig.pull(&mut verdict)?];
            if pass > 0 {
                let rate =
                    |took: Duration| (bytes as u64 * count) as f64 / took.as_secs_f64() / (1 << 20) as f64;
                alone.add(rate(took[0]));
                pulls.add(rate(took[1]));
                others.add(watch.others());
            }
        }
        let part = format!("{:.0} %", 100.0 * pulls.median() / alone.median());
        table.row(vec![kib.to_string(), alone.cell(0), pulls.cell(0), part]);
        drop(rig);
        std::fs::remove_dir_all(&folder).context("remove the folder")?;
    }
    table.print();
    print_others(&others);
    Ok(verdict)
}

/// As many bytes, from one thread to another.
fn bytes_alone(bytes: usize, count: u64) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr().context("listen")?;
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let block = payload(0, bytes);
        // As a pull does, it begins when it is asked.
        stream.read_exact(&mut [0])?;
        (0..count).try_for_each(|_| stream.write_all(&block))
    });
    let mut stream = TcpStream::connect(address).context("connect")?;
    let mut block = vec![0; bytes];
    let began = Instant::now();
    stream.write_all(&[0]).context("ask")?;
    for _ in 0..count {
        stream.read_exact(&mut block).context("read")?;
    }
    let took = began.elapsed();
    writing.join().expect("does not panic").context("write")?;
    Ok(took)
}

struct Rig {
    here: Arc<Node>,
    pool: PoolId,
    puller: Puller,
    source: Source,
    bytes: usize,
    count: u64,
}

impl Rig {
    fn new(folder: &Path, bytes: usize, count: u64) -> anyhow::Result<Rig> {
        std::fs::create_dir_all(folder).context("make the folder")?;
        let all = bytes as u64 * count;
        // Half of RAM is the most that is pulled.
        let (there, here) = (open(folder, "there", all)?, open(folder, "here", 2 * all)?);
        let pool = there.pool(bytes).context("make a pool")?;
        let mut after = None;
        for block in 0..count {
            let put = Put { key: key(block), after, owner: Owner(0), payload: &payload(block, bytes) };
            ensure!(there.store(pool, &[put]) == [Stored::Kept], "block {block} was not kept");
            after = Some(key(block).id());
        }
        let secret = Secret::new(b"known to both nodes").context("a secret")?;
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let config = SourceConfig { secret: secret.clone(), connections: 1, patience: PATIENCE };
        let source = Source::start(there, listener, config).context("give blocks")?;
        let config = PullConfig {
            secret,
            workers: 1,
            patience: PATIENCE,
            longest: PATIENCE * 6,
            ..PullConfig::default()
        };
        let puller = Puller::start(here.clone(), config).context("pull")?;
        let pool = here.pool(bytes).context("make a pool")?;
        Ok(Rig { here, pool, puller, source, bytes, count })
    }

    fn pull(&self, verdict: &mut Verdict) -> anyhow::Result<Duration> {
        let wish = Wish {
            source: self.source.address().to_string(),
            model: MODEL.to_owned(),
            hashes: (0..self.count).collect(),
            only: Default::default(),
            stay: 0,
        };
        let began = Instant::now();
        let said = self.puller.wish(wish).context("too many wait")?;
        let pulled = said.recv().context("the puller ended")?;
        let took = began.elapsed();
        ensure!(pulled.blocks == self.count, "{pulled:?} of {} blocks", self.count);
        let mut into = vec![0; self.bytes];
        for block in 0..self.count {
            let read = self.here.load(self.pool, &mut [Get { key: key(block), into: &mut into }]);
            let right = read == [Read::Hit] && into == payload(block, self.bytes);
            verdict.note((!right).then(|| format!("block {block}: {read:?}")));
        }
        let keys: Vec<StoreKey> = (0..self.count).map(key).collect();
        self.here.evict(self.pool, &keys);
        Ok(took)
    }
}
