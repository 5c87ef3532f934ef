//! Two nodes and the storage that both reach.

use object_store::memory::InMemory;

use super::*;
use crate::policy::Rate;
use crate::shared::{Objects, Shared};

#[test]
fn what_leaves_one_node_s_disk_is_loaded_by_another_from_shared_storage() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (store_of_both, now) = (Arc::new(InMemory::new()), Arc::new(AtomicU64::new(0)));
    let open = |folder: &Path, listener: &Arc<Listener>| {
        let (store, handle) = (store_of_both.clone(), runtime.handle().clone());
        let mut config = config(folder, 4, 6, &now);
        config.policy.share_from = 1;
        config.policy.shared_writes = Some(Rate { per_second: 1000, burst: 1000 });
        config.shared = Some(Box::new(move |bytes| -> Arc<dyn Shared> {
            Arc::new(Objects::new(store.clone(), handle.clone(), "kv", bytes))
        }));
        let node = Node::open(config, listener.clone()).unwrap();
        node.recover().unwrap();
        node
    };
    let (a_s, b_s) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listeners = [(); 2].map(|()| Arc::new(Listener::default()));
    let (a, b) = (open(a_s.path(), &listeners[0]), open(b_s.path(), &listeners[1]));
    let (pool, owner) = (a.pool(BYTES).unwrap(), a.owner("llama", "").unwrap());
    for round in 0..40u64 {
        now.fetch_add(1000, Ordering::Relaxed);
        let chain: Vec<u64> = (0..3).map(|n| (round / 2 * 3 % 36) + n).collect();
        store(&a, pool, owner, &chain);
        settle(&a);
        a.touch(pool, &chain.iter().map(|n| key(*n)).collect::<Vec<_>>());
        settle(&a);
    }
    let shared = listeners[0].said(kvproto::Tier::Shared);
    assert!(shared.len() > 5, "{shared:?} in shared storage");
    assert_eq!(a.usage()[0].shared, shared.len());
    // Another node learns of them, tells of them, and loads them.
    let pool = b.pool(BYTES).unwrap();
    b.name_model(42, "llama").unwrap();
    b.refresh_shared();
    b.refresh_shared();
    assert_eq!(listeners[1].said(kvproto::Tier::Shared), shared);
    assert_eq!(load(&b, pool, &shared), vec![Read::Hit; shared.len()]);
    assert_eq!(b.lookup(pool, &[key(shared[0])]), [Where::In(Tier::Shared)]);
    drop(b);
    let b = open(b_s.path(), &listeners[1]);
    b.refresh_shared();
    assert_eq!(listeners[1].said(kvproto::Tier::Shared), shared);
    assert_eq!(load(&b, pool, &shared), vec![Read::Hit; shared.len()]);
}
