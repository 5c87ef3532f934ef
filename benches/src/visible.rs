//! `visible`: how long after an engine publishes a block does an answer count it?
//!
//! From before the batch is handed to the PUB socket until an answer counts its blocks. Two
//! observers, one after the other: a thread that asks the index over and over, with kvd's ingest
//! running in this process; and a client that asks a kvd of its own process over HTTP, where
//! each look takes a request.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvd::ingest::{IngestConfig, Publishers};
use kvindex::{Index, IndexConfig, Query};
use serde_json::{Value, json};

use crate::Setting;
use crate::engine::{Pod, payload, stores};
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
}

/// Someone who can say what each pod holds of a prompt, in tokens.
trait Observer {
    fn held(&mut self, prompt: &Prompt, pods: &[Pod]) -> anyhow::Result<Vec<u64>>;
    /// Gets ready to be asked about `prompt` without delay.
    fn prepare(&mut self, prompt: &Prompt);
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new(["observed", "p50 ms", "p95 ms", "p99 ms", "max ms"]);

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

    let server = Server::kvd(&setting.kvd)?;
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    server.register_with_kvd(&pods)?;
    let mut observer =
        OverHttp { client: HttpClient::connect(server.http)?, server: &server, request: Vec::new() };
    let cells = measure(setting, args, &mut pods, &mut observer, &[server.pid()], &mut others, &mut verdict)?;
    table.row(row("POST /query of kvd's process", &cells));

    println!("{} batches a pass, {} blocks each, {} pods\n", args.events, args.blocks, args.pods);
    table.print();
    print_others(&others);
    Ok(verdict)
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
            observer.prepare(&prompt);
            let fifth = args.pause_us / 5;
            sleep(Duration::from_micros(fifth + random.below(fifth * 4 + 1)));

            let began = Instant::now();
            pods[to].publish(batch)?;
            let whole = prompt.held_tokens(to);
            let mut held = observer.held(&prompt, pods)?;
            while held[to] < whole && began.elapsed() < PATIENCE {
                held = observer.held(&prompt, pods)?;
            }
            took.add(began.elapsed());
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
    fn prepare(&mut self, _: &Prompt) {}

    fn held(&mut self, prompt: &Prompt, _: &[Pod]) -> anyhow::Result<Vec<u64>> {
        // Asking over and over must not keep the threads that are waited for off this processor.
        std::thread::yield_now();
        let query = Query::new("default", MODEL, kvindex::Prompt::tokens(&prompt.tokens));
        let scores = self.index.query(&query).scores;
        Ok(scores.iter().map(|s| u64::from(s.cached * s.block_size)).collect())
    }
}

struct OverHttp<'s> {
    server: &'s Server,
    client: HttpClient,
    request: Vec<u8>,
}

impl Observer for OverHttp<'_> {
    fn prepare(&mut self, prompt: &Prompt) {
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
