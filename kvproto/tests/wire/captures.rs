//! Every recorded stream says the same to the decoders and to a slow reader that builds
//! trees with serde and knows nothing of how they work.

use std::collections::BTreeMap;

use crate::recorded::{Value, captures, messages};
use kvproto::engine::{Engine, decode};
use kvproto::event::{Content, Event, ExtraKey, Skipped, Stored};
use kvproto::frames::{self, Replay};

/// An event with nothing borrowed, as both sides can build it.
#[derive(Debug, PartialEq)]
enum Plain {
    Stored {
        hashes: Vec<u64>,
        parent: Option<u64>,
        tokens: Vec<u32>,
        block_size: u32,
        medium: &'static str,
        group: u32,
        spec: Option<(String, Option<u32>)>,
        lora: Option<String>,
        cache_salt: Option<String>,
        extras: Vec<Vec<Extra>>,
        complete: bool,
    },
    Removed {
        hashes: Vec<u64>,
        medium: &'static str,
        group: u32,
    },
    Cleared,
}

#[derive(Debug, PartialEq)]
enum Extra {
    Text(String),
    Item(String, i128),
    Digest(Vec<u8>),
}

#[test]
fn every_capture_is_decoded_as_a_slow_reader_reads_it() {
    let files = captures();
    assert!(files.len() >= 55, "only {} captures", files.len());
    let (mut batches, mut stores, mut extras) = (0, 0, 0);
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let engine = if name.starts_with("sglang") { Engine::Sglang } else { Engine::Vllm };
        for (i, message) in messages(&file).iter().enumerate() {
            let (seq, payload) = if name.contains(".replay.") {
                match frames::replay(message).unwrap() {
                    Replay::Batch { seq, payload } => (seq, payload),
                    Replay::End => {
                        assert_eq!(i + 1, messages(&file).len(), "{name}: the end comes last");
                        continue;
                    }
                }
            } else {
                let live = frames::live(message).unwrap();
                (live.seq, live.payload)
            };
            assert_eq!(seq.to_be_bytes()[..], message[1], "{name} {i}");
            let batch = decode(engine, payload).unwrap_or_else(|e| panic!("{name} {i}: {e}"));
            assert_eq!(batch.skipped, Skipped::default(), "{name} {i}");
            let slow: Value = rmp_serde::from_slice(payload).unwrap();
            let [ts, events, rank] = slow.items() else { panic!("{name} {i}: a batch of three") };
            assert_eq!(Value::Float(batch.ts), *ts);
            assert_eq!(batch.rank.map(i128::from), rank.as_int());
            let expected: Vec<_> = events.items().iter().map(|e| expected(engine, e)).collect();
            let got: Vec<_> = batch.events().map(|e| plain(&e)).collect();
            assert_eq!(got, expected, "{name} {i}");
            batches += 1;
            for event in &got {
                if let Plain::Stored { extras: e, .. } = event {
                    stores += 1;
                    extras += e.iter().filter(|keys| !keys.is_empty()).count();
                }
            }
        }
    }
    // What the recordings hold, so that an empty comparison does not pass.
    assert!(
        batches > 3000 && stores > 4000 && extras > 100,
        "{batches} batches, {stores} stores, {extras} extras"
    );
}

fn plain(event: &Event<'_>) -> Plain {
    match event {
        Event::Stored(s) => Plain::Stored {
            hashes: s.hashes.iter().map(|h| h.0).collect(),
            parent: s.parent.map(|h| h.0),
            tokens: s.tokens.to_vec(),
            block_size: s.block_size,
            medium: s.tier.name(),
            group: s.group,
            spec: s.spec.map(|g| (format!("{:?}", g.kind), g.window)),
            lora: s.lora.map(str::to_owned),
            cache_salt: s.cache_salt.map(str::to_owned),
            extras: (0..s.hashes.len()).map(|i| plain_extras(s, i)).collect(),
            complete: s.content == Content::Complete,
        },
        Event::Removed(r) => Plain::Removed {
            hashes: r.hashes.iter().map(|h| h.0).collect(),
            medium: r.tier.name(),
            group: r.group,
        },
        Event::Cleared(c) => {
            assert_eq!(c.tier, None, "no capture names a tier");
            Plain::Cleared
        }
    }
}

fn plain_extras(s: &Stored<'_>, block: usize) -> Vec<Extra> {
    s.extras(block)
        .iter()
        .map(|key| match *key {
            ExtraKey::Text(t) => Extra::Text(t.to_owned()),
            ExtraKey::Item { identifier, offset } => Extra::Item(identifier.to_owned(), offset.into()),
            ExtraKey::Digest(d) => Extra::Digest(d.to_owned()),
        })
        .collect()
}

// ---- the slow reader -----------------------------------------------------------------

const STORED: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

fn expected(engine: Engine, event: &Value) -> Plain {
    let (tag, fields) = fields(event);
    let get = |name: &str| fields.get(name).unwrap_or(&Value::Nil);
    let text = |name: &str| get(name).as_str().map(str::to_owned);
    let hashes: Vec<u64> = get("block_hashes").items().iter().map(hash).collect();
    let group = get("group_idx").as_int().unwrap_or(0) as u32;
    let medium = match get("medium").as_str() {
        None | Some("GPU") => "gpu",
        Some("CPU" | "CPU_PINNED") => "cpu",
        Some("DISK") => "disk",
        Some("EXTERNAL") => "shared",
        Some(other) => panic!("no capture has the medium {other}"),
    };
    match tag {
        "AllBlocksCleared" => Plain::Cleared,
        "BlockRemoved" => Plain::Removed { hashes, medium, group },
        "BlockStored" => {
            let tokens: Vec<u32> = get("token_ids").items().iter().map(token).collect();
            let lora = text("lora_name");
            let keys = get("extra_keys").items();
            let nameless = lora.is_none() && get("lora_id").as_int().is_some();
            let tells = engine == Engine::Sglang || medium == "gpu" || !keys.is_empty();
            Plain::Stored {
                parent: (*get("parent_block_hash") != Value::Nil).then(|| hash(get("parent_block_hash"))),
                block_size: get("block_size").as_int().unwrap() as u32,
                medium,
                group,
                spec: text("kv_cache_spec_kind").map(|kind| {
                    let kind = match kind.as_str() {
                        "full_attention" => "Full",
                        "sliding_window" => "SlidingWindow",
                        "mamba" => "Mamba",
                        "chunked_local_attention" => "ChunkedLocal",
                        other => panic!("no capture has the kind {other}"),
                    };
                    (kind.to_owned(), get("kv_cache_spec_sliding_window").as_int().map(|w| w as u32))
                }),
                cache_salt: text("cache_salt"),
                extras: (0..hashes.len()).map(|i| keys.get(i).map_or(vec![], |k| extras(k, &lora))).collect(),
                complete: tells && !tokens.is_empty() && !nameless,
                hashes,
                tokens,
                lora,
            }
        }
        other => panic!("no capture has the tag {other}"),
    }
}

fn fields(event: &Value) -> (&str, BTreeMap<&str, Value>) {
    match event {
        Value::Map(pairs) => {
            let map: BTreeMap<_, _> = pairs.iter().map(|(k, v)| (k.as_str().unwrap(), v.clone())).collect();
            let tag = pairs.iter().find(|(k, _)| k.as_str() == Some("type")).unwrap().1.as_str().unwrap();
            (tag, map)
        }
        Value::Array(items) => {
            let tag = items[0].as_str().unwrap();
            let names = if tag == "BlockStored" { &STORED[..] } else { &REMOVED[..] };
            (tag, names.iter().copied().zip(items[1..].iter().cloned()).collect())
        }
        other => panic!("an event, not {other:?}"),
    }
}

fn hash(value: &Value) -> u64 {
    match value {
        Value::Int(n) => *n as u64,
        Value::Bin(b) => b[b.len() - 8..].iter().fold(0, |n, &b| n << 8 | u64::from(b)),
        other => panic!("a hash, not {other:?}"),
    }
}

fn token(value: &Value) -> u32 {
    match value {
        Value::Int(n) => u32::try_from(*n).unwrap(),
        Value::Array(pair) => token(&pair[0]),
        other => panic!("a token, not {other:?}"),
    }
}

fn extras(keys: &Value, lora: &Option<String>) -> Vec<Extra> {
    let mut out: Vec<_> = keys
        .items()
        .iter()
        .map(|key| match key {
            Value::Str(s) => Extra::Text(s.clone()),
            Value::Bin(b) => Extra::Digest(b.clone()),
            Value::Array(item) => {
                Extra::Item(item[0].as_str().unwrap().to_owned(), item[1].as_int().unwrap())
            }
            other => panic!("an extra key, not {other:?}"),
        })
        .collect();
    if let (Some(name), Some(Extra::Text(first))) = (lora, out.first())
        && first == name
    {
        out.remove(0);
    }
    out
}
