//! Where is the array of token ids in a query's body, and what does it say?
//!
//! A prompt of 100K tokens is 0.7 MB of digits, and reading those one by one would take
//! longer than answering. So the array is found by a small walk over the outer object and
//! read 64 bytes at a time; what is left of the body is short and goes to the ordinary JSON
//! parser. Anything unusual is no error here: the caller then gives the whole body to that
//! parser, which says what is wrong and where.

/// The token ids of `body` under its outermost key `key`, and the body with an empty array in
/// their place. `None` where the body is not of the plain form this module reads.
pub(super) fn split(body: &[u8], key: &str) -> Option<(Vec<u8>, Vec<u32>)> {
    let mut walk = Walk { body, at: 0 };
    walk.space();
    walk.expect(b'{')?;
    loop {
        walk.space();
        let name = walk.string()?;
        walk.space();
        walk.expect(b':')?;
        walk.space();
        if name == key.as_bytes() {
            break;
        }
        walk.skip_value()?;
        walk.space();
        walk.expect(b',')?;
    }
    walk.expect(b'[')?;
    let start = walk.at;
    let (ids, end) = read_array(body, start)?;
    let mut rest = Vec::with_capacity(start + 1 + (body.len() - end));
    rest.extend_from_slice(&body[..start]);
    rest.push(b']');
    rest.extend_from_slice(&body[end..]);
    Some((rest, ids))
}

/// A position in a JSON text.
struct Walk<'b> {
    body: &'b [u8],
    at: usize,
}

impl<'b> Walk<'b> {
    fn space(&mut self) {
        while matches!(self.body.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (*self.body.get(self.at)? == byte).then(|| self.at += 1)
    }

    /// A string's raw bytes, escapes as they stand.
    fn string(&mut self) -> Option<&'b [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.body.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(&self.body[start..self.at - 1])
    }

    /// Goes over one value without checking it; the JSON parser sees it later.
    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.body.get(self.at)? {
                b'"' => {
                    self.string()?;
                }
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                }
                b']' | b'}' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' if depth == 0 => return Some(()),
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

/// Reads numbers from `start` (just behind the `[`) up to and including the `]`: the numbers
/// and the position behind it.
fn read_array(body: &[u8], start: usize) -> Option<(Vec<u32>, usize)> {
    // One id takes two bytes at least, its separator included.
    let mut ids = Vec::with_capacity((body.len() - start) / 2);
    let mut number = start;
    let mut window = start;
    // Every byte that is no digit ends a number (or an empty stretch, which only white space
    // may follow). A number that spans two windows is read when its end is seen.
    while let Some(bytes) = body.get(window..window + 64) {
        let mut ends = non_digits(bytes.try_into().expect("a window is 64 bytes"));
        while ends != 0 {
            let end = window + ends.trailing_zeros() as usize;
            ends &= ends - 1;
            match (end - number, body[end]) {
                (0, b' ') => number = end + 1,
                (1..8, b',') => {
                    ids.push(read_short(body, number, end)?);
                    number = end + 1;
                }
                _ => return read_slowly(body, number, ids),
            }
        }
        window += 64;
    }
    read_slowly(body, number, ids)
}

/// The rest of an array, byte by byte: its last window, and all that is unusual before.
fn read_slowly(body: &[u8], start: usize, mut ids: Vec<u32>) -> Option<(Vec<u32>, usize)> {
    let mut walk = Walk { body, at: start };
    walk.space();
    if ids.is_empty() && walk.expect(b']').is_some() {
        return Some((ids, walk.at));
    }
    loop {
        walk.space();
        let first = walk.at;
        let mut id = 0u64;
        while let Some(digit @ b'0'..=b'9') = body.get(walk.at) {
            id = id * 10 + u64::from(digit - b'0');
            walk.at += 1;
            if walk.at - first > 10 {
                return None;
            }
        }
        let digits = walk.at - first;
        if digits == 0 || (digits > 1 && body[first] == b'0') {
            return None;
        }
        ids.push(u32::try_from(id).ok()?);
        walk.space();
        match body.get(walk.at)? {
            b',' => walk.at += 1,
            b']' => return Some((ids, walk.at + 1)),
            _ => return None,
        }
    }
}

const ZEROS: u64 = 0x3030_3030_3030_3030;

/// A bit for each byte that is no digit. A byte beyond ASCII may also mark the one after it,
/// which is as well: such a body is not read here.
fn non_digits(bytes: &[u8; 64]) -> u64 {
    let mut mask = 0;
    for (i, eight) in bytes.chunks_exact(8).enumerate() {
        let digits = u64::from_le_bytes(eight.try_into().expect("a chunk is 8 bytes")) ^ ZEROS;
        let high = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
        // The multiplication gathers the eight top bits into the top byte.
        mask |= ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
    }
    mask
}

/// The number of up to seven digits at `start..end`; `None` with a leading zero.
fn read_short(body: &[u8], start: usize, end: usize) -> Option<u32> {
    let length = end - start;
    if body[start] == b'0' && length > 1 {
        return None;
    }
    // A `[` and a key stand before every number, so there are eight bytes to load; those
    // before the number are shifted out.
    let eight = body.get(end.checked_sub(8)?..end)?.try_into().expect("a range of 8 bytes");
    let digits = (u64::from_le_bytes(eight) ^ ZEROS) >> (64 - 8 * length) << (64 - 8 * length);
    // Neighbours are joined into pairs, pairs into fours, fours into the number.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let low = (pairs & 0x0000_00FF_0000_00FF).wrapping_mul(0x000F_4240_0000_0064);
    let high = ((pairs >> 16) & 0x0000_00FF_0000_00FF).wrapping_mul(0x0000_2710_0000_0001);
    Some((low.wrapping_add(high) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(body: &str) -> Option<Vec<u32>> {
        split(body.as_bytes(), "token_ids").map(|(_, ids)| ids)
    }

    /// What the ordinary parser makes of the same body.
    fn expected(body: &str) -> Option<Vec<u32>> {
        #[derive(serde::Deserialize)]
        struct Body {
            token_ids: Vec<u32>,
        }
        serde_json::from_str::<Body>(body).ok().map(|b| b.token_ids)
    }

    #[test]
    fn long_arrays_of_every_width_are_read_as_the_ordinary_parser_reads_them() {
        let mut x = 7u64;
        for separator in [",", ", ", " , ", ",\n  "] {
            for modulus in [10, 1000, 128_000, 10_000_000, 1 << 32] {
                let numbers: Vec<String> = (0..500)
                    .map(|_| {
                        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        ((x >> 31) % modulus).to_string()
                    })
                    .collect();
                for n in [0, 1, 2, 31, 500] {
                    let body =
                        format!(r#"{{"model": "m", "token_ids": [{}]}}"#, numbers[..n].join(separator));
                    assert_eq!(ids(&body), expected(&body), "{body}");
                    assert!(ids(&body).is_some(), "the fast way is taken: {body}");
                }
            }
        }
    }

    #[test]
    fn what_is_left_is_the_body_with_an_empty_array() {
        let body =
            r#" {"a": {"token_ids": [9], "b": "]}\"["}, "n": [1, [2]], "token_ids": [1, 2 ,3] , "z": null}"#;
        let (rest, ids) = split(body.as_bytes(), "token_ids").unwrap();
        assert_eq!(ids, [1, 2, 3]);
        let left: serde_json::Value = serde_json::from_slice(&rest).unwrap();
        let mut want: serde_json::Value = serde_json::from_str(body).unwrap();
        want["token_ids"] = serde_json::json!([]);
        assert_eq!(left, want);
    }

    #[test]
    fn whatever_is_unusual_is_left_to_the_ordinary_parser() {
        let long = "1,".repeat(60);
        for array in [
            "-1",
            "1.5",
            "1e3",
            "01",
            "4294967296",
            "99999999999999999999",
            "\"1\"",
            "null",
            "1,",
            ",1",
            "1 2",
            "1,,2",
            "[1]",
            "1",
            "é",
        ] {
            for body in [
                format!(r#"{{"token_ids": [{array}"#),
                format!(r#"{{"token_ids": [{long}{array}"#),
                format!(r#"{{"token_ids": [{array}, {long}3]}}"#),
                format!(r#"{{"token_ids": [{long}{array}, {long}3]}}"#),
                format!(r#"{{"token_ids": [{long}{array}]}}"#),
            ] {
                assert_eq!(ids(&body), expected(&body), "{body}");
            }
        }
        for body in [
            "",
            "{",
            "{}",
            "[]",
            "{\"token_ids\"",
            "{\"token_ids\":3}",
            "{\"a\\",
            "{\"a\":]",
            "nul",
            "{\"a\":1",
        ] {
            assert_eq!(ids(body), None, "{body}");
        }
    }

    #[test]
    fn no_cut_or_changed_byte_of_a_body_is_read_differently_or_panics() {
        let body =
            format!(r#"{{"m":"x\"y","token_ids":[{}4294967295],"k":[{{}}]}}"#, "128001, 7,65,".repeat(12));
        for cut in 0..body.len() {
            let _ = split(&body.as_bytes()[..cut], "token_ids");
        }
        for at in 0..body.len() {
            for byte in [b'0', b'9', b',', b' ', b'-', b']', b'"', 0xff, b'.', b'\n'] {
                let mut changed = body.clone().into_bytes();
                changed[at] = byte;
                let Some((rest, ids)) = split(&changed, "token_ids") else { continue };
                // Where the rest is not JSON the caller falls back, so only the others count.
                if serde_json::from_slice::<serde_json::Value>(&rest).is_ok() {
                    let whole = String::from_utf8(changed).expect("valid JSON is UTF-8");
                    assert_eq!(Some(ids), expected(&whole), "{whole}");
                }
            }
        }
    }
}
