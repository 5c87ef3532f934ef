//! Engines that mean harm. Whatever they do, another engine on the same agent is served.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{SealFlags, ftruncate};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::super::codec::{Reply, decode_answer, encode_request};
use super::super::frame::{FRAME_BYTES, Hello, Keys, Outcome, Reason, Request, SlotList, place};
use super::super::socket::{self, Received};
use super::gate::Gate;
use super::{BLOCK, Memory, Place, SLOTS, hello, key, keys, payload, until, wait};
use crate::node::MemoryTiers;

/// A socket that sends anything.
struct Raw(OwnedFd);

impl Raw {
    fn connect(at: &Place) -> Raw {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(at.socket()).unwrap()).unwrap();
        Raw(socket)
    }

    fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(socket::send(&self.0, frame, fds).unwrap());
    }

    /// What the agent says next; `None` where it has closed.
    fn receive(&self) -> Option<Reply> {
        let mut buffer = Box::new([0; FRAME_BYTES]);
        match socket::receive(&self.0, &mut buffer, RecvFlags::empty()) {
            Received::Frame(bytes, _) => Some(decode_answer(&buffer[..bytes]).unwrap()),
            _ => None,
        }
    }

    /// The reason it is refused for. The socket must be closed behind it.
    fn refused(&self) -> u64 {
        let reply = self.receive();
        let Some(Reply::Refused { reason, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(self.receive(), None);
        reason
    }

    fn welcomed(at: &Place, memory: &Memory) -> Raw {
        let raw = Raw::connect(at);
        raw.send(&encode_request(&Request::Hello(hello(SLOTS))), &[memory.file.as_fd()]);
        assert!(matches!(raw.receive(), Some(Reply::Welcome(_))));
        raw
    }
}

/// An engine that behaves is served, all the same.
fn serves(at: &Place) {
    let memory = Memory::sealed();
    let mut client = at.connect(&memory);
    memory.fill(0, &payload(77));
    client.store(1, None, &key(77), &[0]).unwrap();
    let stored = wait(&mut client, 1);
    assert!(matches!(stored[..], [Outcome::Ok | Outcome::Known]));
    client.load(2, &key(77), &[1]).unwrap();
    assert_eq!(wait(&mut client, 2), [Outcome::Ok]);
    assert_eq!(memory.bytes(1), payload(77));
}

#[test]
fn frames_that_are_none_end_the_session_with_a_reason() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let memory = Memory::sealed();
    let frames: [(&[u8], Reason); 5] = [
        (&[0xc1], Reason::Frame),
        (&[0xdd, 0xff, 0xff, 0xff, 0xff, 1], Reason::Frame),
        (&[0x93, 2, 1, 0xc6, 0xff, 0xff, 0xff, 0xff], Reason::Frame),
        (&[0x92, 0xa1, b'x', 1], Reason::Frame),
        (&vec![0x90; FRAME_BYTES + 1], Reason::Frame),
    ];
    for (frame, reason) in frames {
        let fresh = Raw::connect(&at);
        fresh.send(frame, &[]);
        assert_eq!(fresh.refused(), reason as u64);
        let welcomed = Raw::welcomed(&at, &memory);
        welcomed.send(frame, &[]);
        assert_eq!(welcomed.refused(), reason as u64);
    }
    let raw = Raw::connect(&at);
    raw.send(&[], &[]);
    assert_eq!(raw.receive(), None);
    assert_eq!(at.agent().stats().refused, 10);
    serves(&at);
}

#[test]
fn descriptors_that_are_missing_or_wrong_are_refused() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let (memory, tiny) = (Memory::sealed(), Memory::sealed());
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.set_len(1 << 20).unwrap();
    let read_only = std::fs::File::open(format!("/proc/self/fd/{}", {
        use std::os::fd::AsRawFd;
        memory.file.as_raw_fd()
    }))
    .unwrap();
    let said = |hello: Hello<'static>, fds: &[BorrowedFd<'_>]| {
        let raw = Raw::connect(&at);
        raw.send(&encode_request(&Request::Hello(hello)), fds);
        raw.refused()
    };
    let fd = memory.file.as_fd();
    assert_eq!(said(hello(SLOTS), &[]), Reason::Descriptors as u64);
    assert_eq!(said(hello(SLOTS), &[fd, fd]), Reason::Descriptors as u64);
    assert_eq!(said(hello(0), &[fd]), Reason::Descriptors as u64);
    assert_eq!(said(hello(SLOTS), &[pipe.as_fd()]), Reason::Region as u64);
    assert_eq!(said(hello(SLOTS), &[file.as_fd()]), Reason::Region as u64);
    assert_eq!(said(hello(SLOTS), &[read_only.as_fd()]), Reason::Region as u64);
    let long = Hello { slots: SLOTS + 1, ..hello(0) };
    assert_eq!(said(long, &[tiny.file.as_fd()]), Reason::Region as u64);
    let odd = Hello { offset: 1, slots: 1, ..hello(0) };
    assert_eq!(said(odd, &[fd]), Reason::Region as u64);
    let vast = Hello { slots: u32::MAX, stride: 1 << 32, ..hello(0) };
    assert_eq!(said(vast, &[fd]), Reason::Region as u64);
    let empty = Hello { block_bytes: 1 << 30, ..hello(0) };
    assert_eq!(said(empty, &[]), Reason::Room as u64);

    let welcomed = Raw::welcomed(&at, &memory);
    let load = Request::Load { job: 1, keys: Keys(&key(1)), slots: SlotList(&[0; 4]) };
    welcomed.send(&encode_request(&load), &[fd]);
    assert_eq!(welcomed.refused(), Reason::Descriptors as u64);
    serves(&at);
}

#[test]
fn slots_and_jobs_that_are_not_allowed_end_the_session() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let memory = Memory::sealed();
    let load = |job, slots: &[u32]| {
        let raw = Raw::welcomed(&at, &memory);
        let (keys, slots) = (keys(0..slots.len() as u32), slots.iter().flat_map(|s| s.to_le_bytes()));
        let slots: Vec<u8> = slots.collect();
        raw.send(&encode_request(&Request::Load { job, keys: Keys(&keys), slots: SlotList(&slots) }), &[]);
        raw.refused()
    };
    assert_eq!(load(1, &[SLOTS]), Reason::Slot as u64);
    assert_eq!(load(1, &[0, u32::MAX]), Reason::Slot as u64);
    assert_eq!(load(1, &[3, 3]), Reason::Slot as u64);
    assert_eq!(load(1, &[]), Reason::Frame as u64);
    serves(&at);
}

#[test]
fn a_region_that_is_cut_ends_its_own_session_alone() {
    let gate = Arc::new(Gate::closed(64));
    let at = Place::new(gate.clone());
    gate.set(true);
    serves(&at);
    let memory = Memory::new(SealFlags::empty());
    let mut client = at.connect(&memory);
    assert!(!client.welcome().sealed);
    memory.fill(0, &payload(1));
    client.store(1, None, &key(1), &[0]).unwrap();
    assert_eq!(wait(&mut client, 1), [Outcome::Ok]);
    gate.set(false);
    client.load(2, &keys([77, 1]), &[4, 5]).unwrap();
    client.store(3, None, &keys([2]), &[6]).unwrap();
    until("both are begun", || gate.inside() == 2);
    ftruncate(&memory.file, 0).unwrap();
    gate.set(true);
    until("the agent has noticed", || at.agent().stats().regions_broken >= 1);
    until("its jobs end", || at.agent().stats().jobs_ended == at.agent().stats().jobs);
    until("its session ends", || at.agent().stats().sessions_ended == 2);
    serves(&at);
    // Of what it held when it was cut, nothing is kept.
    let mut other = at.try_connect(&hello(0), None).unwrap();
    assert_eq!(other.lookup(&keys([1, 2])).unwrap(), [place::RAM, place::NOWHERE]);
}

#[test]
fn an_engine_that_reads_no_answers_is_not_read_from() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let memory = Memory::sealed();
    let raw = Raw::welcomed(&at, &memory);
    let frame = encode_request(&Request::Lookup { seq: 1, keys: Keys(&keys(0..4096)) });
    let mut sent = 0;
    let mut idle = 0;
    // Until its own socket is full and stays so: the agent has stopped to read.
    while idle < 100 {
        if socket::send(&raw.0, &frame, &[]).unwrap() {
            sent += 1;
            idle = 0;
        } else {
            idle += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let read = at.agent().stats().frames;
    assert!(read < sent, "{read} of {sent}");
    serves(&at);
    // Once it reads, all is answered.
    for _ in 0..sent {
        assert!(matches!(raw.receive(), Some(Reply::Places { places, .. }) if places.len() == 4096));
    }
}

#[test]
fn an_engine_that_never_polls_runs_out_of_jobs() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let memory = Memory::sealed();
    let raw = Raw::welcomed(&at, &memory);
    for job in 0..65 {
        let frame = Request::Store { job, after: None, keys: Keys(&key(0)), slots: SlotList(&[0; 4]) };
        raw.send(&encode_request(&frame), &[]);
    }
    assert_eq!(raw.refused(), Reason::TooMany as u64);
    serves(&at);
}

#[test]
fn who_says_nothing_and_who_is_too_many_is_turned_away() {
    let at = Place::with(Arc::new(MemoryTiers::new(64)), |config| {
        config.sessions = 2;
        config.patience = Duration::from_millis(300);
    });
    let (first, second) = (Raw::connect(&at), Raw::connect(&at));
    let third = Raw::connect(&at);
    assert_eq!(third.receive(), None);
    assert_eq!(at.agent().stats().turned_away, 1);
    assert_eq!((first.refused(), second.refused()), (Reason::Order as u64, Reason::Order as u64));
    serves(&at);
}

#[test]
fn random_frames_from_many_do_no_harm() {
    let at = Place::new(Arc::new(MemoryTiers::new(64)));
    let memory = Memory::sealed();
    let two = keys([1, 2]);
    let seeds = [
        encode_request(&Request::Hello(hello(SLOTS))),
        encode_request(&Request::Lookup { seq: 1, keys: Keys(&two) }),
        encode_request(&Request::Load {
            job: 1,
            keys: Keys(&two),
            slots: SlotList(&[1, 0, 0, 0, 2, 0, 0, 0]),
        }),
        encode_request(&Request::Release { leases: &[7; 32] }),
        encode_request(&Request::Poll { seq: 3 }),
    ];
    let mut x = 0xbad_u64;
    let mut next = |below: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as usize % below
    };
    for round in 0..400 {
        let raw = if round % 2 == 0 { Raw::connect(&at) } else { Raw::welcomed(&at, &memory) };
        for _ in 0..next(8) {
            let mut frame = seeds[next(seeds.len())].clone();
            let at = next(frame.len());
            frame[at] ^= 1 << next(8);
            let fds = [memory.file.as_fd()];
            // It may have been refused already.
            if socket::send(&raw.0, &frame, &fds[..next(2)]).is_err() {
                break;
            }
        }
    }
    until("all jobs end", || at.agent().stats().jobs_ended == at.agent().stats().jobs);
    assert_eq!(BLOCK, 4096);
    serves(&at);
}
