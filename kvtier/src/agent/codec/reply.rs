//! What the agent sent, for clients.

use super::super::frame::{Ended, Leased, Outcome, Welcome};
use super::read::Reader;
use super::{COUNTS, DONE, FrameError, LEASES, PLACES, REFUSED, WELCOME};

/// Reads what the agent sent, for clients.
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

/// An `Answer` as it arrives at a client.
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
