//! `plan-parts`: how many plans a second does one processor make?
//!
//! The planner alone, as the service calls it: a question with everything in it goes in, a plan with its
//! explanation comes out. Looking the prompt up in the index is `score`'s business.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvd::transfer::cost::{CostBook, Geometry, Starting};
use kvd::transfer::plan::{Knowledge, Planner, Policy};
use kvd::transfer::types::{
    Candidate, Caps, Connector, Constraints, Decision, Endpoint, Flow, Held, Lesson, Load, Place, Plan,
    Purpose, Question, Reserved, Roles, Wire,
};

use crate::Setting;
use crate::alloc::asked;
use crate::machine::{Watch, thread_cpu};
use crate::report::{Latencies, Passes, Table, Verdict, print_others};
use crate::workload::Random;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Candidates
    #[arg(long, default_value_t = 64)]
    pods: usize,
    /// Tokens of the prompts
    #[arg(long, default_value_t = 32_768)]
    tokens: u32,
    /// Plans per pass
    #[arg(long, default_value_t = 20_000)]
    plans: usize,
}

/// What the candidates are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Half prefill, half decode; nobody holds anything.
    Cold,
    /// Half and half; a few hold some of it, work and transfers are under way.
    Usual,
    /// Everybody may do everything and holds a part: every pair is a way.
    Everything,
}

impl Case {
    const ALL: [Case; 3] = [Case::Cold, Case::Usual, Case::Everything];

    fn name(self) -> &'static str {
        match self {
            Case::Cold => "half prefill, nobody holds any of it",
            Case::Usual => "half prefill, an eighth hold some",
            Case::Everything => "all do all and hold some",
        }
    }
}

/// Runs it.
pub fn run(setting: &Setting, args: &Args) -> anyhow::Result<Verdict> {
    let (mut verdict, mut others) = (Verdict::default(), Passes::default());
    let mut table = Table::new([
        "candidates",
        "plans per CPU s",
        "p50 us",
        "p99 us",
        "allocations per plan",
        "bytes per plan",
    ]);
    println!("{} candidates, prompts of {} tokens\n", args.pods, args.tokens);
    for case in Case::ALL {
        let questions: Vec<Question> = (1..=64).map(|seed| question(case, args, seed)).collect();
        let book = book(&questions[0]);
        let (geometry, policy) = (Geometry::uniform(128 << 10), Policy::default());
        let now = Duration::from_secs(3600);
        let know = Knowledge { geometry: Some(&geometry), book: &book, policy: &policy, now };
        let mut planner = Planner::default();
        let first: Vec<Plan> = questions.iter().map(|q| planner.plan(q, know)).collect();
        let mut columns: [Passes; 5] = Default::default();
        for _ in 0..setting.passes {
            let (watch, mut took) = (Watch::start(&[]), Latencies::default());
            let (cpu, before) = (thread_cpu(), asked());
            for i in 0..args.plans {
                let began = Instant::now();
                let plan = planner.plan(&questions[i % questions.len()], know);
                took.add(began.elapsed());
                let same = plan == first[i % first.len()];
                verdict.note((!same).then(|| format!("{}: plan {i} is another", case.name())));
            }
            let cpu = (thread_cpu() - cpu).as_secs_f64();
            let after = asked();
            let n = args.plans as f64;
            let [p50, p99] = took.percentiles([0.5, 0.99]);
            let values = [
                n / cpu,
                p50 * 1e3,
                p99 * 1e3,
                (after.calls - before.calls) as f64 / n,
                (after.bytes - before.bytes) as f64 / n,
            ];
            columns.iter_mut().zip(values).for_each(|(c, v)| c.add(v));
            others.add(watch.others());
        }
        verdict.note(first.iter().find_map(wrong));
        let [rate, p50, p99, times, bytes] = columns;
        table.row(vec![
            case.name().into(),
            rate.cell(0),
            p50.cell(1),
            p99.cell(1),
            times.cell(0),
            bytes.cell(0),
        ]);
    }
    table.print();
    print_others(&others);
    Ok(verdict)
}

/// What cannot be in any of these plans.
fn wrong(plan: &Plan) -> Option<String> {
    let moves = match plan.choice.decision {
        Decision::Local => 0,
        Decision::Disagg | Decision::Pull => 1,
        Decision::DisaggWithPull => 2,
        Decision::Busy => return Some(format!("busy: {}", plan.explanation)),
    };
    (plan.choice.legs.len() != moves).then(|| format!("{plan:?}"))
}

/// Every pair has worked together.
fn book(q: &Question) -> CostBook {
    let mut book = CostBook::new(Starting::default(), 8192, 131_072);
    for from in &q.pods {
        for to in &q.pods {
            let (from, to) = (from.endpoint.clone(), to.endpoint.clone());
            let lesson =
                Lesson::Moved { from, to, bytes: 1 << 30, took: Duration::from_millis(70), sharing: 1 };
            (0..2).for_each(|_| book.learn(&lesson, 26_600.0, Duration::ZERO));
        }
    }
    book
}

fn question(case: Case, args: &Args, seed: u64) -> Question {
    let mut random = Random(seed);
    let n = args.pods;
    let mut some = |of: u32| random.below(u64::from(of.max(1))) as u32;
    let pods = (0..n).map(|i| {
        let name = format!("10.0.{}.{}:8000", i / 250, i % 250);
        let holds = match case {
            Case::Cold => false,
            Case::Usual => some(8) == 0,
            Case::Everything => true,
        };
        let blocks = if holds { some(args.tokens / 16) * 16 } else { 0 };
        let busy = case != Case::Cold;
        Candidate {
            endpoint: Endpoint { instance: name.clone().into(), rank: 0 },
            roles: match case {
                Case::Everything => Roles { prefill: true, decode: true, source: true },
                Case::Cold | Case::Usual => Roles { prefill: i % 2 == 0, decode: i % 2 == 1, source: true },
            },
            class: Some("llama/vllm-0.33/bf16".into()),
            place: Place {
                host: Some(Arc::from(format!("node-{}", i / 2))),
                rack: Some(Arc::from(format!("rack-{}", i / 16))),
                zone: Some("zone-a".into()),
                region: Some("region".into()),
            },
            wire: Wire { p2p: Some(name.into()), ..Wire::default() },
            held: Held { gpu: blocks, cached: blocks, cpu_alone: blocks, fresh: true, ..Held::default() },
            block_size: 16,
            load: Load {
                waiting_tokens: if busy { u64::from(some(40_000)) } else { 0 },
                running_requests: if busy { some(20) } else { 0 },
                cache_tokens: 450_000,
                committed_tokens: if busy { u64::from(some(450_000)) } else { 0 },
                waiting_requests: 0,
            },
            reserved: Reserved {
                egress: Flow { transfers: 1, bytes: if busy { u64::from(some(2_000_000_000)) } else { 0 } },
                ..Reserved::default()
            },
        }
    });
    let pods: Vec<Candidate> = pods.collect();
    let links = match case {
        Case::Cold => Vec::new(),
        Case::Usual | Case::Everything => {
            (0..n).map(|i| (i, (i + 1) % n, Flow { transfers: 1, bytes: 1 << 30 })).collect()
        }
    };
    Question {
        purpose: Purpose::PrefillDecode,
        model: "llama".into(),
        connector: Connector::NixlPull,
        prompt_tokens: args.tokens,
        pods,
        decode: None,
        links,
        caps: Caps::default(),
        constraints: Constraints::default(),
        avoid: Vec::new(),
    }
}
