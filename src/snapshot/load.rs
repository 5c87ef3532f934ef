//! Puts a snapshot into the index and lets its publishers go on from it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use kvindex::snapshot::{Restore, RestoreError, Totals};
use kvindex::{HolderId, Index};
use tracing::warn;

use super::label::Label;
use crate::ingest::{Lane, Position, Publishers};
use crate::publisher::{EngineType, Followed};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Publishers that go on from it.
    pub publishers: u64,
    /// Blocks that they hold.
    pub blocks: u64,
    /// Publishers in it that are not followed here, or had begun already.
    pub passed_over: u64,
    /// What the snapshot says of itself.
    pub totals: Totals,
}

/// A snapshot that cannot be used. Nothing of it is in the index.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("read: {0}")]
    Read(#[from] io::Error),
    /// It is not what was written.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Puts in what `source` has of publishers that wait for it. `adopt` is told of each publisher that is
/// not registered here, and may register it.
///
/// # Errors
/// If it cannot be read, or is damaged. Then publishers wait on, and nothing of it is left.
pub fn load(
    publishers: &Publishers,
    index: &Arc<Index>,
    source: &mut dyn Read,
    mut adopt: impl FnMut(Followed),
) -> Result<Loaded, LoadError> {
    let mut restore = Restore::new(Arc::clone(index));
    let mut named: HashMap<HolderId, (Arc<Lane>, Position)> = HashMap::new();
    let mut ready = Vec::new();
    let mut loaded = Loaded::default();
    let read = read_all(source, |piece| {
        restore.feed(piece, |found| {
            let Some(Label { spec, origin, position }) = Label::read(found.label) else {
                warn!("a part of the snapshot is of nobody");
                loaded.passed_over += 1;
                return None;
            };
            let lane = publishers.lane_of(&spec, &origin).or_else(|| {
                adopt(Followed { spec: spec.clone(), origin: origin.clone() });
                publishers.lane_of(&spec, &origin)
            });
            // A node's tiers call blocks by bare names, which a snapshot puts in a hash domain of their own
            // where no engine finds them: they tell their own log again.
            let taken = |l: &Arc<Lane>| l.is_waiting() && spec.engine != EngineType::Kvtier;
            let Some(lane) = lane.filter(taken) else {
                loaded.passed_over += 1;
                return None;
            };
            let holder = lane.holder;
            named.insert(holder, (lane, position));
            Some(holder)
        })?;
        for done in restore.restored() {
            let Some((lane, position)) = named.remove(&done.holder) else { continue };
            match done.outcome {
                Ok(kept) => {
                    // What the index has no room for is missing, so that it is not the whole.
                    let complete = position.complete && kept.blocks == kept.of;
                    loaded.blocks += kept.blocks;
                    ready.push((lane, Position { complete, ..position }));
                }
                Err(error) => {
                    warn!(instance = %lane.spec.instance_id, %error, "not taken from the snapshot");
                    loaded.passed_over += 1;
                }
            }
        }
        Ok(())
    });
    match read.and_then(|()| Ok(restore.finish()?)) {
        Ok(totals) => loaded.totals = totals,
        Err(error) => {
            // What was being put back, or was back just before the damage was seen, is `named` still.
            let begun = named.keys().copied().chain(ready.iter().map(|(lane, _)| lane.holder));
            begun.for_each(|holder| index.clear(holder));
            return Err(error);
        }
    }
    for (lane, position) in ready {
        loaded.publishers += u64::from(lane.resume(&position));
    }
    Ok(loaded)
}

fn read_all(
    source: &mut dyn Read,
    mut each: impl FnMut(&[u8]) -> Result<(), RestoreError>,
) -> Result<(), LoadError> {
    let mut piece = vec![0; PIECE];
    loop {
        match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => each(&piece[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kvindex::snapshot::{Cursor, Writer};
    use kvindex::{HolderSpec, IndexConfig};
    use kvproto::EngineHash;
    use kvproto::event::{BatchBuilder, StoredFields};

    use super::*;
    use crate::ingest::IngestConfig;
    use crate::ingest::testing::dialled;
    use crate::publisher::Origin;

    /// Nobody is there.
    const NOWHERE: &str = "tcp://127.0.0.1:1";

    /// A snapshot of two publishers with a block each.
    fn two() -> Vec<u8> {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let (mut writer, mut bytes) = (Writer::new(Arc::clone(&index)), Vec::new());
        for (name, hash) in [("a", 7), ("b", 8)] {
            let spec = dialled(name, NOWHERE);
            let holder = index.attach(HolderSpec::new(&spec.tenant_id, &spec.model, name, 0));
            let mut batch = BatchBuilder::new(1.0, None);
            let fields = StoredFields { block_size: 2, ..StoredFields::default() };
            batch.stored(fields, &[EngineHash(hash)], &[1, hash as u32], &[]);
            index.apply(holder, &batch.build());
            let position = Position { seq: Some(0), ts: Some(1.0), complete: true, ..Position::default() };
            let label = Label { spec, origin: Origin::Client, position }.to_bytes();
            writer.begin(holder, &label, Cursor { seq: Some(0), ts: 1.0 }).expect("attached");
            while writer.step(1 << 20, &mut bytes).expect("attached").is_more() {}
        }
        writer.begin_ghosts().expect("no part is open");
        while writer.step(1 << 20, &mut bytes).expect("no part is open").is_more() {}
        writer.finish(&mut bytes).expect("no part is open");
        bytes
    }

    /// Found by the simulation: a publisher was back before the damage behind it was seen, and what it
    /// had stayed in the index.
    #[test]
    fn nothing_of_a_snapshot_stays_that_is_damaged_anywhere() {
        let whole = two();
        for at in (0..whole.len()).step_by(7) {
            let index = Arc::new(Index::new(IndexConfig::default()));
            let publishers = Publishers::start(
                Arc::clone(&index),
                IngestConfig { threads: 1, ..IngestConfig::default() },
                None,
            )
            .expect("no address is needed");
            for name in ["a", "b"] {
                publishers.register(dialled(name, NOWHERE)).expect("a sound registration");
            }
            if at == 0 {
                let loaded = load(&publishers, &index, &mut &whole[..], |_| {}).expect("undamaged");
                assert_eq!((loaded.publishers, index.stats().entries), (2, 2));
                continue;
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            load(&publishers, &index, &mut &damaged[..], |_| {}).expect_err("damaged");
            assert_eq!(index.stats().entries, 0, "byte {at} of {}", whole.len());
        }
    }
}
