//! The agent with real sockets and real shared memory, and its parts by themselves.

mod frames;
mod gate;
mod hostile;
mod serve;
mod session;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::frame::{Hello, Outcome, VERSION, features};
use super::region::{Region, Shape};
use super::{Agent, Bounds, Client, Config, Connect};
use crate::node::Tiers;

/// Bytes of a block in these tests.
const BLOCK: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine's memory.
struct Memory {
    file: OwnedFd,
    region: Region,
}

const SLOTS: u32 = 64;

impl Memory {
    fn new(seals: SealFlags) -> Memory {
        let file = memfd_create("engine", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, u64::from(SLOTS) * BLOCK as u64).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        let shape = Shape { slots: SLOTS, stride: BLOCK, block_bytes: BLOCK, offset: 0 };
        let region = Region::map(file.try_clone().unwrap(), shape).unwrap();
        Memory { file, region }
    }

    fn sealed() -> Memory {
        Memory::new(SealFlags::SHRINK | SealFlags::SEAL)
    }

    fn fill(&self, slot: u32, bytes: &[u8]) {
        // SAFETY: tests touch a slot only while no job does.
        unsafe { self.region.slot_mut(slot) }.copy_from_slice(bytes);
    }

    fn bytes(&self, slot: u32) -> Vec<u8> {
        // SAFETY: tests touch a slot only while no job does.
        unsafe { self.region.slot(slot) }.to_vec()
    }
}

/// Block `n`'s key.
fn key(n: u32) -> Vec<u8> {
    let mut key = vec![0xa5; 28];
    key.extend(n.to_le_bytes());
    key.extend(0u32.to_be_bytes());
    key
}

fn keys(blocks: impl IntoIterator<Item = u32>) -> Vec<u8> {
    blocks.into_iter().flat_map(key).collect()
}

/// What block `n` holds: the oracle of all tests here.
fn payload(n: u32) -> Vec<u8> {
    let mut x = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    (0..BLOCK / 8).flat_map(word).collect()
}

fn hello(slots: u32) -> Hello<'static> {
    Hello {
        version: VERSION,
        features: features::LEASES,
        engine: "test",
        model: "llama",
        salt: "",
        fingerprint: 7,
        hash_bytes: 32,
        groups: vec![16],
        block_bytes: BLOCK,
        slots,
        stride: BLOCK,
        offset: 0,
    }
}

struct Place {
    // Before the folder that its socket is in.
    agent: Option<Agent>,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(tiers: Arc<dyn Tiers>) -> Place {
        Place::with(tiers, |_| {})
    }

    fn with(tiers: Arc<dyn Tiers>, change: impl FnOnce(&mut Config)) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::at(folder.path().join("agent.sock"));
        config.workers = 4;
        config.bounds = Bounds { jobs: 64, leases: 32, lease_ms: 60_000, region_bytes: 1 << 30 };
        change(&mut config);
        let agent = Some(Agent::start(tiers, config).unwrap());
        Place { agent, folder }
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    fn connect(&self, memory: &Memory) -> Client {
        self.try_connect(&hello(SLOTS), Some(memory)).unwrap()
    }

    fn try_connect(&self, hello: &Hello<'_>, memory: Option<&Memory>) -> Result<Client, super::ClientError> {
        let socket = self.socket();
        let region = memory.map(|memory| memory.file.as_fd());
        Client::connect(Connect { socket: &socket, region, patience: PATIENCE }, hello)
    }
}

/// Waits until `job` has ended.
fn wait(client: &mut Client, job: u64) -> Vec<Outcome> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        for ended in client.poll(Duration::from_secs(1)).unwrap() {
            if ended.job == job {
                return ended.outcomes;
            }
        }
    }
    panic!("job {job} does not end");
}

/// Waits until something holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}
