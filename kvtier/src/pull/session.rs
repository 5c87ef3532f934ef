//! How a connection begins: each side proves that it has the secret.

use std::time::Duration;

use super::frame::Frame;
use super::secret::{Nonce, Part, Secret};
use super::wire::{Wire, WireError};

/// Bytes of a frame before both sides are known to each other.
const MOST_UNKNOWN: usize = 64;

/// What checksums of payloads begin from: a number of this connection, and one more with every request.
#[derive(Debug)]
pub(super) struct Generation(u64);

impl Generation {
    /// The next request's.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

fn nonce() -> Result<Nonce, WireError> {
    let mut nonce = Nonce::default();
    let got = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty());
    match got.map_err(std::io::Error::from)? {
        // So few bytes always come at once.
        n if n == nonce.len() => Ok(nonce),
        _ => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
    }
}

/// The side that connected.
pub(super) fn greet(wire: &mut Wire, secret: &Secret, patience: Duration) -> Result<Generation, WireError> {
    wire.within(patience);
    let mine = nonce()?;
    wire.say(&Frame::Hello(mine))?;
    let Frame::Challenge(theirs) = wire.hear(MOST_UNKNOWN)? else { return Err(WireError::Malformed) };
    wire.say(&Frame::Proof(secret.prove(Part::Puller, &mine, &theirs)))?;
    let Frame::Welcome(proof) = wire.hear(MOST_UNKNOWN)? else { return Err(WireError::Malformed) };
    match secret.verify(Part::Source, &mine, &theirs, &proof) {
        true => Ok(Generation(secret.generation(&mine, &theirs))),
        false => Err(WireError::Secret),
    }
}

/// The side that listens.
pub(super) fn admit(wire: &mut Wire, secret: &Secret, patience: Duration) -> Result<Generation, WireError> {
    wire.within(patience);
    let Frame::Hello(theirs) = wire.hear(MOST_UNKNOWN)? else { return Err(WireError::Malformed) };
    let mine = nonce()?;
    wire.say(&Frame::Challenge(mine))?;
    let Frame::Proof(proof) = wire.hear(MOST_UNKNOWN)? else { return Err(WireError::Malformed) };
    if !secret.verify(Part::Puller, &theirs, &mine, &proof) {
        return Err(WireError::Secret);
    }
    wire.say(&Frame::Welcome(secret.prove(Part::Source, &theirs, &mine)))?;
    Ok(Generation(secret.generation(&theirs, &mine)))
}
