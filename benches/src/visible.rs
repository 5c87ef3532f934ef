//! `visible`: how long after an engine publishes a block does an answer count it?
//!
//! From before the batch is handed to the PUB socket until an answer counts its blocks. Observers, one
//! after the other: a thread that asks the index over and over, with kvd's ingest running in this
//! process; and clients that ask a kvd of its own process, about the pod that published over gRPC and
//! about all pods over HTTP, where each look takes a request. Afterwards, and not timed, each is asked
//! about all pods.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvd::ingest::{IngestConfig, Publishers};
use kvindex::{Index, IndexConfig, Query};
use kvproto::rpc::kv;
use serde_json::{Value, json};

use crate::Setting;
use crate::engine::{Pod, payload, stores};
use crate::grpc;
use crate::http_client::{HttpClient, post};
use crate::machine::Watch;
use crate::report::{Latencies, Passes, Table, Verdict, differs, print_others};
use crate::server::{MODEL, Server};
use crate::workload::{BLOCK, Prompt, Random};

/// A block that is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Batches per pass
    #[arg(long, default_value_t = 2000)]
    events: usize,
    /// Pods that publish
    #[arg(long, default_value_t = 8)]
    pods: usize,
    /// Blocks per batch
    #[arg(long, default_value_t = 16)]
    blocks: usize,
    /// Longest pause between batches, microseconds; the shortest is a fifth of it
    #[arg(long, default_value_t = 2500)]
    pause_us: u64,
    /// One more pod publishes what is no batch, and batches of nothing but noise, as fast as it can; kvd's process only
    #[arg(long)]
    flood: bool,
}

/// Someone who can say what each pod holds of a prompt, in tokens.
trait Observer {
    /// Gets ready to be asked about `prompt`, and whether `pod` holds it, without delay.
    fn prepare(&mut self, prompt: &Prompt, pod: &Pod);
    /// What all of `pods` hold of it.
    fn held(&mut self, prompt: &Prompt, pods: &[Pod]) -> anyhow::Result<Vec<u64>>;
    /// What the pod at `at` holds of it, asked as often as it takes.
    fn held_by(&mut self, prompt: &Prompt, pods: &[Pod], at: usize) -> anyhow::Result<u64> {
        Ok(self.held(prompt, pods)?[at])
    }
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new(["observed", "p50 ms", "p95 ms", "p99 ms", "max ms"]);

    if !args.flood {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None)?;
        publishers.begin();
        let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
        for pod in &pods {
            publishers.register(pod.spec())?;
        }
        let mut observer = InProcess { index };
        let cells = measure(setting, args, &mut pods, &mut observer, &[], &mut others, &mut verdict)?;
        table.row(row("index, in this process", &cells));
        publishers.stop();
    }

    let server = Server::kvd(&setting.kvd)?;
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    server.register_with_kvd(&pods)?;
    let mut http =
        OverHttp { client: HttpClient::connect(server.http)?, server: &server, request: Vec::new() };
    let mut grpc = OverGrpc::connect(&server)?;
    let mut ask = |name: &str, pods: &mut [Pod], observer: &mut dyn Observer| -> anyhow::Result<()> {
        let servers = [server.pid()];
        let cells = measure(setting, args, pods, observer, &servers, &mut others, &mut verdict)?;
        table.row(row(name, &cells));
        Ok(())
    };
    ask("Score of kvd's process", &mut pods, &mut grpc)?;
    if args.flood {
        let before = resident_mib(server.pid())?;
        let mut flooder = Pod::open(args.pods)?;
        server.register_with_kvd(std::slice::from_ref(&flooder))?;
        flooder.wait_for_subscribers(1)?;
        let flood = Flood::start(flooder);
        ask("the same beside a flood", &mut pods, &mut grpc)?;
        let (sent, took) = flood.stop()?;
        let after = resident_mib(server.pid())?;
        println!(
            "flood: {:.0} messages/s of {FLOOD_BYTES} bytes offered; kvd's resident memory {before:.0} MiB before, \
             {after:.0} MiB after it\n",
            sent as f64 / took.as_secs_f64()
        );
    } else {
        ask("POST /query of it", &mut pods, &mut http)?;
    }

    println!("{} batches a pass, {} blocks each, {} pods\n", args.events, args.blocks, args.pods);
    table.print();
    print_others(&others);
    Ok(verdict)
}

/// What each message of a flood is long.
const FLOOD_BYTES: usize = 1024;

/// A pod that publishes as fast as it can, and nothing of use.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u64>>,
    began: Instant,
}

impl Flood {
    fn start(mut pod: Pod) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut random = Random(3);
            let mut sent = 0;
            // A batch says how many events it has; this one says four thousand million.
            let mut huge = vec![0x93, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xff, 0xff, 0xff, 0xff];
            huge.resize(FLOOD_BYTES, 0x81);
            while !stopped.load(Relaxed) {
                let noise = (0..FLOOD_BYTES / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
                pod.publish(noise)?;
                pod.publish(huge.clone())?;
                sent += 2;
            }
            Ok(sent)
        });
        Flood { stop, thread, began: Instant::now() }
    }

    /// Messages offered, and in what time.
    fn stop(self) -> anyhow::Result<(u64, Duration)> {
        self.stop.store(true, Relaxed);
        let took = self.began.elapsed();
        let sent = self.thread.join().map_err(|_| anyhow::anyhow!("the flooding thread panicked"))??;
        Ok((sent, took))
    }
}

/// What a process takes of the machine's memory.
fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read /proc")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("read VmRSS")?;
    Ok(kib / 1024.0)
}

fn row(name: &str, cells: &[Passes; 4]) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    row.extend(cells.iter().map(|c| c.cell(3)));
    row
}

fn measure(
    setting: &Setting,
    args: &Args,
    pods: &mut [Pod],
    observer: &mut dyn Observer,
    servers: &[u32],
    others: &mut Passes,
    verdict: &mut Verdict,
) -> anyhow::Result<[Passes; 4]> {
    for pod in pods.iter_mut() {
        pod.wait_for_subscribers(1)?;
    }
    let mut random = Random(1);
    let mut cells: [Passes; 4] = Default::default();
    for _ in 0..setting.passes {
        let watch = Watch::start(servers);
        let mut took = Latencies::default();
        for _ in 0..args.events {
            let tokens = args.blocks.max(1) * BLOCK as usize;
            let mut prompt = Prompt::random(&mut random, tokens);
            let to = random.below(pods.len() as u64) as usize;
            prompt.held =
                (0..pods.len()).map(|p| if p == to { prompt.hashes.len() as u32 } else { 0 }).collect();
            let batch = payload(
                &stores(&prompt, 0, prompt.hashes.len(), prompt.hashes.len()).collect::<Vec<_>>(),
                &[],
            );
            observer.prepare(&prompt, &pods[to]);
            let fifth = args.pause_us / 5;
            sleep(Duration::from_micros(fifth + random.below(fifth * 4 + 1)));

            let began = Instant::now();
            pods[to].publish(batch)?;
            let whole = prompt.held_tokens(to);
            while observer.held_by(&prompt, pods, to)? < whole && began.elapsed() < PATIENCE {}
            took.add(began.elapsed());
            let held = observer.held(&prompt, pods)?;
            let want: Vec<u64> = (0..pods.len()).map(|p| prompt.held_tokens(p)).collect();
            verdict.note(differs("tokens held by pod", held, want));
        }
        others.add(watch.others());
        cells.iter_mut().zip(took.percentiles([0.5, 0.95, 0.99, 1.0])).for_each(|(c, v)| c.add(v));
    }
    Ok(cells)
}

struct InProcess {
    index: Arc<Index>,
}

impl Observer for InProcess {
    fn prepare(&mut self, _: &Prompt, _: &Pod) {}

    fn held(&mut self, prompt: &Prompt, _: &[Pod]) -> anyhow::Result<Vec<u64>> {
        // Asking over and over must not keep the threads that are waited for off this processor.
        std::thread::yield_now();
        let query = Query::new("default", MODEL, kvindex::Prompt::tokens(&prompt.tokens));
        let scores = self.index.query(&query).scores;
        Ok(scores.iter().map(|s| u64::from(s.cached * s.block_size)).collect())
    }
}

struct OverGrpc {
    runtime: tokio::runtime::Runtime,
    client: grpc::Client,
    /// About the pod that is waited for.
    request: kv::ScoreRequest,
}

impl OverGrpc {
    fn connect(server: &Server) -> anyhow::Result<OverGrpc> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(grpc::connect(server))?;
        Ok(OverGrpc { runtime, client, request: kv::ScoreRequest::default() })
    }

    /// Cached tokens by instance.
    fn ask(&mut self, request: kv::ScoreRequest) -> anyhow::Result<HashMap<String, u64>> {
        let answer = self.runtime.block_on(self.client.score(request))?.into_inner();
        let tokens = |e: kv::EndpointScore| {
            let whole = u64::from(e.cached_blocks) * u64::from(e.block_size_tokens);
            (e.instance_id, whole)
        };
        Ok(answer.endpoints.into_iter().map(tokens).collect())
    }
}

impl Observer for OverGrpc {
    fn prepare(&mut self, prompt: &Prompt, pod: &Pod) {
        self.request = kv::ScoreRequest { candidates: vec![pod.instance.clone()], ..grpc::request(prompt) };
    }

    fn held(&mut self, prompt: &Prompt, pods: &[Pod]) -> anyhow::Result<Vec<u64>> {
        let held = self.ask(grpc::request(prompt))?;
        Ok(pods.iter().map(|p| held.get(&p.instance).copied().unwrap_or(0)).collect())
    }

    fn held_by(&mut self, _: &Prompt, pods: &[Pod], at: usize) -> anyhow::Result<u64> {
        let held = self.ask(self.request.clone())?;
        Ok(held.get(&pods[at].instance).copied().unwrap_or(0))
    }
}

struct OverHttp<'s> {
    server: &'s Server,
    client: HttpClient,
    request: Vec<u8>,
}

impl Observer for OverHttp<'_> {
    fn prepare(&mut self, prompt: &Prompt, _: &Pod) {
        let body = json!({ "model": MODEL, "block_size": BLOCK, "token_ids": prompt.tokens });
        self.request = post(self.server.http, "/query", body.to_string().as_bytes());
    }

    fn held(&mut self, _: &Prompt, pods: &[Pod]) -> anyhow::Result<Vec<u64>> {
        let answer = self.client.send(&self.request)?;
        ensure!(answer.status == 200, "POST /query: {}", answer.status);
        let json: Value = serde_json::from_slice(answer.body).context("read an answer")?;
        let of = |pod: &Pod| json["default"][&pod.instance]["longest_matched"].as_u64().unwrap_or(0);
        Ok(pods.iter().map(of).collect())
    }
}
