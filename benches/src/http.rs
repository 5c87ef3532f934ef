//! `http`: how long does POST /query take, beside Dynamo's standalone indexer?
//!
//! Both follow the same sockets and are asked the same prompts in turn, each on one keep-alive
//! connection. A request is timed from its first byte written to its answer's last byte read.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Setting;
use crate::engine::{Pod, publish_held};
use crate::http_client::{HttpClient, post};
use crate::machine::Watch;
use crate::report::{Latencies, Passes, Table, Verdict, differs, print_others};
use crate::server::{MODEL, Server};
use crate::workload::{BLOCK, Prompt, Random};

/// Pods that publish.
const PODS: usize = 8;

/// Prompts per size, so that no answer comes from a warm cache of the one before.
const PROMPTS: usize = 8;

/// Tokens per pod that have nothing to do with any prompt asked about.
const BACKGROUND: usize = 320_000;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Python that has ai-dynamo-runtime; benches/dynamo.sh installs it here
    #[arg(long, value_name = "FILE", default_value = "target/bench-venv/bin/python")]
    dynamo: PathBuf,
    /// Leave Dynamo out
    #[arg(long)]
    alone: bool,
    /// Tokens per prompt
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 8192, 100_000])]
    tokens: Vec<usize>,
    /// Seconds per size and pass
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Put a space after each comma in the bodies, as Python's json does
    #[arg(long)]
    spaces: bool,
}

/// Whose answers are read.
#[derive(Clone, Copy)]
enum Who {
    Kvd,
    Dynamo,
}

/// One server and its connection.
struct Side {
    who: Who,
    client: HttpClient,
    server: Server,
    /// By prompt.
    requests: Vec<Vec<u8>>,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut pods = (0..PODS).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    let mut sides = vec![Side::new(Who::Kvd, Server::kvd(&setting.kvd)?, &pods)?];
    if !args.alone {
        sides.push(Side::new(Who::Dynamo, Server::dynamo(&args.dynamo)?, &pods)?);
    }
    for pod in &mut pods {
        pod.wait_for_subscribers(sides.len())?;
    }
    publish_background(&mut pods)?;

    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new(titles(&sides));
    for &tokens in &args.tokens {
        let prompts = prompts(tokens);
        publish_held(&mut pods, &prompts)?;
        for side in &mut sides {
            side.prepare(&prompts, args.spaces);
            side.wait_until_right(&pods, &prompts)?;
        }
        let body = sides[0].requests[0].len();
        let mut cells = vec![[Passes::default(), Passes::default(), Passes::default()]; sides.len()];
        for _ in 0..setting.passes {
            let watch = Watch::start(&sides.iter().map(|s| s.server.pid()).collect::<Vec<_>>());
            let mut took: Vec<Latencies> = sides.iter().map(|_| Latencies::default()).collect();
            let began = Instant::now();
            // The first round is not counted: it fills caches and buffers.
            for round in 0.. {
                if round > 1 && began.elapsed().as_secs_f64() >= args.seconds {
                    break;
                }
                for (i, prompt) in prompts.iter().enumerate() {
                    for turn in 0..sides.len() {
                        // Whoever comes second finds the client's caches warm, so that changes too.
                        let side = (round + turn) % sides.len();
                        let (time, fault) = sides[side].ask(i, &pods, prompt)?;
                        verdict.note(fault);
                        if round > 0 {
                            took[side].add(time);
                        }
                    }
                }
            }
            others.add(watch.others());
            for (cells, took) in cells.iter_mut().zip(&mut took) {
                let [p50, p95, p99] = took.percentiles([0.5, 0.95, 0.99]);
                cells[0].add(p50);
                cells[1].add(p95);
                cells[2].add(p99);
            }
        }
        table.row(row(tokens, body, &cells));
    }
    table.print();
    print_others(&others);
    Ok(verdict)
}

fn titles(sides: &[Side]) -> Vec<String> {
    let mut titles = vec!["tokens".to_owned(), "request".to_owned()];
    for side in sides {
        titles.extend(["p50", "p95", "p99"].map(|p| format!("{} {p} ms", side.name())));
    }
    if sides.len() > 1 {
        titles.push("kvd / Dynamo p50".to_owned());
    }
    titles
}

fn row(tokens: usize, body: usize, cells: &[[Passes; 3]]) -> Vec<String> {
    let mut row = vec![tokens.to_string(), format!("{:.1} KB", body as f64 / 1e3)];
    row.extend(cells.iter().flatten().map(|p| p.cell(3)));
    if let [kvd, dynamo] = cells {
        row.push(format!("{:.2}", kvd[0].median() / dynamo[0].median()));
    }
    row
}

fn prompts(tokens: usize) -> Vec<Prompt> {
    let mut random = Random(tokens as u64);
    (0..PROMPTS).map(|_| Prompt::random(&mut random, tokens).spread_over(PODS, &mut random)).collect()
}

/// Fills every pod with conversations that nobody asks about.
fn publish_background(pods: &mut [Pod]) -> anyhow::Result<()> {
    let mut random = Random(7);
    let conversation = 4096;
    for _ in 0..BACKGROUND / conversation {
        for number in 0..pods.len() {
            let mut prompt = Prompt::random(&mut random, conversation);
            prompt.held =
                (0..pods.len()).map(|p| if p == number { prompt.hashes.len() as u32 } else { 0 }).collect();
            publish_held(pods, &[prompt])?;
        }
    }
    Ok(())
}

impl Side {
    fn new(who: Who, server: Server, pods: &[Pod]) -> anyhow::Result<Side> {
        match who {
            Who::Kvd => server.register_with_kvd(pods)?,
            Who::Dynamo => server.register_with_dynamo(pods)?,
        }
        Ok(Side { who, client: HttpClient::connect(server.http)?, server, requests: Vec::new() })
    }

    fn name(&self) -> &'static str {
        match self.who {
            Who::Kvd => "kvd",
            Who::Dynamo => "Dynamo",
        }
    }

    fn prepare(&mut self, prompts: &[Prompt], spaces: bool) {
        let request = |prompt: &Prompt| {
            let mut body = match self.who {
                Who::Kvd => format!(r#"{{"model":"{MODEL}","block_size":{BLOCK},"token_ids":["#),
                Who::Dynamo => format!(r#"{{"model_name":"{MODEL}","token_ids":["#),
            };
            for (i, token) in prompt.tokens.iter().enumerate() {
                let comma = if i == 0 {
                    ""
                } else if spaces {
                    ", "
                } else {
                    ","
                };
                write!(body, "{comma}{token}").expect("text grows as needed");
            }
            body.push_str("]}");
            post(self.server.http, "/query", body.as_bytes())
        };
        self.requests = prompts.iter().map(request).collect();
    }

    /// Asks until every answer is right: then all that was published has arrived.
    fn wait_until_right(&mut self, pods: &[Pod], prompts: &[Prompt]) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        for (i, prompt) in prompts.iter().enumerate() {
            while let (_, Some(fault)) = self.ask(i, pods, prompt)? {
                ensure!(Instant::now() < deadline, "{} never came to the right answer: {fault}", self.name());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Asks, and says how long it took and what is wrong with the answer.
    fn ask(&mut self, i: usize, pods: &[Pod], prompt: &Prompt) -> anyhow::Result<(Duration, Option<String>)> {
        let name = self.name();
        let began = Instant::now();
        let answer = self.client.send(&self.requests[i])?;
        let took = began.elapsed();
        ensure!(answer.status == 200, "POST /query to {name}: {} {}", answer.status, text(answer.body));
        let json: Value = serde_json::from_slice(answer.body).context("read an answer")?;
        let fault = (0..pods.len()).find_map(|pod| match self.who {
            Who::Kvd => kvd_fault(&json["default"][&pods[pod].instance], prompt, pod),
            Who::Dynamo => dynamo_fault(&json, prompt, pod),
        });
        Ok((took, fault))
    }
}

fn kvd_fault(instance: &Value, prompt: &Prompt, pod: usize) -> Option<String> {
    let count = |field: &str| instance[field].as_u64().unwrap_or(0);
    let held = prompt.held_tokens(pod);
    let field = |name: &str, want: u64| differs(format_args!("kvd: {name} of pod {pod}"), count(name), want);
    field("longest_matched", held)
        .or_else(|| field("GPU", held))
        .or_else(|| field("CPU", 0))
        .or_else(|| field("cached_tokens", prompt.cached_tokens(pod)))
        .or_else(|| {
            differs(format_args!("kvd: DP of pod {pod}"), instance["DP"]["0"].as_u64().unwrap_or(0), held)
        })
}

fn dynamo_fault(answer: &Value, prompt: &Prompt, pod: usize) -> Option<String> {
    let number = (pod + 1).to_string();
    let held = prompt.held_tokens(pod);
    let matched = answer["instances"][&number]["longest_matched"].as_u64().unwrap_or(0);
    let score = answer["scores"][&number]["0"].as_u64().unwrap_or(0);
    differs(format_args!("Dynamo: longest_matched of {number}"), matched, held)
        .or_else(|| differs(format_args!("Dynamo: score of {number}"), score, held))
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned()
}
