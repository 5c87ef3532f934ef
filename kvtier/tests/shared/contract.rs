//! What every store has to do, whoever runs it.

use kvtier::policy::Owner;
use kvtier::shared::{News, Shared};
use kvtier::store::{Put, Read, StoreKey};

use crate::rig::{Rig, key};

/// All of it, on a store that is empty.
pub fn keeps_the_contract(rig: &Rig) {
    is_shared_and_stored_once(rig);
    damage_costs_what_is_damaged(rig);
    what_somebody_removes_is_told(rig);
}

fn is_shared_and_stored_once(rig: &Rig) {
    let (a, b) = (rig.node(), rig.node());
    assert_eq!(rig.put(&a, &[1, 2, 3, 101]), [true; 4]);
    assert_eq!(rig.get(&a, &[1, 3, 101, 9]), [Read::Hit, Read::Hit, Read::Hit, Read::Miss]);
    // Another node finds them, and does not store them again.
    assert_eq!(rig.get(&b, &[1]), [Read::Miss]);
    let news = b.news();
    assert_eq!((news.came.len(), news.left.len()), (4, 0));
    assert_eq!(b.news(), News::default());
    assert_eq!(rig.get(&b, &[1, 2, 3, 101]), [Read::Hit; 4]);
    let objects = rig.objects();
    assert_eq!(objects.len(), 2);
    assert_eq!(rig.put(&b, &[1, 2, 3, 101]), [true; 4]);
    // One that has not looked puts the same under the same name, which the store refuses.
    let c = rig.node();
    assert_eq!((rig.put(&c, &[1, 2, 3]), c.failed()), (vec![true; 3], 0));
    let stamps = |objects: Vec<object_store::ObjectMeta>| -> Vec<_> {
        objects.into_iter().map(|object| (object.location, object.last_modified, object.e_tag)).collect()
    };
    assert_eq!(stamps(rig.objects()), stamps(objects), "nobody wrote over it");
    let of_other_size = Put { key: key(8), after: None, owner: Owner(0), payload: &[1] };
    assert_eq!(rig.node().put(&[of_other_size]), [false]);
}

fn damage_costs_what_is_damaged(rig: &Rig) {
    let node = rig.late_node();
    let object = rig.objects().into_iter().max_by_key(|object| object.size).unwrap();
    let whole = rig.read(&object);
    let mut bad = whole.clone();
    bad[rig.block_bytes + 5] ^= 1;
    rig.overwrite(&object, bad);
    let reads = rig.get(&node, &[1, 2, 3]);
    assert_eq!(reads.iter().filter(|read| **read == Read::Hit).count(), 2);
    assert_eq!(reads.iter().filter(|read| **read == Read::Lost).count(), 1);
    // An object that is cut short, anywhere, is none.
    for cut in [0, 10, rig.block_bytes, whole.len() - 30, whole.len() - 1] {
        rig.overwrite(&object, whole[..cut].to_vec());
        let late = rig.node();
        assert_eq!(late.news().came.len(), 1, "cut to {cut}");
        assert_eq!(rig.get(&late, &[1, 2, 3]), [Read::Miss; 3]);
    }
    rig.overwrite(&object, whole);
}

fn what_somebody_removes_is_told(rig: &Rig) {
    let node = rig.late_node();
    let object = rig.objects().into_iter().max_by_key(|object| object.size).unwrap();
    rig.remove(&object);
    assert_eq!(rig.get(&node, &[1]), [Read::Lost]);
    let mut left: Vec<StoreKey> = node.news().left;
    left.sort();
    // The first was told when it was missed.
    assert_eq!(left, [key(2), key(3)]);
    assert_eq!(node.blocks(), 1);
    assert_eq!(rig.put(&node, &[1, 2, 3]), [true; 3]);
    assert_eq!(rig.get(&rig.late_node(), &[1, 2, 3]), [Read::Hit; 3]);
}
