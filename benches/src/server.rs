//! The programs that are measured: started on free ports, asked to be ready, ended with us.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::engine::Pod;
use crate::http_client::{HttpClient, post};
use crate::workload::BLOCK;

/// The model of every workload.
pub const MODEL: &str = "meta-llama/Llama-3.1-8B-Instruct";

/// A server of its own process. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it answers HTTP.
    pub http: SocketAddr,
    /// Where it answers gRPC, if it does.
    pub grpc: Option<SocketAddr>,
}

/// The kvd that was built together with this program.
pub fn beside_us() -> anyhow::Result<PathBuf> {
    let us = std::env::current_exe().context("find this program")?;
    Ok(us.with_file_name("kvd"))
}

impl Server {
    /// Starts kvd and waits until it is ready.
    pub fn kvd(program: &Path) -> anyhow::Result<Server> {
        Server::kvd_with(program, &[])
    }

    /// The same with more arguments.
    pub fn kvd_with(program: &Path, more: &[String]) -> anyhow::Result<Server> {
        ensure!(program.is_file(), "{} is not there: cargo build --release -p kvd", program.display());
        let [http, grpc] = free_ports()?;
        let mut command = Command::new(program);
        command.args(["serve", "--log-level", "warn"]);
        command.args(["--http-listen", &http.to_string(), "--grpc-listen", &grpc.to_string()]).args(more);
        Server::start(command, http, Some(grpc), "/readyz")
    }

    /// Starts Dynamo's standalone indexer and waits until it is up.
    pub fn dynamo(python: &Path) -> anyhow::Result<Server> {
        ensure!(python.is_file(), "{} is not there: run benches/dynamo.sh", python.display());
        let [http] = free_ports()?;
        let mut command = Command::new(python);
        command.args(["-m", "dynamo.indexer", "--port", &http.port().to_string()]);
        command.env("DYN_LOG", "warn");
        Server::start(command, http, None, "/health")
    }

    fn start(
        mut command: Command,
        http: SocketAddr,
        grpc: Option<SocketAddr>,
        up: &str,
    ) -> anyhow::Result<Server> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("start {command:?}"))?;
        let mut server = Server { child, http, grpc };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !server.is_up(up) {
            if let Some(status) = server.child.try_wait()? {
                bail!("{command:?} ended with {status}");
            }
            ensure!(Instant::now() < deadline, "{command:?} does not answer GET {up}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn is_up(&self, path: &str) -> bool {
        let answered = HttpClient::connect(self.http).and_then(|mut c| Ok(c.get(path)?.status));
        answered.is_ok_and(|status| status == 200)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.child.wait().context("wait for it")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Registers `pods` with kvd.
    pub fn register_with_kvd(&self, pods: &[Pod]) -> anyhow::Result<()> {
        let bodies = pods.iter().map(|pod| {
            json!({
                "endpoint": pod.endpoint(), "type": "vLLM", "modelname": MODEL, "instance_id": pod.instance,
                "block_size": BLOCK, "dp_rank": 0, "replay_endpoint": pod.replay_endpoint(),
            })
        });
        self.register(bodies)
    }

    /// Registers `pods` with Dynamo's indexer, which calls them by number, from 1.
    pub fn register_with_dynamo(&self, pods: &[Pod]) -> anyhow::Result<()> {
        let bodies = pods.iter().zip(1..).map(|(pod, number)| {
            json!({
                "endpoint": pod.endpoint(), "model_name": MODEL, "instance_id": number, "block_size": BLOCK,
                "dp_rank": 0,
            })
        });
        self.register(bodies)
    }

    fn register(&self, bodies: impl Iterator<Item = serde_json::Value>) -> anyhow::Result<()> {
        let mut client = HttpClient::connect(self.http).context("connect")?;
        for body in bodies {
            let answer = client.send(&post(self.http, "/register", body.to_string().as_bytes()))?;
            ensure!(
                (200..300).contains(&answer.status),
                "register {body}: {} {}",
                answer.status,
                String::from_utf8_lossy(answer.body)
            );
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to be done about either.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Addresses nobody listens at now.
fn free_ports<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    // All are held until the last is found, so that none is found twice.
    let mut found = [(); N].map(|()| None);
    for place in &mut found {
        *place = Some(TcpListener::bind("127.0.0.1:0").context("find a free port")?);
    }
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (address, listener) in addresses.iter_mut().zip(found.iter().flatten()) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
