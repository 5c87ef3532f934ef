//! A kvd of one's own, and engines that publish recorded messages to it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvd::ctl::engine_sim::{EngineSim, SimConfig};
use kvd::ctl::kvcap::{self, Record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long anything may take before a test gives up; never part of what is tested.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a signal to a process of the test's own. There need be no program `kill`.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, signal).expect("it has not ended");
}

/// A running `kvd serve`, killed when dropped.
pub struct Kvd {
    child: Child,
    pub http: String,
    pub grpc: String,
    pub data: PathBuf,
}

impl Kvd {
    /// Starts kvd on free ports with `data` as its data directory.
    pub fn start(data: &Path) -> Kvd {
        Kvd::start_with(data, &[])
    }

    /// The same with more arguments.
    pub fn start_with(data: &Path, more: &[&str]) -> Kvd {
        Kvd::start_by(Command::new(env!("CARGO_BIN_EXE_kvd")), data, more)
    }

    /// The same by a command that runs what it is given.
    pub fn start_by(mut command: Command, data: &Path, more: &[&str]) -> Kvd {
        command.args(serve(data, more));
        Kvd::spawn_here(command, data)
    }

    fn spawn(mut command: Command, data: &Path) -> Kvd {
        command.arg("--data-dir").arg(data);
        Kvd::spawn_here(command, data)
    }

    /// The same without looking whether it is healthy: it may not answer just anybody.
    pub fn start_blind(data: &Path, more: &[&str]) -> Kvd {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
        command.args(serve(data, more));
        Kvd::spawn_blind(command, data)
    }

    fn spawn_here(command: Command, data: &Path) -> Kvd {
        let kvd = Kvd::spawn_blind(command, data);
        kvd.wait("kvd to be healthy", || kvd.try_get("/healthz").is_some());
        kvd
    }

    fn spawn_blind(mut command: Command, data: &Path) -> Kvd {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start kvd");
        let (mut http, mut grpc) = (None, None);
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        while http.is_none() || grpc.is_none() {
            let line = lines.next().expect("kvd prints its addresses").expect("text");
            for word in line.split_whitespace() {
                if let Some(address) = word.strip_prefix("grpc=") {
                    grpc = Some(address.to_owned());
                } else if let Some(address) = word.strip_prefix("http=") {
                    http = Some(address.to_owned());
                }
            }
        }
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Kvd { child, http: http.expect("set"), grpc: grpc.expect("set"), data: data.to_owned() }
    }

    /// Kills it as a crash would and starts another on the same data.
    pub fn crash_and_restart(mut self) -> Kvd {
        self.crash();
        Kvd::start(&self.data.clone())
    }

    /// Kills it as a crash would.
    pub fn crash(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Tells it to stop, as Kubernetes does, and waits until it has; it must say that all is well.
    pub fn stop(&mut self) {
        signal(self.pid(), Signal::TERM);
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}");
    }

    /// Starts kvd on ports that are known beforehand, as a replica among `peers`.
    pub fn replica(folder: &Path, grpc: &str, peers: &[String], more: &str) -> Kvd {
        std::fs::create_dir_all(folder).expect("a directory");
        let config = folder.join("kvd.toml");
        let addresses = serde_json::to_string(peers).expect("text");
        std::fs::write(
            &config,
            format!("{more}\n[peers]\naddresses = {addresses}\ncompare_every = \"300ms\"\n"),
        )
        .expect("write");
        let more = ["--config", config.to_str().expect("text"), "--grpc-listen", grpc];
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
        command.args(["serve", "--http-listen", "127.0.0.1:0"]).args(more);
        Kvd::spawn(command, &folder.join("data"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let text = text.as_str().expect("text");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is exported")).parse().expect("a number")
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("alive");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a VmRSS line");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        kib * 1024
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    fn try_get(&self, path: &str) -> Option<Value> {
        let text =
            ureq::get(format!("http://{}{path}", self.http)).call().ok()?.body_mut().read_to_string().ok()?;
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub fn get(&self, path: &str) -> Value {
        self.try_get(path).unwrap_or_else(|| panic!("GET {path} answers"))
    }

    /// Status and body of a POST, whatever the status.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let agent =
            ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let mut answer = agent
            .post(format!("http://{}{path}", self.http))
            .header("content-type", "application/json")
            .send(body)
            .expect("an answer");
        let text = answer.body_mut().read_to_string().expect("text");
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (answer.status().as_u16(), json)
    }

    /// A POST that must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    /// The status of one publisher.
    pub fn publisher(&self, instance: &str) -> Option<Value> {
        let all = self.get("/publishers");
        all.as_array().expect("an array").iter().find(|p| p["instance_id"] == instance).cloned()
    }

    /// Waits until `ready`, or fails saying what for.
    pub fn wait(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for_seq(&self, instance: &str, seq: u64) {
        self.wait(&format!("{instance} to reach batch {seq}"), || {
            self.publisher(instance).is_some_and(|p| p["last_seq"] == seq)
        });
    }
}

/// The arguments of a kvd on free ports, but where `more` names one.
pub fn serve<'a>(data: &'a Path, more: &'a [&'a str]) -> Vec<&'a OsStr> {
    const LISTEN: [&str; 6] =
        ["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--data-dir"];
    let own = LISTEN.iter().map(OsStr::new).chain([data.as_os_str()]);
    let mut arguments: Vec<&OsStr> = own.chain(more.iter().map(OsStr::new)).collect();
    if more.contains(&"--grpc-listen") {
        arguments.drain(1..3);
    }
    arguments
}

impl Drop for Kvd {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An engine that publishes what was recorded.
pub struct Engine {
    pub sim: EngineSim,
    pub instance: String,
}

impl Engine {
    pub fn open(instance: &str) -> Engine {
        Engine {
            sim: EngineSim::open(&SimConfig::local()).expect("free ports"),
            instance: instance.to_owned(),
        }
    }

    /// The body of its registration.
    pub fn registration(&self, kind: &str, block_size: u32) -> Value {
        json!({
            "endpoint": self.sim.endpoint(),
            "replay_endpoint": self.sim.replay_endpoint(),
            "type": kind,
            "modelname": "m",
            "instance_id": self.instance,
            "block_size": block_size,
            "dp_rank": 0,
        })
    }

    /// Registers with kvd and waits until it listens.
    pub fn register(&mut self, kvd: &Kvd, kind: &str, block_size: u32) {
        kvd.ok("/register", &self.registration(kind, block_size));
        self.wait_for_subscriber();
    }

    /// The same as an engine on `node`, whose blocks are of 16 tokens.
    pub fn register_on(&mut self, kvd: &Kvd, node: &str) {
        let mut registration = self.registration("vLLM", 16);
        registration["node"] = node.into();
        kvd.ok("/register", &registration);
        self.wait_for_subscriber();
    }

    pub fn wait_for_subscriber(&mut self) {
        assert!(
            self.sim.wait_for_subscriber(PATIENCE).expect("sockets"),
            "kvd subscribes to {}",
            self.instance
        );
    }

    pub fn publish(&mut self, records: &[Record]) {
        for r in records {
            self.sim.publish(r).expect("publish");
        }
    }
}

/// Writes a small file for a configuration to name. Its path.
pub fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// The directory of committed recordings.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures")
}

/// The messages of one recorded stream.
pub fn stream(name: &str) -> Vec<Record> {
    kvcap::read(&fixtures().join(name)).expect("a committed recording")
}

/// A payload with one store of consecutive root blocks, as vLLM 0.32 writes it.
pub fn stored_payload(ts: f64, first_hash: u64, tokens: &[u32], block_size: u32) -> Vec<u8> {
    let blocks = tokens.len() as u64 / u64::from(block_size);
    let hashes: Vec<u64> = (0..blocks).map(|i| first_hash + i).collect();
    let event = json!({
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": null, "token_ids": tokens,
        "block_size": block_size, "lora_id": null, "medium": "GPU", "lora_name": null,
    });
    rmp_serde::to_vec(&json!([ts, [event], 0])).expect("encodes")
}

/// A message as an engine would send it.
pub fn record(seq: u64, payload: Vec<u8>) -> Record {
    Record { topic: Vec::new(), seq: seq.to_be_bytes().to_vec(), payload, received_ns: 0 }
}
