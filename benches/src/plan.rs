//! `plan`: how long does PlanTransfer take, and how many does one processor make?
//!
//! The whole call in this process, as both transports make it: the message is read, the index asked
//! about every candidate, the planner asked, the plan reserved and handed to the ledger on disk, the
//! artefacts and the token made. Each plan is ended again, outside the time that counts, so that no
//! limit is reached. With `--valkey` the ledger is on a cluster on loopback, which shares the processors.

#[path = "../../kvindex/valkey/tests/support/servers.rs"]
mod servers;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use kvd::guard::Dialer;
use kvd::ingest::{IngestConfig, Publishers};
use kvd::serve::transfer::{Sharing, TransferConfig, Transfers};
use kvd::serve::{Limits, Service};
use kvd::transfer::cost::{Geometry, Starting};
use kvd::transfer::learned::Learned;
use kvd::transfer::ledger::store::Store;
use kvd::transfer::ledger::store::rocks::Rocks;
use kvd::transfer::ledger::store::valkey::{Setup, Valkey};
use kvd::transfer::plan::Policy;
use kvindex::{Index, IndexConfig, Query, TierWeights};
use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::rpc::kv;
use servers::Servers;
use tokio::runtime::Runtime;

use crate::Setting;
use crate::engine::{Pod, instances, publish_held};
use crate::machine::{Watch, thread_cpu};
use crate::report::{Latencies, Passes, Table, Verdict, print_others};
use crate::server::MODEL;
use crate::workload::{BLOCK, Prompt, Random};

/// Different prompts asked about in turn.
const PROMPTS: usize = 16;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens per prompt
    #[arg(long, default_value_t = 32_768)]
    tokens: usize,
    /// Pods, all of them candidates
    #[arg(long, default_value_t = 64)]
    pods: usize,
    /// Plans per pass
    #[arg(long, default_value_t = 2000)]
    plans: usize,
    /// Wait for the disk before a plan is answered
    #[arg(long)]
    sync_plans: bool,
    /// Keep the ledger on three Valkey or Redis servers
    #[arg(long, conflicts_with = "sync_plans")]
    valkey: bool,
    /// Replicas of each, all of which must have heard of a plan before it is answered
    #[arg(long, default_value_t = 0, requires = "valkey")]
    wait_replicas: u32,
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let mut random = Random(6);
    let prompts: Vec<Prompt> = (0..PROMPTS)
        .map(|_| Prompt::random(&mut random, args.tokens).spread_over(args.pods, &mut random))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let disk = tempfile::tempdir()?;
    let servers = args.valkey.then(|| cluster(&runtime, args.wait_replicas)).transpose()?;
    let transfers = match &servers {
        Some(servers) => shared(&runtime, servers, args.wait_replicas)?,
        None => on_disk(disk.path(), args.sync_plans)?,
    };
    let service = Arc::new(service(transfers)?);
    // Follows what the ledger's store says of itself.
    let keeping = Arc::clone(&service);
    let keeper = runtime.spawn(async move { keeping.keep_transfers().await });
    let mut pods = (0..args.pods).map(Pod::open).collect::<anyhow::Result<Vec<_>>>()?;
    for pod in &mut pods {
        service.publishers.register(pod.spec())?;
        pod.wait_for_subscribers(1)?;
    }
    publish_held(&mut pods, &prompts)?;
    wait_until_applied(&service, &prompts)?;
    let names = instances(&pods);

    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let mut columns: [Passes; 4] = Default::default();
    for pass in 0..setting.passes {
        let watch = Watch::start(&servers.as_ref().map(Servers::pids).unwrap_or_default());
        let service = Arc::clone(&service);
        let asked = (0..args.plans).map(|i| request(&names, &prompts[i % PROMPTS], pass, i));
        let asked: Vec<kv::PlanTransferRequest> = asked.collect();
        let (mut took, cpu, faults) = runtime.block_on(async {
            let mut took = Latencies::default();
            let mut faults = Vec::new();
            let mut cpu = 0.0;
            for request in asked {
                let (began, cpu_before) = (Instant::now(), thread_cpu());
                let answer = service.plan_transfer(request).await?;
                cpu += (thread_cpu() - cpu_before).as_secs_f64();
                took.add(began.elapsed());
                faults.push(fault(&answer));
                let transfer = answer.transfer.unwrap_or_default();
                if !answer.plan_token.is_empty() {
                    let cancel = kv::CancelTransferRequest {
                        transfer_id: transfer.transfer_id,
                        ..kv::CancelTransferRequest::default()
                    };
                    service.cancel_transfer(cancel).await?;
                }
            }
            anyhow::Ok((took, cpu, faults))
        })?;
        faults.into_iter().for_each(|f| verdict.note(f));
        let [p50, p99] = took.percentiles([0.5, 0.99]);
        let per_second = args.plans as f64 / cpu;
        columns
            .iter_mut()
            .zip([p50, p99, cpu / args.plans as f64 * 1e3, per_second])
            .for_each(|(c, v)| c.add(v));
        others.add(watch.others());
    }
    println!(
        "{} tokens by canonical hashes, {} candidates, {} plans a pass\n",
        args.tokens, args.pods, args.plans
    );
    let mut table = Table::new(["p50 ms", "p99 ms", "CPU ms", "plans/s per core"]);
    table.row(columns.iter().zip([3, 3, 3, 0]).map(|(c, digits)| c.cell(digits)).collect());
    table.print();
    print_others(&others);
    keeper.abort();
    if let Ok(transfers) = service.transfers() {
        transfers.stop();
    }
    Ok(verdict)
}

/// Three servers, with so many replicas each.
fn cluster(runtime: &Runtime, replicas: u32) -> anyhow::Result<Servers> {
    let servers = runtime.block_on(Servers::start(3, replicas as usize));
    servers.context("neither valkey-server nor redis-server is installed")
}

fn on_disk(disk: &std::path::Path, sync_plans: bool) -> anyhow::Result<Transfers> {
    transfers(sync_plans, Box::new(Rocks::open(disk)?))
}

fn shared(runtime: &Runtime, servers: &Servers, wait_replicas: u32) -> anyhow::Result<Transfers> {
    let address = "http://127.0.0.1:1".to_owned();
    let (servers, process) = (servers.config("bench"), "bench".to_owned());
    let setup = Setup { servers, address: address.clone(), process, wait_replicas };
    let (store, library) = runtime.block_on(Valkey::connect(setup))?;
    Ok(transfers(true, Box::new(store))?.sharing(Sharing { library, address }))
}

fn transfers(sync_plans: bool, store: Box<dyn Store>) -> anyhow::Result<Transfers> {
    let plans = Learned::new(Starting::default(), Policy::default());
    plans.set_model(MODEL, Geometry::uniform(131_072));
    let config = TransferConfig { sync_plans, ..TransferConfig::default() };
    let key = b"a key of the bench's own";
    Ok(Transfers::start(config, Arc::new(plans), Some(store), key, &Dialer::default())?)
}

fn service(transfers: Transfers) -> anyhow::Result<Service> {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None)?;
    publishers.begin();
    let service = Service::new(index, publishers, Limits::default(), TierWeights::default());
    Ok(service.with_transfers(Arc::new(transfers)))
}

/// Half of the pods prefill, half decode; the decoding ones have a queue.
fn request(names: &[String], prompt: &Prompt, pass: usize, i: usize) -> kv::PlanTransferRequest {
    let seed = Namespace { salt: "", model: MODEL, lora: None }.seed();
    let hashes = prompt_hashes(seed, &prompt.tokens, BLOCK, PromptExtras::default()).map(|h| h.0);
    let hashes = kv::BlockHashes { kind: kv::HashKind::Canonical.into(), hashes: hashes.collect() };
    let pod = |(at, name): (usize, &String)| kv::TransferPod {
        instance_id: name.clone(),
        can_prefill: at % 2 == 0,
        can_decode: at % 2 == 1,
        can_source: true,
        compat_class: "a".to_owned(),
        load: Some(kv::PodLoad { waiting_tokens: 20_000 * (at % 2) as u64, ..kv::PodLoad::default() }),
        ..kv::TransferPod::default()
    };
    kv::PlanTransferRequest {
        request_id: format!("{pass}-{i}"),
        model: MODEL.to_owned(),
        prompt: Some(kv::Prompt { key: Some(kv::prompt::Key::Hashes(hashes)), ..kv::Prompt::default() }),
        block_size: BLOCK,
        prompt_tokens: prompt.tokens.len() as u64,
        pods: names.iter().enumerate().map(pod).collect(),
        ..kv::PlanTransferRequest::default()
    }
}

/// A plan that names no pod, or no way, is none.
fn fault(answer: &kv::PlanTransferResponse) -> Option<String> {
    let choice = answer.transfer.as_ref().and_then(|t| t.choice.as_ref())?;
    let decided = choice.decode.is_some() && choice.decision() != kv::TransferDecision::Busy;
    (!decided).then(|| format!("{}: {}", answer.reason, answer.explanation))
}

fn wait_until_applied(service: &Service, prompts: &[Prompt]) -> anyhow::Result<()> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    for prompt in prompts {
        loop {
            let query = Query::new("default", MODEL, kvindex::Prompt::tokens(&prompt.tokens));
            let held: Vec<u32> = service.ask(&query)?.answer.scores.iter().map(|s| s.cached).collect();
            if held == prompt.held {
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "the pods' blocks never arrived");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    Ok(())
}
