//! What every backend has to do, and the store's rules one by one.

use super::direct::Direct;
use super::faulty::{Faults, FaultyDisk};
use super::mapped::Mapped;
use super::medium::{Medium, PAGE};
use super::*;
use crate::policy::{BlockId, Owner};

pub(super) const LAYOUT: Layout = Layout { block_bytes: 2 * PAGE, slots: 24, segment_slots: 10 };

pub(super) fn key(number: u64) -> StoreKey {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    StoreKey::new(1 << 77, 0, &hash).unwrap()
}

/// A payload that says what it is in every eight bytes.
pub(super) fn payload(number: u64, version: u64, bytes: usize) -> Vec<u8> {
    let word = |at: u64| (number << 32 | version).wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words: Vec<[u8; 8]> = (0..bytes as u64 / 8).map(|at| word(at).to_le_bytes()).collect();
    words.concat()
}

pub(super) fn open(medium: &dyn Medium) -> Store {
    Store::on(medium, LAYOUT).unwrap().0
}

pub(super) fn put(store: &Store, numbers: std::ops::Range<u64>) -> Vec<Result<(), PutError>> {
    let payloads: Vec<Vec<u8>> = numbers.clone().map(|n| payload(n, 0, LAYOUT.block_bytes)).collect();
    let after = |n: u64| n.checked_sub(1).map(|n| key(n).id());
    let blocks: Vec<Put<'_>> = numbers
        .zip(&payloads)
        .map(|(n, payload)| Put { key: key(n), after: after(n), owner: Owner(3), payload })
        .collect();
    store.put(&blocks)
}

/// Reads blocks, and checks the bytes of those that hit.
pub(super) fn get(store: &Store, numbers: std::ops::Range<u64>) -> Vec<Read> {
    let mut buffer = Buffer::new((numbers.end - numbers.start) as usize * LAYOUT.block_bytes).unwrap();
    let mut blocks: Vec<Get<'_>> = numbers
        .clone()
        .zip(buffer.chunks_mut(LAYOUT.block_bytes))
        .map(|(n, into)| Get { key: key(n), into })
        .collect();
    let reads = store.get(&mut blocks);
    for ((read, get), number) in reads.iter().zip(&blocks).zip(numbers) {
        assert!(*read != Read::Hit || *get.into == payload(number, 0, LAYOUT.block_bytes), "block {number}");
    }
    reads
}

pub(super) fn hits(reads: &[Read]) -> usize {
    reads.iter().filter(|r| **r == Read::Hit).count()
}

/// What every medium has to do.
fn keeps_the_contract(medium: &dyn Medium) {
    let store = open(medium);
    assert_eq!(get(&store, 0..3), [Read::Miss; 3]);
    assert!(put(&store, 0..12).iter().all(Result::is_ok));
    assert_eq!(hits(&get(&store, 0..14)), 12);

    // Again is no second write, another size is refused, one too many does not fit.
    assert!(put(&store, 11..12)[0].is_ok());
    assert_eq!(store.stats().puts, 12);
    let short = Put { key: key(50), after: None, owner: Owner(0), payload: &[0; 5] };
    assert!(matches!(store.put(&[short])[0], Err(PutError::Size { got: 5, .. })));
    let last = put(&store, 12..25).pop();
    assert!(matches!(last, Some(Err(PutError::Full))));
    let mut small = [0; 9];
    assert_eq!(store.get(&mut [Get { key: key(0), into: &mut small }]), [Read::Size]);

    // A payload off the page boundary.
    let mut odd = vec![0; LAYOUT.block_bytes + 1];
    assert_eq!(store.get(&mut [Get { key: key(3), into: &mut odd[1..] }]), [Read::Hit]);
    assert_eq!(odd[1..], payload(3, 0, LAYOUT.block_bytes));

    // What is removed makes room; what is committed is there after opening again.
    assert!(store.remove(key(5)) && !store.remove(key(5)));
    assert!(put(&store, 24..25)[0].is_ok());
    assert!(store.commit().unwrap() > 0);
    assert_eq!(store.commit().unwrap(), 0);
    drop(store);
    let (store, records) = Store::on(medium, LAYOUT).unwrap();
    assert_eq!((records.len(), store.stats().blocks, store.stats().idle), (24, 24, 0));
    let records = parents_first(&records);
    for (at, record) in records.iter().enumerate() {
        let parent = records.iter().position(|r| Some(r.key.id()) == record.after);
        assert!(parent.is_none_or(|parent| parent < at) && record.owner == Owner(3));
    }
    assert_eq!(get(&store, 5..6), [Read::Miss]);
    assert_eq!(hits(&get(&store, 0..25)), 24);

    let other = Layout { slots: 23, ..LAYOUT };
    assert!(matches!(Store::on(medium, other), Err(OpenError::Layout { found: LAYOUT, .. })));
    assert_eq!(store.probe(None), (true, None));

    // Several threads at once.
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..40 {
                    let number = (thread * 7 + round * 5) % 30;
                    put(store, number..number + 2);
                    get(store, number..number + 2);
                    store.remove(key(number + 1));
                    store.commit().unwrap();
                }
            });
        }
    });
    let stats = store.stats();
    assert_eq!((stats.corrupt, stats.failed, stats.quarantined), (0, 0, 0));
    assert_eq!(stats.blocks + stats.idle as usize, LAYOUT.slots as usize);
}

#[test]
fn direct_files_keep_the_contract() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let direct = Direct { folder: folder.path().to_owned() };
    match direct.open("probe", PAGE as u64) {
        Ok(_) => keeps_the_contract(&direct),
        Err(error) => eprintln!("not run: this file system refuses direct I/O ({error})"),
    }
}

#[test]
fn mapped_files_keep_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    keeps_the_contract(&Mapped { folder: folder.path().to_owned() });
}

#[test]
fn the_disk_for_tests_keeps_the_contract() {
    keeps_the_contract(&FaultyDisk::new(1));
}

#[test]
fn both_backends_read_what_the_other_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for (at, backend) in [Backend::Auto, Backend::Mapped, Backend::Auto].into_iter().enumerate() {
        let (store, records) = Store::open(folder.path(), LAYOUT, backend).unwrap();
        assert_eq!(records.len(), at * 4);
        put(&store, at as u64 * 4..at as u64 * 4 + 4);
        store.commit().unwrap();
        assert_eq!(hits(&get(&store, 0..12)), at * 4 + 4);
    }
}

#[test]
fn a_layout_of_nothing_is_refused() {
    let disk = FaultyDisk::new(1);
    for layout in [
        Layout { block_bytes: 0, ..LAYOUT },
        Layout { slots: 0, ..LAYOUT },
        Layout { segment_slots: 0, ..LAYOUT },
    ] {
        assert!(matches!(Store::on(&disk, layout), Err(OpenError::Empty { .. })));
    }
}

#[test]
fn blocks_of_an_odd_size_are_kept_in_whole_pages() {
    let (store, _) = Store::on(&FaultyDisk::new(1), Layout { block_bytes: 5000, ..LAYOUT }).unwrap();
    let bytes = payload(1, 0, 5000);
    store.put(&[Put { key: key(1), after: None, owner: Owner(0), payload: &bytes }]).remove(0).unwrap();
    let mut into = vec![0; 5000];
    assert_eq!(store.get(&mut [Get { key: key(1), into: &mut into }]), [Read::Hit]);
    assert_eq!(into, bytes);
}

#[test]
fn a_full_disk_ends_writes_but_not_reads_until_a_probe() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    put(&store, 0..4);
    disk.set(Faults { full: 1000, ..Faults::default() });
    assert!(matches!(put(&store, 4..5)[0], Err(PutError::Io { .. })));
    assert!(matches!(put(&store, 5..6)[0], Err(PutError::ReadOnly)));
    assert_eq!((hits(&get(&store, 0..4)), store.stats().quarantined), (4, 0));
    assert!(store.commit().is_err());
    assert!(!store.probe(None).0);
    disk.set(Faults::default());
    assert!(store.probe(None).0);
    assert!(put(&store, 4..6).iter().all(Result::is_ok));
    store.commit().unwrap();
    drop(store);
    assert_eq!(hits(&get(&open(&disk), 0..6)), 6);
}

#[test]
fn a_slot_that_fails_is_not_used_until_it_works_again() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    disk.set(Faults { write_fails: 1000, ..Faults::default() });
    assert!(put(&store, 0..1)[0].is_err());
    assert_eq!((store.stats().quarantined, store.stats().idle), (1, 23));
    assert_eq!(store.probe(None), (false, Some(0)));
    disk.set(Faults::default());
    assert_eq!(store.probe(None), (true, Some(0)));
    let mut after = None;
    while let (_, Some(slot)) = store.probe(after) {
        after = Some(slot);
    }
    assert_eq!((store.stats().quarantined, store.stats().idle), (0, 24));
}

#[test]
fn a_bit_that_flips_on_the_way_is_read_again() {
    let disk = FaultyDisk::new(9);
    let store = open(&disk);
    put(&store, 0..8);
    disk.set(Faults { read_flips: 60, ..Faults::default() });
    let read: usize = (0..50).map(|_| hits(&get(&store, 0..8))).sum();
    assert!(disk.injected() > 10 && read > 300, "{} faults, {read} reads", disk.injected());
}

#[test]
fn a_chain_is_found_again_parents_first_even_if_it_closes_upon_itself() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let bytes = vec![1; LAYOUT.block_bytes];
    let after = [Some(2), Some(0), Some(1), None, Some(99)].map(|n: Option<u64>| n.map(|n| key(n).id()));
    let block = |(n, after): (usize, Option<BlockId>)| Put {
        key: key(n as u64),
        after,
        owner: Owner(0),
        payload: &bytes,
    };
    let blocks: Vec<Put<'_>> = after.into_iter().enumerate().map(block).collect();
    assert!(store.put(&blocks).iter().all(Result::is_ok));
    store.commit().unwrap();
    let records = Store::on(&disk, LAYOUT).unwrap().1;
    assert_eq!((records.len(), parents_first(&records).len()), (5, 5));
}

#[test]
fn what_is_held_back_is_read_but_not_written_down_until_it_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let medium = Mapped { folder: folder.path().to_owned() };
    let store = open(&medium);
    let bytes = payload(1, 0, LAYOUT.block_bytes);
    let block = |number| Put { key: key(number), after: None, owner: Owner(0), payload: &bytes };
    let held_back = store.put_held_back(&[block(1), block(2), block(3)]);
    assert!(held_back.iter().all(Result::is_ok), "{held_back:?}");
    assert!([1, 2, 3].iter().all(|number| store.has(key(*number))));
    assert!(store.remove(key(3)));
    store.release([key(2), key(3), key(9)]);
    store.commit().unwrap();
    assert_eq!(store.stats().pending, 1);
    let again = open(&medium);
    assert_eq!([1, 2, 3].map(|number| again.has(key(number))), [false, true, false]);
    store.release([key(1)]);
    store.commit().unwrap();
    assert!(open(&medium).has(key(1)));
}

#[test]
fn a_folder_is_one_stores_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), LAYOUT, Backend::Auto).unwrap();
    assert!(matches!(Store::open(folder.path(), LAYOUT, Backend::Auto), Err(OpenError::InUse)));
    drop(store);
    assert!(Store::open(folder.path(), LAYOUT, Backend::Auto).is_ok());
}
