//! Snapshots that released versions wrote are read by this one.
//!
//! `WRITE_FIXTURE=1 cargo test -p kvindex --test snapshot fixture` writes those of a new version; the ones of
//! released versions stay as they are.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvindex::snapshot::Restore;
use kvindex::{HolderSpec, Index, IndexConfig};
use kvproto::hash::llmd::{Algo, Llmd};

use crate::replant::snapshot;
use crate::rich::rich;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// All that a snapshot gives, in words.
fn describe(bytes: &[u8], config: IndexConfig) -> String {
    let index = Arc::new(Index::new(config));
    let mut holders = Vec::new();
    for (tenant, model, names) in [("t", "m", &["a", "b", "c", "d"][..]), ("t2", "other model", &["e"])] {
        holders.extend(names.iter().map(|n| index.attach(HolderSpec::new(tenant, model, n, 0))));
    }
    let mut restore = Restore::new(index.clone());
    let mut out = String::new();
    let who = |label: &[u8]| holders[usize::from(label[0])];
    restore.feed(bytes, |found| Some(who(found.label))).expect("a snapshot");
    for r in restore.restored() {
        writeln!(out, "{:?} at {:?}: {:?}", r.holder, r.cursor, r.outcome).expect("text");
        let s = index.holder_stats(r.holder).expect("attached");
        writeln!(
            out,
            "  {} blocks {:?}, {} unplaced, of {} tokens, {} refused, {} dropped, partial {}",
            s.blocks, s.by_tier, s.unplaced, s.block_size, s.refused, s.dropped, s.partial
        )
        .expect("text");
        let d = index.digest(r.holder).expect("attached");
        writeln!(out, "  {} entries, held {:032x}, content {:032x}", d.entries, d.held, d.content)
            .expect("text");
        for row in index.dump(r.holder, None, usize::MAX) {
            let (depth, parent) = (row.depth, row.parent.map(|p| p.0));
            let (tier, size) = (row.tier.name(), row.block_size);
            writeln!(out, "  {:016x} {tier} depth {depth:?} after {parent:x?}, {size} tokens", row.block.0)
                .expect("text");
        }
    }
    writeln!(out, "{:?}", restore.finish().expect("complete")).expect("text");
    out
}

fn check(name: &str, config: IndexConfig) {
    let (snap, text) = (file(&format!("{name}.kvdsnap")), file(&format!("{name}.txt")));
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        let (index, ids) = rich(config);
        let bytes = snapshot(&index, &ids, 512);
        std::fs::write(&text, describe(&bytes, config)).expect("write what it gives");
        std::fs::write(&snap, bytes).expect("write the snapshot");
    }
    let bytes = std::fs::read(snap).expect("the snapshot");
    let want = std::fs::read_to_string(text).expect("what it gives");
    assert_eq!(describe(&bytes, config), want, "{name}");
}

#[test]
fn version_1_is_read_as_it_was_written() {
    check("snapshot-v1", IndexConfig::default());
}

#[test]
fn version_1_with_request_keys_is_read_as_it_was_written() {
    let llmd = Some(Llmd::new(Algo::Xxh64, "42"));
    check("snapshot-v1-llmd", IndexConfig { llmd, ..IndexConfig::default() });
}
