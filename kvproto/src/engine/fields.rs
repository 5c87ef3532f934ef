//! What do the fields of one event say, whatever engine it is from?
//!
//! An engine's [`Dialect`] names the fields; [`read`] takes their values in whatever order
//! they come. Lists go straight into the batch's arenas; the caller
//! takes them back if the event turns out not to fit.

use std::ops::Range;

use super::msgpack::{Head, Reader};
use super::values::{self, Flaw, hash, number, text};
use crate::event::{Batch, EngineHash, GroupKind, GroupSpec, RawStored};

/// How one engine writes its events down.
pub(super) trait Dialect {
    /// Keys under which a map holds its tag.
    const TAG_KEYS: &'static [&'static [u8]];
    /// Fields of a store in array form, after the tag; none where there is no such form.
    const STORED: &'static [Field];
    /// Fields of a removal in array form, after the tag.
    const REMOVED: &'static [Field];
    /// Whether token ids may come as pairs of a token and the one after it.
    const TOKEN_PAIRS: bool = false;

    /// What a tag stands for.
    fn kind(tag: &[u8]) -> Option<Kind>;

    /// Which field a key of a map names.
    fn field(key: &[u8]) -> Option<Field>;

    /// Seconds that a batch's integer timestamp stands for.
    fn seconds(ts: u64) -> f64 {
        ts as f64
    }

    /// What a store means, once its fields are read.
    fn stored<'p>(draft: Draft<'p>, batch: &mut Batch<'p>) -> Result<RawStored<'p>, Flaw<'p>>;
}

/// What a tag says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stored,
    Removed,
    Cleared,
}

/// A field that kvd reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Hashes,
    /// One hash in the place of a list.
    Hash,
    Parent,
    Tokens,
    BlockSize,
    LoraId,
    Medium,
    LoraName,
    ExtraKeys,
    Group,
    SpecKind,
    Window,
    CacheSalt,
    BaseBlock,
}

/// The fields of an event as far as they are read. Missing is the same as nil.
#[derive(Debug, Default)]
pub(super) struct Draft<'p> {
    /// Range in the batch's hashes.
    pub hashes: Range<u32>,
    pub parent: Option<EngineHash>,
    /// Range in the batch's tokens.
    pub tokens: Range<u32>,
    pub block_size: u32,
    /// An adapter is named by number.
    pub has_lora_id: bool,
    pub medium: Option<&'p str>,
    pub lora: Option<&'p str>,
    /// Where the extra keys are. Which of them is the adapter's name is known only when
    /// all fields are, so they are read last.
    pub extra_keys: Option<Reader<'p>>,
    pub group: u32,
    pub spec_kind: Option<&'p str>,
    pub window: Option<u32>,
    pub cache_salt: Option<&'p str>,
    pub base_block: Option<u32>,
}

/// The tag of the event that `r` stands at.
pub(super) fn tag<'p, D: Dialect>(mut r: Reader<'p>) -> Result<&'p [u8], Flaw<'p>> {
    let found = match r.head()? {
        found @ Head::Array(_) if D::STORED.is_empty() => {
            return Err(Flaw::Unfit { field: "event", expected: "a map", found });
        }
        Head::Array(0) => Head::Nil,
        Head::Array(_) => r.head()?,
        Head::Map(len) => {
            let mut found = Head::Nil;
            for _ in 0..len {
                if !r.key()?.is_some_and(|k| D::TAG_KEYS.contains(&k)) {
                    r.skip()?;
                    continue;
                }
                found = r.head()?;
                if found != Head::Nil {
                    break;
                }
            }
            found
        }
        other => return Err(Flaw::Unfit { field: "event", expected: "an array or a map", found: other }),
    };
    match found {
        Head::Str(tag) => Ok(tag),
        other => Err(Flaw::Unfit { field: "type", expected: "a string", found: other }),
    }
}

/// Reads the event that `r` stands at, of which the tag says that it is a `kind`.
pub(super) fn read<'p, D: Dialect>(
    kind: Kind,
    r: &mut Reader<'p>,
    batch: &mut Batch<'p>,
) -> Result<Draft<'p>, Flaw<'p>> {
    let mut draft = Draft::default();
    match r.head()? {
        Head::Array(len) => {
            let order = match kind {
                Kind::Stored => D::STORED,
                Kind::Removed => D::REMOVED,
                Kind::Cleared => &[],
            };
            r.skip()?; // the tag
            for i in 1..len {
                match order.get(i as usize - 1) {
                    Some(&field) => draft.take::<D>(field, r, batch)?,
                    None => r.skip()?,
                }
            }
        }
        Head::Map(len) => {
            for _ in 0..len {
                match r.key()?.and_then(D::field).filter(|&f| belongs(f, kind)) {
                    Some(field) => draft.take::<D>(field, r, batch)?,
                    None => r.skip()?,
                }
            }
        }
        other => return Err(Flaw::Unfit { field: "event", expected: "an array or a map", found: other }),
    }
    Ok(draft)
}

/// Whether `field` says something about an event of `kind`.
fn belongs(field: Field, kind: Kind) -> bool {
    match kind {
        Kind::Stored => true,
        Kind::Removed => matches!(field, Field::Hashes | Field::Hash | Field::Medium | Field::Group),
        Kind::Cleared => field == Field::Medium,
    }
}

impl<'p> Draft<'p> {
    fn take<D: Dialect>(
        &mut self,
        field: Field,
        r: &mut Reader<'p>,
        batch: &mut Batch<'p>,
    ) -> Result<(), Flaw<'p>> {
        match field {
            // One list may come under several names; the first that says something counts.
            Field::Hashes if self.hashes.is_empty() => self.hashes = values::hashes(r, &mut batch.hashes)?,
            Field::Hash if self.hashes.is_empty() => {
                let at = batch.hashes.len() as u32;
                batch.hashes.extend(hash("block_hash", r)?);
                self.hashes = at..batch.hashes.len() as u32;
            }
            Field::Tokens if self.tokens.is_empty() => {
                self.tokens = values::tokens(r, &mut batch.tokens, D::TOKEN_PAIRS)?;
            }
            Field::Hashes | Field::Hash | Field::Tokens => r.skip()?,
            // The number 0 is how llm-d's connector and simulator write "no parent".
            Field::Parent => {
                self.parent = hash("parent_block_hash", r)?.filter(|h| h.0 != 0).or(self.parent);
            }
            Field::BlockSize => {
                self.block_size = number("block_size", "an integer from 0 to 65536", 65536, r)?.unwrap_or(0);
            }
            Field::LoraId => {
                let mut ahead = *r;
                // Adapters are numbered from 1.
                self.has_lora_id = matches!(ahead.head()?, Head::Unsigned(1..));
                r.skip()?;
            }
            Field::Medium => self.medium = text("medium", r)?,
            Field::LoraName => self.lora = text("lora_name", r)?,
            Field::ExtraKeys => {
                self.extra_keys = Some(*r);
                r.skip()?;
            }
            Field::Group => self.group = number("group_idx", values::U32, u32::MAX, r)?.unwrap_or(0),
            Field::SpecKind => self.spec_kind = text("kv_cache_spec_kind", r)?,
            Field::Window => self.window = number("kv_cache_spec_sliding_window", values::U32, u32::MAX, r)?,
            Field::CacheSalt => self.cache_salt = text("cache_salt", r)?,
            Field::BaseBlock => self.base_block = number("base_block_idx", values::U32, u32::MAX, r)?,
        }
        Ok(())
    }

    /// What the event says of its group.
    pub fn spec(&self) -> Option<GroupSpec> {
        self.spec_kind.map(|k| GroupSpec { kind: GroupKind::from_spec_kind(k), window: self.window })
    }

    /// Whether an adapter is meant whose name is not told, so that nothing but the hashes
    /// keeps its blocks apart from the base model's.
    pub fn is_nameless_adapter(&self) -> bool {
        self.has_lora_id && self.lora.is_none()
    }
}
