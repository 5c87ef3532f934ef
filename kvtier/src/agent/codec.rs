//! Frames to bytes and back. A frame is a msgpack array: a number for its kind, then its fields.
//!
//! Lengths are compared with what is there before anything is taken or allocated, and what follows
//! the last field is an error, but for a hello: a later version may say more there.

use rmp::decode;
use rmp::encode::{self, ByteBuf};

use super::frame::{
    Answer, Ended, FRAME_BYTES, FRAME_KEYS, GROUP_BYTES, Hello, Keys, Leased, Outcome, Request, SlotList,
    Welcome,
};
use crate::store::HASH_BYTES;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than a frame may have.
    #[error("frame of {0} bytes, at most {FRAME_BYTES} wanted")]
    Long(usize),
    /// Not what belongs there, or less than is announced.
    #[error("{0}: not what belongs there")]
    Field(&'static str),
    /// A kind that this version does not have.
    #[error("unknown kind {0}")]
    Kind(u64),
    /// Another number of fields than this kind has.
    #[error("kind {kind} with {got} fields")]
    Fields {
        /// The kind.
        kind: u64,
        /// How many.
        got: usize,
    },
    /// Outside of what is allowed.
    #[error("{field} is {value}, {allowed} wanted")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// Bytes behind the last field.
    #[error("{0} bytes behind the frame")]
    Behind(usize),
}

const HELLO: u64 = 1;
const LOOKUP: u64 = 2;
const TOUCH: u64 = 3;
const LOAD: u64 = 4;
const STORE: u64 = 5;
const POLL: u64 = 6;
const LEASE: u64 = 7;
const RELEASE: u64 = 8;
const STATS: u64 = 9;
const GOODBYE: u64 = 10;
const WELCOME: u64 = 129;
const PLACES: u64 = 130;
const DONE: u64 = 134;
const LEASES: u64 = 135;
const COUNTS: u64 = 137;
const REFUSED: u64 = 255;

/// Most groups of layers.
const GROUPS: usize = 64;
/// Longest name, in bytes.
const NAME_BYTES: usize = 256;
const HELLO_FIELDS: usize = 12;

/// What is left of a frame.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, field: &'static str) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(FrameError::Field(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, field: &'static str) -> Result<u64, FrameError> {
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

    fn array(&mut self, field: &'static str) -> Result<usize, FrameError> {
        decode::read_array_len(&mut self.rest).map(|n| n as usize).map_err(|_| FrameError::Field(field))
    }

    fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], FrameError> {
        let length = decode::read_bin_len(&mut self.rest).map_err(|_| FrameError::Field(field))?;
        self.take(length as usize, field)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
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

/// A frame being written. Writing to memory cannot fail.
struct Writer(ByteBuf);

const WRITES: &str = "a Vec takes all that is written to it";

impl Writer {
    fn new(kind: u64, fields: u32) -> Writer {
        let mut writer = Writer(ByteBuf::with_capacity(64));
        encode::write_array_len(&mut writer.0, fields + 1).expect(WRITES);
        writer.number(kind)
    }

    fn number(mut self, value: u64) -> Writer {
        encode::write_uint(&mut self.0, value).expect(WRITES);
        self
    }

    fn text(mut self, value: &str) -> Writer {
        encode::write_str(&mut self.0, value).expect(WRITES);
        self
    }

    fn bytes(mut self, value: &[u8]) -> Writer {
        encode::write_bin(&mut self.0, value).expect(WRITES);
        self
    }

    fn array(mut self, length: usize) -> Writer {
        encode::write_array_len(&mut self.0, length as u32).expect(WRITES);
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_vec()
    }
}

/// What an engine sends.
pub fn encode_request(request: &Request<'_>) -> Vec<u8> {
    let writer = match request {
        Request::Hello(hello) => {
            let mut writer = Writer::new(HELLO, HELLO_FIELDS as u32)
                .number(hello.version)
                .number(hello.features)
                .text(hello.engine)
                .text(hello.model)
                .text(hello.salt)
                .bytes(&hello.fingerprint.to_le_bytes())
                .number(hello.hash_bytes as u64)
                .array(hello.groups.len());
            for tokens in &hello.groups {
                writer = writer.number(u64::from(*tokens));
            }
            writer
                .number(hello.block_bytes as u64)
                .number(u64::from(hello.slots))
                .number(hello.stride as u64)
                .number(hello.offset)
        }
        Request::Lookup { seq, keys } => Writer::new(LOOKUP, 2).number(*seq).bytes(keys.0),
        Request::Touch { keys } => Writer::new(TOUCH, 1).bytes(keys.0),
        Request::Load { job, keys, slots } => Writer::new(LOAD, 3).number(*job).bytes(keys.0).bytes(slots.0),
        Request::Store { job, after, keys, slots } => Writer::new(STORE, 4)
            .number(*job)
            .bytes(after.map_or(&[], |key| key.0))
            .bytes(keys.0)
            .bytes(slots.0),
        Request::Poll { seq } => Writer::new(POLL, 1).number(*seq),
        Request::Lease { seq, keys } => Writer::new(LEASE, 2).number(*seq).bytes(keys.0),
        Request::Release { leases } => Writer::new(RELEASE, 1).bytes(leases),
        Request::Stats { seq } => Writer::new(STATS, 1).number(*seq),
        Request::Goodbye => Writer::new(GOODBYE, 0),
    };
    writer.finish()
}

/// What the agent sends.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let writer = match answer {
        Answer::Welcome(welcome) => Writer::new(WELCOME, 7)
            .number(welcome.version)
            .number(welcome.features)
            .number(welcome.jobs as u64)
            .number(welcome.leases as u64)
            .number(welcome.lease_ms)
            .number(welcome.arena_bytes)
            .number(u64::from(welcome.sealed)),
        Answer::Places { seq, places } => Writer::new(PLACES, 2).number(*seq).bytes(places),
        Answer::Done { seq, more, ended } => {
            let mut writer = Writer::new(DONE, 3).number(*seq).number(u64::from(*more)).array(ended.len());
            for end in ended {
                let outcomes: Vec<u8> = end.outcomes.iter().map(|o| *o as u8).collect();
                writer = writer.array(3).number(end.job).bytes(&outcomes).number(end.micros);
            }
            writer
        }
        Answer::Leases { seq, leases } => {
            let packed: Vec<u8> = leases.iter().flat_map(|lease| lease.pack()).collect();
            Writer::new(LEASES, 2).number(*seq).bytes(&packed)
        }
        Answer::Stats { seq, counts } => {
            let mut writer = Writer::new(COUNTS, 2).number(*seq).array(counts.len());
            for (name, count) in counts {
                writer = writer.array(2).text(name).number(*count);
            }
            writer
        }
        Answer::Refused { reason, text } => Writer::new(REFUSED, 2).number(*reason as u64).text(text),
    };
    writer.finish()
}

/// Reads what the agent sent, for clients. Names of counts are not kept.
///
/// # Errors
///
/// [`FrameError`].
pub fn decode_answer(frame: &[u8]) -> Result<Reply, FrameError> {
    let mut reader = Reader { rest: frame };
    let got = reader.array("frame")?.saturating_sub(1);
    let kind = reader.number("kind")?;
    let wanted = match kind {
        WELCOME => 7,
        PLACES | LEASES | COUNTS | REFUSED => 2,
        DONE => 3,
        _ => return Err(FrameError::Kind(kind)),
    };
    if got < wanted {
        return Err(FrameError::Fields { kind, got });
    }
    Ok(match kind {
        WELCOME => Reply::Welcome(Welcome {
            version: reader.number("version")?,
            features: reader.number("features")?,
            jobs: reader.number("jobs")? as usize,
            leases: reader.number("leases")? as usize,
            lease_ms: reader.number("lease ms")?,
            arena_bytes: reader.number("arena bytes")?,
            sealed: reader.number("sealed")? != 0,
        }),
        PLACES => Reply::Places { seq: reader.number("seq")?, places: reader.bytes("places")?.to_vec() },
        DONE => {
            let (seq, more) = (reader.number("seq")?, reader.number("more")? != 0);
            let mut ended = Vec::new();
            for _ in 0..reader.array("ended")? {
                reader.array("end")?;
                let job = reader.number("job")?;
                let outcome = |b: &u8| Outcome::from_byte(*b).ok_or(FrameError::Field("outcome"));
                let outcomes = reader.bytes("outcomes")?.iter().map(outcome).collect::<Result<_, _>>()?;
                ended.push(Ended { job, outcomes, micros: reader.number("micros")? });
            }
            Reply::Done { seq, more, ended }
        }
        LEASES => {
            let seq = reader.number("seq")?;
            let packed = reader.bytes("leases")?.as_chunks().0;
            Reply::Leases { seq, leases: packed.iter().map(Leased::unpack).collect() }
        }
        COUNTS => {
            let seq = reader.number("seq")?;
            let mut counts = Vec::new();
            for _ in 0..reader.array("counts")? {
                reader.array("count")?;
                counts.push((reader.text("name")?.to_owned(), reader.number("count")?));
            }
            Reply::Stats { seq, counts }
        }
        _ => {
            let reason = reader.number("reason")?;
            Reply::Refused { reason, text: reader.text("text")?.to_owned() }
        }
    })
}

/// An [`Answer`] as it arrives at a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Answer")]
pub enum Reply {
    Welcome(Welcome),
    Places { seq: u64, places: Vec<u8> },
    Done { seq: u64, more: bool, ended: Vec<Ended> },
    Leases { seq: u64, leases: Vec<Leased> },
    Stats { seq: u64, counts: Vec<(String, u64)> },
    Refused { reason: u64, text: String },
}

impl Keys<'_> {
    /// Each key's hash and group. `None` where the bytes are no keys of this length, or too many.
    pub(super) fn split(&self, hash_bytes: usize) -> Option<impl ExactSizeIterator<Item = (&[u8], u32)>> {
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
