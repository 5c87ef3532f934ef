//! Changes as engines publish them: a batch of vLLM's events, in MessagePack.
//!
//! A batch is `[seconds, events]`, an event a map with a `type`. Content is not told (no tokens, a
//! block size of 0), as offload tiers do: whoever reads it takes it for one more place of a block
//! that an engine has announced, or will.

use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_sint, write_str, write_u64,
};

use super::change::Change;
use crate::policy::Tier;

/// Blocks in one event, at most.
const BLOCKS: usize = 4096;

/// What an event calls a tier.
fn medium(tier: Tier) -> &'static str {
    match tier {
        Tier::Cpu => "CPU",
        Tier::Disk => "STORAGE",
        Tier::Shared => "SHARED_STORAGE",
    }
}

/// A batch of changes at `now` (ms), told by `owner`. `clear` says first that nothing told before
/// holds: `Some(None)` of any tier, `Some(Some(tier))` of one.
pub(super) fn encode(now: u64, owner: &str, clear: Option<Option<Tier>>, changes: &[Change]) -> Vec<u8> {
    let alike = |a: &Change, b: &Change| (a.came, a.tier, a.key.group) == (b.came, b.tier, b.key.group);
    let events: Vec<&[Change]> = changes.chunk_by(alike).flat_map(|run| run.chunks(BLOCKS)).collect();
    let mut bytes = Vec::with_capacity(changes.len() * 35 + 200);
    let out = &mut bytes;
    // Writing to memory does not fail.
    let _ = write_array_len(out, 2);
    let _ = write_f64(out, now as f64 / 1000.0);
    let _ = write_array_len(out, events.len() as u32 + u32::from(clear.is_some()));
    if let Some(tier) = clear {
        let _ = write_map_len(out, 2);
        text(out, "type", "AllBlocksCleared");
        let _ = write_str(out, "medium");
        match tier {
            Some(tier) => drop(write_str(out, medium(tier))),
            None => drop(write_nil(out)),
        }
    }
    for run in events {
        event(out, owner, run);
    }
    bytes
}

fn event(out: &mut Vec<u8>, owner: &str, run: &[Change]) {
    let Some(Change { key, tier, came }) = run.first().copied() else { return };
    let _ = write_map_len(out, if came { 9 } else { 6 });
    text(out, "type", if came { "BlockStored" } else { "BlockRemoved" });
    let _ = write_str(out, "block_hashes");
    let _ = write_array_len(out, run.len() as u32);
    for change in run {
        match <[u8; 8]>::try_from(change.key.hash()) {
            // An engine that calls blocks by numbers.
            Ok(number) => drop(write_u64(out, u64::from_be_bytes(number))),
            Err(_) => drop(write_bin(out, change.key.hash())),
        }
    }
    text(out, "medium", medium(tier));
    let _ = write_str(out, "group_idx");
    let _ = write_sint(out, key.group.into());
    text(out, "locality", if tier == Tier::Shared { "REMOTE" } else { "LOCAL" });
    text(out, "ownership", owner);
    if came {
        let _ = write_str(out, "parent_block_hash");
        let _ = write_nil(out);
        let _ = write_str(out, "token_ids");
        let _ = write_array_len(out, 0);
        let _ = write_str(out, "block_size");
        let _ = write_sint(out, 0);
    }
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    let _ = write_str(out, name);
    let _ = write_str(out, value);
}

#[cfg(test)]
mod tests {
    use kvproto::engine::{Engine, decode};
    use kvproto::{EngineHash, Event};

    use super::*;
    use crate::store::StoreKey;

    #[test]
    fn an_engines_decoder_reads_what_is_told() {
        let long = StoreKey::new(1, 2, &[7; 32]).unwrap();
        let short = StoreKey::new(1, 0, &9u64.to_be_bytes()).unwrap();
        let changes = [
            Change::came(long, Tier::Disk),
            Change::came(StoreKey::new(1, 2, &[8; 32]).unwrap(), Tier::Disk),
            Change::left(short, Tier::Cpu),
            Change::came(short, Tier::Shared),
        ];
        let bytes = encode(1500, "kvtier:node", Some(Some(Tier::Cpu)), &changes);
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!((batch.ts, batch.skipped.malformed, batch.skipped.first.as_deref()), (1.5, 0, None));
        let told: Vec<Event<'_>> = batch.events().collect();
        let Event::Cleared(cleared) = &told[0] else { panic!("{told:?}") };
        assert_eq!(cleared.tier, Some(kvproto::Tier::Cpu));
        let Event::Stored(stored) = &told[1] else { panic!("{told:?}") };
        let hash = |byte| EngineHash(u64::from_be_bytes([byte; 8]));
        assert_eq!(
            (stored.hashes, stored.tier, stored.group),
            (&[hash(7), hash(8)][..], kvproto::Tier::Disk, 2)
        );
        let Event::Removed(removed) = &told[2] else { panic!("{told:?}") };
        assert_eq!((removed.hashes, removed.tier), (&[EngineHash(9)][..], kvproto::Tier::Cpu));
        let Event::Stored(stored) = &told[3] else { panic!("{told:?}") };
        assert_eq!((stored.hashes, stored.tier), (&[EngineHash(9)][..], kvproto::Tier::Shared));
    }

    #[test]
    fn a_long_change_is_told_in_several_events() {
        let key = |n: u64| StoreKey::new(1, 0, &n.to_be_bytes()).unwrap();
        let changes: Vec<Change> = (0..5000).map(|n| Change::came(key(n), Tier::Cpu)).collect();
        let bytes = encode(0, "", Some(None), &changes);
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        let told: Vec<usize> = batch
            .events()
            .map(|event| match event {
                Event::Stored(stored) => stored.hashes.len(),
                Event::Removed(_) => panic!("nothing was removed"),
                Event::Cleared(cleared) => usize::from(cleared.tier.is_some()),
            })
            .collect();
        assert_eq!(told, [0, 4096, 904]);
    }
}
