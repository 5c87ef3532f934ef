//! Canonical CBOR, as far as block hashes need it: what bytes does a value become?
//!
//! Definite lengths and shortest heads (RFC 7049 §3.9). Values go straight into a
//! [`Sink`], so that a streaming hash needs no buffer.

/// Where encoded bytes go.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;

pub(super) fn null(out: &mut impl Sink) {
    out.put(&[0xf6]);
}

pub(super) fn uint(out: &mut impl Sink, n: u64) {
    head(out, UINT, n);
}

pub(super) fn int(out: &mut impl Sink, n: i64) {
    match u64::try_from(n) {
        Ok(n) => head(out, UINT, n),
        // -1 - n is the bitwise complement, which cannot overflow.
        Err(_) => head(out, NEGATIVE, !n as u64),
    }
}

pub(super) fn bytes(out: &mut impl Sink, b: &[u8]) {
    head(out, BYTES, b.len() as u64);
    out.put(b);
}

pub(super) fn text(out: &mut impl Sink, s: &str) {
    head(out, TEXT, s.len() as u64);
    out.put(s.as_bytes());
}

/// The head of an array; its `len` items follow.
pub(super) fn array(out: &mut impl Sink, len: usize) {
    head(out, ARRAY, len as u64);
}

/// The head of a map; its `len` pairs follow.
pub(super) fn map(out: &mut impl Sink, len: usize) {
    head(out, MAP, len as u64);
}

fn head(out: &mut impl Sink, major: u8, n: u64) {
    let major = major << 5;
    let mut head = [0; 9];
    let len = match n {
        0..24 => {
            head[0] = major | n as u8;
            1
        }
        24..=0xff => {
            head[..2].copy_from_slice(&[major | 24, n as u8]);
            2
        }
        0x100..=0xffff => {
            head[0] = major | 25;
            head[1..3].copy_from_slice(&(n as u16).to_be_bytes());
            3
        }
        0x1_0000..=0xffff_ffff => {
            head[0] = major | 26;
            head[1..5].copy_from_slice(&(n as u32).to_be_bytes());
            5
        }
        0x1_0000_0000.. => {
            head[0] = major | 27;
            head[1..9].copy_from_slice(&n.to_be_bytes());
            9
        }
    };
    out.put(&head[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_the_shortest_head() {
        for (n, hex) in [
            (0i64, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65535, "19ffff"),
            (65536, "1a00010000"),
            (4294967295, "1affffffff"),
            (4294967296, "1b0000000100000000"),
            (-1, "20"),
            (-24, "37"),
            (-25, "3818"),
            (-12, "2b"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            let mut out = vec![];
            int(&mut out, n);
            let got: String = out.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(got, hex, "{n}");
        }
    }
}
