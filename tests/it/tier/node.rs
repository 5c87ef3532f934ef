//! A running `kvd tier`, an engine of its node, and kvctl.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvtier::agent::{Client, Connect, Hello, Outcome, VERSION};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::signal;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const SLOTS: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `kvd tier`, killed when dropped.
pub struct Node {
    child: Child,
    name: String,
    pub grpc: String,
    pub http: String,
    /// Where model `m` is published and replayed.
    pub publish: String,
    pub replay: String,
    pub socket: PathBuf,
    /// Where other nodes pull from it; empty where they may not.
    pub pull: String,
}

impl Node {
    /// Starts node `n1` with its files in `folder` and `more` at the end of its configuration.
    pub fn start(folder: &Path, more: &str) -> Node {
        Node::start_as("n1", folder, more)
    }

    /// The same under another name.
    pub fn start_as(name: &str, folder: &Path, more: &str) -> Node {
        let socket = folder.join("socket");
        let config = folder.join("tier.toml");
        let text = format!(
            "node = {name:?}\nfolder = {folder:?}\nsocket = {socket:?}\nram = \"128KiB\"\ndisk = \"1MiB\"\n\
             http_listen = \"127.0.0.1:0\"\ngrpc_listen = \"127.0.0.1:0\"\n{more}\n\
             [[model]]\nname = \"m\"\npublish = \"tcp://127.0.0.1:*\"\nreplay = \"tcp://127.0.0.1:*\"\n"
        );
        std::fs::write(&config, text).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvd"))
            .args(["tier", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("kvd tier starts");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = String::new();
        while !lines.contains("replay=") {
            assert!(out.read_line(&mut lines).expect("text") > 0, "it ended with {lines:?}");
        }
        let found = |name: &str| lines.split_whitespace().find_map(|word| word.strip_prefix(name));
        let word = |name| found(name).unwrap_or_else(|| panic!("{name} in {lines:?}")).to_owned();
        let (grpc, http, pull) =
            (word("grpc="), word("http="), found("pull=").unwrap_or_default().to_owned());
        let (publish, replay) = (word("publish="), word("replay="));
        let node = Node { child, name: name.to_owned(), grpc, http, publish, replay, socket, pull };
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        until("the disk is read", || {
            let ready = agent.get(format!("http://{}/readyz", node.http)).call();
            ready.is_ok_and(|answer| answer.status() == 200)
        });
        node
    }

    /// The body of its registration with kvd.
    pub fn registration(&self) -> Value {
        let mut body = registration(&self.name, &self.publish, &self.replay);
        body["control_endpoint"] = self.grpc.as_str().into();
        if !self.pull.is_empty() {
            body["pull_endpoint"] = self.pull.as_str().into();
        }
        body
    }

    pub fn metrics(&self) -> String {
        let answer = ureq::get(format!("http://{}/metrics", self.http)).call().expect("metrics");
        answer.into_body().read_to_string().expect("text")
    }

    /// What kvctl says to it, and whether it is content.
    pub fn kvctl(&self, args: &[&str]) -> (bool, String) {
        let mut kvctl = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        let done = kvctl.args(args).env("KVD_TIER_GRPC", &self.grpc).output().expect("kvctl runs");
        (done.status.success(), String::from_utf8(done.stdout).expect("text"))
    }

    /// The same where `what` is asked of blocks of model `m`.
    pub fn kvctl_on(&self, what: &[&str], numbers: &[u64]) -> (bool, String) {
        let names: Vec<String> = numbers.iter().copied().map(hex).collect();
        let names = names.iter().map(String::as_str);
        let args: Vec<&str> = what.iter().copied().chain(["--model", "m"]).chain(names).collect();
        self.kvctl(&args)
    }

    /// What one of its metrics stands at.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().expect("a number")
    }

    /// The only pool, as `kvctl tiers` has it.
    pub fn usage(&self) -> Value {
        let (content, said) = self.kvctl(&["--json", "tiers"]);
        assert!(content, "{said}");
        serde_json::from_str(&said).expect("one pool")
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Stops it where it is, for ever.
    pub fn pause(&self) {
        signal(self.child.id(), Signal::STOP);
    }

    /// Tells it to stop and waits until it has; it must say that all is well.
    pub fn stop(mut self) {
        signal(self.child.id(), Signal::TERM);
        let ended = self.child.wait().expect("ends");
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What registers a node's tiers of model `m` with kvd, where they are only listened to.
pub fn registration(node: &str, publish: &str, replay: &str) -> Value {
    json!({"type": "kvtier", "modelname": "m", "instance_id": node, "dp_rank": 0, "node": node,
        "endpoint": publish, "replay_endpoint": replay})
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An engine's whole hash: events tell its last eight bytes.
pub fn hash(number: u64) -> Vec<u8> {
    [&[0xa5; 24][..], &number.to_be_bytes()].concat()
}

/// The same as kvctl takes it.
fn hex(number: u64) -> String {
    hash(number).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn payload(number: u64) -> Vec<u8> {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().repeat(BLOCK / 8)
}

fn keys(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| [hash(*number), vec![0; 4]].concat()).collect()
}

/// An engine of model `m` on the node: its memory, and its session with the agent.
pub struct Pod {
    client: Client,
    memory: std::fs::File,
    job: u64,
}

impl Pod {
    pub fn connect(node: &Node) -> Pod {
        let memory: OwnedFd =
            memfd_create("engine", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        ftruncate(&memory, u64::from(SLOTS) * BLOCK as u64).expect("memory");
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::SEAL).expect("sealed");
        let hello = Hello {
            version: VERSION,
            features: 0,
            engine: "test",
            model: "m",
            salt: "",
            fingerprint: 7,
            hash_bytes: 32,
            groups: vec![16],
            block_bytes: BLOCK,
            slots: SLOTS,
            stride: BLOCK,
            offset: 0,
        };
        let to = Connect { socket: &node.socket, region: Some(memory.as_fd()), patience: PATIENCE };
        let client = Client::connect(to, &hello).expect("a session");
        Pod { client, memory: memory.into(), job: 0 }
    }

    fn finish(&mut self) -> Vec<Outcome> {
        loop {
            for ended in self.client.poll(PATIENCE).expect("the agent lives") {
                if ended.job == self.job {
                    return ended.outcomes;
                }
            }
        }
    }

    /// Stores a chain; all of it must be taken.
    pub fn store(&mut self, numbers: &[u64]) {
        for (slot, number) in numbers.iter().enumerate() {
            self.memory.write_all_at(&payload(*number), (slot * BLOCK) as u64).expect("written");
        }
        self.job += 1;
        let slots: Vec<u32> = (0..numbers.len() as u32).collect();
        self.client.store(self.job, None, &keys(numbers), &slots).expect("asked");
        assert_eq!(self.finish(), vec![Outcome::Ok; numbers.len()]);
    }

    /// Loads blocks, and checks the bytes of those that came.
    pub fn load(&mut self, numbers: &[u64]) -> Vec<Outcome> {
        self.job += 1;
        let slots: Vec<u32> = (0..numbers.len() as u32).collect();
        self.client.load(self.job, &keys(numbers), &slots).expect("asked");
        let outcomes = self.finish();
        for (slot, (number, outcome)) in numbers.iter().zip(&outcomes).enumerate() {
            let mut bytes = vec![0; BLOCK];
            self.memory.read_exact_at(&mut bytes, (slot * BLOCK) as u64).expect("read");
            assert!(*outcome != Outcome::Ok || bytes == payload(*number), "wrong bytes of {number}");
        }
        outcomes
    }
}
