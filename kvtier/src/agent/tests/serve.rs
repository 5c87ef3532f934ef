//! Engines that behave, and engines that die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::ClientError;
use super::super::frame::{Outcome, place};
use super::gate::Gate;
use super::{BLOCK, Memory, Place, SLOTS, hello, key, keys, payload, until, wait};
use crate::node::MemoryTiers;

#[test]
fn what_one_engine_stores_another_loads() {
    let at = Place::new(Arc::new(MemoryTiers::new(256)));
    let (first, second) = (Memory::sealed(), Memory::sealed());
    let (mut one, mut two) = (at.connect(&first), at.connect(&second));
    assert!(one.welcome().sealed);
    for slot in 0..SLOTS {
        first.fill(slot, &payload(slot));
    }
    let slots: Vec<u32> = (0..SLOTS).collect();
    one.store(1, None, &keys(0..SLOTS), &slots).unwrap();
    assert_eq!(wait(&mut one, 1), vec![Outcome::Ok; SLOTS as usize]);
    one.store(1, Some(&key(SLOTS - 1)), &keys([0]), &[0]).unwrap();
    assert_eq!(wait(&mut one, 1), [Outcome::Known]);

    let places = two.lookup(&keys([0, 999, SLOTS - 1])).unwrap();
    assert_eq!(places, [place::RAM, place::NOWHERE, place::RAM]);
    let backwards: Vec<u32> = (0..SLOTS).rev().collect();
    two.load(7, &keys(0..SLOTS), &backwards).unwrap();
    assert_eq!(wait(&mut two, 7), vec![Outcome::Ok; SLOTS as usize]);
    for (block, slot) in backwards.iter().enumerate() {
        assert_eq!(second.bytes(*slot), payload(block as u32));
    }
    two.load(8, &keys([999, 3]), &[0, 1]).unwrap();
    assert_eq!(wait(&mut two, 8), [Outcome::Miss, Outcome::Ok]);
    assert_eq!(second.bytes(1), payload(3));

    let stats = at.agent().stats();
    assert_eq!((stats.sessions, stats.jobs, stats.jobs_ended), (2, 4, 4));
    assert_eq!((stats.stored_blocks, stats.loaded_blocks, stats.missed_blocks), (64, 65, 1));
    assert_eq!(stats.loaded_bytes, 65 * BLOCK as u64);
}

#[test]
fn another_model_does_not_see_these_blocks() {
    let at = Place::new(Arc::new(MemoryTiers::new(16)));
    let memory = Memory::sealed();
    let mut one = at.connect(&memory);
    one.store(1, None, &key(1), &[0]).unwrap();
    wait(&mut one, 1);
    let other = super::Hello { fingerprint: 8, ..hello(0) };
    let mut two = at.try_connect(&other, None).unwrap();
    assert_eq!(two.lookup(&key(1)).unwrap(), [place::NOWHERE]);
}

#[test]
fn a_leased_block_is_read_where_it_lies_even_after_it_was_evicted() {
    let tiers = Arc::new(MemoryTiers::new(64));
    let at = Place::with(tiers.clone(), |config| config.bounds.lease_ms = 400);
    let memory = Memory::sealed();
    let mut client = at.connect(&memory);
    for n in 0..3 {
        memory.fill(n, &payload(n));
    }
    client.store(1, None, &keys(0..3), &[0, 1, 2]).unwrap();
    wait(&mut client, 1);
    let leases = client.lease(&keys([2, 50, 0])).unwrap();
    let [Some(second), None, Some(first)] = leases[..] else { panic!("{leases:?}") };
    let pool = crate::node::Tiers::pool(&*tiers, BLOCK).unwrap();
    let gone = crate::store::StoreKey::new(7, 0, &key(2)[..32]).unwrap();
    assert!(tiers.forget(pool, gone));
    let mut bytes = vec![0; BLOCK];
    assert!(client.read(second, &mut bytes) && bytes == payload(2));
    assert!(client.read(first, &mut bytes) && bytes == payload(0));
    client.release(&[first, first]).unwrap();
    until("the second lease expires", || at.agent().stats().leases_expired == 1);
    assert_eq!((at.agent().stats().leases, at.agent().stats().leases_stale), (2, 1));
}

#[test]
fn a_dead_engines_jobs_end_once_and_its_memory_stays_until_then() {
    let gate = Arc::new(Gate::closed(64));
    let at = Place::with(gate.clone(), |config| {
        config.workers = 2;
        config.part_bytes = BLOCK;
    });
    let memory = Memory::sealed();
    let client = at.connect(&memory);
    client.load(1, &keys(0..8), &[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    client.store(2, None, &keys(8..10), &[8, 9]).unwrap();
    until("two workers are at it", || gate.inside() == 2);
    // As kill -9 leaves it: no goodbye, the memory unmapped, the sockets closed.
    drop(client);
    drop(memory);
    until("the agent has seen it", || at.agent().stats().sessions_ended == 1);
    assert_eq!(at.agent().stats().jobs_ended, 0);
    gate.set(true);
    until("both jobs end", || at.agent().stats().jobs_ended == 2);
    let stats = at.agent().stats();
    // The two that had begun were done; six loads and the store were not.
    assert_eq!((stats.jobs, stats.parts_dropped, stats.stored_blocks), (2, 7, 0));
    let memory = Memory::sealed();
    let mut next = at.connect(&memory);
    assert_eq!(next.lookup(&key(8)).unwrap(), [place::NOWHERE]);
    assert_eq!(at.agent().stats().jobs_ended, 2);
}

#[test]
fn the_socket_of_a_refused_engine_closes_when_its_last_job_has_ended() {
    let gate = Arc::new(Gate::closed(64));
    let at = Place::new(gate.clone());
    let memory = Memory::sealed();
    let mut client = at.connect(&memory);
    client.load(1, &key(0), &[0]).unwrap();
    until("a worker is at it", || gate.inside() == 1);
    client.load(2, &key(0), &[0]).unwrap();
    let refused = client.lookup(&key(0));
    assert!(matches!(refused, Err(ClientError::Refused { reason: 4, .. })), "{refused:?}");
    // Refused, but not closed: slot 0 may still be written to.
    assert!(client.poll(Duration::from_millis(100)).is_ok_and(|ended| ended.is_empty()));
    gate.set(true);
    let began = Instant::now();
    while !matches!(client.poll(Duration::from_secs(1)), Err(ClientError::Gone)) {
        assert!(began.elapsed() < super::PATIENCE);
    }
    assert_eq!(at.agent().stats().jobs_ended, 1);
}

#[test]
fn an_agent_that_ends_says_so_and_the_next_one_takes_its_socket() {
    let tiers = Arc::new(MemoryTiers::new(64));
    let mut at = Place::new(tiers.clone());
    let memory = Memory::sealed();
    let mut client = at.connect(&memory);
    memory.fill(0, &payload(5));
    client.store(1, None, &key(5), &[0]).unwrap();
    wait(&mut client, 1);
    at.agent = None;
    assert!(!at.socket().exists());
    let closing = client.lookup(&key(5));
    assert!(matches!(closing, Err(ClientError::Refused { reason: 9, .. } | ClientError::Io { .. })));
    // What is no socket is not taken away; a socket that a killed agent left behind is.
    std::fs::write(at.socket(), "precious").unwrap();
    let refused = super::Agent::start(tiers.clone(), super::Config::at(at.socket()));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    std::fs::remove_file(at.socket()).unwrap();
    let left = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    );
    let left = left.unwrap();
    rustix::net::bind(&left, &rustix::net::SocketAddrUnix::new(at.socket()).unwrap()).unwrap();
    drop(left);
    at.agent = Some(super::Agent::start(tiers, super::Config::at(at.socket())).unwrap());
    let taken = super::Agent::start(Arc::new(MemoryTiers::new(1)), super::Config::at(at.socket()));
    assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let mut again = at.connect(&memory);
    again.load(1, &key(5), &[3]).unwrap();
    assert_eq!(wait(&mut again, 1), [Outcome::Ok]);
    assert_eq!(memory.bytes(3), payload(5));
}

#[test]
fn many_engines_at_once_get_the_bytes_they_ask_for() {
    const ENGINES: u32 = 12;
    let at = Place::new(Arc::new(MemoryTiers::new(512)));
    std::thread::scope(|scope| {
        for engine in 0..ENGINES {
            let at = &at;
            scope.spawn(move || one_of_many(at, engine));
        }
    });
    until("all are gone", || at.agent().stats().sessions_ended == u64::from(ENGINES));
    let stats = at.agent().stats();
    assert_eq!(stats.jobs, stats.jobs_ended);
    assert!(stats.loaded_blocks > 500 && stats.missed_blocks > 0, "{stats:?}");
    let _ = stats;
}

/// Stores and loads random blocks of a common set, and compares all that comes back.
fn one_of_many(at: &Place, engine: u32) {
    let memory = Memory::sealed();
    let mut client = at.connect(&memory);
    let mut x = u64::from(engine) + 1;
    let mut next = |below: u32| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 20) as u32 % below
    };
    for job in 0..40 {
        let blocks: Vec<u32> = (0..8).map(|_| next(200)).collect();
        let slots: Vec<u32> = (0..8).map(|slot| slot * 8 + next(8)).collect();
        if job % 2 == 0 {
            for (slot, block) in slots.iter().zip(&blocks) {
                memory.fill(*slot, &payload(*block));
            }
            client.store(job, None, &keys(blocks), &slots).unwrap();
            let outcomes = wait(&mut client, job);
            assert!(outcomes.iter().all(|o| matches!(o, Outcome::Ok | Outcome::Known)), "{outcomes:?}");
        } else {
            let places = client.lookup(&keys(blocks.clone())).unwrap();
            client.load(job, &keys(blocks.clone()), &slots).unwrap();
            let outcomes = wait(&mut client, job);
            for (at, outcome) in outcomes.iter().enumerate() {
                if *outcome == Outcome::Ok {
                    assert_eq!(memory.bytes(slots[at]), payload(blocks[at]));
                } else {
                    assert_eq!((*outcome, places[at]), (Outcome::Miss, place::NOWHERE));
                }
            }
        }
    }
}
