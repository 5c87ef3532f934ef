//! How are durations and sizes written?

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration, written with its unit: "50ms", "2s", "1m 30s".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A size in bytes, written as a number or with its unit: 4096, "64MiB", "1GB".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub usize);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map(Time)
            .map_err(|_| format!("{text:?} is no duration; examples are 50ms, 2s, 1m"))
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; examples are 4096, 512KiB, 64MiB, 1GB");
        let trimmed = text.trim();
        let unit_at = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(unit_at);
        let scale = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<usize>().ok().and_then(|n| n.checked_mul(scale));
        bytes.map(Bytes).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, such as \"50ms\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64MiB\"")
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Bytes, E> {
                usize::try_from(n).map(Bytes).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_or_are_bytes() {
        let size = |text: &str| text.parse::<Bytes>().map(|b| b.0).ok();
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("64MiB"), Some(64 << 20));
        assert_eq!(size("2 KiB"), Some(2048));
        assert_eq!(size("3GB"), Some(3_000_000_000));
        for wrong in ["", "MiB", "-1", "1.5MiB", "64Mb", "99999999999GiB", "1 2"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_an_example() {
        assert_eq!("1m 30s".parse::<Time>(), Ok(Time(Duration::from_secs(90))));
        assert_eq!("50".parse::<Time>(), Err("\"50\" is no duration; examples are 50ms, 2s, 1m".to_owned()));
    }
}
