//! Is a field's value of the type and in the range it must be?
//!
//! Strict: a boolean or a float is no integer, nothing is converted. Lists go into the
//! arena they are given.

use std::ops::Range;

use super::msgpack::{Broken, Head, Reader};
use crate::event::{Batch, EngineHash, ExtraKey};

/// Why an event cannot be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Flaw<'p> {
    /// Not only the event: the bytes are no msgpack.
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("{field}: expected {expected}, found {found}")]
    Unfit { field: &'static str, expected: &'static str, found: Head<'p> },
    #[error("{field}: {found} for {expected} hashes")]
    Count { field: &'static str, expected: u32, found: u32 },
}

pub(super) const U32: &str = "an integer from 0 to 4294967295";
const HASH: &str = "an integer or 8, 16 or 32 bytes";

pub(super) fn number<'p>(
    field: &'static str,
    expected: &'static str,
    max: u32,
    r: &mut Reader<'p>,
) -> Result<Option<u32>, Flaw<'p>> {
    match r.head()? {
        Head::Nil => Ok(None),
        Head::Unsigned(n) if n <= u64::from(max) => Ok(Some(n as u32)),
        found => Err(Flaw::Unfit { field, expected, found }),
    }
}

pub(super) fn text<'p>(field: &'static str, r: &mut Reader<'p>) -> Result<Option<&'p str>, Flaw<'p>> {
    match r.head()? {
        Head::Nil => Ok(None),
        head => utf8(field, head).map(Some),
    }
}

fn utf8<'p>(field: &'static str, head: Head<'p>) -> Result<&'p str, Flaw<'p>> {
    if let Head::Str(s) = head
        && let Ok(s) = str::from_utf8(s)
    {
        return Ok(s);
    }
    Err(Flaw::Unfit { field, expected: "a UTF-8 string", found: head })
}

pub(super) fn hash<'p>(field: &'static str, r: &mut Reader<'p>) -> Result<Option<EngineHash>, Flaw<'p>> {
    if let Some(bits) = r.wide() {
        return Ok(Some(EngineHash(bits)));
    }
    match r.head()? {
        Head::Nil => Ok(None),
        Head::Unsigned(n) => Ok(Some(EngineHash(n))),
        Head::Negative(n) => Ok(Some(EngineHash(n as u64))),
        Head::Str(b) | Head::Bin(b) if matches!(b.len(), 8 | 16 | 32) => {
            // Of a digest, what vLLM would have sent as a number: its last 8 bytes.
            Ok(b.last_chunk().map(|&last| EngineHash(u64::from_be_bytes(last))))
        }
        found => Err(Flaw::Unfit { field, expected: HASH, found }),
    }
}

/// The length of a list. Nil is an empty one.
fn list<'p>(field: &'static str, r: &mut Reader<'p>) -> Result<u32, Flaw<'p>> {
    match r.head()? {
        Head::Nil => Ok(0),
        Head::Array(len) => Ok(len),
        found => Err(Flaw::Unfit { field, expected: "an array", found }),
    }
}

pub(super) fn hashes<'p>(r: &mut Reader<'p>, arena: &mut Vec<EngineHash>) -> Result<Range<u32>, Flaw<'p>> {
    const FIELD: &str = "block_hashes";
    let at = arena.len() as u32;
    let len = list(FIELD, r)?;
    // A hash takes about as many bytes there as here.
    arena.reserve((len as usize).min(r.left() / size_of::<EngineHash>()));
    for _ in 0..len {
        match hash(FIELD, r)? {
            Some(h) => arena.push(h),
            None => return Err(Flaw::Unfit { field: FIELD, expected: HASH, found: Head::Nil }),
        }
    }
    Ok(at..arena.len() as u32)
}

pub(super) fn tokens<'p>(
    r: &mut Reader<'p>,
    arena: &mut Vec<u32>,
    pairs: bool,
) -> Result<Range<u32>, Flaw<'p>> {
    let at = arena.len() as u32;
    let len = list("token_ids", r)?;
    // A list is at most as long as the bytes left (`Reader::head`).
    arena.reserve(len as usize);
    let mut ahead = *r;
    if pairs && len > 0 && matches!(ahead.head()?, Head::Array(_)) {
        for _ in 0..len {
            match r.head()? {
                Head::Array(2) => {}
                found => return Err(Flaw::Unfit { field: "token_ids", expected: "pairs", found }),
            }
            arena.push(token(r)?);
            // The second is the first of the next pair.
            token(r)?;
        }
    } else {
        for _ in 0..len {
            arena.push(token(r)?);
        }
    }
    Ok(at..arena.len() as u32)
}

#[inline]
fn token<'p>(r: &mut Reader<'p>) -> Result<u32, Flaw<'p>> {
    match r.small() {
        Some(t) => Ok(t),
        None => rare_token(r),
    }
}

#[cold]
fn rare_token<'p>(r: &mut Reader<'p>) -> Result<u32, Flaw<'p>> {
    match r.head()? {
        Head::Unsigned(n) if n <= u64::from(u32::MAX) => Ok(n as u32),
        found => Err(Flaw::Unfit { field: "token_ids", expected: U32, found }),
    }
}

/// Reads the extra keys of a store's blocks, without the adapter's name in front of each.
///
/// Returns their range in `extra_ranges`, empty or one per hash; `None` where the event has
/// no list of extra keys at all.
pub(super) fn extra_keys<'p>(
    mut r: Reader<'p>,
    hashes: u32,
    lora: Option<&str>,
    batch: &mut Batch<'p>,
) -> Result<Option<Range<u32>>, Flaw<'p>> {
    const FIELD: &str = "extra_keys";
    let (ranges_at, extras_at) = (batch.extra_ranges.len(), batch.extras.len());
    let blocks = list(FIELD, &mut r)?;
    if blocks == 0 {
        return Ok(None);
    }
    if blocks != hashes {
        return Err(Flaw::Count { field: FIELD, expected: hashes, found: blocks });
    }
    for _ in 0..blocks {
        let at = batch.extras.len() as u32;
        for i in 0..list(FIELD, &mut r)? {
            let head = r.head()?;
            if i == 0 && lora.is_some_and(|name| head == Head::Str(name.as_bytes())) {
                continue;
            }
            let key = extra_key(FIELD, head, &mut r)?;
            batch.extras.push(key);
        }
        batch.extra_ranges.push(at..batch.extras.len() as u32);
    }
    if batch.extras.len() == extras_at {
        // Most batches: a list of as many nils as there are blocks.
        batch.extra_ranges.truncate(ranges_at);
    }
    Ok(Some(ranges_at as u32..batch.extra_ranges.len() as u32))
}

fn extra_key<'p>(field: &'static str, head: Head<'p>, r: &mut Reader<'p>) -> Result<ExtraKey<'p>, Flaw<'p>> {
    match head {
        // A name of no bytes names nothing; it would only take memory.
        Head::Str(s) if !s.is_empty() => utf8(field, head).map(ExtraKey::Text),
        Head::Bin(digest) if !digest.is_empty() => Ok(ExtraKey::Digest(digest)),
        Head::Array(2) => {
            let identifier = r.head()?;
            let offset = match r.head()? {
                Head::Unsigned(n) => i64::try_from(n).ok(),
                Head::Negative(n) => Some(n),
                _ => None,
            };
            match (identifier, offset) {
                (Head::Str(_), Some(offset)) => {
                    Ok(ExtraKey::Item { identifier: utf8(field, identifier)?, offset })
                }
                _ => Err(Flaw::Unfit { field, expected: "an identifier and its offset", found: head }),
            }
        }
        found => Err(Flaw::Unfit { field, expected: "a name, a digest or an item", found }),
    }
}
