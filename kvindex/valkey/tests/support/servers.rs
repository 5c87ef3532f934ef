//! Real servers on loopback, in a temporary directory.
//!
//! `redis-server` or `valkey-server` must be installed; where neither is, tests say so and end.

#![allow(dead_code, reason = "each test uses some of it")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvindex_valkey::Config;
use redis::{Cmd, FromRedisValue, cmd};

/// The longest a cluster may take to agree.
const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds without an answer after which a node counts as failed.
const NODE_TIMEOUT: u32 = 1000;

/// Some servers, which end with it.
pub struct Servers {
    nodes: Vec<Node>,
    masters: usize,
    dir: tempfile::TempDir,
    program: &'static str,
    more: Vec<String>,
}

struct Node {
    port: u16,
    bus: u16,
    child: Child,
}

impl Servers {
    /// A cluster of `masters` and as many replicas each as given; with one master and no replica, a server
    /// alone. `None` where no server is installed, which is told.
    pub async fn start(masters: usize, replicas_each: usize) -> Option<Servers> {
        let mut servers = Servers::spawn_all(masters, replicas_each, &[])?;
        for at in 0..servers.nodes.len() {
            servers.comes_up(at).await;
        }
        if servers.nodes.len() > 1 {
            servers.form(masters).await;
        }
        Some(servers)
    }

    /// One server with more options, which may not answer just anybody.
    pub fn guarded(more: &[&str]) -> Option<Servers> {
        Servers::spawn_all(1, 0, more)
    }

    fn spawn_all(masters: usize, replicas_each: usize, more: &[&str]) -> Option<Servers> {
        let found = ["valkey-server", "redis-server"].into_iter().find(|p| runs(p));
        let Some(program) = found else {
            assert!(
                std::env::var_os("KVD_NEED_VALKEY").is_none(),
                "neither valkey-server nor redis-server runs"
            );
            eprintln!(
                "SKIPPED: neither valkey-server nor redis-server is installed (apt-get install redis-server)"
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        // An option's words are words of the command line.
        let more: Vec<String> = more.iter().flat_map(|o| o.split(' ')).map(str::to_owned).collect();
        let mut servers = Servers { nodes: Vec::new(), masters, dir, program, more };
        for _ in 0..masters * (1 + replicas_each) {
            let node = servers.node(masters + replicas_each > 1);
            servers.nodes.push(node);
        }
        Some(servers)
    }

    fn node(&self, cluster: bool) -> Node {
        let (port, bus) = (free_port(), free_port());
        let child = spawn(self.program, self.dir.path(), port, cluster.then_some(bus), &self.more);
        Node { port, bus, child }
    }

    /// Waits until a node answers. What was a free port may be another's by the time it is wanted: then the node ends,
    /// whoever has the port may answer in its place, and it is started at another.
    async fn comes_up(&mut self, at: usize) {
        let began = Instant::now();
        loop {
            let pid = format!("process_id:{}\r", self.nodes[at].child.id());
            match self.ask::<String>(at, cmd("INFO").arg("server")).await {
                Ok(info) if info.contains(&pid) => return,
                answer => assert!(began.elapsed() < PATIENCE, "node {at} does not come up: {answer:?}"),
            }
            if self.nodes[at].child.try_wait().expect("a child").is_some() {
                let node = self.node(self.nodes.len() > 1);
                self.nodes[at] = node;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    async fn form(&self, masters: usize) {
        for at in 0..masters {
            let (from, to) = (16384 * at / masters, 16384 * (at + 1) / masters - 1);
            self.ask::<()>(at, cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(from).arg(to)).await.expect("slots");
            self.ask::<()>(at, cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(at + 1)).await.expect("an epoch");
        }
        for node in &self.nodes[1..] {
            let meet = cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(node.port).arg(node.bus).take();
            self.ask::<()>(0, &meet).await.expect("a meeting");
        }
        let all = self.nodes.len();
        for at in 0..all {
            self.until(at, cmd("CLUSTER").arg("INFO"), |info: &String| {
                info.contains(&format!("cluster_known_nodes:{all}")) && info.contains("cluster_state:ok")
            })
            .await;
        }
        for at in masters..all {
            let id: String = self.ask(at % masters, cmd("CLUSTER").arg("MYID")).await.expect("an id");
            self.until(at, cmd("CLUSTER").arg("REPLICATE").arg(id), |ok: &String| ok == "OK").await;
            self.until(at, cmd("INFO").arg("replication"), |info: &String| {
                info.contains("master_link_status:up")
            })
            .await;
        }
        // Everyone must have heard who replicates whom, or a failover finds no voters.
        for at in 0..all {
            self.until(at, cmd("CLUSTER").arg("NODES"), |nodes: &String| {
                nodes.matches("slave").count() == all - masters
            })
            .await;
        }
    }

    /// Their processes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    /// How to reach them.
    pub fn config(&self, namespace: &str) -> Config {
        Config {
            urls: self.nodes.iter().map(|n| format!("redis://127.0.0.1:{}", n.port)).collect(),
            single: self.nodes.len() == 1,
            namespace: namespace.to_owned(),
            lease: Duration::from_secs(3),
            ..Config::default()
        }
    }

    /// Ends a node as a power cut would.
    pub fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.child.kill().and_then(|()| node.child.wait()).expect("a node that runs");
    }

    /// Starts a node that was killed, with nothing but its place in the cluster.
    pub fn restart(&mut self, at: usize) {
        let (port, bus) = (self.nodes[at].port, self.nodes[at].bus);
        let cluster = (self.nodes.len() > 1).then_some(bus);
        self.nodes[at].child = spawn(self.program, self.dir.path(), port, cluster, &self.more);
    }

    /// Waits until the nodes left agree that one is gone, and that all slots are served by as many masters as before.
    pub async fn healed(&self, without: usize) {
        let gone = format!(":{}@", self.nodes[without].port);
        for at in (0..self.nodes.len()).filter(|at| *at != without) {
            self.until(at, cmd("CLUSTER").arg("NODES"), |nodes: &String| {
                let live = |l: &&str| l.contains("master") && !l.contains("fail") && l.split(' ').count() > 8;
                let noticed = nodes.lines().any(|l| l.contains(&gone) && l.contains("fail"));
                noticed && nodes.lines().filter(live).count() == self.masters
            })
            .await;
            self.until(at, cmd("CLUSTER").arg("INFO"), |i: &String| i.contains("cluster_state:ok")).await;
        }
    }

    /// Which of the first masters has a key.
    pub async fn owner_of(&self, key: &str) -> usize {
        let slot: usize = self.ask(0, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await.expect("a slot");
        (0..self.masters).find(|at| slot < 16384 * (at + 1) / self.masters).expect("a slot in range")
    }

    /// Gives a slot and all that is in it to another node while both serve, as `redis-cli --cluster rebalance` does,
    /// with a pause after each step. Returns how many keys moved.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize, pause: Duration) -> usize {
        let mut ids = Vec::new();
        for at in [from, to] {
            ids.push(self.ask::<String>(at, cmd("CLUSTER").arg("MYID")).await.expect("an id"));
        }
        for (at, word, id) in [(to, "IMPORTING", &ids[0]), (from, "MIGRATING", &ids[1])] {
            let set = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(word).arg(id).take();
            self.ask::<()>(at, &set).await.expect("a slot that moves");
        }
        let mut moved = 0;
        loop {
            tokio::time::sleep(pause).await;
            let one = cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(1).take();
            let keys: Vec<String> = self.ask(from, &one).await.expect("keys");
            let Some(key) = keys.first() else { break };
            let there = ["127.0.0.1".to_owned(), self.nodes[to].port.to_string(), key.clone()];
            let migrate = cmd("MIGRATE").arg(&there).arg(0).arg(5000).take();
            self.ask::<String>(from, &migrate).await.expect("a key that moves");
            moved += 1;
        }
        for at in [to, from].into_iter().chain((0..self.nodes.len()).filter(|at| *at != to && *at != from)) {
            let set = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("NODE").arg(&ids[1]).take();
            self.ask::<()>(at, &set).await.expect("a slot that has moved");
        }
        moved
    }

    /// The slots of one node that have keys.
    pub async fn slots_in_use(&self, at: usize) -> Vec<u16> {
        let keys: Vec<String> = self.ask(at, cmd("KEYS").arg("*")).await.expect("keys");
        let mut slots = Vec::new();
        for key in keys {
            slots.push(self.ask(at, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await.expect("a slot"));
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Asks one node.
    pub async fn ask<T: FromRedisValue>(&self, at: usize, what: &Cmd) -> redis::RedisResult<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.nodes[at].port))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        what.query_async(&mut connection).await
    }

    async fn until<T: FromRedisValue>(&self, at: usize, what: impl AsCmd, ok: impl Fn(&T) -> bool) {
        let (began, what) = (Instant::now(), what.take_cmd());
        loop {
            match self.ask::<T>(at, &what).await {
                Ok(answer) if ok(&answer) => return,
                _ if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(30)).await,
                Ok(_) => panic!("node {at} never answered {what:?} as hoped"),
                Err(e) => panic!("node {at} answered {what:?}: {e}"),
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// A command, built in either way.
trait AsCmd {
    fn take_cmd(self) -> Cmd;
}

impl AsCmd for Cmd {
    fn take_cmd(self) -> Cmd {
        self
    }
}

impl AsCmd for &mut Cmd {
    fn take_cmd(self) -> Cmd {
        self.take()
    }
}

fn runs(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|s| s.success())
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    socket.expect("a free port").port()
}

fn spawn(program: &str, dir: &Path, port: u16, bus: Option<u16>, more: &[String]) -> Child {
    let own = dir.join(port.to_string());
    std::fs::create_dir_all(&own).expect("a directory for the node");
    let log = std::fs::File::create(own.join("log")).expect("a log");
    let mut command = Command::new(program);
    command.current_dir(&own).stdout(log).stderr(Stdio::null()).stdin(Stdio::null());
    let listen = if more.iter().any(|o| o == "--tls-cert-file") { "--tls-port" } else { "--port" };
    if listen == "--tls-port" {
        command.args(["--port", "0"]);
    }
    command.args([listen, &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.args(more);
    if let Some(bus) = bus {
        command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
        command.args(["--cluster-node-timeout", &NODE_TIMEOUT.to_string()]);
        command.args(["--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"]);
    }
    command.spawn().expect("a server that was just there")
}
