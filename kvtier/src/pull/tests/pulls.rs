//! What another node has comes, and comes right.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::node::Where;
use crate::policy::Tier;

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

#[test]
fn what_another_node_has_in_ram_or_on_disk_is_here_after_a_pull() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&numbers(1..11));
    let keys: Vec<_> = (1..6).map(key).collect();
    // Half of it is on its disk alone.
    a.node.transfer(a.pool, &keys, Tier::Disk, Some(Tier::Cpu), |_| true);
    let (source, puller) = (a.source(), b.puller());
    b.store(&[1]);
    let pulled = pull(&puller, wish(source.address(), &numbers(1..12)));
    assert_eq!(pulled, Pulled { blocks: 9, ..Pulled::default() });
    assert_eq!(b.has(&numbers(1..11)), [true; 10]);
    assert_eq!(b.node.lookup(b.pool, &[key(10), key(11)]), [Where::In(Tier::Cpu), Where::Nowhere]);
    let counts = puller.counts();
    assert_eq!((counts.blocks.load(Relaxed), counts.bytes.load(Relaxed)), (9, 9 * BYTES as u64));
    assert_eq!((source.counts().blocks.load(Relaxed), source.counts().admitted.load(Relaxed)), (9, 1));
    assert_eq!((a.node.usage()[0].moves.lent, b.node.usage()[0].moves.pulled), (9, 9));
    // A second time there is nothing to do, on the same connection.
    assert_eq!(pull(&puller, wish(source.address(), &numbers(1..11))), Pulled::default());
    assert_eq!(source.counts().admitted.load(Relaxed), 1);
}

#[test]
fn only_what_was_named_comes_where_whole_names_are_known() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1, 2, 3]);
    let (source, puller) = (a.source(), b.puller());
    let only = HashSet::from([key(1), key(2)]);
    let pulled = pull(&puller, Wish { only, ..wish(source.address(), &[1, 2, 3]) });
    assert_eq!(pulled.blocks, 2);
    assert_eq!(b.has(&[1, 2, 3]), [true, true, false]);
}

#[test]
fn what_is_pulled_takes_half_of_ram_at_most_and_stays_while_it_is_wished() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&numbers(1..36));
    let (source, puller) = (a.source(), b.puller());
    let pulled = pull(&puller, Wish { stay: 1_000_000, ..wish(source.address(), &numbers(1..36)) });
    assert_eq!((pulled.blocks, pulled.refused), (20, 15));
    // What engines bring does not push it out.
    store(&b.node, b.pool, b.owner, &numbers(100..130));
    while b.node.step() {}
    assert_eq!(b.node.lookup(b.pool, &[key(1), key(20)]), [Where::In(Tier::Cpu); 2]);
}

#[test]
fn a_node_without_ram_takes_what_it_lacks_to_its_disk() {
    let (a, b) = (Site::with(0, 60), Site::with(0, 60));
    a.store(&numbers(1..36));
    let (source, puller) = (a.source(), b.puller());
    assert_eq!(pull(&puller, wish(source.address(), &numbers(1..36))).blocks, 30);
    assert_eq!(b.node.lookup(b.pool, &[key(1), key(31)]), [Where::In(Tier::Disk), Where::Nowhere]);
}

#[test]
fn blocks_of_models_that_no_engine_here_has_are_not_asked_for() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1]);
    let (source, puller) = (a.source(), b.puller());
    let pulled = pull(&puller, Wish { model: "other".into(), ..wish(source.address(), &[1]) });
    assert_eq!(pulled, Pulled::default());
    assert_eq!(source.counts().admitted.load(Relaxed), 0);
}

#[test]
fn a_node_that_drains_takes_nothing() {
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1]);
    let (source, puller) = (a.source(), b.puller());
    b.node.drain();
    assert_eq!(pull(&puller, wish(source.address(), &[1])), Pulled::default());
    assert_eq!(b.has(&[1]), [false]);
}

#[test]
fn a_block_whose_bytes_changed_in_the_source_s_ram_or_disk_is_not_given() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let (a, b) = (Site::new(), Site::new());
    a.store(&[1, 2, 3]);
    // On disk alone, where a byte of the second changes behind the store's back.
    a.node.transfer(a.pool, &[key(1), key(2), key(3)], Tier::Disk, Some(Tier::Cpu), |_| true);
    let folder = a._folder.path().join(format!("pool-{BYTES}"));
    let segment = folder.join("segment-00000");
    let bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(BYTES).step_by(BYTES).position(|slot| slot == payload(2)).unwrap() * BYTES;
    let mut file = std::fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.seek(SeekFrom::Start(at as u64 + 9)).unwrap();
    file.write_all(&[0x5a]).unwrap();
    file.sync_all().unwrap();
    let (source, puller) = (a.source(), b.puller());
    let pulled = pull(&puller, wish(source.address(), &[1, 2, 3]));
    // And what follows it is of no use here.
    assert_eq!((pulled.blocks, pulled.missing), (1, 2));
    assert_eq!(b.has(&[1, 2, 3]), [true, false, false]);
    assert_eq!(source.counts().missing.load(Relaxed), 1);
}
