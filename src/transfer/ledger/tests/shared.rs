//! The ledger on real servers: it keeps what any store keeps, a transfer has one home at any time, and whoever
//! dies takes nothing with it that was answered.

#[path = "../../../../kvindex/valkey/tests/support/servers.rs"]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::crash::{Life, check, keeps_what_was_written, note, run};
use super::*;
use crate::transfer::ledger::book::{Outbox, Write};
use crate::transfer::ledger::store::codec::encode;
use crate::transfer::ledger::store::valkey::{Library, Setup, Valkey};
use crate::transfer::ledger::store::{Kept, Store, StoreError};
use servers::Servers;

const LEASE: Duration = Duration::from_millis(300);

/// A ledger that several replicas share.
struct Rig {
    runtime: Runtime,
    servers: Servers,
    wait_replicas: u32,
    began: std::cell::Cell<u32>,
}

impl Rig {
    /// `None` where no server is installed.
    fn start(masters: usize, replicas_each: usize) -> Option<Rig> {
        let runtime = Runtime::new().unwrap();
        let servers = runtime.block_on(Servers::start(masters, replicas_each))?;
        Some(Rig { runtime, servers, wait_replicas: replicas_each as u32, began: Default::default() })
    }

    /// A replica that has not loaded yet.
    fn replica(&self, namespace: &str) -> (Valkey, Library) {
        self.replica_for(namespace, LEASE)
    }

    fn replica_for(&self, namespace: &str, lease: Duration) -> (Valkey, Library) {
        let config = self.servers.config(namespace);
        let servers = kvindex_valkey::Config { lease, timeout: Duration::from_secs(1), ..config };
        let n = self.began.replace(self.began.get() + 1);
        let (address, process) = (format!("http://{n}:1"), n.to_string());
        let setup = Setup { servers, address, process, wait_replicas: self.wait_replicas };
        self.runtime.block_on(Valkey::connect(setup)).unwrap()
    }

    fn find(&self, library: &Library, id: TransferId) -> Option<Record> {
        self.runtime.block_on(library.find(id)).unwrap().map(|f| f.record)
    }

    fn all(&self, library: &Library) -> BTreeMap<TransferId, Record> {
        self.runtime.block_on(library.all()).unwrap().into_iter().map(|r| (r.id, r)).collect()
    }

    fn tell(&self, what: &mut redis::Cmd) {
        self.runtime.block_on(self.servers.ask::<()>(0, what)).unwrap();
    }

    /// The shelves there are, on one server.
    fn shelves(&self, namespace: &str) -> Vec<String> {
        let shelves = format!("{{kvd:{namespace}:ledger}}:shelves");
        self.runtime.block_on(self.servers.ask(0, redis::cmd("HKEYS").arg(shelves))).unwrap()
    }

    /// The node that has a replica's shelf.
    fn node_of(&self, namespace: &str, shelf: usize) -> usize {
        let shelves = format!("{{kvd:{namespace}:ledger}}:shelves");
        self.runtime.block_on(async {
            let at = self.servers.owner_of(&shelves).await;
            let names: Vec<String> = self.servers.ask(at, redis::cmd("HKEYS").arg(shelves)).await.unwrap();
            self.servers.owner_of(&format!("{{kvd:{namespace}:shelf:{}}}", names[shelf])).await
        })
    }
}

fn put(record: &Record) -> Write {
    Write::Put(Arc::new(record.clone()))
}

#[test]
fn valkey_keeps_what_was_written() {
    let Some(rig) = Rig::start(1, 0) else { return };
    keeps_what_was_written(|| {
        // What a life before this one had is its own until its lease has run out.
        sleep(LEASE + Duration::from_millis(50));
        rig.replica("kept").0
    });
}

/// A replica that dies at a write; with `written` the servers still hear of it.
struct Dying {
    store: Valkey,
    left: u32,
    written: bool,
}

impl Store for Dying {
    fn load(&mut self) -> Result<Kept, StoreError> {
        self.store.load()
    }

    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError> {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 || self.written {
            self.store.write(writes, clock)?;
        }
        if self.left == 0 { Err(StoreError::Closed) } else { Ok(()) }
    }
}

#[test]
fn a_replica_that_dies_at_any_write_loses_nothing_that_was_answered() {
    let Some(rig) = Rig::start(3, 0) else { return };
    for seed in 0..3 {
        for at in (1 + seed as u32..=60).step_by(7) {
            for written in [false, true] {
                let what = format!("seed {seed}, write {at}, written {written}");
                let store = rig.replica(&what).0;
                let (mut life, _) = Life::begin(Dying { store, left: at, written });
                let (told, now) = run(&mut life, seed);
                // As when its lease has run out, without the wait.
                life.store.store.leave();
                drop(life);
                let (mut next, kept) = Life::begin(rig.replica(&what).0);
                check(&kept, &next.book, &told, &what);
                // It goes on from there, and in the end nothing is left.
                next.answer(now, |book, out| book.tick(now + 600_000, out));
                assert!(next.book.reservations().is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn a_home_that_was_paused_changes_nothing_when_it_goes_on() {
    let Some(rig) = Rig::start(1, 0) else { return };
    let short = Duration::from_secs(2);
    let (mut old, _) = rig.replica_for("pause", short);
    let (mut new, library) = rig.replica_for("pause", Duration::from_secs(60));
    old.load().unwrap();
    new.load().unwrap();
    let (a, b) = (record("a", disagg("p", "d")), record("b", disagg("p", "d")));
    old.write(&[put(&a), put(&b)], NOW).unwrap();
    assert_eq!(new.keep(NOW).unwrap(), Kept::default(), "while its home lives, nobody takes a transfer over");

    sleep(short + Duration::from_millis(100));
    assert!(old.held_until().is_some_and(|until| until < Instant::now()), "it knows that it may be late");
    let taken = new.keep(NOW).unwrap();
    assert_eq!(taken.records.len(), 2);
    assert!(taken.records.iter().all(|r| [&a, &b].contains(&r)), "as they were, deadlines too");
    let further = Record { epoch: 512, state: State::Pulling, ..a.clone() };
    new.write(&[put(&further)], NOW + 1).unwrap();

    let late = Record { state: State::Done, ..a.clone() };
    let lost = old.write(&[put(&late), Write::Delete(b.id)], NOW + 2);
    let Err(StoreError::Lost(ids)) = lost else { panic!("{lost:?}") };
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([a.id, b.id]));
    assert_eq!(rig.find(&library, a.id), Some(further.clone()));
    assert_eq!(rig.find(&library, b.id), Some(b.clone()));

    // It goes on with what is new, on a shelf of its own.
    let c = record("c", disagg("p", "d"));
    old.write(&[put(&c)], NOW + 3).unwrap();
    new.keep(NOW).unwrap();
    let all = [&further, &b, &c].map(|r| (r.id, r.clone()));
    assert_eq!(rig.all(&library), BTreeMap::from(all));
    // What is over and forgotten leaves no shelf behind.
    new.write(&[Write::Delete(further.id), Write::Delete(TransferId::new("b", 1))], NOW + 4).unwrap();
    new.keep(NOW + 4).unwrap();
    assert_eq!(rig.shelves("pause").len(), 2, "one each");
}

/// A server that refuses one shelf's writes while others are lost.
#[test]
fn what_was_lost_is_said_whatever_else_goes_wrong() {
    let Some(rig) = Rig::start(1, 0) else { return };
    let long = Duration::from_secs(60);
    for round in 0..4 {
        let namespace = format!("odd{round}");
        let all = ["a", "b", "c"].map(|r| record(r, disagg("p", "d")));
        for r in &all {
            let (mut gone, _) = rig.replica_for(&namespace, long);
            gone.write(&[put(r)], NOW).unwrap();
            gone.leave();
        }
        let others = rig.shelves(&namespace);
        let ((mut home, library), (mut next, _)) =
            (rig.replica_for(&namespace, long), rig.replica_for(&namespace, long));
        assert_eq!(home.load().unwrap().records.len(), 3);
        let own = record("own", disagg("p", "d"));
        home.write(&[put(&own)], NOW).unwrap();
        let mine = rig.shelves(&namespace).into_iter().find(|name| !others.contains(name)).unwrap();
        let mine = format!("{{kvd:{namespace}:shelf:{mine}}}:transfers");

        for name in others {
            rig.tell(redis::cmd("DEL").arg(format!("{{kvd:{namespace}:shelf:{name}}}:lease")));
        }
        assert_eq!(next.load().unwrap().records.len(), 3);
        rig.tell(redis::cmd("SET").arg(&mine).arg("not a hash"));
        let mut lost = BTreeSet::new();
        let writes: Vec<Write> = all.iter().chain([&own]).map(put).collect();
        for _ in 0..4 {
            match home.write(&writes, NOW) {
                Err(StoreError::Lost(ids)) => lost.extend(ids),
                Err(StoreError::Servers(_)) => {}
                other => panic!("{other:?}"),
            }
            if lost.len() == 3 {
                break;
            }
        }
        assert_eq!(lost, all.iter().map(|r| r.id).collect(), "each is said to be another's");
        rig.tell(redis::cmd("DEL").arg(&mine));
        assert!(matches!(home.write(&[put(&own)], NOW), Err(StoreError::RolledBack)));
        home.write(&[put(&own)], NOW).unwrap();
        assert_eq!(rig.all(&library).len(), 4);
    }
}

#[test]
fn a_shelf_that_cannot_be_read_keeps_nobody_from_the_others() {
    let Some(rig) = Rig::start(1, 0) else { return };
    let long = Duration::from_secs(60);
    let all = ["a", "b", "c", "d"].map(|r| record(r, disagg("p", "d")));
    for r in &all {
        let (mut gone, _) = rig.replica_for("broken", long);
        gone.write(&[put(r)], NOW).unwrap();
        gone.leave();
    }
    for name in &rig.shelves("broken")[..2] {
        rig.tell(redis::cmd("SET").arg(format!("{{kvd:broken:shelf:{name}}}:transfers")).arg("not a hash"));
    }
    let (mut home, _) = rig.replica_for("broken", long);
    assert_eq!(home.load().unwrap().records.len(), 2);
    assert!(matches!(home.keep(NOW), Err(StoreError::Servers(_))), "it goes on to say so");
    assert!(home.held_until().is_some_and(|until| until > Instant::now()));
}

#[test]
fn a_home_that_was_late_ends_no_shelf_of_another() {
    let Some(rig) = Rig::start(1, 0) else { return };
    let long = Duration::from_secs(60);
    let r = record("r", disagg("p", "d"));
    let (mut gone, _) = rig.replica_for("late", long);
    gone.load().unwrap();
    gone.write(&[put(&r)], NOW).unwrap();
    gone.leave();
    let shelf = format!("{{kvd:late:shelf:{}}}", rig.shelves("late")[0]);
    let ((mut old, _), (mut new, library)) = (rig.replica_for("late", long), rig.replica_for("late", long));
    assert_eq!(old.load().unwrap().records.len(), 1);
    // It writes that nothing is left on the shelf, and is paused before it ends it.
    old.write(&[Write::Delete(r.id)], NOW).unwrap();
    rig.tell(redis::cmd("DEL").arg(format!("{shelf}:lease")));
    new.load().unwrap();
    let again = Record { attempt: 2, ..r.clone() };
    rig.tell(redis::cmd("HSET").arg(format!("{shelf}:transfers")).arg(&r.id.bytes()[..]).arg(encode(&again)));
    old.keep(NOW).unwrap();
    assert_eq!(rig.find(&library, r.id), Some(again));
    // Nor does it end another's lease when it is told to stop.
    old.leave();
    let lease = redis::cmd("EXISTS").arg(format!("{shelf}:lease")).take();
    assert!(rig.runtime.block_on(rig.servers.ask::<bool>(0, &lease)).unwrap());
}

#[test]
fn a_request_key_is_given_to_one() {
    let Some(rig) = Rig::start(1, 0) else { return };
    let (_, library) = rig.replica("keys");
    let kept = Duration::from_secs(60);
    let give = |record: &Record, instead_of| {
        rig.runtime.block_on(library.take_key(record, instead_of, kept)).unwrap()
    };
    let numbered = |number| {
        let first = record("r", disagg("p", "d"));
        Record { id: TransferId { number, ..first.id }, ..first }
    };
    let [first, second, third] = [1, 2, 3].map(numbered);
    assert_eq!(give(&first, None), first.id);
    assert_eq!(give(&second, None), first.id, "it has a transfer");
    assert_eq!(give(&first, None), first.id, "and that one keeps it");
    assert_eq!(give(&second, Some(first.id)), second.id);
    assert_eq!(give(&third, Some(first.id)), second.id, "another was faster");
}

/// Three replicas that stop for a while at any moment and go on without knowing it.
#[test]
fn whatever_is_answered_of_a_transfer_is_what_all_read_though_homes_come_and_go() {
    let Some(rig) = Rig::start(3, 0) else { return };
    const SHORT: Duration = Duration::from_millis(120);
    let mut rng = Rng(5);
    let (mut stores, mut libraries) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (mut store, library) = rig.replica_for("homes", SHORT);
        store.load().unwrap();
        stores.push(store);
        libraries.push(library);
    }
    // What each thinks that it is home to, and what was answered last.
    let mut believed: [BTreeMap<TransferId, Record>; 3] = Default::default();
    let mut truth: BTreeMap<TransferId, Record> = BTreeMap::new();
    let (mut lost, mut taken, mut planned) = (0, 0, 0);
    for step in 0..600 {
        let at = rng.below(3) as usize;
        let what = format!("step {step}, replica {at}");
        let written = match rng.below(8) {
            0 if planned < 40 => {
                planned += 1;
                Some(record(&format!("r{planned}"), disagg("p", "d")))
            }
            0..=4 => {
                let some = rng.below(1 + believed[at].len() as u64) as usize;
                let next =
                    |r: &Record| Record { attempt: r.attempt + 1, epoch: r.epoch + at as u64, ..r.clone() };
                believed[at].values().nth(some).map(next)
            }
            5 => {
                match stores[at].keep(NOW) {
                    Ok(kept) => {
                        taken += kept.records.len();
                        for r in kept.records {
                            assert_eq!(truth.get(&r.id), Some(&r), "{what}: taken as it was answered last");
                            believed[at].insert(r.id, r);
                        }
                    }
                    Err(StoreError::Lost(ids)) => {
                        lost += ids.len();
                        believed[at].retain(|id, _| !ids.contains(id));
                    }
                    Err(other) => panic!("{what}: {other}"),
                }
                None
            }
            // Nobody is heard of: leases run out, and whoever looks first takes all over.
            6 if rng.below(4) == 0 => {
                sleep(SHORT + Duration::from_millis(20));
                None
            }
            _ => None,
        };
        if let Some(r) = written {
            match stores[at].write(&[put(&r)], NOW) {
                Ok(()) => {
                    believed[at].insert(r.id, r.clone());
                    truth.insert(r.id, r);
                }
                Err(StoreError::Lost(ids)) => {
                    assert!(ids.contains(&r.id) || !truth.contains_key(&r.id), "{what}");
                    lost += ids.len();
                    believed[at].retain(|id, _| !ids.contains(id));
                }
                Err(other) => panic!("{what}: {other}"),
            }
        }
        if step % 5 == 0 {
            assert_eq!(rig.all(&libraries[at]), truth, "{what}");
        }
    }
    assert!(lost > 20 && taken > 20, "{lost} transfers were lost, {taken} taken over");
}

#[test]
fn a_node_that_dies_takes_nothing_that_was_answered_with_it_even_together_with_the_home() {
    let Some(mut rig) = Rig::start(3, 1) else { return };
    let (mut home, library) = rig.replica("node");
    home.load().unwrap();
    let mut life = Life { book: book(), store: home };
    let mut told = BTreeMap::new();
    let mut now = NOW;
    let died = rig.node_of("node", 0);
    for step in 0..60 {
        now += 50;
        if step == 20 {
            rig.servers.kill(died);
            rig.runtime.block_on(rig.servers.healed(died));
            // Until it is back nobody else hears of a write, and none is answered.
            rig.servers.restart(died);
        }
        let mut out = Outbox::default();
        let fresh = record(&format!("r{step}"), disagg("p", "d"));
        let (deadline, overall) = (now + 60_000, now + 120_000);
        let fresh = Record { planned_at: now, changed_at: now, deadline, overall, ..fresh };
        life.book.plan(fresh, now, &mut out).unwrap();
        let before = TransferId::new(&format!("r{}", step / 2), 1);
        let _ = life.book.apply(before, prefill_done(), now, &mut out);
        // As the committer does.
        let began = Instant::now();
        loop {
            match life.store.write(&out.writes, now) {
                Ok(()) => break,
                Err(StoreError::RolledBack) => life.book.write_all(&mut out),
                Err(StoreError::Lost(ids)) => panic!("{} lost, and nobody else is there", ids.len()),
                Err(e) => assert!(began.elapsed() < Duration::from_secs(30), "{e}"),
            }
            sleep(Duration::from_millis(50));
        }
        note(&mut told, &life.book);
    }
    let kept: BTreeMap<_, _> = life.book.records().map(|r| (r.id, (**r).clone())).collect();
    assert_eq!(rig.all(&library), kept);

    // The dead node is the other's replica now. Then both the home and its node die at once.
    let mut out = Outbox::default();
    let last = TransferId::new("r59", 1);
    life.book.apply(last, prefill_done(), now, &mut out).unwrap();
    let written = retry(|| life.store.write(&out.writes, now));
    written.unwrap();
    note(&mut told, &life.book);
    drop(life);
    // The one that took over from it, see `Servers::form`.
    rig.servers.kill(died + 3);
    rig.runtime.block_on(rig.servers.healed(died + 3));
    sleep(LEASE);
    let (mut next, kept) = Life::begin(rig.replica("node").0);
    let mut records = kept;
    if records.records.is_empty() {
        records = retry(|| next.store.keep(now)).unwrap();
        records.records.iter().for_each(|r| next.book.restore(r.clone()));
    }
    check(&records, &next.book, &told, "after both died");
}

#[test]
fn a_shelf_moves_to_another_node_while_its_home_writes() {
    let Some(rig) = Rig::start(3, 0) else { return };
    let (mut home, library) = rig.replica_for("moving", Duration::from_secs(60));
    home.load().unwrap();
    let mut all: BTreeMap<TransferId, Record> = BTreeMap::new();
    std::thread::scope(|scope| {
        let at = rig.node_of("moving", 0);
        let (runtime, servers) = (rig.runtime.handle(), &rig.servers);
        let moving = scope.spawn(move || {
            runtime.block_on(async {
                let (mut moved, mut way) = (0, [at, (at + 1) % 3]);
                for _ in 0..4 {
                    for slot in servers.slots_in_use(way[0]).await {
                        moved += servers.move_slot(slot, way[0], way[1], Duration::from_millis(20)).await;
                    }
                    way.reverse();
                }
                moved
            })
        });
        let mut n = 0;
        while !moving.is_finished() {
            n += 1;
            let r = Record { attempt: n, ..record(&format!("r{}", n % 7), disagg("p", "d")) };
            let began = Instant::now();
            loop {
                match home.write(&[put(&r)], NOW) {
                    Ok(()) => break,
                    // What was written last was on its way: the book hands all of it over again.
                    Err(StoreError::RolledBack) => {
                        let writes: Vec<Write> = all.values().map(put).collect();
                        let _ = home.write(&writes, NOW);
                    }
                    Err(e) => assert!(began.elapsed() < Duration::from_secs(30), "{e}"),
                }
            }
            all.insert(r.id, r);
        }
        let moved = moving.join().expect("no panic");
        assert!(moved >= 4 && n > 4, "{moved} keys moved during {n} writes");
    });
    assert_eq!(rig.all(&library), all);
    home.leave();
    let (mut next, _) = rig.replica("moving");
    let kept = retry(|| next.load()).unwrap();
    assert_eq!(kept.records.into_iter().map(|r| (r.id, r)).collect::<BTreeMap<_, _>>(), all);
}

#[test]
fn servers_that_forget_are_told_again_by_the_home() {
    let Some(mut rig) = Rig::start(1, 0) else { return };
    let (mut home, library) = rig.replica("forget");
    home.load().unwrap();
    let all = ["a", "b", "c"].map(|r| record(r, disagg("p", "d")));
    home.write(&[put(&all[0]), put(&all[1])], NOW).unwrap();
    // It keeps nothing on disk.
    rig.servers.kill(0);
    rig.servers.restart(0);
    let began = Instant::now();
    loop {
        match home.write(&[put(&all[2])], NOW) {
            Err(StoreError::RolledBack) => break,
            Err(StoreError::Servers(_)) if began.elapsed() < Duration::from_secs(20) => {}
            other => panic!("{other:?}"),
        }
    }
    home.write(&all.each_ref().map(put), NOW).unwrap();
    home.keep(NOW).unwrap();
    let want: BTreeMap<_, _> = all.iter().map(|r| (r.id, r.clone())).collect();
    assert_eq!(rig.all(&library), want);
    home.leave();
    let mut next = rig.replica("forget").0;
    assert_eq!(next.load().unwrap().records.len(), 3, "and whoever comes after it finds them");
}

/// Until it works, for a while.
fn retry<T>(mut what: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let began = Instant::now();
    loop {
        match what() {
            Err(_) if began.elapsed() < Duration::from_secs(20) => sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
}
