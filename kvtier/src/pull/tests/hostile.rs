//! The other side does not know the secret, dies, stalls, lies, or says what is no frame.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::super::frame::{BlockHead, Frame, MOST_BYTES};
use super::super::session::admit;
use super::super::wire::Wire;
use super::*;
use crate::policy::random::Random;

/// A source of the test's own: greets as one that knows the secret, and then does what it likes.
fn impostor(then: impl Fn(&mut Wire, u64) + Send + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut wire = Wire::new(stream, PATIENCE * 10).unwrap();
            if let Ok(mut generation) = admit(&mut wire, &secret(), PATIENCE * 10) {
                then(&mut wire, generation.next());
            }
        }
    });
    address
}

/// Answers that it has what it is asked for; returns what the puller wants then.
fn promise(wire: &mut Wire) -> Vec<crate::store::StoreKey> {
    let Ok(Frame::Find { shorts, .. }) = wire.hear(MOST_BYTES) else { panic!("no question") };
    let row =
        |n: &u64| Lendable { key: key(*n), block_bytes: BYTES as u32, after: None, salt: String::new() };
    wire.say(&Frame::Found(shorts.iter().map(row).collect())).unwrap();
    match wire.hear(MOST_BYTES) {
        Ok(Frame::Get { keys, .. }) => keys,
        other => panic!("{other:?}"),
    }
}

fn number(key: &crate::store::StoreKey) -> u64 {
    u64::from_be_bytes(key.hash().try_into().unwrap())
}

#[test]
fn who_does_not_know_the_secret_gets_nothing_and_gives_nothing() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1]);
    let source = a.source();
    for wrong in [Secret::new(&[9; 32]).unwrap(), Secret::none()] {
        let puller = b.puller_that_knows(wrong);
        assert_eq!(pull(&puller, wish(source.address(), &[1])), Pulled::default());
        assert_eq!(puller.counts().failed.load(Relaxed), 1);
    }
    assert_eq!((source.counts().admitted.load(Relaxed), source.counts().refused.load(Relaxed)), (0, 2));
    // Without a secret nobody is asked who is not on this machine; this address is nobody's.
    let puller = b.puller_that_knows(Secret::none());
    let began = Instant::now();
    pull(&puller, wish("192.0.2.1:9", &[1]));
    assert!(began.elapsed() < PATIENCE, "it was not even tried");
    assert_eq!(b.has(&[1]), [false]);
}

#[test]
fn a_payload_that_changed_on_its_way_is_never_taken() {
    for (broken, at) in [(0, 0), (2, BYTES - 1)] {
        let liar = impostor(move |wire, generation| {
            for (nth, key) in promise(wire).iter().enumerate() {
                let mut bytes = payload(number(key));
                let checksum = Some(key.checksum(generation, &bytes));
                if nth == broken {
                    bytes[at] ^= 1;
                }
                let _ = wire.write(&BlockHead { at: nth as u16, checksum }.encode(BYTES), &bytes);
            }
            let _ = wire.wait(PATIENCE);
        });
        let b = Site::new();
        let puller = b.puller();
        let pulled = pull(&puller, wish(liar, &[1, 2, 3, 4]));
        assert_eq!((pulled.blocks, pulled.missing), (broken as u64, 4 - broken as u64));
        assert_eq!(b.has(&[1, 2, 3, 4]), [0, 1, 2, 3].map(|nth| nth < broken));
        assert_eq!(puller.counts().corrupt.load(Relaxed), 1);
        // It is left alone for a while.
        assert!(puller.wish(wish(liar, &[1])).is_none());
        assert_eq!(puller.counts().dropped.load(Relaxed), 1);
    }
}

#[test]
fn the_payload_of_another_block_or_request_does_not_verify() {
    let swapped = impostor(|wire, generation| {
        let keys = promise(wire);
        for (nth, other) in keys.iter().rev().enumerate() {
            let bytes = payload(number(other));
            let checksum = Some(other.checksum(generation, &bytes));
            let _ = wire.write(&BlockHead { at: nth as u16, checksum }.encode(BYTES), &bytes);
        }
        let _ = wire.wait(PATIENCE);
    });
    let replayed = impostor(|wire, generation| {
        let bytes = payload(number(&promise(wire)[0]));
        let checksum = Some(key(1).checksum(generation.wrapping_sub(1), &bytes));
        let _ = wire.write(&BlockHead { at: 0, checksum }.encode(BYTES), &bytes);
        let _ = wire.wait(PATIENCE);
    });
    for liar in [swapped, replayed] {
        let b = Site::new();
        let puller = b.puller();
        assert_eq!(pull(&puller, wish(liar, &[1, 2])).blocks, 0);
        assert_eq!(puller.counts().corrupt.load(Relaxed), 1);
        assert_eq!(b.has(&[1, 2]), [false; 2]);
    }
}

#[test]
fn what_was_not_asked_for_is_not_taken() {
    let generous = impostor(|wire, _| {
        let Ok(Frame::Find { .. }) = wire.hear(MOST_BYTES) else { panic!("no question") };
        let of_other_size = Lendable { key: key(1), block_bytes: u32::MAX, after: None, salt: String::new() };
        let not_asked_for = Lendable { key: key(9), block_bytes: BYTES as u32, ..of_other_size.clone() };
        wire.say(&Frame::Found(vec![of_other_size, not_asked_for])).unwrap();
        // Nothing is asked for then, and the connection is kept.
        let _ = wire.wait(PATIENCE);
    });
    let b = Site::new();
    let puller = b.puller();
    assert_eq!(pull(&puller, wish(generous, &[1])), Pulled::default());
    assert_eq!(puller.counts().failed.load(Relaxed), 0);
    assert_eq!(b.node.usage().len(), 1, "no pool was made");
}

#[test]
fn a_source_that_dies_or_stalls_in_the_middle_costs_its_patience_and_no_more() {
    let first_then = |die: bool| {
        impostor(move |wire, generation| {
            let keys = promise(wire);
            let bytes = payload(number(&keys[0]));
            let checksum = Some(keys[0].checksum(generation, &bytes));
            let _ = wire.write(&BlockHead { at: 0, checksum }.encode(BYTES), &bytes);
            let _ = wire.write(&BlockHead { at: 1, checksum }.encode(BYTES), &bytes[..100]);
            if !die {
                // A byte now and then is no progress.
                for byte in bytes[100..].chunks(1).take(60) {
                    std::thread::sleep(PATIENCE / 6);
                    if wire.write(byte, &[]).is_err() {
                        return;
                    }
                }
            }
        })
    };
    for die in [true, false] {
        let b = Site::new();
        let puller = b.puller();
        let began = Instant::now();
        let pulled = pull(&puller, wish(first_then(die), &[1, 2, 3]));
        assert_eq!((pulled.blocks, pulled.missing), (1, 2));
        assert!(began.elapsed() < PATIENCE * 5, "{:?}", began.elapsed());
        assert_eq!(b.has(&[1, 2, 3]), [true, false, false]);
        // The worker is free for others.
        let a = Site::new();
        a.store(&[1, 2, 3]);
        let source = a.source();
        assert_eq!(pull(&puller, wish(source.address(), &[1, 2, 3])).blocks, 2);
    }
}

#[test]
fn a_source_that_is_gone_costs_nobody_anything_else() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1, 2]);
    let source = a.source();
    let address = source.address();
    let puller = b.puller();
    assert_eq!(pull(&puller, wish(address, &[1])).blocks, 1);
    drop(source);
    assert_eq!(pull(&puller, wish(address, &[2])), Pulled::default());
    assert_eq!(puller.counts().failed.load(Relaxed), 1);
    assert_eq!(b.has(&[1, 2]), [true, false]);
}

#[test]
fn a_source_serves_on_whatever_is_sent_to_it() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1, 2]);
    let source = a.source();
    let mut random = Random::new(11);
    let frames = [
        Frame::Hello([1; 32]).encode(),
        Frame::Proof([1; 32]).encode(),
        Frame::Get { block_bytes: BYTES as u32, keys: vec![key(1)] }.encode(),
        u32::MAX.to_le_bytes().to_vec(),
        vec![0; 4],
    ];
    for _ in 0..60 {
        let mut stream = TcpStream::connect(source.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE * 10)).unwrap();
        for _ in 0..1 + random.below(3) {
            let mut bytes = frames[random.below(frames.len() as u32) as usize].clone();
            if random.below(2) == 0 {
                let at = random.below(bytes.len() as u32) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            let _ = stream.write_all(&bytes);
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // A challenge at most, and then the end.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= 4 + 1 + 32, "{} bytes", answer.len());
    }
    assert_eq!(source.counts().admitted.load(Relaxed), 0);
    // Connections that say nothing are in nobody's way for longer than it takes to notice.
    let silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(source.address()).unwrap()).collect();
    std::thread::sleep(PATIENCE * 2);
    assert_eq!(pull(&b.puller(), wish(source.address(), &[1, 2])).blocks, 2);
    drop(silent);
}

#[test]
fn one_who_is_known_and_asks_for_nonsense_gets_nothing() {
    use super::super::fetch::Fetch;
    use super::super::session::greet;
    let a = Site::new();
    a.store(&[1]);
    let source = a.source();
    let mut fetch = Fetch::connect(&source.address().to_string(), &secret(), false, PATIENCE).unwrap();
    // Another size, another model's block, one that nobody has.
    let foreign = crate::store::StoreKey::new(43, 0, &1u64.to_be_bytes()).unwrap();
    for (bytes, key) in [(BYTES * 2, key(1)), (1, key(1)), (BYTES, foreign), (BYTES, key(2))] {
        let generation = fetch.get(bytes, &[key]).unwrap();
        assert!(!fetch.next(generation, 0, &key, &mut vec![0; bytes]).unwrap());
    }
    assert_eq!(fetch.find(&[43], &[1]).unwrap(), []);
    assert_eq!(fetch.find(&[42, 43], &[1]).unwrap().len(), 1);
    // What only a source says ends the connection.
    let mut wire = Wire::connect(&source.address(), PATIENCE).unwrap();
    greet(&mut wire, &secret(), PATIENCE).unwrap();
    wire.say(&Frame::Found(vec![])).unwrap();
    assert!(wire.hear(MOST_BYTES).is_err());
}
