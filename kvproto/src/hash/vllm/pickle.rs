//! CPython's pickle, protocol 5, as far as block hashes need it: what bytes does a value become?
//!
//! Pickle numbers (memoizes) every bytes, str and tuple in order of writing and refers back to an
//! *object* met again. vLLM's tags are one object each, so a second `"mm"` in a block is a
//! reference. Other strings are taken for objects of their own even where their text is equal:
//! they reach the engine core one by one over its own message queue.

use super::Tag;
use super::encode::Encoder;

/// A frame is closed at the first value that starts beyond this many bytes.
const FRAME_TARGET: usize = 64 << 10;
const FRAME_HEAD: usize = 9;

/// A pickler whose buffer is used again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Pickle {
    out: Vec<u8>,
    /// Where the head of the open frame is in `out`.
    frame: usize,
    memoized: u32,
    /// The memo number of each tag written so far.
    tags: [Option<u32>; Tag::COUNT],
}

impl Pickle {
    /// Starts over.
    pub fn begin(&mut self) {
        self.out.clear();
        self.out.extend_from_slice(&[0x80, 5]);
        self.memoized = 0;
        self.tags = [None; Tag::COUNT];
        self.open_frame();
    }

    /// The pickle of the value written since [`begin`](Self::begin).
    pub fn finish(&mut self) -> &[u8] {
        self.out.push(b'.');
        self.close_frame();
        &self.out
    }

    #[cfg(test)]
    pub fn written(&self) -> &[u8] {
        &self.out
    }

    fn open_frame(&mut self) {
        self.frame = self.out.len();
        self.out.extend_from_slice(&[0x95, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn close_frame(&mut self) {
        let body = (self.out.len() - self.frame - FRAME_HEAD) as u64;
        self.out[self.frame + 1..self.frame + FRAME_HEAD].copy_from_slice(&body.to_le_bytes());
    }

    /// Every value begins here: the only places where pickle changes frames.
    fn value(&mut self) {
        if self.out.len() - self.frame - FRAME_HEAD >= FRAME_TARGET {
            self.close_frame();
            self.open_frame();
        }
    }

    fn memoize(&mut self) -> u32 {
        self.out.push(0x94);
        self.memoized += 1;
        self.memoized - 1
    }

    fn sized(&mut self, short: u8, long: u8, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(len) => self.out.extend_from_slice(&[short, len]),
            Err(_) => {
                self.out.push(long);
                self.out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            }
        }
        self.out.extend_from_slice(bytes);
    }

    /// A number beyond 32 bits: little-endian two's complement without redundant bytes.
    fn long(&mut self, n: i128) {
        let bytes = n.to_le_bytes();
        let mut len = bytes.len();
        while len > 1 && (bytes[len - 1] as i8) == ((bytes[len - 2] as i8) >> 7) {
            len -= 1;
        }
        self.out.extend_from_slice(&[0x8a, len as u8]);
        self.out.extend_from_slice(&bytes[..len]);
    }
}

impl Encoder for Pickle {
    fn none(&mut self) {
        self.value();
        self.out.push(b'N');
    }

    fn uint(&mut self, n: u64) {
        self.value();
        match n {
            0..=0xff => self.out.extend_from_slice(&[b'K', n as u8]),
            0x100..=0xffff => {
                self.out.push(b'M');
                self.out.extend_from_slice(&(n as u16).to_le_bytes());
            }
            0x1_0000..=0x7fff_ffff => {
                self.out.push(b'J');
                self.out.extend_from_slice(&(n as i32).to_le_bytes());
            }
            0x8000_0000.. => self.long(i128::from(n)),
        }
    }

    fn int(&mut self, n: i64) {
        match (u64::try_from(n), i32::try_from(n)) {
            (Ok(n), _) => self.uint(n),
            (Err(_), Ok(n)) => {
                self.value();
                self.out.push(b'J');
                self.out.extend_from_slice(&n.to_le_bytes());
            }
            (Err(_), Err(_)) => {
                self.value();
                self.long(i128::from(n));
            }
        }
    }

    fn bytes(&mut self, b: &[u8]) {
        self.value();
        self.sized(b'C', b'B', b);
        self.memoize();
    }

    fn text(&mut self, s: &str) {
        self.value();
        self.sized(0x8c, b'X', s.as_bytes());
        self.memoize();
    }

    fn tag(&mut self, tag: Tag) {
        match self.tags[tag as usize] {
            None => {
                self.text(tag.name());
                self.tags[tag as usize] = Some(self.memoized - 1);
            }
            Some(at) => {
                self.value();
                match u8::try_from(at) {
                    Ok(at) => self.out.extend_from_slice(&[b'h', at]),
                    Err(_) => {
                        self.out.push(b'j');
                        self.out.extend_from_slice(&at.to_le_bytes());
                    }
                }
            }
        }
    }

    fn open(&mut self, len: usize) {
        self.value();
        if len > 3 {
            self.out.push(b'(');
        }
    }

    fn close(&mut self, len: usize) {
        match len {
            // The empty tuple is a constant, which pickle does not number.
            0 => return self.out.push(b')'),
            1 => self.out.push(0x85),
            2 => self.out.push(0x86),
            3 => self.out.push(0x87),
            4.. => self.out.push(b't'),
        }
        self.memoize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(write: impl FnOnce(&mut Pickle)) -> String {
        let mut p = Pickle::default();
        p.begin();
        write(&mut p);
        p.finish().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// A tuple of one value.
    fn one(p: &mut Pickle, write: impl FnOnce(&mut Pickle)) {
        p.open(1);
        write(p);
        p.close(1);
    }

    // Each expectation is what `pickle.dumps(value, protocol=5).hex()` of CPython says.

    #[test]
    fn integers_take_the_width_that_cpython_gives_them() {
        for (n, want) in [
            (0i64, "80059505000000000000004b0085942e"),
            (255, "80059505000000000000004bff85942e"),
            (256, "80059506000000000000004d000185942e"),
            (65535, "80059506000000000000004dffff85942e"),
            (65536, "80059508000000000000004a0000010085942e"),
            (2147483647, "80059508000000000000004affffff7f85942e"),
            (2147483648, "8005950a000000000000008a05000000800085942e"),
            (4294967296, "8005950a000000000000008a05000000000185942e"),
            (4611686018427387904, "8005950d000000000000008a08000000000000004085942e"),
            (9223372036854775807, "8005950d000000000000008a08ffffffffffffff7f85942e"),
            (-1, "80059508000000000000004affffffff85942e"),
            (-12, "80059508000000000000004af4ffffff85942e"),
            (-256, "80059508000000000000004a00ffffff85942e"),
            (-2147483648, "80059508000000000000004a0000008085942e"),
            (-2147483649, "8005950a000000000000008a05ffffff7fff85942e"),
            (-4294967296, "8005950a000000000000008a0500000000ff85942e"),
            (-549755813888, "8005950a000000000000008a05000000008085942e"),
            (-549755813889, "8005950b000000000000008a06ffffffff7fff85942e"),
            (i64::MIN, "8005950d000000000000008a08000000000000008085942e"),
        ] {
            assert_eq!(hex(|p| one(p, |p| p.int(n))), want, "{n}");
        }
        assert_eq!(
            hex(|p| one(p, |p| p.uint(u64::MAX))),
            "8005950e000000000000008a09ffffffffffffffff0085942e"
        );
    }

    #[test]
    fn long_strings_and_empty_tuples_have_their_own_opcodes() {
        assert_eq!(
            hex(|p| p.text(&"x".repeat(256))),
            format!("80059507010000000000005800010000{}942e", "78".repeat(256))
        );
        assert_eq!(
            hex(|p| p.bytes(&[7; 256])),
            format!("80059507010000000000004200010000{}942e", "07".repeat(256))
        );
        let nested = hex(|p| {
            p.open(1);
            p.open(0);
            p.close(0);
            p.close(1);
        });
        assert_eq!(nested, "80059504000000000000002985942e");
    }

    #[test]
    fn a_tag_met_again_is_a_reference_by_its_number() {
        // t = "mm"; (t, (t, "a", "a2"), t)
        let got = hex(|p| {
            p.open(3);
            p.tag(Tag::Mm);
            p.open(3);
            p.tag(Tag::Mm);
            p.text("a");
            p.text("a2");
            p.close(3);
            p.tag(Tag::Mm);
            p.close(3);
        });
        assert_eq!(got, "80059517000000000000008c026d6d9468008c0161948c026132948794680087942e");
    }
}
