//! Restores anything as a snapshot: as it comes, and with what looks like chunks framed so that checksums
//! fit. Whatever it gives holders goes again to the last block.

#![no_main]

#[path = "../../tests/support/reframe.rs"]
mod reframe;

use std::sync::Arc;

use kvindex::snapshot::Restore;
use kvindex::{HolderSpec, Index, IndexConfig};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{EngineHash, LocalHash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    restore(bytes);
    if let Some(framed) = framed(bytes) {
        restore(&framed);
    }
});

/// The same payloads with checksums that fit, as far as there are whole ones.
fn framed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = bytes.split_at_checked(32)?;
    let mut payloads = Vec::new();
    while let Some(len) = rest.get(..4) {
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let Some(payload) = rest.get(12..).map(|r| &r[..len.min(r.len())]) else { break };
        if payload.is_empty() {
            break;
        }
        rest = &rest[12 + payload.len()..];
        payloads.push(payload.to_vec());
    }
    Some(reframe::reframe(header, &payloads))
}

fn restore(bytes: &[u8]) {
    let index = Arc::new(Index::new(IndexConfig { max_bytes: 64 << 20, ..IndexConfig::default() }));
    let attach = |tenant, model, name: &str| index.attach(HolderSpec::new(tenant, model, name, 0));
    // The holders of the fixtures, one of which is live, and another beside them.
    let mut ids: Vec<_> = ["a", "b", "c", "d"].map(|n| attach("t", "m", n)).into();
    ids.push(attach("t2", "other model", "e"));
    let mut b = BatchBuilder::new(0.0, None);
    let fields = StoredFields { block_size: 16, ..Default::default() };
    b.hashed(fields, &[EngineHash(5), EngineHash(6)], &[LocalHash(1000), LocalHash(1001)]);
    index.apply(ids[1], &b.build());
    let mut restore = Restore::new(index.clone());
    for piece in bytes.chunks(97) {
        let fed = restore.feed(piece, |f| ids.get(usize::from(*f.label.first()?)).copied());
        if fed.is_err() {
            break;
        }
    }
    let _ = restore.finish();
    for id in ids {
        if let (Some(stats), Some(digest)) = (index.holder_stats(id), index.digest(id)) {
            assert_eq!(stats.blocks == 0, digest.entries == 0);
        }
        assert!(index.detach(id));
    }
    let s = index.stats();
    assert_eq!((s.blocks, s.entries), (0, 0));
}
