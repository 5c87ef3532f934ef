//! `replicas`: what does a scheduler notice when one of three replicas stalls or dies?
//!
//! One scheduler asks one question at a time, with a pause after each, by `scorer-client`'s `Replicas` as it is set
//! unless told otherwise, and beside it by one plain connection to each replica in turn.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use scorer_client::{Origin, ReplicaSettings, Replicas, ScoreCall, ScoreError, ScorerClient, Scores};

use crate::Setting;
use crate::engine::{Pod, instances, publish_held};
use crate::grpc;
use crate::machine::{Watch, signal};
use crate::report::{Latencies, Passes, Table, Verdict, print_others};
use crate::server::{MODEL, Server};
use crate::workload::{Prompt, Random};

/// Different prompts asked about in turn.
const PROMPTS: usize = 32;
const REPLICAS: usize = 3;
/// Of a scheduler's question; what both clients begin with.
const BUDGET: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens per prompt
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Pods that publish, all of them candidates
    #[arg(long, default_value_t = 32)]
    pods: usize,
    /// Questions in each state, and by each client
    #[arg(long, default_value_t = 3000)]
    requests: usize,
    /// Pause after an answer, in microseconds
    #[arg(long, default_value_t = 1000)]
    pause: u64,
}

/// What has happened to the last replica when questions are asked.
const STATES: [&str; 3] = ["nothing", "stalled (SIGSTOP)", "killed"];
const CLIENTS: [&str; 2] = ["`Replicas`", "each in turn"];

/// What is told of questions of one client in one state.
#[derive(Default)]
struct Row {
    times: [Passes; 3],
    over_budget: Passes,
    from_kvd: Passes,
    hedged: Passes,
    last_known: Passes,
    guessed: Passes,
    errors: Passes,
}

/// One answer as a client gave it.
enum Got {
    Kvd { scores: Scores, hedged: bool },
    LastKnown { scores: Scores },
    Guess,
    Error,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut random = Random(7);
    let prompts: Vec<Prompt> = (0..PROMPTS)
        .map(|_| Prompt::random(&mut random, args.tokens).spread_over(args.pods, &mut random))
        .collect();
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut rows: [[Row; 2]; 3] = Default::default();
    for _ in 0..setting.passes {
        for client in 0..CLIENTS.len() {
            let mut rows = rows.each_mut().map(|of_state| &mut of_state[client]);
            pass(setting, args, &prompts, client, &mut rows, &mut others, &mut verdict)?;
        }
    }
    let mut table = Table::new([
        "the third replica",
        "client",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "over 5 ms %",
        "from kvd %",
        "by a second one",
        "last known",
        "guessed",
        "errors",
    ]);
    for (state, rows) in STATES.iter().zip(&rows) {
        for (client, row) in CLIENTS.iter().zip(rows) {
            let mut cells = vec![(*state).to_owned(), (*client).to_owned()];
            cells.extend(row.times.iter().map(|t| t.cell(2)));
            cells.extend([row.over_budget.cell(2), row.from_kvd.cell(2)]);
            let counts = [&row.hedged, &row.last_known, &row.guessed, &row.errors];
            cells.extend(counts.map(|c| c.cell(0)));
            table.row(cells);
        }
    }
    println!(
        "{REPLICAS} replicas, {} tokens, {} pods, {} questions each, {} µs between them\n",
        args.tokens, args.pods, args.requests, args.pause
    );
    table.print();
    print_others(&others);
    Ok(verdict)
}

/// All states, in their order, with servers of their own.
fn pass(
    setting: &Setting,
    args: &Args,
    prompts: &[Prompt],
    client: usize,
    rows: &mut [&mut Row; 3],
    others: &mut Passes,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let servers: Vec<Server> =
        (0..REPLICAS).map(|_| Server::kvd(&setting.kvd)).collect::<anyhow::Result<_>>()?;
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    servers.iter().try_for_each(|s| s.register_with_kvd(&pods))?;
    for pod in &mut pods {
        pod.wait_for_subscribers(REPLICAS)?;
    }
    publish_held(&mut pods, prompts)?;
    let instances = instances(&pods);
    let places: Vec<String> =
        servers.iter().filter_map(|s| s.grpc).map(|at| format!("http://{at}")).collect();
    let pids: Vec<u32> = servers.iter().map(Server::pid).collect();
    let victim = pids[REPLICAS - 1];
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        for server in &servers {
            let mut client = grpc::connect(server).await?;
            grpc::wait_until_right(&mut client, &instances, prompts).await?;
        }
        let mut asker = Asker::new(client, &places).await?;
        for (state, row) in rows.iter_mut().enumerate() {
            match state {
                1 => signal(victim, Signal::STOP)?,
                2 => signal(victim, Signal::KILL)?,
                _ => {}
            }
            let watch = Watch::start(&pids);
            ask(args, prompts, &instances, &mut asker, row, verdict).await?;
            others.add(watch.others());
            if state == 1 {
                signal(victim, Signal::CONT)?;
                asker.until_all_are_well().await?;
            }
        }
        Ok(())
    })
}

/// Asks all questions of one client in one state.
async fn ask(
    args: &Args,
    prompts: &[Prompt],
    instances: &[String],
    asker: &mut Asker,
    row: &mut Row,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let mut took = Latencies::default();
    let (mut over, mut counts) = (0u32, [0u32; 5]);
    for i in 0..args.requests {
        let prompt = &prompts[i % prompts.len()];
        let call = ScoreCall::new(MODEL, scorer_client::Prompt::tokens(&prompt.tokens));
        let began = Instant::now();
        let got = asker.ask(call).await;
        let time = began.elapsed();
        took.add(time);
        over += u32::from(time > BUDGET);
        match got {
            Got::Kvd { scores, hedged } => {
                counts[0] += 1;
                counts[1] += u32::from(hedged);
                verdict.note(fault(&scores, instances, prompt));
            }
            Got::LastKnown { scores } => {
                counts[2] += 1;
                verdict.note(fault(&scores, instances, prompt));
            }
            Got::Guess => counts[3] += 1,
            Got::Error => counts[4] += 1,
        }
        tokio::time::sleep(Duration::from_micros(args.pause)).await;
    }
    let percentiles = took.percentiles([0.5, 0.99, 1.0]);
    row.times.iter_mut().zip(percentiles).for_each(|(t, v)| t.add(v));
    let part = |n: u32| 100.0 * f64::from(n) / args.requests as f64;
    row.over_budget.add(part(over));
    row.from_kvd.add(part(counts[0]));
    let cells = [&mut row.hedged, &mut row.last_known, &mut row.guessed, &mut row.errors];
    cells.into_iter().zip(&counts[1..]).for_each(|(cell, n)| cell.add(f64::from(*n)));
    Ok(())
}

/// A scheduler's way to ask.
enum Asker {
    Set(Replicas),
    InTurn(Vec<ScorerClient>, usize),
}

impl Asker {
    /// The client of this place in [`CLIENTS`].
    async fn new(client: usize, places: &[String]) -> anyhow::Result<Asker> {
        if client == 1 {
            let mut clients = Vec::new();
            for place in places {
                clients.push(ScorerClient::builder(place).deadline(BUDGET).connect().await?);
            }
            return Ok(Asker::InTurn(clients, 0));
        }
        let settings = ReplicaSettings { deadline: BUDGET, ..ReplicaSettings::new(places) };
        let asker = Asker::Set(Replicas::start(settings).await?);
        asker.until_all_are_well().await?;
        Ok(asker)
    }

    async fn ask(&mut self, call: ScoreCall) -> Got {
        match self {
            Asker::Set(replicas) => {
                let answer = replicas.score(call).await;
                let scores = (*answer.scores).clone();
                match answer.origin {
                    Origin::Kvd { hedged, .. } => Got::Kvd { scores, hedged },
                    Origin::LastKnown { .. } => Got::LastKnown { scores },
                    Origin::Guess { .. } => Got::Guess,
                }
            }
            Asker::InTurn(clients, turn) => {
                *turn += 1;
                match clients[*turn % clients.len()].score(call).await {
                    Ok(scores) => Got::Kvd { scores, hedged: false },
                    Err(ScoreError::Deadline { .. } | ScoreError::Unavailable { .. }) => Got::Error,
                    Err(other) => panic!("a question that is right everywhere: {other}"),
                }
            }
        }
    }

    /// Waits until no replica is left alone any more.
    async fn until_all_are_well(&self) -> anyhow::Result<()> {
        let Asker::Set(replicas) = self else {
            // Until what waited in its sockets is answered.
            tokio::time::sleep(Duration::from_millis(500)).await;
            return Ok(());
        };
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let stats = replicas.stats();
            if stats.replicas.len() == REPLICAS && stats.replicas.iter().all(|r| r.serves && !r.open) {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "not well again: {stats:?}");
        }
    }
}

fn fault(scores: &Scores, instances: &[String], prompt: &Prompt) -> Option<String> {
    if scores.endpoints.len() != instances.len() {
        return Some(format!("{} endpoints, expected {}", scores.endpoints.len(), instances.len()));
    }
    scores.endpoints.iter().zip(instances).enumerate().find_map(|(i, (e, instance))| {
        let right = e.endpoint.instance == *instance && e.cached_tokens == prompt.cached_tokens(i);
        (!right).then(|| format!("pod {i}: {} tokens, expected {}", e.cached_tokens, prompt.cached_tokens(i)))
    })
}
