//! Requests and answers to bytes.

use rmp::encode::{self, ByteBuf};

use super::super::frame::{Answer, Request};
use super::{
    COUNTS, DONE, GOODBYE, HELLO, HELLO_FIELDS, LEASE, LEASES, LOAD, LOOKUP, PLACES, POLL, REFUSED, RELEASE,
    STATS, STORE, TOUCH, WELCOME,
};

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
