//! One connection to a source, from the side that asks.

use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use super::frame::{Frame, Lendable, MOST_BYTES};
use super::secret::Secret;
use super::session::{Generation, greet};
use super::wire::{Wire, WireError};
use crate::store::StoreKey;

/// A connection whose two sides know each other.
#[derive(Debug)]
pub(super) struct Fetch {
    wire: Wire,
    generation: Generation,
    patience: Duration,
    /// When it was last of use.
    used: Instant,
}

impl Fetch {
    /// Connects to `host:port`. Each step may take `patience`. Who cannot prove who it is, is asked only
    /// on this machine, or where `insecure` says so.
    pub fn connect(
        to: &str,
        secret: &Secret,
        insecure: bool,
        patience: Duration,
    ) -> Result<Fetch, WireError> {
        let nowhere = || io::Error::from(io::ErrorKind::AddrNotAvailable);
        let address = to.to_socket_addrs()?.next().ok_or_else(nowhere)?;
        if !secret.is_known_to_few() && !insecure && !address.ip().is_loopback() {
            return Err(WireError::Secret);
        }
        let mut wire = Wire::connect(&address, patience)?;
        let generation = greet(&mut wire, secret, patience)?;
        Ok(Fetch { wire, generation, patience, used: Instant::now() })
    }

    /// Whether it can be used again.
    pub fn is_fresh(&self, longest: Duration) -> bool {
        self.used.elapsed() < longest && self.wire.is_quiet()
    }

    /// Which blocks of `models` go by `shorts`. The source may say what it likes; nothing is taken that
    /// was not asked for.
    pub fn find(&mut self, models: &[u128], shorts: &[u64]) -> Result<Vec<Lendable>, WireError> {
        self.wire.within(self.patience);
        self.wire.say(&Frame::Find { models: models.to_vec(), shorts: shorts.to_vec() })?;
        let Frame::Found(mut found) = self.wire.hear(MOST_BYTES)? else { return Err(WireError::Malformed) };
        found.retain(|f| {
            let short = crate::node::short_hash(&f.key);
            models.contains(&f.key.model) && short.is_some_and(|short| shorts.contains(&short))
        });
        self.used = Instant::now();
        Ok(found)
    }

    /// Asks for blocks of `block_bytes` each; [`next`](Self::next) is to be called for each of them.
    pub fn get(&mut self, block_bytes: usize, keys: &[StoreKey]) -> Result<u64, WireError> {
        self.wire.within(self.patience);
        self.wire.say(&Frame::Get { block_bytes: block_bytes as u32, keys: keys.to_vec() })?;
        Ok(self.generation.next())
    }

    /// The next block of those asked for: `key`, the `at`th of the request. False where the source does
    /// not have it. After an error, `into` means nothing.
    pub fn next(
        &mut self,
        generation: u64,
        at: usize,
        key: &StoreKey,
        into: &mut [u8],
    ) -> Result<bool, WireError> {
        self.wire.within(self.patience);
        let head = self.wire.hear_head(into.len())?;
        if usize::from(head.at) != at {
            return Err(WireError::Malformed);
        }
        let Some(checksum) = head.checksum else { return Ok(false) };
        self.wire.read_exact(into)?;
        if key.checksum(generation, into) != checksum {
            return Err(WireError::Corrupt);
        }
        self.used = Instant::now();
        Ok(true)
    }
}
