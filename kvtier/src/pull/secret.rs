//! Does the other side know the secret?
//!
//! Each side sends 32 random bytes and proves, by an HMAC over both of them and its part, that it has
//! the secret. The side that connected proves first, so that who knows nothing learns nothing.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of a secret, at least: who connected once has something to try guesses on.
pub const LEAST_SECRET: usize = 16;

/// Random bytes of one side.
pub(super) type Nonce = [u8; 32];
/// What proves knowledge of the secret.
pub(super) type Proof = [u8; 32];

/// A secret is too short to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret of {0} bytes, {LEAST_SECRET} wanted at least")]
pub struct ShortSecret(pub usize);

/// What all nodes that pull from each other know.
#[derive(Clone)]
pub struct Secret {
    mac: Hmac<Sha256>,
    known: bool,
}

/// Which side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It connected, and asks.
    Puller,
    /// It listens, and gives.
    Source,
}

impl Secret {
    /// # Errors
    ///
    /// [`ShortSecret`] below [`LEAST_SECRET`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Secret, ShortSecret> {
        match bytes.len() {
            LEAST_SECRET.. => Ok(Secret { known: true, ..Secret::of(bytes) }),
            short => Err(ShortSecret(short)),
        }
    }

    /// No secret: everybody knows it.
    pub fn none() -> Secret {
        Secret::of(&[])
    }

    fn of(bytes: &[u8]) -> Secret {
        Secret { mac: Hmac::new_from_slice(bytes).expect("a key may have any length"), known: false }
    }

    /// Whether it keeps anybody out.
    pub fn is_known_to_few(&self) -> bool {
        self.known
    }

    pub(super) fn prove(&self, part: Part, of_puller: &Nonce, of_source: &Nonce) -> Proof {
        self.say(part.label(), of_puller, of_source).finalize().into_bytes().into()
    }

    /// In a time that does not tell how much of it is right.
    pub(super) fn verify(&self, part: Part, of_puller: &Nonce, of_source: &Nonce, proof: &Proof) -> bool {
        self.say(part.label(), of_puller, of_source).verify_slice(proof).is_ok()
    }

    /// What checksums of this connection's payloads begin from.
    pub(super) fn generation(&self, of_puller: &Nonce, of_source: &Nonce) -> u64 {
        let said: Proof = self.say(b"generation", of_puller, of_source).finalize().into_bytes().into();
        said.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn say(&self, label: &[u8], of_puller: &Nonce, of_source: &Nonce) -> Hmac<Sha256> {
        self.mac
            .clone()
            .chain_update(b"kvtier pull 1 ")
            .chain_update(of_puller)
            .chain_update(of_source)
            .chain_update(label)
    }
}

impl Part {
    fn label(self) -> &'static [u8] {
        match self {
            Part::Puller => b"puller",
            Part::Source => b"source",
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_part_and_connection_alone() {
        let (a, b) = (Secret::new(&[1; 16]).unwrap(), Secret::new(&[2; 16]).unwrap());
        let proof = a.prove(Part::Puller, &[3; 32], &[4; 32]);
        assert!(a.verify(Part::Puller, &[3; 32], &[4; 32], &proof));
        // Sent back by who listens, it proves nothing.
        assert!(!a.verify(Part::Source, &[3; 32], &[4; 32], &proof));
        assert!(!a.verify(Part::Puller, &[3; 32], &[5; 32], &proof));
        assert!(!a.verify(Part::Puller, &[4; 32], &[3; 32], &proof));
        assert!(!b.verify(Part::Puller, &[3; 32], &[4; 32], &proof));
        assert!(!Secret::none().verify(Part::Puller, &[3; 32], &[4; 32], &proof));
        assert_ne!(a.generation(&[3; 32], &[4; 32]), a.generation(&[3; 32], &[5; 32]));
        assert_eq!(Secret::new(&[1; 15]).unwrap_err(), ShortSecret(15));
        assert!(!format!("{a:?}").contains('1'), "it is not shown");
    }
}
