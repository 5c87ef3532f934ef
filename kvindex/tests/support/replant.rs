//! Takes an index through a snapshot into a new one, which must then be like it.

use std::sync::Arc;

use kvindex::snapshot::{Cursor, Restore, Writer};
use kvindex::{HolderId, Index};

/// A complete snapshot of `holders`, written in steps of `step` bytes.
pub fn snapshot(index: &Arc<Index>, holders: &[HolderId], step: usize) -> Vec<u8> {
    let (mut writer, mut bytes) = (Writer::new(index.clone()), Vec::new());
    for (i, id) in holders.iter().enumerate() {
        let cursor = Cursor { seq: Some(i as u64), ts: i as f64 };
        writer.begin(*id, &(i as u32).to_le_bytes(), cursor).expect("attached");
        while writer.step(step, &mut bytes).expect("nothing changes").is_more() {}
    }
    writer.begin_ghosts().expect("no part is open");
    while writer.step(step, &mut bytes).expect("nothing changes").is_more() {}
    writer.finish(&mut bytes).expect("no part is open");
    bytes
}

/// Gives each of `holders` of `index` what the snapshot's holder of its place had.
pub fn restore(bytes: &[u8], piece: usize, index: &Arc<Index>, holders: &[HolderId]) {
    let mut restore = Restore::new(index.clone());
    let mut restored = Vec::new();
    for piece in bytes.chunks(piece) {
        let who = |label: &[u8]| {
            let i = u32::from_le_bytes(label.try_into().expect("our label"));
            holders.get(i as usize).copied()
        };
        restore.feed(piece, |found| who(found.label)).expect("a snapshot of ours");
        restored.extend(restore.restored());
    }
    let totals = restore.finish().expect("a complete snapshot");
    assert!(totals.holders >= holders.len() as u64 && restored.len() == holders.len());
    for (i, r) in restored.iter().enumerate() {
        let kept = r.outcome.expect("a fresh holder");
        assert_eq!((r.holder, r.cursor.seq), (holders[i], Some(i as u64)));
        assert_eq!(kept.blocks, kept.of, "all blocks are back");
    }
}

/// A new index with what `holders` have, attached in the same order.
pub fn replant(index: &Arc<Index>, holders: &[HolderId]) -> (Arc<Index>, Vec<HolderId>) {
    let new = Arc::new(Index::new(*index.config()));
    let specs = holders.iter().map(|id| index.spec(*id).expect("attached"));
    let ids: Vec<HolderId> = specs.map(|s| new.attach((*s).clone())).collect();
    restore(&snapshot(index, holders, 4096), 777, &new, &ids);
    for (old, new_id) in holders.iter().zip(&ids) {
        alike((index, *old), (&new, *new_id), "after a snapshot");
    }
    (new, ids)
}

/// Two holders have the same, by every way to look.
pub fn alike((a, x): (&Index, HolderId), (b, y): (&Index, HolderId), at: &str) {
    assert_eq!(a.holder_stats(x), b.holder_stats(y), "stats: {at}");
    let rows = |i: &Index, id| {
        let rows = i.dump(id, None, usize::MAX).into_iter();
        rows.map(|r| (r.block, r.tier, r.depth, r.parent, r.block_size)).collect::<Vec<_>>()
    };
    assert_eq!(rows(a, x), rows(b, y), "dump: {at}");
    assert_eq!(a.digest(x), b.digest(y), "digest: {at}");
}
