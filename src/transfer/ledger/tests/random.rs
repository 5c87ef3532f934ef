//! The ledger against its model, under reports in any order and number.

use std::collections::BTreeMap;

use super::reference::Reference;
use super::*;
use crate::transfer::ledger::book::Outbox;

/// An event as a caller in trouble may send it.
fn any_event(rng: &mut Rng) -> Event {
    let pods = ["p", "q", "d", "e"];
    match rng.below(12) {
        0 | 1 => Event::PrefillStarted,
        2 | 3 => {
            let lease = [None, Some(Duration::from_secs(1)), Some(Duration::from_secs(60))];
            Event::PrefillDone { lease: lease[rng.below(3) as usize], answer: None }
        }
        4 | 5 => Event::PullStarted,
        6 => Event::Done,
        7 => Event::Failed(Cause::LoadFailed),
        8 => Event::Cancelled(Cause::ClientGone),
        9 => Event::Renewed { lease: [None, Some(Duration::from_secs(5))][rng.below(2) as usize] },
        10 => Event::Released,
        _ => {
            let because = [Cause::Rejected, Cause::SourceGone][rng.below(2) as usize];
            replan(because, disagg(pods[rng.below(2) as usize], pods[2 + rng.below(2) as usize]))
        }
    }
}

fn compare(book: &Book, model: &Reference, what: &str) {
    for (id, row) in &model.rows {
        let record = book.get(*id).unwrap_or_else(|| panic!("{what}: {id} is missing"));
        let ours = (record.state, record.attempt, record.prefill_done, record.cause, record.lease_ends);
        assert_eq!(ours, (row.state, row.attempt, row.done, row.cause, row.lease), "{what}: {id}");
        assert_eq!((record.deadline, record.overall), (row.deadline, row.overall), "{what}: {id}");
    }
    let (links, pods) = model.taken();
    let ours: BTreeMap<_, _> =
        book.reservations().links().map(|(f, t, flow)| ((f.clone(), t.clone()), flow)).collect();
    assert_eq!(ours, links, "{what}");
    for (pod, reserved) in book.reservations().pods() {
        let (pinned, prefills) = pods.get(pod).copied().unwrap_or_default();
        assert_eq!((reserved.pinned_bytes, reserved.prefills), (pinned, prefills), "{what}: {pod}");
    }
}

#[test]
fn random_late_repeated_and_reordered_reports_agree_with_the_model() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let kept = Timers { kept: Duration::from_secs(1 << 30), ..Timers::default() };
        let mut book = Book::new(kept, Bounds::default(), Caps::default());
        let mut model = Reference::default();
        let out = &mut Outbox::default();
        let mut now = NOW;
        let mut sent: Vec<(TransferId, u32, Event)> = vec![];
        for step in 0..200 {
            // Mostly little time passes; sometimes the clock jumps.
            now += [0, 1, 300, 2_500, 40_000][rng.below(5) as usize] * u64::from(rng.below(8) != 0);
            book.tick(now, out);
            model.time(now);
            if rng.below(10) == 0 && model.rows.len() < 12 {
                let request = format!("r{step}");
                let choice = if rng.below(3) == 0 { pull("p", "d") } else { disagg("p", "d") };
                let timers = Timers::default();
                let record = Record {
                    planned_at: now,
                    changed_at: now,
                    deadline: timers.deadline(State::Planned, &choice, None, now),
                    overall: timers.overall(&choice, now),
                    ..record(&request, choice)
                };
                book.plan(record.clone(), now, out).unwrap();
                model.plan(&record);
            } else if !model.rows.is_empty() {
                let (id, attempt, event) = match sent.get(rng.below(30) as usize) {
                    // Something that was sent before arrives again, or late.
                    Some(again) if rng.below(3) == 0 => again.clone(),
                    Some(_) | None => {
                        let at = rng.below(model.rows.len() as u64) as usize;
                        let (id, row) = model.rows.iter().nth(at).unwrap();
                        (*id, row.attempt, any_event(&mut rng))
                    }
                };
                sent.push((id, attempt, event.clone()));
                let ours = book.report(id, attempt, 0, event.clone(), now, out);
                if attempt == model.rows[&id].attempt {
                    model.apply(id, &event, now);
                } else {
                    assert!(ours.is_err(), "seed {seed} step {step}: an old attempt is refused");
                }
            }
            compare(&book, &model, &format!("seed {seed} step {step}"));
        }
        // Whatever happened, in the end nothing is left.
        book.tick(now + 600_000, out);
        assert!(book.reservations().is_empty(), "seed {seed}");
        book.tick(now + (1 << 41), out);
        assert_eq!((book.records().count(), book.pods().count(), book.next_due()), (0, 0, None));
    }
}
