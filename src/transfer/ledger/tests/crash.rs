//! Whatever was answered is there after a crash, at whichever write it comes.

use std::collections::BTreeMap;

use super::*;
use crate::transfer::ledger::book::{Outbox, Write};
use crate::transfer::ledger::machine::rank;
use crate::transfer::ledger::reserve::{Claim, Reservations};
use crate::transfer::ledger::store::memory::{Disk, Memory};
use crate::transfer::ledger::store::rocks::Rocks;
use crate::transfer::ledger::store::{Kept, Store};

/// A ledger that answers once it has written, as the service does.
pub(super) struct Life<S> {
    pub book: Book,
    pub store: S,
}

impl<S: Store> Life<S> {
    pub fn begin(mut store: S) -> (Life<S>, Kept) {
        let kept = store.load().unwrap();
        let mut book = book();
        for record in kept.records.clone() {
            book.restore(record);
        }
        (Life { book, store }, kept)
    }

    /// Changes the book; true if that was answered.
    pub fn answer(&mut self, now: Millis, change: impl FnOnce(&mut Book, &mut Outbox)) -> bool {
        let mut out = Outbox::default();
        change(&mut self.book, &mut out);
        self.store.write(&out.writes, now).is_ok()
    }
}

/// What a caller was told last of a transfer.
pub(super) type Told = BTreeMap<TransferId, (u32, u8, Millis, bool)>;

pub(super) fn note(told: &mut Told, book: &Book) {
    for r in book.records() {
        told.insert(r.id, (r.attempt, rank(r.state), r.overall, r.prefill_done));
    }
}

/// Some transfers' lives, until the power goes. Returns what callers were told.
pub(super) fn run<S: Store>(life: &mut Life<S>, seed: u64) -> (Told, Millis) {
    let mut rng = Rng(seed);
    let mut told = Told::new();
    let mut now = NOW;
    for step in 0..60 {
        now += rng.below(700);
        let id = |n: u64| TransferId::new(&format!("r{n}"), 1);
        let which = rng.below(6);
        let answered = life.answer(now, |book, out| {
            book.tick(now, out);
            if book.get(id(which)).is_none() {
                let fresh = record(&format!("r{which}"), disagg("p", "d"));
                let overall = now + 60_000;
                let fresh =
                    Record { planned_at: now, changed_at: now, deadline: now + 5_000, overall, ..fresh };
                book.plan(fresh, now, out).unwrap();
                return;
            }
            let event = match rng.below(6) {
                0 => Event::PrefillStarted,
                1 | 2 => prefill_done(),
                3 => Event::PullStarted,
                4 => replan(Cause::LoadFailed, disagg("q", "d")),
                _ => Event::Done,
            };
            let _ = book.apply(id(which), event, now, out);
        });
        if !answered {
            return (told, now);
        }
        note(&mut told, &life.book);
        let _ = step;
    }
    (told, now)
}

pub(super) fn check(kept: &Kept, book: &Book, told: &Told, what: &str) {
    for (id, (attempt, rank_then, overall, done)) in told {
        let record = book.get(*id).unwrap_or_else(|| panic!("{what}: {id} was answered and is lost"));
        assert!((record.attempt, rank(record.state)) >= (*attempt, *rank_then), "{what}: {record:?}");
        assert_eq!(record.overall, *overall, "{what}: a deadline moved");
        assert!(record.prefill_done || !done || record.attempt > *attempt, "{what}");
    }
    let mut claims = Reservations::default();
    kept.records.iter().for_each(|r| claims.take(&Claim::of(r)));
    assert_eq!(*book.reservations(), claims, "{what}");
}

#[test]
fn a_crash_at_any_write_loses_nothing_that_was_answered() {
    for seed in 0..20 {
        for at in 1..=60 {
            for written in [false, true] {
                let disk = Disk::default();
                let (mut life, _) = Life::begin(Memory::on(disk.clone()));
                disk.fail_after(at, written);
                let (told, now) = run(&mut life, seed);
                drop(life);
                let (mut life, kept) = Life::begin(disk.restore());
                let what = format!("seed {seed}, write {at}, written {written}");
                check(&kept, &life.book, &told, &what);
                assert!(kept.clock <= now, "{what}");
                // It goes on from there, and in the end nothing is left.
                life.answer(now, |book, out| book.tick(now + 600_000, out));
                assert!(life.book.reservations().is_empty(), "{what}");
            }
        }
    }
}

/// What all stores have to do.
pub(super) fn keeps_what_was_written<S: Store>(mut open: impl FnMut() -> S) {
    let (mut life, kept) = Life::begin(open());
    assert_eq!(kept, Kept::default());
    let (told, now) = run(&mut life, 7);
    assert!(told.len() > 3);
    let before: BTreeMap<_, _> = life.book.records().map(|r| (r.id, (**r).clone())).collect();
    let first = *before.keys().next().unwrap();
    life.store.write(&[Write::Delete(first)], now + 5).unwrap();
    drop(life);
    let (life, kept) = Life::begin(open());
    assert_eq!((kept.clock, kept.unreadable), (now + 5, 0));
    let after: BTreeMap<_, _> = life.book.records().map(|r| (r.id, (**r).clone())).collect();
    assert_eq!(after, before.into_iter().skip(1).collect());
}

#[test]
fn memory_keeps_what_was_written() {
    let disk = Disk::default();
    keeps_what_was_written(|| Memory::on(disk.clone()));
}

#[test]
fn rocksdb_keeps_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    keeps_what_was_written(|| Rocks::open(dir.path()).unwrap());
}
