//! Bytes that no writer wrote.

use std::sync::Arc;

use kvindex::snapshot::{FormatError, Restore, RestoreError, Restored, Totals};
use kvindex::{HolderId, Index, IndexConfig};

use crate::engines::Rng;
use crate::reframe::{payloads, reframe};
use crate::replant::{alike, snapshot};
use crate::rich::rich;

/// Holders like those of the rich index, which hold nothing yet.
fn fresh(like: &Index, ids: &[HolderId]) -> (Arc<Index>, Vec<HolderId>) {
    let index = Arc::new(Index::new(*like.config()));
    let ids = ids.iter().map(|id| index.attach((*like.spec(*id).expect("attached")).clone())).collect();
    (index, ids)
}

/// Feeds `bytes` in pieces and says how that ended and who was restored.
fn load(
    bytes: &[u8],
    piece: usize,
    index: &Arc<Index>,
    ids: &[HolderId],
) -> (Result<Totals, RestoreError>, Vec<Restored>) {
    let mut restore = Restore::new(index.clone());
    let mut done = Vec::new();
    for piece in bytes.chunks(piece) {
        let fed = restore.feed(piece, |f| {
            let i = u32::from_le_bytes(f.label.try_into().ok()?);
            ids.get(i as usize).copied()
        });
        done.extend(restore.restored());
        if let Err(e) = fed {
            assert_eq!(restore.finish(), Err(e.clone()), "an error stays");
            return (Err(e), done);
        }
    }
    (restore.finish(), done)
}

/// Whoever was restored has what it had; all others have nothing.
fn all_or_nothing(
    (old, olds): (&Index, &[HolderId]),
    (new, ids): (&Index, &[HolderId]),
    done: &[Restored],
    at: &str,
) {
    for (old_id, id) in olds.iter().zip(ids) {
        if done.iter().any(|d| d.holder == *id) {
            alike((old, *old_id), (new, *id), at);
        } else {
            assert_eq!(new.digest(*id).expect("attached"), Default::default(), "nothing: {at}");
            assert_eq!(new.holder_stats(*id).expect("attached").blocks, 0, "nothing: {at}");
        }
    }
}

#[test]
fn a_snapshot_cut_short_anywhere_is_seen_and_gives_whole_holders_only() {
    let (old, olds) = rich(IndexConfig::default());
    let bytes = snapshot(&old, &olds, 512);
    let mut whole = 0;
    for n in 0..bytes.len() {
        let (new, ids) = fresh(&old, &olds);
        let (ended, done) = load(&bytes[..n], usize::MAX, &new, &ids);
        assert_eq!(ended, Err(FormatError::Truncated { at: n as u64 }.into()), "{n} bytes");
        whole += done.len();
        if n % 16 == 0 {
            all_or_nothing((&old, &olds), (&new, &ids), &done, &format!("{n} bytes"));
        }
    }
    assert!(whole > 1000, "{whole} holders restored on the way");
}

#[test]
fn a_bit_that_is_not_as_written_is_seen_wherever_it_is() {
    let (old, olds) = rich(IndexConfig::default());
    let bytes = snapshot(&old, &olds, 512);
    let mut rng = Rng(9);
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1 << rng.below(8);
        let (new, ids) = fresh(&old, &olds);
        let (ended, done) = load(&wrong, 700, &new, &ids);
        let error = ended.expect_err("a flipped bit").to_string();
        assert!(!error.is_empty() && error.starts_with(|c: char| !c.is_uppercase()), "{error}");
        if at % 16 == 0 {
            all_or_nothing((&old, &olds), (&new, &ids), &done, &format!("bit of byte {at}: {error}"));
        }
    }
}

#[test]
fn records_made_up_are_refused_or_do_no_harm() {
    let (old, olds) = rich(IndexConfig::default());
    let (header, chunks) = payloads(&snapshot(&old, &olds, 1 << 19));
    let mut rng = Rng(77);
    let (mut refused, mut taken) = (std::collections::BTreeSet::new(), 0);
    for round in 0..3000 {
        let mut chunks = chunks.clone();
        for _ in 0..1 + rng.below(3) {
            let c = rng.below(chunks.len() as u64) as usize;
            let chunk = &mut chunks[c];
            let at = rng.below(chunk.len() as u64) as usize;
            match rng.below(6) {
                0 => chunk[at] = rng.next() as u8,
                1 => chunk[at] ^= 1 << rng.below(8),
                // Absurd lengths and numbers.
                2 => {
                    chunk.splice(at..at, [0xFF, 0xFF, 0xFF, 0xFF, 0x0F]);
                }
                3 => {
                    chunk.remove(at);
                }
                4 => {
                    let n = (rng.below(40) as usize).min(chunk.len() - at);
                    let again = chunk[at..at + n].to_vec();
                    chunk.splice(at..at, again);
                }
                _ => {
                    let d = rng.below(chunks.len() as u64) as usize;
                    chunks.swap(c, d);
                }
            }
        }
        chunks.retain(|c| !c.is_empty());
        let bytes = reframe(&header, &chunks);
        let (new, ids) = fresh(&old, &olds);
        match load(&bytes, 1 << 20, &new, &ids).0 {
            Ok(_) => taken += 1,
            Err(RestoreError::Format(FormatError::Malformed { at, what })) => {
                assert!(at <= bytes.len() as u64, "{what} at {at} of {}", bytes.len());
                refused.insert(what);
            }
            Err(_) => {}
        }
        // Whatever was taken goes again, to the last byte.
        ids.iter().for_each(|id| assert!(new.detach(*id)));
        let s = new.stats();
        assert_eq!((s.blocks, s.entries, s.bytes), (0, 0, 0), "round {round}");
    }
    assert!(taken > 150 && refused.len() > 20, "{taken} taken, refused for {refused:#?}");
}

#[test]
fn what_is_wrong_is_said_with_where() {
    let (old, olds) = rich(IndexConfig::default());
    let bytes = snapshot(&old, &olds, 512);
    let (header, chunks) = payloads(&bytes);
    let said = |bytes: &[u8]| {
        let (new, ids) = fresh(&old, &olds);
        load(bytes, 100, &new, &ids).0.expect_err("wrong").to_string()
    };
    assert_eq!(
        said(b"SQLite format 3\0 and so on"),
        "not a snapshot of kvd: it begins with [53, 51, 4c, 69, 74, 65, 20, 66]"
    );
    let mut next = bytes.clone();
    next[8] = 2;
    assert_eq!(said(&next), "snapshot of version 2, this is written for version 1");
    assert_eq!(said(&bytes[..5]), "it ends after byte 5 and does not say that it is complete");
    let mut huge = bytes.clone();
    huge[32..36].copy_from_slice(&[0xFF; 4]);
    assert_eq!(said(&huge), "byte 32: a chunk of 4294967295 bytes, 1 to 1048576 are allowed");
    let mut flipped = bytes.clone();
    flipped[60] ^= 1;
    assert_eq!(said(&flipped), "byte 32: the checksum does not fit what it stands for");
    // A chunk of another snapshot that was whole there.
    let other = reframe(&header, &[chunks[1].clone(), chunks[0].clone()]);
    let first = 32 + 12 + chunks[0].len();
    let mixed = [&bytes[..first], &other[32 + 12 + chunks[1].len()..]].concat();
    assert_eq!(said(&mixed), format!("byte {first}: the checksum does not fit what it stands for"));
    let made_up = |payload: &[u8]| said(&reframe(&header, &[payload.to_vec()]));
    assert_eq!(made_up(&[99]), "byte 45: a record of no known kind");
    assert_eq!(made_up(&[3, 0]), "byte 45: a forest before the first");
    assert_eq!(made_up(&[1, 0xFF, 0xFF, 0xFF, 0x0F]), "byte 49: a text that is too long");
    assert_eq!(made_up(&[1, 3, b'a']), "byte 46: a record goes on after its chunk");
    assert_eq!(made_up(&[1, 1, 0xC0]), "byte 47: a text that is not UTF-8");
    assert_eq!(made_up(&[0x80, 1]), "byte 45: blocks in no forest");
    let mut end = vec![11u8];
    end.extend([0; 40]);
    assert!(load(&reframe(&header, &[end.clone()]), 9, &old, &[]).0.is_ok(), "a snapshot of nothing");
    let after = reframe(&header, &[end.clone(), vec![10]]);
    assert_eq!(said(&after), "byte 97: bytes after the end");
    end[1] = 1;
    assert!(made_up(&end).starts_with("it says of itself Totals { holders: 1"));
}
