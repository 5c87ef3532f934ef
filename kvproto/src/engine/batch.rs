//! Where does each event of a batch begin and end, and which of them fit?

use super::BatchError;
use super::fields::{self, Dialect, Kind};
use super::msgpack::{Head, Reader};
use super::values::Flaw;
use crate::event::{Batch, Cleared, RawEvent, Tier};

pub(super) fn decode<'p, D: Dialect>(payload: &'p [u8]) -> Result<Batch<'p>, BatchError> {
    // Every entry of an arena takes at least a byte of payload, so that ranges of `u32` do.
    if u32::try_from(payload.len()).is_err() {
        return Err(BatchError::TooLong { len: payload.len() });
    }
    let mut r = Reader::new(payload);
    let len = match r.head()? {
        Head::Array(len) if len < 2 => return Err(BatchError::TooShort { len }),
        Head::Array(len) => len,
        found => return Err(unfit("batch", "an array", found)),
    };
    let ts = match r.head()? {
        Head::Float(ts) if ts.is_finite() => ts,
        Head::Unsigned(ts) => D::seconds(ts),
        found => return Err(unfit("ts", "a timestamp", found)),
    };
    let mut batch = Batch { ts, ..Batch::default() };
    let events = match r.head()? {
        Head::Array(events) => events,
        found => return Err(unfit("events", "an array", found)),
    };
    for i in 0..events {
        event::<D>(i, &mut r, &mut batch)?;
    }
    if len > 2 {
        batch.rank = match r.head()? {
            Head::Nil => None,
            Head::Unsigned(rank) if rank <= u64::from(u32::MAX) => Some(rank as u32),
            found => return Err(unfit("rank", "nil or an integer from 0 to 4294967295", found)),
        };
    }
    for _ in 3..len {
        r.skip()?;
    }
    Ok(batch)
}

fn unfit(field: &'static str, expected: &'static str, found: Head<'_>) -> BatchError {
    BatchError::Unfit { field, expected, found: found.to_string() }
}

/// Reads event `i`, or notes why it is left out, and leaves `r` behind it.
fn event<'p, D: Dialect>(i: u32, r: &mut Reader<'p>, batch: &mut Batch<'p>) -> Result<(), BatchError> {
    let start = *r;
    let packed = match r.head()? {
        // llm-d's connector encodes each event on its own.
        Head::Bin(packed) => Some(Reader::new(packed)),
        _ => None,
    };
    let mut inside = packed.unwrap_or(start);
    let mark = Mark::of(batch);
    let tag = match fields::tag::<D>(inside) {
        Ok(tag) => D::kind(tag).ok_or(Reason::Unknown { tag }).map(|kind| (tag, kind)),
        Err(flaw) => Err(Reason::Flawed { tag: b"", flaw }),
    };
    let done = tag.and_then(|(tag, kind)| {
        apply::<D>(kind, &mut inside, batch).map_err(|flaw| Reason::Flawed { tag, flaw })
    });
    match (done, packed) {
        (Ok(()), Some(_)) => Ok(()),
        (Ok(()), None) => {
            *r = inside;
            Ok(())
        }
        (Err(Reason::Flawed { flaw: Flaw::Broken(broken), .. }), None) => Err(broken.into()),
        // The length of a byte string tells where the next event begins, whatever is in it.
        (Err(reason), _) => {
            mark.restore(batch);
            reason.note(i, batch);
            *r = start;
            Ok(r.skip()?)
        }
    }
}

fn apply<'p, D: Dialect>(kind: Kind, r: &mut Reader<'p>, batch: &mut Batch<'p>) -> Result<(), Flaw<'p>> {
    let draft = fields::read::<D>(kind, r, batch)?;
    let event = match kind {
        Kind::Stored => RawEvent::Stored(D::stored(draft, batch)?),
        Kind::Removed => RawEvent::Removed {
            hashes: draft.hashes,
            tier: Tier::from_medium(draft.medium),
            group: draft.group,
        },
        Kind::Cleared => {
            RawEvent::Cleared(Cleared { tier: draft.medium.map(|m| Tier::from_medium(Some(m))) })
        }
    };
    batch.events.push(event);
    Ok(())
}

/// Why an event is left out.
enum Reason<'p> {
    Unknown { tag: &'p [u8] },
    Flawed { tag: &'p [u8], flaw: Flaw<'p> },
}

impl Reason<'_> {
    fn note(self, event: u32, batch: &mut Batch<'_>) {
        let skipped = &mut batch.skipped;
        let known = skipped.first.is_some();
        match self {
            Reason::Unknown { tag } => {
                skipped.unknown += 1;
                if !known {
                    skipped.first = Some(format!("event {event}: unknown type \"{}\"", shown(tag)));
                }
            }
            Reason::Flawed { tag, flaw } => {
                skipped.malformed += 1;
                if !known {
                    skipped.first = Some(format!("event {event} ({}): {flaw}", shown(tag)));
                }
            }
        }
    }
}

/// A tag as a log line can take it: short and without control characters.
fn shown(tag: &[u8]) -> String {
    let start = &tag[..tag.len().min(40)];
    String::from_utf8_lossy(start).escape_debug().to_string()
}

/// How full the arenas were before an event.
struct Mark {
    hashes: usize,
    tokens: usize,
    extras: usize,
    extra_ranges: usize,
}

impl Mark {
    fn of(batch: &Batch<'_>) -> Mark {
        Mark {
            hashes: batch.hashes.len(),
            tokens: batch.tokens.len(),
            extras: batch.extras.len(),
            extra_ranges: batch.extra_ranges.len(),
        }
    }

    fn restore(self, batch: &mut Batch<'_>) {
        batch.hashes.truncate(self.hashes);
        batch.tokens.truncate(self.tokens);
        batch.extras.truncate(self.extras);
        batch.extra_ranges.truncate(self.extra_ranges);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{bin, pack};
    use super::super::{Broken, Engine, decode};
    use super::*;
    use crate::event::{EngineHash, Event};

    fn removed(hash: u64) -> serde_json::Value {
        json!(["BlockRemoved", [hash], "GPU"])
    }

    fn removed_hashes(batch: &Batch<'_>) -> Vec<u64> {
        batch
            .events()
            .flat_map(|e| match e {
                Event::Removed(r) => r.hashes.to_vec(),
                Event::Stored(_) | Event::Cleared(_) => Vec::new(),
            })
            .map(|EngineHash(h)| h)
            .collect()
    }

    #[test]
    fn a_batch_of_two_elements_has_no_rank_and_extra_elements_are_ignored() {
        let two = pack(&json!([1.5, [removed(1)]]));
        let batch = decode(Engine::Vllm, &two).unwrap();
        assert_eq!((batch.ts, batch.rank, batch.len()), (1.5, None, 1));
        let five = pack(&json!([7, [], 3, {"what": [1, 2]}, null]));
        let batch = decode(Engine::Vllm, &five).unwrap();
        assert_eq!((batch.ts, batch.rank, batch.len()), (7.0, Some(3), 0));
        let nil = pack(&json!([7, [], null]));
        assert_eq!(decode(Engine::Vllm, &nil).unwrap().rank, None);
    }

    #[test]
    fn a_bad_event_is_counted_and_leaves_nothing_behind() {
        let bad = json!(["BlockStored", [5, 6], null, [1, 2, "three"], 16]);
        let bytes =
            pack(&json!([0.0, [removed(1), bad, removed(2), ["BlockPinned", [9]], 5, [], removed(3)]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!(removed_hashes(&batch), [1, 2, 3]);
        assert_eq!((batch.hashes.len(), batch.tokens.len()), (3, 0));
        assert_eq!((batch.skipped.unknown, batch.skipped.malformed), (1, 3));
        assert_eq!(
            batch.skipped.first.as_deref(),
            Some(
                "event 1 (BlockStored): token_ids: expected an integer from 0 to 4294967295, found a string of 5 bytes"
            )
        );
    }

    #[test]
    fn an_unknown_event_is_named_briefly() {
        let long = "x\n".repeat(1000);
        let bytes = pack(&json!([0.0, [{"type": long, "block_hashes": "anything"}, removed(1)]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!((batch.skipped.unknown, batch.skipped.malformed), (1, 0));
        assert!(
            batch.skipped.first.as_ref().is_some_and(|s| s.len() < 100 && !s.contains('\n')),
            "{batch:?}"
        );
        assert_eq!(removed_hashes(&batch), [1]);
    }

    #[test]
    fn an_event_may_be_packed_in_bytes_of_its_own() {
        let good = bin(&pack(&removed(1)));
        let mut cut = pack(&removed(2));
        cut.pop();
        let twice = bin(&pack(&bin(&pack(&removed(3)))));
        let bytes = pack(&json!([1, [good, bin(&cut), twice, removed(4)]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!(removed_hashes(&batch), [1, 4]);
        assert_eq!(batch.skipped.malformed, 2);
    }

    #[test]
    fn broken_msgpack_after_a_good_event_loses_the_batch() {
        let bytes = pack(&json!([1.0, [removed(1), removed(2)], 0]));
        for len in 0..bytes.len() {
            let cut = decode(Engine::Vllm, &bytes[..len]);
            assert!(
                matches!(cut, Err(BatchError::Broken(Broken::Truncated { .. } | Broken::Overclaimed { .. }))),
                "cut to {len}: {cut:?}"
            );
        }
    }

    #[test]
    fn what_is_no_batch_is_said_to_be_none() {
        let found = |v: serde_json::Value| decode(Engine::Vllm, &pack(&v)).unwrap_err().to_string();
        assert_eq!(found(json!({"ts": 1})), "batch: expected an array, found a map of 1");
        assert_eq!(found(json!([1.0])), "batch has 1 elements, expected at least 2");
        assert_eq!(found(json!(["now", []])), "ts: expected a timestamp, found a string of 3 bytes");
        assert_eq!(found(json!([true, []])), "ts: expected a timestamp, found the boolean true");
        assert_eq!(found(json!([1.0, null])), "events: expected an array, found nil");
        assert_eq!(
            found(json!([1.0, [], -1])),
            "rank: expected nil or an integer from 0 to 4294967295, found the integer -1"
        );
        assert!(decode(Engine::Vllm, &[]).is_err());
    }

    #[test]
    fn the_tag_may_come_last_and_other_keys_may_be_of_any_type() {
        // Keys of a JSON map are written in alphabetical order: the type comes last.
        let late =
            json!({"block_hashes": [8], "medium": "CPU", "group_idx": 2, "type": "BlockRemoved", "zz": [{}]});
        let bytes = pack(&json!([1.0, [late]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        let Some(Event::Removed(r)) = batch.events().next() else { panic!("a removal: {batch:?}") };
        assert_eq!((r.hashes, r.tier, r.group), (&[EngineHash(8)][..], Tier::Cpu, 2));
        // {5: 6, [1]: nil, "type": "AllBlocksCleared"}
        let mut odd = vec![0x92, 0x01, 0x91, 0x83, 5, 6, 0x91, 1, 0xc0, 0xa4];
        odd.extend(b"type\xb0AllBlocksCleared");
        let batch = decode(Engine::Vllm, &odd).unwrap();
        assert_eq!(batch.events().collect::<Vec<_>>(), [Event::Cleared(Cleared { tier: None })]);
    }

    #[test]
    fn fields_that_a_kind_of_event_does_not_have_are_ignored() {
        let bytes = pack(&json!([1.0, [{"type": "BlockRemoved", "block_hashes": [1], "token_ids": "none"}]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!(removed_hashes(&batch), [1]);
    }
}
