//! What did an engine publish, message by message? Reads recorded streams (`.kvcap`).
//!
//! A file is msgpack values one after the other, each an array of four:
//! `[topic: bin, seq: bin, payload: bin, received: uint]`, which is the three frames of one
//! ZMQ message as they came and the receive time in Unix nanoseconds. Nothing else is
//! accepted: a recording that reads wrong would make every check after it worthless.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use rmp::decode::{self, NumValueReadError, ValueReadError};

/// Frames longer than this are taken for a damaged file, in bytes.
const MAX_FRAME: u32 = 1 << 30;

/// One recorded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// First frame: whom the publisher says it is.
    pub topic: Vec<u8>,
    /// Second frame: the sequence number, 8 bytes big-endian.
    pub seq: Vec<u8>,
    /// Third frame: the event batch.
    pub payload: Vec<u8>,
    /// When it was received, Unix nanoseconds.
    pub received_ns: u64,
}

impl Record {
    /// The batch's number. The reader refuses sequence frames too short to hold one.
    pub fn number(&self) -> u64 {
        match self.seq.first_chunk() {
            Some(n) => u64::from_be_bytes(*n),
            None => 0,
        }
    }

    /// Whether this is what ends a replay (recordings of a replay socket hold it).
    pub fn is_end_marker(&self) -> bool {
        self.number() == u64::MAX && self.payload.is_empty()
    }
}

/// A file that is no recording. Offsets are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum KvcapError {
    /// The file cannot be opened or read.
    #[error("read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file ends inside a record.
    #[error("{}: file ends at byte {end}, inside {part} of the record at byte {record}", path.display())]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Where the record begins.
        record: u64,
        /// Where the file ends.
        end: u64,
        /// What is incomplete.
        part: &'static str,
    },
    /// A part of a record is of another type than it must be.
    #[error("{}: {part} at byte {offset} is {found}, expected {expected}", path.display())]
    Type {
        /// Which file.
        path: PathBuf,
        /// Where the value begins.
        offset: u64,
        /// Which part.
        part: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// Reads a whole recording into memory.
pub fn read(path: &Path) -> Result<Vec<Record>, KvcapError> {
    Reader::open(path)?.collect()
}

/// Reads a recording one message at a time. Ends after the first error.
pub struct Reader<R> {
    path: PathBuf,
    input: Counted<R>,
    failed: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a recording.
    pub fn open(path: &Path) -> Result<Self, KvcapError> {
        let file = File::open(path).map_err(|source| KvcapError::Io { path: path.to_owned(), source })?;
        Ok(Reader::new(BufReader::new(file), path))
    }
}

impl<R: Read> Reader<R> {
    /// Reads from `input`; `path` is for error messages only.
    pub fn new(input: R, path: &Path) -> Self {
        Reader { path: path.to_owned(), input: Counted { inner: input, offset: 0 }, failed: false }
    }

    /// The next record, or `None` at the end of the file.
    fn record(&mut self) -> Result<Option<Record>, KvcapError> {
        let record = self.input.offset;
        let len = match decode::read_array_len(&mut self.input) {
            Ok(len) => len,
            // Nothing at all where a record would begin is the regular end.
            Err(ValueReadError::InvalidMarkerRead(e))
                if e.kind() == io::ErrorKind::UnexpectedEof && self.input.offset == record =>
            {
                return Ok(None);
            }
            Err(e) => return Err(self.unfit(record, record, "record", "an array of 4", e)),
        };
        if len != 4 {
            return Err(self.mistyped(record, "record", "an array of 4", format!("an array of {len}")));
        }
        let topic = self.bytes(record, "topic")?;
        let at = self.input.offset;
        let seq = self.bytes(record, "sequence")?;
        if seq.len() != 8 && seq.len() != 24 {
            return Err(self.mistyped(at, "sequence", "8 or 24 bytes", format!("{} bytes", seq.len())));
        }
        let payload = self.bytes(record, "payload")?;
        let at = self.input.offset;
        let received_ns = decode::read_int(&mut self.input).map_err(|e| {
            let e = match e {
                NumValueReadError::InvalidMarkerRead(e) => ValueReadError::InvalidMarkerRead(e),
                NumValueReadError::InvalidDataRead(e) => ValueReadError::InvalidDataRead(e),
                NumValueReadError::TypeMismatch(m) => ValueReadError::TypeMismatch(m),
                NumValueReadError::OutOfRange => {
                    return self.mistyped(at, "receive time", "unsigned", "negative".into());
                }
            };
            self.unfit(record, at, "receive time", "an integer", e)
        })?;
        Ok(Some(Record { topic, seq, payload, received_ns }))
    }

    fn bytes(&mut self, record: u64, part: &'static str) -> Result<Vec<u8>, KvcapError> {
        let at = self.input.offset;
        let len = match decode::read_bin_len(&mut self.input) {
            Ok(len) => len,
            Err(e) => return Err(self.unfit(record, at, part, "a byte string", e)),
        };
        if len > MAX_FRAME {
            return Err(self.mistyped(at, part, "at most 1 GiB", format!("{len} bytes")));
        }
        // Grows with what is really there, not with what is claimed.
        let mut bytes = Vec::new();
        let got = (&mut self.input)
            .take(u64::from(len))
            .read_to_end(&mut bytes)
            .map_err(|source| KvcapError::Io { path: self.path.clone(), source })?;
        if got < len as usize {
            return Err(self.truncated(record, part));
        }
        Ok(bytes)
    }

    fn unfit(
        &self,
        record: u64,
        offset: u64,
        part: &'static str,
        expected: &'static str,
        e: ValueReadError<io::Error>,
    ) -> KvcapError {
        match e {
            ValueReadError::InvalidMarkerRead(e) | ValueReadError::InvalidDataRead(e)
                if e.kind() == io::ErrorKind::UnexpectedEof =>
            {
                self.truncated(record, part)
            }
            ValueReadError::InvalidMarkerRead(source) | ValueReadError::InvalidDataRead(source) => {
                KvcapError::Io { path: self.path.clone(), source }
            }
            ValueReadError::TypeMismatch(m) => self.mistyped(offset, part, expected, format!("{m:?}")),
        }
    }

    fn truncated(&self, record: u64, part: &'static str) -> KvcapError {
        KvcapError::Truncated { path: self.path.clone(), record, end: self.input.offset, part }
    }

    fn mistyped(&self, offset: u64, part: &'static str, expected: &'static str, found: String) -> KvcapError {
        KvcapError::Type { path: self.path.clone(), offset, part, expected, found }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, KvcapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.record().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Knows how far it has been read.
struct Counted<R> {
    inner: R,
    offset: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[(&[u8], u64, &[u8], u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (topic, seq, payload, ns) in records {
            rmp::encode::write_array_len(&mut out, 4).unwrap();
            rmp::encode::write_bin(&mut out, topic).unwrap();
            rmp::encode::write_bin(&mut out, &seq.to_be_bytes()).unwrap();
            rmp::encode::write_bin(&mut out, payload).unwrap();
            rmp::encode::write_uint(&mut out, *ns).unwrap();
        }
        out
    }

    fn parsed(bytes: &[u8]) -> Result<Vec<Record>, KvcapError> {
        Reader::new(bytes, Path::new("x.kvcap")).collect()
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let got = parsed(&written(&[(b"kv", 7, b"abc", 99), (b"", u64::MAX, b"", 0)])).unwrap();
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].number(), &got[0].payload[..], got[0].received_ns), (7, &b"abc"[..], 99));
        assert!(!got[0].is_end_marker());
        assert!(got[1].is_end_marker());
        assert!(parsed(b"").unwrap().is_empty());
    }

    #[test]
    fn a_file_cut_anywhere_inside_a_record_is_truncated() {
        let whole = written(&[(b"kv", 0, b"abc", 1), (b"kv", 1, b"defg", 1 << 40)]);
        let first = written(&[(b"kv", 0, b"abc", 1)]).len();
        for end in (1..whole.len()).filter(|&n| n != first) {
            let start = if end < first { 0 } else { first as u64 };
            match parsed(&whole[..end]) {
                Err(KvcapError::Truncated { record, end: e, .. }) => {
                    assert_eq!((record, e), (start, end as u64))
                }
                other => panic!("cut at {end}: {other:?}"),
            }
        }
    }

    #[test]
    fn values_of_another_type_are_named_with_their_place() {
        let mut text = Vec::new();
        rmp::encode::write_array_len(&mut text, 4).unwrap();
        rmp::encode::write_str(&mut text, "kv").unwrap();
        let err = parsed(&text).unwrap_err();
        assert_eq!(err.to_string(), "x.kvcap: topic at byte 1 is FixStr(2), expected a byte string");

        let err = parsed(b"\x93\xc4\x00").unwrap_err();
        assert_eq!(err.to_string(), "x.kvcap: record at byte 0 is an array of 3, expected an array of 4");

        let err = parsed(b"\x94\xc4\x00\xc4\x01\x00\xc4\x00\x00").unwrap_err();
        assert_eq!(err.to_string(), "x.kvcap: sequence at byte 3 is 1 bytes, expected 8 or 24 bytes");

        let mut negative = b"\x94\xc4\x00\xc4\x08".to_vec();
        negative.extend([0; 8]);
        negative.extend(b"\xc4\x00\xff");
        let err = parsed(&negative).unwrap_err();
        assert_eq!(err.to_string(), "x.kvcap: receive time at byte 15 is negative, expected unsigned");
    }

    #[test]
    fn a_claimed_length_is_not_allocated() {
        // A topic that claims 1 GiB with two bytes behind it.
        match parsed(b"\x94\xc6\x40\x00\x00\x00ab") {
            Err(KvcapError::Truncated { part: "topic", end: 8, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(parsed(b"\x94\xc6\xff\xff\xff\xff"), Err(KvcapError::Type { .. })));
    }

    #[test]
    fn nothing_follows_an_error() {
        let mut reader = Reader::new(&b"\xc0\xc0"[..], Path::new("x.kvcap"));
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }
}
