//! How does a 64-bit hash come in JSON?

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A hash: a number (a negative one stands for its bits, as SGLang writes it), or text in
/// decimal or `0x` form for clients whose numbers end at 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash64(pub u64);

impl<'de> Deserialize<'de> for Hash64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Hash64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit hash as a number, or as decimal or 0x text")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Hash64, E> {
                Ok(Hash64(n))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Hash64, E> {
                Ok(Hash64(n as u64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hash64, E> {
                let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                    Some(hex) => u64::from_str_radix(hex, 16).ok(),
                    None => text.parse::<u64>().ok().or_else(|| text.parse::<i64>().ok().map(|n| n as u64)),
                };
                number.map(Hash64).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_a_number_or_text_in_every_usual_form() {
        let read = |json: &str| serde_json::from_str::<Hash64>(json).map(|h| h.0).ok();
        assert_eq!(read("18446744073709551615"), Some(u64::MAX));
        assert_eq!(read("-1"), Some(u64::MAX));
        assert_eq!(read("\"18446744073709551615\""), Some(u64::MAX));
        assert_eq!(read("\"-1\""), Some(u64::MAX));
        assert_eq!(read("\"0xff\""), Some(255));
        for wrong in
            ["18446744073709551616", "1.5", "\"ff\"", "\"0x\"", "\"\"", "null", "[1]", "-9223372036854775809"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
