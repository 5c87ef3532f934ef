//! Rules of the state machine, one by one.

use super::*;
use crate::transfer::ledger::book::{NotApplied, NotPlanned, Outbox, Write};
use crate::transfer::ledger::machine::{Notice, Refused};
use crate::transfer::ledger::reserve::Full;

/// A book with one transfer, and what is told of it.
struct Rig {
    book: Book,
    id: TransferId,
    now: Millis,
    out: Outbox,
}

impl Rig {
    fn new(record: Record) -> Rig {
        let mut rig = Rig { book: book(), id: record.id, now: NOW, out: Outbox::default() };
        rig.book.plan(record, NOW, &mut rig.out).unwrap();
        rig.out = Outbox::default();
        rig
    }

    fn disagg() -> Rig {
        Rig::new(record("r", disagg("p", "d")))
    }

    /// Applies `event` after `ms`; says the state and what was told.
    fn after(&mut self, ms: u64, event: Event) -> (State, Vec<Notice>) {
        self.now += ms;
        self.out = Outbox::default();
        let attempt = self.record().attempt;
        self.book.report(self.id, attempt, 0, event, self.now, &mut self.out).unwrap();
        self.seen()
    }

    fn tick(&mut self, ms: u64) -> (State, Vec<Notice>) {
        self.now += ms;
        self.out = Outbox::default();
        self.book.tick(self.now, &mut self.out);
        self.seen()
    }

    fn seen(&self) -> (State, Vec<Notice>) {
        (self.record().state, self.out.news.iter().map(|n| n.notice).collect())
    }

    fn record(&self) -> &Record {
        self.book.get(self.id).unwrap()
    }
}

#[test]
fn a_transfer_that_goes_well_passes_every_state_and_leaves_nothing() {
    let mut rig = Rig::disagg();
    assert_eq!(rig.after(10, Event::PrefillStarted), (State::Prefilling, vec![Notice::State]));
    assert_eq!(rig.after(500, prefill_done()), (State::Ready, vec![Notice::State]));
    assert_eq!(rig.after(10, Event::PullStarted), (State::Pulling, vec![Notice::State]));
    assert!(!rig.book.reservations().is_empty());
    assert_eq!(rig.after(30, Event::Done), (State::Done, vec![Notice::State]));
    assert!(rig.book.reservations().is_empty());
    assert_eq!(rig.record().strand, None);
}

#[test]
fn what_is_over_is_forgotten_after_a_while() {
    let mut rig = Rig::disagg();
    rig.after(10, Event::Done);
    rig.tick(599_999);
    assert!(rig.book.find("r", Purpose::PrefillDecode).is_some());
    rig.now += 1;
    rig.out = Outbox::default();
    rig.book.tick(rig.now, &mut rig.out);
    assert_eq!(rig.out.writes, [Write::Delete(rig.id)]);
    assert!(rig.book.find("r", Purpose::PrefillDecode).is_none());
}

#[test]
fn reports_that_come_late_or_twice_change_nothing() {
    let mut rig = Rig::disagg();
    rig.after(10, Event::PullStarted);
    assert_eq!(rig.after(0, Event::PrefillStarted), (State::Pulling, vec![]));
    assert_eq!(rig.after(0, Event::PullStarted), (State::Pulling, vec![]));
    rig.after(10, Event::Done);
    for late in [Event::PrefillStarted, Event::PullStarted, Event::Done, Event::Failed(Cause::Other)] {
        assert_eq!(rig.after(0, late), (State::Done, vec![]));
    }
    assert_eq!(rig.out, Outbox::default());
}

#[test]
fn prefill_that_is_reported_after_the_pull_began_is_noted_and_no_step_back() {
    let mut rig = Rig::disagg();
    rig.after(10, Event::PullStarted);
    assert_eq!(rig.after(10, prefill_done()), (State::Pulling, vec![]));
    assert!(rig.record().prefill_done);
    assert_eq!(rig.book.reservations().pod(&pod("p")).prefills, 0);
}

#[test]
fn an_older_attempt_is_refused_and_a_newer_one_is_not_known() {
    let mut rig = Rig::disagg();
    rig.after(10, replan(Cause::PrefillFailed, disagg("q", "d")));
    let mut report = |attempt, epoch| {
        let out = &mut Outbox::default();
        rig.book.report(rig.id, attempt, epoch, Event::PullStarted, NOW, out).map(|(_, applied)| applied)
    };
    assert_eq!(report(1, 0), Err(NotApplied::Refused(Refused::OldAttempt { got: 1, now: 2 })));
    assert_eq!(report(3, 0), Err(NotApplied::Refused(Refused::UnknownAttempt { got: 3, now: 2 })));
    assert_eq!(report(2, 512), Err(NotApplied::Refused(Refused::Owner { got: 512, now: 256 })));
    assert_eq!(report(2, 1), Ok(true), "an older epoch is a caller that does not know of the restart");
}

#[test]
fn nobody_who_comes_for_finished_blocks_makes_them_stranded_well_before_the_lease_ends() {
    let mut rig = Rig::disagg();
    rig.after(10, prefill_done());
    assert_eq!(rig.tick(1_999), (State::Ready, vec![]));
    assert_eq!(rig.tick(1), (State::Expired, vec![Notice::State, Notice::Stranded]));
    let strand = rig.record().strand.clone().unwrap();
    assert_eq!((strand.pod, strand.bytes, strand.until - strand.since), (pod("p"), GIB, 28_000));
    assert!(rig.record().prefill_answer.is_some(), "it is what frees the blocks");
    rig.after(100, Event::Released);
    assert_eq!(rig.out.unstranded, [(pod("p"), u128::from(GIB) * 100)]);
    assert_eq!((&rig.record().strand, &rig.record().prefill_answer), (&None, &None));
}

#[test]
fn a_lease_shorter_than_the_patience_ends_the_wait_before_it_ends_itself() {
    let mut rig = Rig::disagg();
    rig.after(10, Event::PrefillDone { lease: Some(Duration::from_secs(1)), answer: None });
    assert_eq!(rig.tick(749), (State::Ready, vec![]));
    assert_eq!(rig.tick(1), (State::Expired, vec![Notice::State, Notice::Stranded]));
    assert_eq!(rig.record().cause, Some(Cause::NeverPulled));
}

#[test]
fn renewing_prolongs_the_wait_but_never_the_whole() {
    let mut rig = Rig::disagg();
    let overall = rig.record().overall;
    rig.after(10, prefill_done());
    while rig.now + 1_500 < overall {
        assert_eq!(rig.after(1_500, Event::Renewed { lease: None }), (State::Ready, vec![]));
        rig.tick(0);
    }
    let (state, _) = rig.tick(1_500);
    assert_eq!((state, rig.record().cause), (State::Expired, Some(Cause::TooLate)));
    assert_eq!(rig.record().overall, overall);
}

#[test]
fn a_client_that_goes_between_prefill_and_decode_leaves_blocks_that_are_told_of_at_once() {
    let mut rig = Rig::disagg();
    rig.after(10, prefill_done());
    let told = rig.after(5, Event::Cancelled(Cause::ClientGone));
    assert_eq!(told, (State::Cancelled, vec![Notice::State, Notice::Stranded]));
}

#[test]
fn prefill_that_ends_after_the_transfer_was_cancelled_is_stranded_too() {
    let mut rig = Rig::disagg();
    rig.after(10, Event::PrefillStarted);
    assert_eq!(rig.after(10, Event::Cancelled(Cause::Cancelled)), (State::Cancelled, vec![Notice::State]));
    assert_eq!(rig.after(500, prefill_done()), (State::Cancelled, vec![Notice::Stranded]));
    assert!(rig.book.reservations().is_empty());
}

#[test]
fn a_prefill_pod_that_is_gone_leaves_nothing_stranded() {
    let mut rig = Rig::disagg();
    rig.after(10, prefill_done());
    assert_eq!(rig.after(5, Event::Failed(Cause::SourceGone)), (State::Failed, vec![Notice::State]));
    assert_eq!(rig.record().strand, None);
}

#[test]
fn another_decode_pod_takes_over_a_finished_prefill() {
    let mut rig = Rig::disagg();
    rig.after(10, prefill_done());
    rig.after(10, Event::PullStarted);
    let told = rig.after(10, replan(Cause::DestinationGone, disagg("p", "e")));
    assert_eq!(told, (State::Ready, vec![Notice::State]));
    let record = rig.record();
    assert!(record.prefill_done && record.prefill_answer.is_some() && record.attempt == 2);
    let (d, e) = (rig.book.reservations().pod(&pod("d")), rig.book.reservations().pod(&pod("e")));
    assert_eq!((d.ingress.transfers, e.ingress.transfers), (0, 1));
}

#[test]
fn another_prefill_pod_strands_what_the_first_has_finished() {
    let mut rig = Rig::disagg();
    rig.after(10, prefill_done());
    let told = rig.after(10, replan(Cause::LoadFailed, disagg("q", "d")));
    assert_eq!(told, (State::Planned, vec![Notice::Stranded, Notice::State]));
    assert!(!rig.record().prefill_done);
    rig.after(10, Event::Done);
    rig.tick(30_000);
    assert_eq!(rig.out.unstranded.len(), 1, "counted once the lease is over");
}

#[test]
fn attempts_are_bounded() {
    let mut rig = Rig::disagg();
    rig.after(1, replan(Cause::PrefillFailed, disagg("q", "d")));
    rig.after(1, replan(Cause::PrefillFailed, disagg("r", "d")));
    let (state, _) = rig.after(1, replan(Cause::PrefillFailed, disagg("s", "d")));
    assert_eq!((state, rig.record().attempt), (State::Failed, 3));
    assert!(rig.book.reservations().is_empty());
}

#[test]
fn a_pull_has_no_prefill_to_report() {
    let mut rig = Rig::new(record("r", pull("s", "d")));
    let out = &mut Outbox::default();
    let refused = rig.book.report(rig.id, 1, 0, Event::PrefillStarted, NOW, out);
    assert_eq!(refused, Err(NotApplied::Refused(Refused::NoPrefill)));
    assert_eq!(rig.after(1, Event::PullStarted).0, State::Pulling);
    assert_eq!(rig.after(1, Event::Done).0, State::Done);
}

#[test]
fn what_is_already_moving_is_not_stale() {
    let mut rig = Rig::new(record("r", pull("s", "d")));
    let stale = Event::Stale(Cause::SourceEvicted);
    rig.book.apply(rig.id, stale.clone(), NOW, &mut rig.out).unwrap();
    assert_eq!(rig.seen(), (State::Planned, vec![Notice::Stale]));
    rig.out = Outbox::default();
    rig.book.apply(rig.id, stale.clone(), NOW, &mut rig.out).unwrap();
    assert_eq!(rig.seen().1, [], "told once");

    let mut rig = Rig::new(record("r", pull("s", "d")));
    rig.after(1, Event::PullStarted);
    rig.book.apply(rig.id, stale, NOW, &mut rig.out).unwrap();
    assert_eq!(rig.record().stale, None);
}

#[test]
fn a_lease_that_nobody_keeps_alive_is_warned_of_once_while_blocks_move() {
    let mut record = record("r", disagg("p", "d"));
    record.connector = Connector::Offloading;
    record.choice.estimate.handover = Duration::from_secs(60);
    let mut rig = Rig::new(record);
    rig.after(1, Event::PrefillDone { lease: Some(Duration::from_secs(20)), answer: None });
    rig.after(1, Event::PullStarted);
    assert_eq!(rig.tick(17_998), (State::Pulling, vec![]));
    assert_eq!(rig.tick(1), (State::Pulling, vec![Notice::LeaseEnding]));
    assert_eq!(rig.tick(100), (State::Pulling, vec![]));
}

#[test]
fn the_same_key_is_taken_until_it_is_forgotten() {
    let mut rig = Rig::disagg();
    rig.after(1, Event::Done);
    let again = Record { id: TransferId::new("r", 2), ..record("r", disagg("p", "d")) };
    let refused = rig.book.plan(again.clone(), NOW, &mut rig.out);
    assert!(matches!(refused, Err(NotPlanned::Exists(there)) if there.id == rig.id));
    let next = rig.book.plan_after(rig.id, again, NOW, &mut rig.out);
    assert!(next.is_ok());
    assert_eq!(rig.book.find("r", Purpose::PrefillDecode).unwrap().id.number, 2);
    // Forgetting the first does not take the key from the second.
    rig.book.tick(NOW + 600_001, &mut rig.out);
    assert!(rig.book.get(rig.id).is_none());
    assert_eq!(rig.book.find("r", Purpose::PrefillDecode).unwrap().id.number, 2);
}

#[test]
fn no_limit_is_exceeded_and_what_does_not_fit_takes_nothing() {
    let caps = Caps { transfers_per_source: 2, pinned_bytes_per_pod: 10 * GIB, ..Caps::default() };
    let mut book = Book::new(Timers::default(), Bounds::default(), caps);
    let out = &mut Outbox::default();
    for request in ["a", "b"] {
        book.plan(record(request, disagg("p", "d")), NOW, out).unwrap();
    }
    let before = book.reservations().clone();
    let full = book.plan(record("c", disagg("p", "e")), NOW, out);
    assert_eq!(full, Err(NotPlanned::Full(Full::Source { pod: pod("p"), limit: 2 })));
    assert_eq!(*book.reservations(), before);
    let id = TransferId::new("a", 1);
    // A plan in place of another may use what the other had.
    book.apply(id, replan(Cause::Rejected, disagg("p", "e")), NOW, out).unwrap();
    book.plan(record("d", disagg("q", "d")), NOW, out).unwrap();
    let full = book.apply(TransferId::new("d", 1), replan(Cause::Rejected, disagg("p", "d")), NOW, out);
    assert!(matches!(full, Err(NotApplied::Full(_))));
}

#[test]
fn the_book_is_bounded() {
    let bounds = Bounds { live: 10, over: 5, text_bytes: 100 };
    let mut book = Book::new(Timers::default(), bounds, Caps::default());
    let mut out = Outbox::default();
    for i in 0..10 {
        let caps = record(&i.to_string(), disagg("p", &i.to_string()));
        book.plan(caps, NOW, &mut out).unwrap();
    }
    let more = book.plan(record("more", disagg("p", "d")), NOW, &mut out);
    assert!(matches!(more, Err(NotPlanned::TooMany { limit: 10 })));
    for i in 0..10 {
        let id = TransferId::new(&i.to_string(), 1);
        book.apply(id, Event::Done, NOW + i, &mut out).unwrap();
    }
    book.tick(NOW + 10, &mut out);
    assert_eq!(book.records().count(), 5);
    let text = Record { pass_through: Some("x".repeat(101).into()), ..record("t", disagg("p", "d")) };
    assert!(matches!(book.plan(text, NOW, &mut out), Err(NotPlanned::TooMuchText { limit: 100 })));
    book.plan(record("u", disagg("p", "d")), NOW, &mut out).unwrap();
    let long = Event::PrefillDone { lease: None, answer: Some("x".repeat(101).into()) };
    let refused = book.report(TransferId::new("u", 1), 1, 0, long, NOW, &mut out);
    assert_eq!(refused, Err(NotApplied::TooMuchText { limit: 100 }));
}
