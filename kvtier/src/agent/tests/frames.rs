//! Frames survive their bytes; other bytes are refused and nothing worse.

use super::super::codec::{FrameError, Reply, decode_answer, decode_request, encode_answer, encode_request};
use super::super::frame::{
    Answer, Ended, FRAME_BYTES, Keys, Leased, Outcome, Reason, Request, SlotList, VERSION, Welcome,
};
use super::{hello, key, keys};

/// Calls `with` with one request of each kind.
fn each_request(mut with: impl FnMut(&Request<'_>)) {
    let (two, one) = (keys([1, 2]), key(0));
    let slots = [3, 0, 0, 0, 9, 1, 0, 0];
    let lease = Leased { offset: 1 << 40, place: 3, turn: 9 }.pack();
    let (keys, slots) = (Keys(&two), SlotList(&slots));
    with(&Request::Hello(hello(64)));
    with(&Request::Lookup { seq: 1, keys });
    with(&Request::Touch { keys });
    with(&Request::Load { job: u64::MAX, keys, slots });
    with(&Request::Store { job: 5, after: None, keys, slots });
    with(&Request::Store { job: 5, after: Some(Keys(&one)), keys, slots });
    with(&Request::Poll { seq: 300 });
    with(&Request::Lease { seq: 70_000, keys });
    with(&Request::Release { leases: &lease });
    with(&Request::Stats { seq: 0 });
    with(&Request::Goodbye);
}

#[test]
fn requests_survive_their_bytes_and_nothing_may_be_missing_or_behind() {
    each_request(|request| {
        let bytes = encode_request(request);
        assert_eq!(decode_request(&bytes).as_ref(), Ok(request));
        for cut in 0..bytes.len() {
            assert!(decode_request(&bytes[..cut]).is_err(), "{request:?} cut at {cut}");
        }
        if !matches!(request, Request::Hello(_)) {
            let more = [&bytes[..], &[0]].concat();
            assert_eq!(decode_request(&more), Err(FrameError::Behind(1)));
        }
    });
}

#[test]
fn a_later_hello_may_say_more() {
    let mut bytes = encode_request(&Request::Hello(hello(64)));
    // A fixed array of up to 15 elements says its length in its first byte.
    assert_eq!(bytes[0], 0x9d);
    bytes[0] += 1;
    bytes.push(0xc0);
    assert_eq!(decode_request(&bytes), Ok(Request::Hello(hello(64))));
}

#[test]
fn answers_survive_their_bytes() {
    let welcome = Welcome {
        version: VERSION,
        features: 1,
        jobs: 7,
        leases: 8,
        lease_ms: 9,
        arena_bytes: 1 << 33,
        sealed: true,
    };
    let same = |answer: Answer| decode_answer(&encode_answer(&answer)).unwrap();
    assert_eq!(same(Answer::Welcome(welcome.clone())), Reply::Welcome(welcome));
    let places = vec![0, 1, 2, 255];
    assert_eq!(same(Answer::Places { seq: 4, places: places.clone() }), Reply::Places { seq: 4, places });
    let ended = vec![Ended { job: 3, outcomes: vec![Outcome::Ok, Outcome::Busy], micros: 77 }];
    let done = same(Answer::Done { seq: 1, more: true, ended: ended.clone() });
    assert_eq!(done, Reply::Done { seq: 1, more: true, ended });
    let leases = vec![Leased::NONE, Leased { offset: 4096, place: 1, turn: 2 }];
    assert_eq!(same(Answer::Leases { seq: 9, leases: leases.clone() }), Reply::Leases { seq: 9, leases });
    let counts = same(Answer::Stats { seq: 2, counts: vec![("frames", 3)] });
    assert_eq!(counts, Reply::Stats { seq: 2, counts: vec![("frames".to_owned(), 3)] });
    let refused = same(Answer::Refused { reason: Reason::Slot, text: "slot 9 of 8".to_owned() });
    assert_eq!(refused, Reply::Refused { reason: 4, text: "slot 9 of 8".to_owned() });
}

#[test]
fn a_length_is_believed_only_if_the_bytes_are_there() {
    // Arrays and bins of 2^32 - 1, in each place where a length is read.
    let huge: [&[u8]; 5] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0x93, 2, 1, 0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0x94, 4, 1, 0xc6, 0xff, 0xff, 0xff, 0xff, 0],
        &[0x9d, 1, 1, 0, 0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0x92, 8, 0xc5, 0xff, 0xff, 0],
    ];
    for frame in huge {
        assert!(decode_request(frame).is_err());
    }
    assert_eq!(decode_request(&vec![0x90; FRAME_BYTES + 1]), Err(FrameError::Long(FRAME_BYTES + 1)));
    assert!(decode_request(&[0x90]).is_err());
    assert_eq!(decode_request(&[0x91, 99]), Err(FrameError::Kind(99)));
    assert_eq!(decode_request(&[0x91, 6]), Err(FrameError::Fields { kind: 6, got: 0 }));
    let odd_slots = [0x94, 4, 1, 0xc4, 0, 0xc4, 3, 0, 0, 0];
    assert!(matches!(decode_request(&odd_slots), Err(FrameError::Range { field: "slots", .. })));
}

#[test]
fn mutated_frames_are_refused_or_mean_one_thing() {
    let mut seeds = Vec::new();
    each_request(|request| seeds.push(encode_request(request)));
    let mut x = 0x5eed_u64;
    let mut next = |below: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as usize % below
    };
    let mut read = 0;
    for round in 0..200_000 {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..=next(3) {
            match next(4) {
                0 => {
                    let at = next(frame.len());
                    frame[at] = next(256) as u8;
                }
                1 => frame.truncate(next(frame.len()) + 1),
                2 => frame.insert(next(frame.len()), next(256) as u8),
                _ => {
                    let at = next(frame.len());
                    frame[at] ^= 1 << next(8);
                }
            }
        }
        if let Ok(request) = decode_request(&frame) {
            read += 1;
            let again = encode_request(&request);
            assert_eq!(decode_request(&again).as_ref(), Ok(&request));
            // Each request has a session that it does no harm to.
            let mut session = super::session::ready();
            let _ = session.receive(&request, 0);
        }
        let _ = decode_answer(&frame);
    }
    assert!(read > 1000, "{read} of the mutated frames were still frames");
}
