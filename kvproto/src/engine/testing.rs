//! Writes payloads for tests, from JSON.

use serde_json::{Value, json};

use super::{Engine, decode};
use crate::event::{Event, Stored};

/// A byte string, which JSON does not have.
pub(crate) fn bin(bytes: &[u8]) -> Value {
    json!({ "$bin": bytes })
}

/// Decodes a batch of `event` alone and looks at the store it must be.
pub(crate) fn stored(engine: Engine, event: &Value, look: impl FnOnce(Stored<'_>)) {
    let bytes = pack(&json!([1.0, [event], 0]));
    let batch = decode(engine, &bytes).unwrap();
    let Some(Event::Stored(s)) = batch.events().next() else { panic!("{:?}", batch.skipped) };
    look(s);
}

/// Why `event` is left out, as it must be.
pub(crate) fn flaw(engine: Engine, event: &Value) -> String {
    let bytes = pack(&json!([1.0, [event], 0]));
    let batch = decode(engine, &bytes).unwrap();
    assert_eq!((batch.len(), batch.skipped.malformed), (0, 1), "{event}");
    batch.skipped.first.unwrap()
}

/// `value` as msgpack.
pub(crate) fn pack(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out).unwrap();
    out
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
    use rmp::encode as e;
    match value {
        Value::Null => e::write_nil(out)?,
        Value::Bool(b) => e::write_bool(out, *b)?,
        Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), _, _) => drop(e::write_uint(out, n)?),
            (None, Some(n), _) => drop(e::write_sint(out, n)?),
            (None, None, x) => e::write_f64(out, x.ok_or("a number")?)?,
        },
        Value::String(s) => e::write_str(out, s)?,
        Value::Array(items) => {
            e::write_array_len(out, u32::try_from(items.len())?)?;
            for item in items {
                write(item, out)?;
            }
        }
        Value::Object(map) => match map.get("$bin") {
            Some(bytes) => e::write_bin(out, &serde_json::from_value::<Vec<u8>>(bytes.clone())?)?,
            None => {
                e::write_map_len(out, u32::try_from(map.len())?)?;
                for (k, v) in map {
                    e::write_str(out, k)?;
                    write(v, out)?;
                }
            }
        },
    }
    Ok(())
}
