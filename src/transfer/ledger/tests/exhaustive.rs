//! Every way that one transfer can go with two replicas, within bounds.
//!
//! Breadth first over all interleavings of reports (with an old or the newest token, to either
//! replica), writes, crashes, passing time, and replicas telling each other. In every state
//! reached: nothing is reserved that no live record accounts for, what is over stays over, no two
//! live records are of one epoch, two replicas that have talked do not both own the transfer, and
//! whatever a caller was told is still so somewhere.

use std::collections::{HashSet, VecDeque};

use super::*;
use crate::transfer::home::Replicas;
use crate::transfer::ledger::book::Outbox;
use crate::transfer::ledger::machine::rank;
use crate::transfer::ledger::reserve::{Claim, Reservations};

/// What a caller was told of a transfer: its attempt and how far along.
type Told = (u32, u8);

#[derive(Clone)]
struct Replica {
    book: Book,
    disk: Option<Record>,
    /// Answered once it is written.
    unanswered: bool,
    told: Option<Told>,
}

#[derive(Clone)]
struct World {
    replicas: [Replica; 2],
    first: Record,
    newest: Record,
    now: Millis,
    reports: u8,
    crashes: u8,
    ticks: u8,
}

/// All that tells two worlds apart.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    replicas: [Known; 2],
    newest: Shape,
    now: Millis,
    left: [u8; 3],
}

/// What one replica has in memory and on disk, whether somebody waits, and what was told.
type Known = (Option<Shape>, Option<Shape>, bool, Option<Told>);

type Shape = (State, Option<State>, u32, u64, Millis, Option<Millis>, bool, bool, Millis);

fn shape(r: &Record) -> Shape {
    let strand = r.strand.is_some();
    let Record { state, ended_in, attempt, epoch, deadline, lease_ends, prefill_done, .. } = r;
    let (s, i) = (*state, *ended_in);
    (s, i, *attempt, *epoch, *deadline, *lease_ends, *prefill_done, strand, r.changed_at)
}

fn replicas(me: usize) -> Replicas {
    let urls = ["http://a:1", "http://b:1"].map(str::to_owned);
    Replicas::new(urls.to_vec(), &urls[me]).unwrap()
}

impl Replica {
    fn record(&self, id: TransferId) -> Option<&Record> {
        self.book.get(id).map(|r| &**r)
    }
}

impl World {
    fn begin(reports: u8, crashes: u8, ticks: u8) -> World {
        let first = record("r", disagg("p", "d"));
        let empty = Replica { book: book(), disk: None, unanswered: false, told: None };
        let mut home = empty.clone();
        home.book.plan(first.clone(), NOW, &mut Outbox::default()).unwrap();
        World { replicas: [home, empty], newest: first.clone(), first, now: NOW, reports, crashes, ticks }
    }

    fn id(&self) -> TransferId {
        self.first.id
    }

    fn key(&self) -> Key {
        let replica =
            |r: &Replica| (r.record(self.id()).map(shape), r.disk.as_ref().map(shape), r.unanswered, r.told);
        Key {
            replicas: [replica(&self.replicas[0]), replica(&self.replicas[1])],
            newest: shape(&self.newest),
            now: self.now,
            left: [self.reports, self.crashes, self.ticks],
        }
    }

    /// What `at` makes of a token that somebody shows it, see `serve::transfer::adopt`.
    fn meet(&mut self, at: usize, token: &Record) -> Option<Record> {
        let (id, now) = (self.id(), self.now);
        let book = &mut self.replicas[at].book;
        let before = (**book.get(id)?).clone();
        let later = token.epoch > before.epoch;
        let event = if later { Event::Superseded } else { Event::Inherited(Box::new(token.clone())) };
        book.apply(id, event, now, &mut Outbox::default()).unwrap();
        later.then_some(before)
    }

    fn report(&self, at: usize, event: Event, token: &Record) -> Option<World> {
        let mut world = self.clone();
        world.reports = world.reports.checked_sub(1)?;
        let (id, now) = (world.id(), world.now);
        world.meet(at, token);
        let out = &mut Outbox::default();
        let replica = &mut world.replicas[at];
        match replica.record(id).map(|r| r.state) {
            None if token.overall > now && token.live() => {
                let epoch = replicas(at).next_epoch(token.epoch);
                replica.book.adopt(token.clone(), epoch, now, out);
            }
            None => return Some(world),
            Some(State::Superseded) => return Some(world), // it is forwarded, which is another report
            Some(_) => {}
        }
        let heard = replica.book.report(id, token.attempt, token.epoch, event, now, out);
        replica.unanswered |= heard.is_ok();
        Some(world)
    }

    /// Everything that `at` has in memory is written, and who waits is answered.
    fn write(&self, at: usize) -> Option<World> {
        let mut world = self.clone();
        let id = world.id();
        let replica = &mut world.replicas[at];
        let record = replica.record(id)?.clone();
        replica.disk = Some(record.clone());
        if std::mem::take(&mut replica.unanswered) {
            replica.told = Some((record.attempt, rank(record.came_to())));
            world.newest = record;
        }
        Some(world)
    }

    fn crash(&self, at: usize) -> Option<World> {
        let mut world = self.clone();
        world.crashes = world.crashes.checked_sub(1)?;
        let (id, now) = (world.id(), world.now);
        let replica = &mut world.replicas[at];
        (replica.book, replica.unanswered) = (book(), false);
        if let Some(record) = &replica.disk {
            let epoch = replicas(at).next_epoch(record.epoch);
            replica.book.restore(record.clone());
            let _ = replica.book.apply(id, Event::Owned { epoch }, now, &mut Outbox::default());
        }
        Some(world)
    }

    fn tick(&self, at: usize) -> Option<World> {
        let mut world = self.clone();
        world.ticks = world.ticks.checked_sub(1)?;
        let replica = &mut world.replicas[at];
        world.now = world.now.max(replica.book.next_due()?);
        replica.book.tick(world.now, &mut Outbox::default());
        Some(world)
    }

    /// `from` tells the other that it owns the transfer, and hears how far that one was.
    fn tell(&self, from: usize) -> Option<World> {
        let mut world = self.clone();
        let (id, now, to) = (world.id(), world.now, 1 - from);
        let mine = world.replicas[from].record(id).filter(|r| r.live())?.clone();
        world.replicas[to].record(id)?;
        let before = world.meet(to, &mine);
        // The answer waits until it is written.
        world = world.write(to)?;
        let theirs = before.unwrap_or_else(|| world.replicas[to].record(id).unwrap().clone());
        let superseded = theirs.epoch > mine.epoch;
        let event = if superseded { Event::Superseded } else { Event::Inherited(Box::new(theirs)) };
        let _ = world.replicas[from].book.apply(id, event, now, &mut Outbox::default());
        let live = world.replicas.iter().filter(|r| r.record(id).is_some_and(Record::live)).count();
        assert!(live <= 1, "two replicas have talked, and both own the transfer");
        Some(world)
    }

    fn next(&self) -> Vec<World> {
        let mut next = vec![];
        for at in [0, 1] {
            for token in [&self.first, &self.newest] {
                let other = disagg("q", "e");
                for event in [
                    prefill_done(),
                    Event::PullStarted,
                    Event::Done,
                    Event::Cancelled(Cause::Cancelled),
                    replan(Cause::LoadFailed, other),
                ] {
                    next.extend(self.report(at, event, token));
                }
                if self.first == self.newest {
                    break;
                }
            }
            next.extend(self.write(at));
            next.extend(self.crash(at));
            next.extend(self.tick(at));
            next.extend(self.tell(at));
        }
        next
    }

    fn check(&self, before: &World) {
        let id = self.id();
        let mut epochs = vec![];
        for (at, replica) in self.replicas.iter().enumerate() {
            let mut claims = Reservations::default();
            replica.book.records().for_each(|r| claims.take(&Claim::of(r)));
            assert_eq!(*replica.book.reservations(), claims, "replica {at}");
            let Some(record) = replica.record(id) else { continue };
            if record.live() {
                epochs.push(record.epoch);
            }
            assert_eq!(record.overall, self.first.overall, "a deadline moved");
            let crashed = self.crashes != before.crashes;
            if let Some(was) = before.replicas[at].record(id).filter(|r| !r.live() && !crashed) {
                assert_eq!(record.state, was.state, "what is over stays over");
            }
            if let Some(told) = replica.told {
                let here = (record.attempt, rank(record.came_to())) >= told;
                assert!(here, "replica {at} told {told:?} and has {:?}", shape(record));
            }
        }
        epochs.dedup();
        let live = self.replicas.iter().filter(|r| r.record(id).is_some_and(Record::live)).count();
        assert_eq!(epochs.len(), live, "two owners of one epoch");
        // Once the loser was told by the winner, the winner has whatever the loser told anyone.
        let [a, b] = &self.replicas;
        let was = |r: &Replica| r.record(id).map(|r| (r.state, r.attempt, rank(r.state)));
        for (lost, won, at) in [(a, b, 1), (b, a, 0)] {
            let (Some((State::Superseded, ..)), Some(told)) = (was(lost), lost.told) else { continue };
            if !won.record(id).is_some_and(Record::live) {
                continue;
            }
            if let Some(after) = self.tell(at) {
                let r = after.replicas[at].record(id).unwrap();
                assert!((r.attempt, rank(r.state)) >= told, "lost {told:?}, have {:?}", shape(r));
            }
        }
    }
}

/// Every world that can be reached from `begin`; how many, and in how many both replicas knew the
/// transfer.
fn explore(begin: World) -> (usize, usize) {
    let mut seen = HashSet::from([begin.key()]);
    let mut queue = VecDeque::from([begin]);
    let mut shared = 0;
    while let Some(world) = queue.pop_front() {
        for next in world.next() {
            next.check(&world);
            if seen.insert(next.key()) {
                shared += usize::from(next.replicas.iter().all(|r| r.record(next.id()).is_some()));
                queue.push_back(next);
            }
        }
    }
    (seen.len(), shared)
}

/// That a search got anywhere is checked by how far it got.
fn sound(begin: World, at_least: usize) {
    let (states, shared) = explore(begin);
    println!("{states} states, both replicas know the transfer in {shared}");
    assert!(states >= at_least && shared > states / 4, "{states} states, {shared} shared");
}

#[test]
fn every_way_with_two_reports_a_crash_and_passing_time_is_sound() {
    sound(World::begin(2, 1, 1), 1_000);
}

#[test]
fn every_way_with_three_reports_is_sound() {
    sound(World::begin(3, 0, 0), 1_000);
}

#[test]
#[ignore = "takes minutes: run it after every change of the state machine or of adoption"]
fn every_way_with_three_reports_two_crashes_and_passing_time_is_sound() {
    sound(World::begin(3, 2, 2), 100_000);
}
