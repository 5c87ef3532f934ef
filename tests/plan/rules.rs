//! What holds of every plan, on random clusters with random limits.

use std::time::Duration;

use kvd::transfer::types::{Decision, LegKind, Lesson, Plan, Question, Reason};

use crate::best::{limited, random};
use crate::cluster::Cluster;

fn plans(c: &mut Cluster) -> Plan {
    let q = c.question.clone();
    c.plan(&q)
}

/// What is wrong with a plan, if anything is: checked by names and numbers it states.
fn fault(q: &Question, token_bytes: u64, plan: &Plan) -> Option<String> {
    let pod = |e: &kvd::transfer::types::Endpoint| {
        q.pods.iter().position(|p| p.endpoint == *e).expect("asked about")
    };
    for choice in std::iter::once(&plan.choice).chain(&plan.alternatives) {
        let moved: u64 = choice.legs.iter().map(|l| l.bytes).sum();
        if q.constraints.max_bytes.is_some_and(|most| moved > most) {
            return Some(format!("{moved} bytes are more than the request allows"));
        }
        for leg in &choice.legs {
            let (from, to) = (pod(&leg.from), pod(&leg.to));
            let (src, dst) = (&q.pods[from], &q.pods[to]);
            let has = dst.held.cached.min(q.prompt_tokens - 1);
            let there = match leg.kind {
                LegKind::Pull => src.held.cpu_alone.min(q.prompt_tokens - 1),
                LegKind::Handover => q.prompt_tokens,
            };
            let link = q.links.iter().find(|l| (l.0, l.1) == (from, to)).map_or(0, |l| l.2.bytes);
            let faults = [
                (from == to, "moves to itself"),
                (src.class != dst.class, "incompatible"),
                (has + leg.tokens != there, "not just what is lacking"),
                (leg.bytes != u64::from(leg.tokens) * token_bytes, "bytes are not the tokens'"),
                (leg.kind == LegKind::Pull && !src.roles.source, "not a source"),
                (leg.kind == LegKind::Handover && !src.roles.prefill, "does not prefill"),
                (leg.kind == LegKind::Handover && !dst.roles.decode, "does not decode"),
                (src.reserved.egress.transfers >= q.caps.transfers_per_source, "source at its limit"),
                (
                    dst.reserved.ingress.transfers >= q.caps.transfers_per_destination,
                    "destination at its limit",
                ),
                (link + leg.bytes > q.caps.bytes_per_link, "link at its limit"),
                (src.reserved.pinned_bytes + leg.pinned_bytes > q.caps.pinned_bytes_per_pod, "pins too much"),
                (
                    leg.kind == LegKind::Handover && src.reserved.prefills >= q.caps.prefills_per_pod,
                    "too many prefills",
                ),
                (q.avoid.contains(&from), "to be avoided"),
            ];
            if let Some((_, what)) = faults.iter().find(|f| f.0) {
                return Some(format!("{what}: {leg:?}"));
            }
        }
    }
    None
}

#[test]
fn no_plan_and_no_alternative_breaks_a_rule() {
    let (mut moving, mut at_limit) = (0, 0);
    for seed in 1..=6_000 {
        let mut c = limited(seed, 4 + seed % 9);
        let plan = plans(&mut c);
        let token_bytes = c.geometry.as_ref().expect("a model").token_bytes();
        if let Some(what) = fault(&c.question, token_bytes, &plan) {
            panic!("seed {seed}: {what} in {plan:?}");
        }
        moving += u32::from(!plan.choice.legs.is_empty());
        at_limit += u32::from(plan.reason == Reason::AtLimit);
        let actors: Vec<_> = std::iter::once(&plan.choice)
            .chain(&plan.alternatives)
            .map(|c| c.prefill.clone().or_else(|| c.decode.clone()))
            .collect();
        assert!((1..actors.len()).all(|i| !actors[..i].contains(&actors[i])), "seed {seed}: {plan:?}");
    }
    assert!(moving > 1000 && at_limit > 300, "the rules are tried: {moving} move, {at_limit} at a limit");
}

#[test]
fn faster_links_never_make_a_plan_worse() {
    for seed in 1..=1_500 {
        let mut c = random(seed, 3 + seed % 6);
        let mut last = Duration::MAX;
        for speed in [1u32, 2, 5, 20, 100] {
            for rate in &mut c.starting.bytes_per_s {
                *rate = 1e8 * f64::from(speed);
            }
            let total = plans(&mut c).choice.estimate.total;
            assert!(total <= last, "seed {seed}: {total:?} at {speed}, {last:?} before");
            last = total;
        }
    }
}

#[test]
fn more_that_is_held_and_less_that_waits_never_make_a_plan_worse() {
    for seed in 1..=1_500 {
        let mut c = random(seed, 3 + seed % 6);
        let before = plans(&mut c).choice.estimate.total;
        let at = (seed % c.question.pods.len() as u64) as usize;
        // Not more than somebody has already: that would say that such prompts come again.
        let most = c.question.pods.iter().map(|p| p.held.cached.max(p.held.cpu_alone)).max().unwrap_or(0);
        let pod = &mut c.question.pods[at];
        pod.load.waiting_tokens /= 2;
        pod.reserved.egress = kvd::transfer::types::Flow::default();
        pod.held.cpu_alone = most;
        let after = plans(&mut c).choice.estimate.total;
        // A nanosecond for rounding to durations.
        assert!(after <= before + Duration::from_nanos(1), "seed {seed}: {before:?}, then {after:?}");
    }
}

#[test]
fn equal_questions_get_equal_plans_whatever_was_asked_between() {
    let mut c = random(7, 8);
    let first = plans(&mut c);
    let mut other = random(8, 12);
    std::mem::swap(&mut c.planner, &mut other.planner);
    plans(&mut other);
    std::mem::swap(&mut c.planner, &mut other.planner);
    assert_eq!(first, plans(&mut c));
}

#[test]
fn the_order_of_pods_changes_no_cost() {
    for seed in 1..=500 {
        let mut c = random(seed, 8);
        let before = plans(&mut c).choice.estimate.total;
        c.question.pods.reverse();
        assert_eq!(before, plans(&mut c).choice.estimate.total, "seed {seed}");
    }
}

#[test]
fn questions_that_make_no_sense_get_an_answer() {
    let mut c = Cluster::default();
    c.model(128 << 10);
    let empty = plans(&mut c);
    assert_eq!(empty.choice.decision, Decision::Busy);
    for seed in 1..=500 {
        let mut c = random(seed, 6);
        let q = &mut c.question;
        q.prompt_tokens = [0, 1, u32::MAX][(seed % 3) as usize];
        q.links.push((99, 0, kvd::transfer::types::Flow { transfers: u32::MAX, bytes: u64::MAX }));
        q.avoid.push(99);
        q.decode = (seed % 4 == 0).then_some(99);
        for pod in &mut q.pods {
            pod.held.cached = u32::MAX;
            pod.held.cpu_alone = u32::MAX;
            pod.load.waiting_tokens = u64::MAX;
            pod.reserved.egress.bytes = u64::MAX;
            pod.reserved.egress.transfers = 3;
            pod.block_size = 0;
        }
        c.learn(&Lesson::Measured {
            from: Cluster::endpoint("p0"),
            to: Cluster::endpoint("p1"),
            bytes_per_second: 0,
            setup: Duration::MAX,
        });
        let plan = plans(&mut c);
        assert!(!plan.explanation.is_empty());
    }
}
