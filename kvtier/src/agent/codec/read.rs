//! What an engine sent.

use rmp::decode;

use super::super::frame::{FRAME_BYTES, FRAME_KEYS, GROUP_BYTES, Hello, Keys, Request, SlotList};
use super::{
    FrameError, GOODBYE, HELLO, HELLO_FIELDS, LEASE, LOAD, LOOKUP, POLL, RELEASE, STATS, STORE, TOUCH,
};
use crate::store::HASH_BYTES;

/// Most groups of layers.
const GROUPS: usize = 64;
/// Longest name, in bytes.
const NAME_BYTES: usize = 256;
/// What is left of a frame.
pub(super) struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, field: &'static str) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(FrameError::Field(field))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn number(&mut self, field: &'static str) -> Result<u64, FrameError> {
        decode::read_int(&mut self.rest).map_err(|_| FrameError::Field(field))
    }

    fn number_in(
        &mut self,
        field: &'static str,
        range: std::ops::RangeInclusive<u64>,
        allowed: &'static str,
    ) -> Result<u64, FrameError> {
        let value = self.number(field)?;
        if range.contains(&value) { Ok(value) } else { Err(FrameError::Range { field, value, allowed }) }
    }

    pub fn array(&mut self, field: &'static str) -> Result<usize, FrameError> {
        decode::read_array_len(&mut self.rest).map(|n| n as usize).map_err(|_| FrameError::Field(field))
    }

    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], FrameError> {
        let length = decode::read_bin_len(&mut self.rest).map_err(|_| FrameError::Field(field))?;
        self.take(length as usize, field)
    }

    pub fn text(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
        let length = decode::read_str_len(&mut self.rest).map_err(|_| FrameError::Field(field))? as usize;
        if length > NAME_BYTES {
            return Err(FrameError::Range { field, value: length as u64, allowed: "at most 256 bytes" });
        }
        str::from_utf8(self.take(length, field)?).map_err(|_| FrameError::Field(field))
    }

    /// Packed slots, as many as there are keys is for the session to say.
    fn slots(&mut self) -> Result<SlotList<'a>, FrameError> {
        let bytes = self.bytes("slots")?;
        let slots = SlotList(bytes);
        if !bytes.len().is_multiple_of(4) || slots.len() > FRAME_KEYS {
            return Err(FrameError::Range {
                field: "slots",
                value: bytes.len() as u64,
                allowed: "4 bytes each",
            });
        }
        Ok(slots)
    }

    fn hello(&mut self) -> Result<Hello<'a>, FrameError> {
        let version = self.number("version")?;
        let features = self.number("features")?;
        let (engine, model, salt) = (self.text("engine")?, self.text("model")?, self.text("salt")?);
        let fingerprint = self.bytes("fingerprint")?;
        let fingerprint = <[u8; 16]>::try_from(fingerprint).map_err(|_| FrameError::Field("fingerprint"))?;
        let hash_bytes = self.number_in("hash bytes", 1..=HASH_BYTES as u64, "1 to 32")? as usize;
        let count = self.array("groups")?;
        if count == 0 || count > GROUPS {
            return Err(FrameError::Range { field: "groups", value: count as u64, allowed: "1 to 64" });
        }
        let tokens = |_| self.number_in("tokens", 1..=u64::from(u32::MAX), "1 to 2^32 - 1").map(|n| n as u32);
        let groups = (0..count).map(tokens).collect::<Result<_, _>>()?;
        let block_bytes = self.number_in("block bytes", 1..=1 << 32, "1 to 2^32")? as usize;
        let slots = self.number_in("slots", 0..=u64::from(u32::MAX), "0 to 2^32 - 1")? as u32;
        let stride = self.number_in("stride", 0..=1 << 32, "0 to 2^32")? as usize;
        let offset = self.number_in("offset", 0..=1 << 48, "0 to 2^48")?;
        let fingerprint = u128::from_le_bytes(fingerprint);
        Ok(Hello {
            version,
            features,
            engine,
            model,
            salt,
            fingerprint,
            hash_bytes,
            groups,
            block_bytes,
            slots,
            stride,
            offset,
        })
    }
}

/// Reads what an engine sent.
///
/// # Errors
///
/// [`FrameError`]; nothing of it may be used then.
pub fn decode_request(frame: &[u8]) -> Result<Request<'_>, FrameError> {
    if frame.len() > FRAME_BYTES {
        return Err(FrameError::Long(frame.len()));
    }
    let mut reader = Reader { rest: frame };
    let got = reader.array("frame")?.checked_sub(1).ok_or(FrameError::Field("frame"))?;
    let kind = reader.number("kind")?;
    let wanted = match kind {
        HELLO => HELLO_FIELDS,
        LOOKUP | LEASE => 2,
        TOUCH | POLL | RELEASE | STATS => 1,
        LOAD => 3,
        STORE => 4,
        GOODBYE => 0,
        _ => return Err(FrameError::Kind(kind)),
    };
    if got != wanted && !(kind == HELLO && got > wanted) {
        return Err(FrameError::Fields { kind, got });
    }
    let request = match kind {
        HELLO => return reader.hello().map(Request::Hello),
        LOOKUP => Request::Lookup { seq: reader.number("seq")?, keys: Keys(reader.bytes("keys")?) },
        TOUCH => Request::Touch { keys: Keys(reader.bytes("keys")?) },
        LOAD => Request::Load {
            job: reader.number("job")?,
            keys: Keys(reader.bytes("keys")?),
            slots: reader.slots()?,
        },
        STORE => Request::Store {
            job: reader.number("job")?,
            after: Some(Keys(reader.bytes("after")?)).filter(|key| !key.0.is_empty()),
            keys: Keys(reader.bytes("keys")?),
            slots: reader.slots()?,
        },
        POLL => Request::Poll { seq: reader.number("seq")? },
        LEASE => Request::Lease { seq: reader.number("seq")?, keys: Keys(reader.bytes("keys")?) },
        RELEASE => Request::Release { leases: reader.bytes("leases")? },
        STATS => Request::Stats { seq: reader.number("seq")? },
        _ => Request::Goodbye,
    };
    if reader.rest.is_empty() { Ok(request) } else { Err(FrameError::Behind(reader.rest.len())) }
}

impl Keys<'_> {
    /// Each key's hash and group. `None` where the bytes are no keys of this length, or too many.
    pub(in crate::agent) fn split(
        &self,
        hash_bytes: usize,
    ) -> Option<impl ExactSizeIterator<Item = (&[u8], u32)>> {
        let length = hash_bytes + GROUP_BYTES;
        let whole = self.0.len().is_multiple_of(length) && self.0.len() / length <= FRAME_KEYS;
        whole.then(|| {
            self.0.chunks_exact(length).map(move |key| {
                let (hash, group) = key.split_at(hash_bytes);
                (hash, u32::from_be_bytes([group[0], group[1], group[2], group[3]]))
            })
        })
    }
}
