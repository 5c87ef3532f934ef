//! `score`: how long does one Score take, on the server and for its client?
//!
//! One client asks one question at a time. The server's part, `Service::ask`, is what lies
//! between a decoded request and an encoded answer; kvd's own histogram gives its bounds, and
//! its exact percentiles are measured in this process, which follows the same engines.

use std::sync::Arc;
use std::time::Instant;

use kvd::ingest::{IngestConfig, Publishers};
use kvd::serve::{Limits, Service};
use kvindex::{Index, IndexConfig, Query, TierWeights};

use crate::Setting;
use crate::engine::{Pod, instances, publish_held};
use crate::grpc::{self, ServerTimes};
use crate::machine::Watch;
use crate::report::{Latencies, Passes, Table, Verdict, differs, print_others};
use crate::server::{MODEL, Server};
use crate::workload::{Prompt, Random};

/// Different prompts asked about in turn.
const PROMPTS: usize = 32;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens per prompt
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
    /// Pods that publish, all of them candidates
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Questions per pass
    #[arg(long, default_value_t = 2000)]
    requests: usize,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut random = Random(2);
    let some = |random: &mut Random| -> Vec<Prompt> {
        (0..PROMPTS).map(|_| Prompt::random(random, args.tokens)).collect()
    };
    let spread: Vec<Prompt> =
        some(&mut random).into_iter().map(|p| p.spread_over(args.pods, &mut random)).collect();
    let all: Vec<Prompt> = some(&mut random).into_iter().map(|p| p.held_by_all(args.pods)).collect();

    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut table = Table::new([
        "pods hold",
        "client p50 ms",
        "client p99 ms",
        "server mean ms",
        "server p99 ms at most",
        "ask p50 ms",
        "ask p99 ms",
    ]);
    for (name, prompts) in [("nothing to all, evenly", spread), ("everything", all)] {
        let mut columns: [Passes; 6] = Default::default();
        measure(setting, args, &prompts, &mut columns, &mut others, &mut verdict)?;
        let mut row = vec![name.to_owned()];
        row.extend(columns.iter().map(|c| c.cell(3)));
        table.row(row);
    }
    println!("{} tokens, {} pods, {} questions a pass\n", args.tokens, args.pods, args.requests);
    table.print();
    print_others(&others);
    Ok(verdict)
}

fn measure(
    setting: &Setting,
    args: &Args,
    prompts: &[Prompt],
    columns: &mut [Passes; 6],
    others: &mut Passes,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let server = Server::kvd(&setting.kvd)?;
    let service = service()?;
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    server.register_with_kvd(&pods)?;
    for pod in &mut pods {
        service.publishers.register(pod.spec())?;
        pod.wait_for_subscribers(2)?;
    }
    publish_held(&mut pods, prompts)?;
    let instances = instances(&pods);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = grpc::connect(&server).await?;
        grpc::wait_until_right(&mut client, &instances, prompts).await?;
        for _ in 0..setting.passes {
            let watch = Watch::start(&[server.pid()]);
            let before = ServerTimes::read(&server)?;
            let mut took = Latencies::default();
            for i in 0..args.requests {
                let prompt = &prompts[i % PROMPTS];
                let request = grpc::request(prompt);
                let began = Instant::now();
                let answer = client.score(request).await?.into_inner();
                took.add(began.elapsed());
                verdict.note(grpc::fault(&answer, &instances, prompt));
            }
            let after = ServerTimes::read(&server)?;
            let [p50, p99] = took.percentiles([0.5, 0.99]);
            let [ask_p50, ask_p99] = ask(&service, args, prompts, verdict)?;
            let times =
                [p50, p99, after.mean_since(&before), after.bound_since(&before, 0.99), ask_p50, ask_p99];
            columns.iter_mut().zip(times).for_each(|(c, v)| c.add(v));
            others.add(watch.others());
        }
        Ok(())
    })
}

/// What kvd serves from, in this process.
fn service() -> anyhow::Result<Service> {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None)?;
    publishers.begin();
    Ok(Service::new(index, publishers, Limits::default(), TierWeights::default()))
}

/// Times `Service::ask` itself.
fn ask(
    service: &Service,
    args: &Args,
    prompts: &[Prompt],
    verdict: &mut Verdict,
) -> anyhow::Result<[f64; 2]> {
    let mut took = Latencies::default();
    for i in 0..args.requests {
        let prompt = &prompts[i % PROMPTS];
        let query = Query::new("default", MODEL, kvindex::Prompt::tokens(&prompt.tokens));
        let began = Instant::now();
        let asked = service.ask(&query)?;
        took.add(began.elapsed());
        let cached = asked.answer.scores.iter().map(|s| s.cached);
        verdict.note(differs("ask", cached.collect::<Vec<_>>(), prompt.held.clone()));
    }
    Ok(took.percentiles([0.5, 0.99]))
}
