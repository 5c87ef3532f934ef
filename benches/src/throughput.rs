//! `throughput`: how many Scores a second do local clients get?
//!
//! Clients on several connections ask again as soon as they have an answer. They share the
//! machine with the server, so its own processor time per answer is given as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kvproto::rpc::kv;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::Setting;
use crate::engine::{Pod, instances, publish_held};
use crate::grpc::{self, Client, ServerTimes};
use crate::machine::{Watch, process_cpu};
use crate::report::{Latencies, Passes, Table, Verdict, print_others};
use crate::server::Server;
use crate::workload::{Prompt, Random};

/// Different prompts asked about in turn.
const PROMPTS: usize = 256;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens per prompt
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Pods that publish, all of them candidates
    #[arg(long, default_value_t = 64)]
    pods: usize,
    /// Connections
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Questions under way on each connection
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Seconds per pass
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// How questions are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Unary,
    Stream,
}

/// A way to ask that gets its own row.
struct Way {
    name: &'static str,
    call: Call,
    /// 0 = an answer about every pod.
    top_k: u32,
}

const WAYS: [Way; 4] = [
    Way { name: "Score, all pods", call: Call::Unary, top_k: 0 },
    Way { name: "ScoreStream, all pods", call: Call::Stream, top_k: 0 },
    Way { name: "Score, best 4", call: Call::Unary, top_k: 4 },
    Way { name: "ScoreStream, best 4", call: Call::Stream, top_k: 4 },
];

/// What all clients share.
struct Shared {
    instances: Vec<String>,
    prompts: Vec<Prompt>,
    requests: Vec<kv::ScoreRequest>,
}

/// What one client did.
#[derive(Default)]
struct Done {
    took: Latencies,
    verdict: Verdict,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let server = Server::kvd(&setting.kvd)?;
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    server.register_with_kvd(&pods)?;
    for pod in &mut pods {
        pod.wait_for_subscribers(1)?;
    }
    let mut random = Random(3);
    let prompts: Vec<Prompt> = (0..PROMPTS)
        .map(|_| Prompt::random(&mut random, args.tokens).spread_over(args.pods, &mut random))
        .collect();
    publish_held(&mut pods, &prompts)?;
    let instances = instances(&pods);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new([
        "call",
        "scores/s",
        "server CPU us per score",
        "scores per server CPU s",
        "client CPU us per score",
        "client p50 ms",
        "client p99 ms",
        "server p99 ms at most",
    ]);
    runtime.block_on(async {
        let mut client = grpc::connect(&server).await?;
        grpc::wait_until_right(&mut client, &instances, &prompts).await?;
        let mut shared = Shared { instances, requests: Vec::new(), prompts };
        for way in &WAYS {
            shared.requests = shared.prompts.iter().map(|p| way.request(p)).collect();
            let lent = Arc::new(shared);
            let mut columns: [Passes; 7] = Default::default();
            for _ in 0..setting.passes {
                let watch = Watch::start(&[server.pid()]);
                verdict.merge(pass(args, way, &lent, &server, &mut columns).await?);
                others.add(watch.others());
            }
            let mut row = vec![way.name.to_owned()];
            row.extend(columns.iter().zip([0, 1, 0, 1, 3, 3, 3]).map(|(c, digits)| c.cell(digits)));
            table.row(row);
            shared = Arc::into_inner(lent).context("a client is still at work")?;
        }
        anyhow::Ok(())
    })?;
    println!(
        "{} tokens, {} pods, {} connections with {} questions under way each\n",
        args.tokens, args.pods, args.connections, args.in_flight
    );
    table.print();
    print_others(&others);
    Ok(verdict)
}

async fn pass(
    args: &Args,
    way: &Way,
    shared: &Arc<Shared>,
    server: &Server,
    columns: &mut [Passes; 7],
) -> anyhow::Result<Verdict> {
    let us = std::process::id();
    let before = ServerTimes::read(server)?;
    let (server_cpu, our_cpu, began) = (process_cpu(server.pid()), process_cpu(us), Instant::now());
    let until = began + Duration::from_secs(args.seconds);
    let mut clients = JoinSet::new();
    for number in 0..args.connections {
        let client = grpc::connect(server).await?;
        match way.call {
            Call::Unary => {
                for task in 0..args.in_flight {
                    let first = number * args.in_flight + task;
                    clients.spawn(ask(client.clone(), Arc::clone(shared), way.top_k, first, until));
                }
            }
            Call::Stream => {
                clients.spawn(ask_on_stream(client, Arc::clone(shared), way.top_k, args.in_flight, until));
            }
        }
    }
    let mut done = Done::default();
    while let Some(one) = clients.join_next().await {
        let one = one??;
        done.took.merge(one.took);
        done.verdict.merge(one.verdict);
    }
    let seconds = began.elapsed().as_secs_f64();
    let server_cpu = (process_cpu(server.pid()) - server_cpu).as_secs_f64();
    let our_cpu = (process_cpu(us) - our_cpu).as_secs_f64();
    let after = ServerTimes::read(server)?;

    let scores = done.took.len() as f64;
    let [p50, p99] = done.took.percentiles([0.5, 0.99]);
    let values = [
        scores / seconds,
        server_cpu / scores * 1e6,
        scores / server_cpu,
        our_cpu / scores * 1e6,
        p50,
        p99,
        after.bound_since(&before, 0.99),
    ];
    columns.iter_mut().zip(values).for_each(|(c, v)| c.add(v));
    Ok(done.verdict)
}

/// Asks one question after the other.
async fn ask(
    mut client: Client,
    shared: Arc<Shared>,
    top_k: u32,
    first: usize,
    until: Instant,
) -> anyhow::Result<Done> {
    let mut done = Done::default();
    let mut next = first;
    while Instant::now() < until {
        let prompt = next % PROMPTS;
        next += 1;
        let began = Instant::now();
        let answer = client.score(shared.requests[prompt].clone()).await?.into_inner();
        done.took.add(began.elapsed());
        done.verdict.note(shared.fault(&answer, prompt, top_k));
    }
    Ok(done)
}

/// Keeps `in_flight` questions under way on one stream.
async fn ask_on_stream(
    mut client: Client,
    shared: Arc<Shared>,
    top_k: u32,
    in_flight: usize,
    until: Instant,
) -> anyhow::Result<Done> {
    let (questions, sent) = mpsc::channel(in_flight);
    let mut done = Done::default();
    let mut asked_at = Vec::new();
    for _ in 0..in_flight {
        questions.send(shared.question(asked_at.len())).await?;
        asked_at.push(Instant::now());
    }
    let mut answers = client.score_stream(ReceiverStream::new(sent)).await?.into_inner();
    let mut questions = Some(questions);
    while let Some(answer) = answers.message().await? {
        if answer.error_code != 0 {
            bail!("ScoreStream: {} {}", answer.error_code, answer.error_message);
        }
        let seq = answer.seq as usize;
        let began = asked_at.get(seq).context("an answer to no question")?;
        done.took.add(began.elapsed());
        done.verdict.note(shared.fault(&answer, seq % PROMPTS, top_k));
        if Instant::now() >= until {
            questions = None;
        }
        if let Some(questions) = &questions {
            questions.send(shared.question(asked_at.len())).await?;
            asked_at.push(Instant::now());
        }
    }
    Ok(done)
}

impl Way {
    fn request(&self, prompt: &Prompt) -> kv::ScoreRequest {
        let options = kv::ScoreOptions { top_k: self.top_k, ..kv::ScoreOptions::default() };
        kv::ScoreRequest { options: Some(options), ..grpc::request(prompt) }
    }
}

impl Shared {
    fn question(&self, seq: usize) -> kv::ScoreRequest {
        kv::ScoreRequest { seq: seq as u64, ..self.requests[seq % PROMPTS].clone() }
    }

    fn fault(&self, answer: &kv::ScoreResponse, prompt: usize, top_k: u32) -> Option<String> {
        let prompt = &self.prompts[prompt];
        if top_k == 0 {
            return grpc::fault(answer, &self.instances, prompt);
        }
        let mut best = prompt.held.clone();
        best.sort_unstable_by(|a, b| b.cmp(a));
        best.truncate(top_k as usize);
        let got: Vec<u32> = answer.endpoints.iter().map(|e| e.cached_blocks).collect();
        crate::report::differs("the best", got, best)
    }
}
