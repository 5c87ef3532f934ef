//! `recovery`: how soon does kvd know again what it knew, from its disk and from another replica?
//!
//! Pods publish many blocks and keep only their last batches, so that nothing but a snapshot can bring
//! the rest back. Told to stop, kvd writes one; the next start is timed from `exec` to ready. Then a second
//! kvd with an empty disk begins from the first, which is asked questions all the while. Every
//! answer, of all three, is checked.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvproto::rpc::kv;
use rustix::process::Signal;

use crate::Setting;
use crate::engine::{Pod, instances, payload, stores};
use crate::grpc::{self, Client, fault};
use crate::http_client::HttpClient;
use crate::machine::signal;
use crate::report::{Latencies, Table, Verdict};
use crate::server::Server;
use crate::workload::{BLOCK, Prompt, Random};

/// Blocks of one conversation.
const DEEP: usize = 1024;
/// Blocks in one batch.
const PER_BATCH: usize = 256;
/// Batches that a pod keeps.
const RING: usize = 8;
/// Conversations that are asked about.
const ASKED: usize = 256;
/// How long questions are asked before.
const BEFORE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Blocks altogether, in millions
    #[arg(long, default_value_t = 10)]
    millions: usize,
    /// Pods, each with blocks of its own
    #[arg(long, default_value_t = 64)]
    pods: usize,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let folder = tempfile::tempdir().context("make a directory")?;
    let own = |name: &str, peers: &str| -> anyhow::Result<Vec<String>> {
        let config = folder.path().join(format!("{name}.toml"));
        let text = format!("[snapshot]\ninterval = \"0s\"\n[peers]\naddresses = [{peers}]\n");
        std::fs::write(&config, text).context("write a configuration")?;
        let data = folder.path().join(name);
        let text = |p: &Path| p.to_string_lossy().into_owned();
        Ok(vec!["--config".into(), text(&config), "--data-dir".into(), text(&data)])
    };
    let mut pods = (0..args.pods).map(|n| Pod::keeping(n, RING)).collect::<anyhow::Result<Vec<_>>>()?;
    // Answers come in the order of registration, which is that of names after a restart.
    pods.sort_by(|a, b| a.instance.cmp(&b.instance));
    let first = own("first", "")?;
    let server = Server::kvd_with(&setting.kvd, &first)?;
    server.register_with_kvd(&pods)?;
    for pod in &mut pods {
        pod.wait_for_subscribers(1)?;
    }
    let (prompts, blocks) = publish(&mut pods, &server, args)?;
    let batches = (blocks / PER_BATCH) as f64;
    wait_for(&server, "kvd_batches_total", batches)?;
    let instances = instances(&pods);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut verdict = Verdict::default();
    let stopped = Instant::now();
    server.terminate()?;
    let stopping = stopped.elapsed();
    let bytes = snapshot_bytes(&folder.path().join("first"))?;

    let started = Instant::now();
    let server = Server::kvd_with(&setting.kvd, &first)?;
    let ready = started.elapsed();
    ensure!(metric(&server, "kvd_warm")? == 1.0, "ready, but not warm");
    let restored = metric(&server, "kvd_restored_blocks")?;
    verdict.merge(runtime.block_on(check(&server, &instances, &prompts))?);

    let at = server.grpc.context("kvd has gRPC")?;
    let second = own("second", &format!("\"{at}\""))?;
    let (before, during, peer) = runtime.block_on(async {
        let mut client = grpc::connect(&server).await?;
        let (mut before, checked) = ask(&mut client, &instances, &prompts, || false, BEFORE).await?;
        verdict.merge(checked);
        let program = setting.kvd.clone();
        let starting = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            Server::kvd_with(&program, &second).map(|server| (server, started.elapsed()))
        });
        let over = || starting.is_finished();
        let (mut during, checked) = ask(&mut client, &instances, &prompts, over, Duration::MAX).await?;
        verdict.merge(checked);
        let peer = starting.await.context("start the second")??;
        anyhow::Ok((before.percentiles([0.5, 0.99]), during.percentiles([0.5, 0.99]), peer))
    })?;
    let (peer, joined) = peer;
    ensure!(metric(&peer, "kvd_restored_blocks")? == restored, "the second has other blocks");
    verdict.merge(runtime.block_on(check(&peer, &instances, &prompts))?);

    let mut table = Table::new(["what", "value"]);
    let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
    table.row(vec!["blocks, distinct".into(), blocks.to_string()]);
    table.row(vec!["snapshot, bytes per block".into(), format!("{:.1}", bytes as f64 / blocks as f64)]);
    table.row(vec!["told to stop until ended, snapshot included".into(), seconds(stopping)]);
    table.row(vec!["start until ready, from disk".into(), seconds(ready)]);
    table.row(vec!["start until ready, from the other replica".into(), seconds(joined)]);
    table.row(vec![
        "client's Score p50 / p99 before, ms".into(),
        format!("{:.2} / {:.2}", before[0], before[1]),
    ]);
    table.row(vec![
        "the same while the other begins from it".into(),
        format!("{:.2} / {:.2}", during[0], during[1]),
    ]);
    table.print();
    Ok(verdict)
}

/// Publishes everything, and returns some of the conversations.
fn publish(pods: &mut [Pod], server: &Server, args: &Args) -> anyhow::Result<(Vec<Prompt>, usize)> {
    let mut random = Random(11);
    let each = args.millions * 1_000_000 / args.pods / DEEP;
    let mut asked = Vec::new();
    for i in 0..each {
        for (n, pod) in (0..).zip(pods.iter_mut()) {
            let mut prompt = Prompt::random(&mut random, DEEP * BLOCK as usize + 1);
            for store in stores(&prompt, 0, DEEP, PER_BATCH) {
                pod.publish(payload(&[store], &[]))?;
            }
            if asked.len() < ASKED && (i + n) % 7 == 0 {
                prompt.held = vec![0; args.pods];
                prompt.held[n] = DEEP as u32;
                asked.push(prompt);
            }
        }
        // Nobody keeps what is lost on the way.
        wait_for(server, "kvd_batches_total", ((i + 1) * pods.len() * DEEP / PER_BATCH) as f64)?;
    }
    Ok((asked, each * DEEP * args.pods))
}

async fn check(server: &Server, instances: &[String], prompts: &[Prompt]) -> anyhow::Result<Verdict> {
    let mut client = grpc::connect(server).await?;
    let mut verdict = Verdict::default();
    for prompt in prompts {
        let answer = client.score(grpc::request(prompt)).await?.into_inner();
        verdict.note(fault(&answer, instances, prompt));
    }
    Ok(verdict)
}

/// Asks one question after the other.
async fn ask(
    client: &mut Client,
    instances: &[String],
    prompts: &[Prompt],
    over: impl Fn() -> bool,
    at_most: Duration,
) -> anyhow::Result<(Latencies, Verdict)> {
    let (mut took, mut verdict) = (Latencies::default(), Verdict::default());
    let requests: Vec<kv::ScoreRequest> = prompts.iter().map(grpc::request).collect();
    let began = Instant::now();
    for i in (0..prompts.len()).cycle() {
        if over() || began.elapsed() >= at_most {
            break;
        }
        let asked = Instant::now();
        let answer = client.score(requests[i].clone()).await?.into_inner();
        took.add(asked.elapsed());
        verdict.note(fault(&answer, instances, &prompts[i]));
    }
    Ok((took, verdict))
}

fn metric(server: &Server, name: &str) -> anyhow::Result<f64> {
    let mut client = HttpClient::connect(server.http)?;
    let text = String::from_utf8_lossy(client.get("/metrics")?.body).into_owned();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("/metrics has no {name}"))?.parse().context("a number")
}

fn wait_for(server: &Server, name: &str, value: f64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while metric(server, name)? < value {
        ensure!(Instant::now() < deadline, "{name} does not come to {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn snapshot_bytes(data: &Path) -> anyhow::Result<u64> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(data.join("snapshots")).context("read the snapshots")? {
        all.push(entry?.metadata()?.len());
    }
    all.into_iter().max().context("no snapshot was written")
}

impl Server {
    /// Tells it to stop and waits until it has.
    fn terminate(mut self) -> anyhow::Result<()> {
        signal(self.pid(), Signal::TERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "kvd ended with {status}");
        Ok(())
    }
}
