//! Payloads made to hurt: nothing panics, nothing takes more memory than its length allows.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::recorded::{captures, messages};
use kvproto::engine::{Engine, decode};
use kvproto::event::{Batch, Event};
use kvproto::frames::{self, Topic};

const ENGINES: [Engine; 3] = [Engine::Vllm, Engine::Sglang, Engine::Mooncake];

/// Counts what this thread holds, so that a test can tell the most it ever held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: every call goes to the system allocator unchanged; counting touches only cells
// of this thread that need neither allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory, in bytes, that decoding took beyond what was held before.
fn most_held(engine: Engine, payload: &[u8]) -> usize {
    let before = HELD.get();
    MOST.set(before);
    let result = decode(engine, payload);
    let most = MOST.get() - before;
    drop(result);
    usize::try_from(most).unwrap()
}

/// Looks at everything a batch gives out; returns how many items that were.
fn walk(batch: &Batch<'_>) -> usize {
    batch
        .events()
        .map(|event| match event {
            Event::Stored(s) => {
                let extras: usize = (0..=s.hashes.len()).map(|i| s.extras(i).len()).sum();
                s.hashes.len() + s.tokens.len() + extras + usize::from(s.is_dense())
            }
            Event::Removed(r) => r.hashes.len(),
            Event::Cleared(_) => 1,
        })
        .sum()
}

/// Some payloads of each kind of capture.
fn samples() -> Vec<Vec<u8>> {
    let samples: Vec<_> = captures()
        .iter()
        .flat_map(|f| messages(f).into_iter().map(|[_, _, payload]| payload).take(8))
        .filter(|p| !p.is_empty() && p.len() < 4096)
        .collect();
    assert!(samples.len() > 100);
    samples
}

/// xorshift64*, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[test]
fn a_payload_cut_short_anywhere_is_an_error() {
    for payload in samples().iter().step_by(7) {
        for len in 0..payload.len() {
            for engine in ENGINES {
                assert!(decode(engine, &payload[..len]).is_err(), "{engine:?}, {len} of {}", payload.len());
            }
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let samples = samples();
    let mut random = Random(0x6b76_6421);
    let mut outcomes = [0; 3];
    for _ in 0..20_000 {
        let mut payload = samples[random.below(samples.len())].clone();
        for _ in 0..=random.below(8) {
            let at = random.below(payload.len());
            payload[at] = random.below(256) as u8;
        }
        for engine in ENGINES {
            match decode(engine, &payload) {
                Ok(batch) => {
                    walk(&batch);
                    let skipped = batch.skipped.unknown + batch.skipped.malformed;
                    assert_eq!(skipped > 0, batch.skipped.first.is_some());
                    outcomes[usize::from(skipped > 0)] += 1;
                }
                Err(_) => outcomes[2] += 1,
            }
        }
    }
    // Whole, with events left out, refused: each of them often, or this tests nothing.
    assert!(outcomes.iter().all(|&n| n > 1000), "{outcomes:?}");
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(64)).map(|_| random.below(256) as u8).collect();
        for engine in ENGINES {
            drop(decode(engine, &bytes));
        }
        // The same as the only event of a batch.
        bytes.splice(0..0, [0x92, 0x01, 0x91]);
        for engine in ENGINES {
            if let Ok(batch) = decode(engine, &bytes) {
                walk(&batch);
            }
        }
        Topic::parse(&bytes);
        let _ = (frames::live(&[&bytes, &bytes, &bytes]), frames::replay(&[&bytes, &bytes]));
    }
}

#[test]
fn nesting_costs_no_stack() {
    const DEPTH: usize = 100_000;
    for open in [&[0x91][..], &[0x81, 0x00], &[0x81, 0xa1, b'k'], &[0x92, 0xc0]] {
        let nest: Vec<u8> = [open.repeat(DEPTH), vec![0xc0]].concat();
        // As the events, as an event, as an ignored field of one, and behind the batch's rank.
        let field = [b"\x82\xa4type\xb0AllBlocksCleared\xa1x".to_vec(), nest.clone()].concat();
        for (before, after) in
            [(&[0x92, 0x01][..], &[][..]), (&[0x92, 0x01, 0x91], &[]), (&[0x94, 1, 0x90, 0xc0], &[])]
        {
            for engine in ENGINES {
                drop(decode(engine, &[before, &nest, after].concat()));
            }
        }
        for engine in ENGINES {
            let batch = [&[0x92, 0x01, 0x91][..], &field].concat();
            assert_eq!(decode(engine, &batch).unwrap().len(), 1);
        }
    }
}

#[test]
fn a_claimed_length_is_neither_believed_nor_allocated() {
    let claims = [
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdc, 0xff, 0xff],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        vec![0xde, 0xff, 0xff],
        vec![0xdb, 0xff, 0xff, 0xff, 0xff],
        vec![0xc6, 0xff, 0xff, 0xff, 0xff],
        vec![0xc9, 0xff, 0xff, 0xff, 0xff, 0x01],
    ];
    let fields =
        ["block_hashes", "token_ids", "parent_block_hash", "extra_keys", "medium", "seq_hashes", "other"];
    for claim in &claims {
        for engine in ENGINES {
            for payload in [
                claim.clone(),
                [&[0x92, 0x01][..], claim].concat(),
                [&[0x92, 0x01, 0x91][..], claim].concat(),
            ] {
                assert!(decode(engine, &payload).is_err());
                assert!(most_held(engine, &payload) < 1024);
            }
            for field in fields {
                let mut payload = b"\x92\x01\x91\x82\xa4type\xabBlockStored".to_vec();
                payload.push(0xa0 | field.len() as u8);
                payload.extend(field.as_bytes());
                payload.extend(claim);
                assert!(decode(engine, &payload).is_err(), "{engine:?} {field} {claim:x?}");
                assert!(most_held(engine, &payload) < 1024, "{engine:?} {field} {claim:x?}");
            }
        }
    }
}

#[test]
fn memory_is_bounded_by_the_payload() {
    const LEN: u32 = 100_000;
    let array = |item: &[u8]| [&[0xdd][..], &LEN.to_be_bytes(), &item.repeat(LEN as usize)].concat();
    let stored = |key: &str, list: &[u8]| {
        let head = b"\x82\xa4type\xabBlockStored";
        [&[0x92, 0x01, 0x91][..], head, &[0xa0 | key.len() as u8], key.as_bytes(), list].concat()
    };
    let with_hashes = |extra: &[u8]| {
        let head = b"\x83\xa4type\xabBlockStored\xacblock_hashes";
        [&[0x92, 0x01, 0x91][..], head, &array(&[1]), b"\xaaextra_keys", extra].concat()
    };
    let payloads = [
        ("events", [&[0x92, 0x01][..], &array(b"\x91\xb0AllBlocksCleared")].concat()),
        ("stores", [&[0x92, 0x01][..], &array(b"\x91\xabBlockStored")].concat()),
        ("envelopes", [&[0x92, 0x01][..], &array(b"\x81\xa4type\xa6stored")].concat()),
        ("bad events", [&[0x92, 0x01][..], &array(&[0xc0])].concat()),
        ("tokens", stored("token_ids", &array(&[1]))),
        ("hashes", stored("block_hashes", &array(&[1]))),
        ("extra keys", with_hashes(&array(&[0x91, 0xa1, b'x']))),
        ("items", with_hashes(&array(&[0x91, 0x92, 0xa0, 0x00]))),
        ("no extra keys", with_hashes(&array(&[0xc0]))),
    ];
    for (what, payload) in &payloads {
        for engine in ENGINES {
            assert!(decode(engine, payload).is_ok(), "{what}");
            let most = most_held(engine, payload);
            // A growing vector holds its old and its new self for a moment.
            assert!(most <= 32 * payload.len(), "{engine:?} {what}: {most} bytes for {}", payload.len());
        }
    }
}
