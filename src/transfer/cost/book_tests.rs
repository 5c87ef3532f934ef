use super::*;

const PARITY: f64 = 1e9;

fn pod(name: &str) -> Endpoint {
    Endpoint { instance: name.into(), rank: 0 }
}

fn book() -> CostBook {
    CostBook::new(Starting::default(), 100, 100)
}

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn prefilled(pod: &Endpoint, tokens: u64, took: f64) -> Lesson {
    Lesson::Prefilled { pod: pod.clone(), model: "m".into(), tokens, cached: 0, took: secs(took) }
}

fn moved(bytes: u64, took: f64, sharing: u32) -> Lesson {
    Lesson::Moved { from: pod("a"), to: pod("b"), bytes, took: secs(took), sharing }
}

fn link(book: &CostBook) -> LinkCost {
    book.link(PodId::of(&pod("a")), PodId::of(&pod("b")), Distance::Zone)
}

#[test]
fn a_pod_costs_what_it_was_seen_to_cost_and_a_new_one_what_the_others_do() {
    let mut b = book();
    for i in 0..50 {
        b.learn(&prefilled(&pod("slow"), 1000, 1.015), PARITY, secs(f64::from(i)));
    }
    let of = |name| b.pod(PodId::of(&pod(name)), secs(50.0)).token_s;
    assert!((0.9e-3..1.1e-3).contains(&of("slow")), "{}", of("slow"));
    assert!((0.9e-3..1.1e-3).contains(&of("new")), "{}", of("new"));
}

#[test]
fn a_token_far_into_a_prompt_counts_as_more_work() {
    let (mut near, mut far) = (book(), book());
    for i in 0..50 {
        let at = secs(f64::from(i));
        near.learn(&prefilled(&pod("a"), 1000, 1.0), 10_000.0, at);
        far.learn(
            &Lesson::Prefilled {
                pod: pod("a"),
                model: "m".into(),
                tokens: 1000,
                cached: 10_000,
                took: secs(2.0),
            },
            10_000.0,
            at,
        );
    }
    let of = |b: &CostBook| b.pod(PodId::of(&pod("a")), secs(50.0)).token_s;
    assert!((of(&near) / of(&far) - 1.0).abs() < 0.05, "{} {}", of(&near), of(&far));
}

#[test]
fn work_makes_a_pod_busy_and_fades() {
    let mut b = book();
    (0..20).for_each(|i| b.learn(&prefilled(&pod("a"), 1000, 0.5), PARITY, secs(f64::from(i))));
    let busy = |at| b.pod(PodId::of(&pod("a")), secs(at)).busy;
    assert!((0.25..0.5).contains(&busy(20.0)), "{}", busy(20.0));
    assert!(busy(200.0) < 0.01);
    (0..20).for_each(|i| b.learn(&prefilled(&pod("a"), 1000, 50.0), PARITY, secs(20.0 + f64::from(i))));
    assert_eq!(b.pod(PodId::of(&pod("a")), secs(40.0)).busy, BUSIEST);
}

#[test]
fn the_first_transfer_of_a_pair_is_first_contact() {
    let mut b = book();
    assert!(link(&b).setup_s > 4.0 && !link(&b).warm);
    b.learn(&moved(1 << 30, 3.0, 1), PARITY, secs(0.0));
    let after = link(&b);
    assert!(after.warm && after.setup_s < 0.01, "{after:?}");
    assert_eq!(after.bytes_per_s, Starting::default().bytes_per_s[2], "it says nothing of the link");
    let other = b.link(PodId::of(&pod("a")), PodId::of(&pod("c")), Distance::Zone);
    assert!((3.0..5.0).contains(&other.setup_s), "but of others' first contact: {other:?}");
}

#[test]
fn a_link_is_as_fast_as_it_was_seen_to_be_shared_or_not() {
    let mut b = book();
    (0..50).for_each(|_| b.learn(&moved(10_000_000_000, 2.0, 1), PARITY, secs(0.0)));
    assert!((4.8e9..5.2e9).contains(&link(&b).bytes_per_s), "{:?}", link(&b));
    (0..50).for_each(|_| b.learn(&moved(10_000_000_000, 8.0, 4), PARITY, secs(0.0)));
    assert!((4.8e9..5.2e9).contains(&link(&b).bytes_per_s), "{:?}", link(&b));
}

#[test]
fn failures_make_a_pair_suspect_and_success_forgives() {
    let mut b = book();
    let fail = Lesson::Failed { from: pod("a"), to: pod("b") };
    (0..10).for_each(|_| b.learn(&fail, PARITY, secs(0.0)));
    assert!(link(&b).failures > 0.6);
    (0..40).for_each(|_| b.learn(&moved(1 << 20, 0.01, 1), PARITY, secs(0.0)));
    assert!(link(&b).failures < 0.02);
}

#[test]
fn a_pod_that_began_anew_has_to_shake_hands_again() {
    let mut b = book();
    b.learn(&moved(1 << 30, 0.1, 1), PARITY, secs(0.0));
    assert!(link(&b).warm);
    b.learn(&Lesson::Restarted { pod: pod("b") }, PARITY, secs(0.0));
    assert!(!link(&b).warm);
}

#[test]
fn what_cannot_be_teaches_nothing() {
    let mut b = book();
    b.learn(&prefilled(&pod("a"), 0, 1.0), PARITY, secs(0.0));
    b.learn(&prefilled(&pod("a"), 1000, 1e9), PARITY, secs(0.0));
    b.learn(&moved(u64::MAX, 1e9, 1), PARITY, secs(0.0));
    assert_eq!(b.pod(PodId::of(&pod("a")), secs(0.0)).token_s, Starting::default().token_s);
    b.learn(&moved(u64::MAX, 0.0, u32::MAX), PARITY, secs(0.0));
    let l = link(&b);
    assert!(l.bytes_per_s.is_finite() && l.bytes_per_s <= SANE_BYTES.1 && l.setup_s.is_finite());
}
