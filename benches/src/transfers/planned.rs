//! kvd's planner in a router's place.

use std::sync::Arc;
use std::time::Duration;

use kvd::transfer::cost::{CostBook, Geometry, Starting};
use kvd::transfer::plan::{Knowledge, Planner, Policy};
use kvd::transfer::types::{
    Candidate, Caps, Connector, Constraints, Endpoint, Flow, Held, LegKind, Lesson, Load, Place, Purpose,
    Question, Reserved, Roles, Wire,
};

use super::view::{Route, Router, Told, View};
use kvd::ctl::simulate::workload::{BLOCK, Job};

pub struct Planned {
    question: Question,
    geometry: Geometry,
    book: CostBook,
    policy: Policy,
    planner: Planner,
    /// What engines say their GPU's cache has room for.
    cache_tokens: u64,
}

impl Planned {
    /// A planner that begins with the usual starting values and is told the model's shape.
    pub fn new(
        pods: usize,
        rack: usize,
        token_bytes: u64,
        parity: f64,
        cache_tokens: u64,
        pulls: bool,
        policy: Policy,
    ) -> Planned {
        let candidate = |i: usize| {
            let name = format!("pod{i}");
            Candidate {
                endpoint: Endpoint { instance: name.clone().into(), rank: 0 },
                roles: Roles { prefill: true, decode: true, source: pulls },
                class: Some("one".into()),
                place: Place {
                    host: Some(name.clone().into()),
                    rack: Some(Arc::from(format!("rack{}", i / rack))),
                    zone: Some("zone".into()),
                    region: None,
                },
                wire: Wire { p2p: Some(format!("{name}:5710").into()), ..Wire::default() },
                held: Held::default(),
                block_size: BLOCK,
                load: Load::default(),
                reserved: Reserved::default(),
            }
        };
        Planned {
            question: Question {
                purpose: Purpose::PrefillDecode,
                model: "m".into(),
                connector: Connector::NixlPull,
                prompt_tokens: 0,
                pods: (0..pods).map(candidate).collect(),
                decode: None,
                links: Vec::new(),
                caps: Caps::default(),
                constraints: Constraints::default(),
                avoid: Vec::new(),
            },
            geometry: Geometry { attention_parity: parity, ..Geometry::uniform(token_bytes) },
            book: CostBook::new(Starting::default(), 1024, 16_384),
            policy,
            planner: Planner::default(),
            cache_tokens,
        }
    }

    fn place(&self, e: &Endpoint) -> usize {
        self.question.pods.iter().position(|p| p.endpoint == *e).expect("one of those asked about")
    }
}

impl Router for Planned {
    fn route(&mut self, view: &View, job: &Job) -> Route {
        self.question.prompt_tokens = job.tokens;
        for (i, pod) in self.question.pods.iter_mut().enumerate() {
            let seen = &view.pods[i];
            let (gpu, all, cpu) = view.held(i, job);
            let tokens = |blocks: usize| blocks as u32 * BLOCK;
            pod.roles.prefill = seen.prefills_for_others;
            pod.roles.decode = seen.decodes;
            pod.held = Held {
                gpu: tokens(gpu),
                cpu: tokens(all),
                disk: tokens(all),
                shared: tokens(all),
                cached: tokens(all),
                cpu_alone: tokens(cpu),
                fresh: true,
            };
            pod.load = Load {
                waiting_requests: 0,
                waiting_tokens: seen.prefill_tokens,
                running_requests: seen.active - seen.prefills.min(seen.active),
                cache_tokens: self.cache_tokens,
                committed_tokens: seen.active_blocks * u64::from(BLOCK),
            };
            pod.reserved = Reserved {
                egress: Flow { transfers: seen.egress.0, bytes: seen.egress.1 },
                ingress: Flow { transfers: seen.ingress.0, bytes: seen.ingress.1 },
                pinned_bytes: seen.pinned,
                prefills: seen.prefills,
                prefill_tokens: seen.prefill_tokens,
            };
        }
        let know = Knowledge {
            geometry: Some(&self.geometry),
            book: &self.book,
            policy: &self.policy,
            now: Duration::from_secs_f64(view.now),
        };
        let plan = self.planner.plan(&self.question, know);
        let choice = match (&plan.choice.decode, plan.alternatives.first()) {
            // Busy: a router that has nowhere else to go serves it all the same.
            (None, Some(other)) => other,
            (None, None) => {
                let decode =
                    view.decoders().min_by_key(|i| view.pods[*i].prefill_tokens).expect("there are pods");
                return Route { compute: decode, decode, pull: None };
            }
            (Some(_), _) => &plan.choice,
        };
        let decode = self.place(choice.decode.as_ref().expect("not busy"));
        let compute = choice.prefill.as_ref().map_or(decode, |p| self.place(p));
        let pull = choice.legs.iter().find(|l| l.kind == LegKind::Pull).map(|leg| {
            let upto = job.tokens - choice.prefill_tokens;
            (self.place(&leg.from), (upto / BLOCK) as usize)
        });
        Route { compute, decode, pull }
    }

    fn told(&mut self, now: f64, told: Told) {
        let name = |i: usize| self.question.pods[i].endpoint.clone();
        let lesson = match told {
            Told::Prefilled { pod, tokens, cached, took } => Lesson::Prefilled {
                pod: name(pod),
                model: "m".into(),
                tokens: u64::from(tokens),
                cached: u64::from(cached),
                took: Duration::from_secs_f64(took),
            },
            Told::Moved { from, to, bytes, took, sharing } => Lesson::Moved {
                from: name(from),
                to: name(to),
                bytes,
                took: Duration::from_secs_f64(took),
                sharing,
            },
        };
        self.book.learn(&lesson, self.geometry.attention_parity, Duration::from_secs_f64(now));
    }
}
