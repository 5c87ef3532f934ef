//! What vLLM hashes for one block: `(parent, (token, …), extra keys)`.
//!
//! Written once for both encodings, which implement [`Encoder`].

use super::{Extra, ExtraForm, Tag};
use crate::hash::cbor;

/// Python values, one after the other. A tuple is `open(n)`, its `n` values, `close(n)`.
pub(super) trait Encoder {
    fn none(&mut self);
    fn uint(&mut self, n: u64);
    fn int(&mut self, n: i64);
    fn bytes(&mut self, b: &[u8]);
    fn text(&mut self, s: &str);
    /// A text that is the same object wherever it occurs.
    fn tag(&mut self, tag: Tag);
    fn open(&mut self, len: usize);
    fn close(&mut self, len: usize);
}

/// Writes the triple that a block's digest is computed from.
pub(super) fn block<T: Copy + Into<u64>>(
    e: &mut impl Encoder,
    parent: &[u8],
    tokens: &[T],
    extras: &[Extra<'_>],
    form: ExtraForm,
) {
    e.open(3);
    e.bytes(parent);
    e.open(tokens.len());
    for &t in tokens {
        e.uint(t.into());
    }
    e.close(tokens.len());
    if extras.is_empty() {
        e.none();
    } else {
        e.open(extras.len());
        for key in extras {
            match form {
                ExtraForm::Tagged => tagged(e, key),
                ExtraForm::Untagged => untagged(e, key, true),
                ExtraForm::Bare => untagged(e, key, false),
            }
        }
        e.close(extras.len());
    }
    e.close(3);
}

fn tagged(e: &mut impl Encoder, key: &Extra<'_>) {
    match *key {
        Extra::Lora { name, path } => {
            e.open(3);
            e.tag(Tag::Lora);
            e.text(name);
            e.text(path);
            e.close(3);
        }
        Extra::Mm { identifier, offset } => {
            e.open(3);
            e.tag(Tag::Mm);
            e.text(identifier);
            e.int(offset);
            e.close(3);
        }
        Extra::CacheSalt(salt) => {
            e.open(2);
            e.tag(Tag::CacheSalt);
            e.text(salt);
            e.close(2);
        }
        Extra::PromptEmbeds(digest) => {
            e.open(2);
            e.tag(Tag::PromptEmbeds);
            e.bytes(digest);
            e.close(2);
        }
    }
}

fn untagged(e: &mut impl Encoder, key: &Extra<'_>, placed: bool) {
    match *key {
        Extra::Lora { name, path: _ } => e.text(name),
        Extra::Mm { identifier, offset } if placed => {
            e.open(2);
            e.text(identifier);
            e.int(offset);
            e.close(2);
        }
        Extra::Mm { identifier, offset: _ } => e.text(identifier),
        Extra::CacheSalt(salt) => e.text(salt),
        Extra::PromptEmbeds(digest) => e.bytes(digest),
    }
}

/// Canonical CBOR, where a tuple is an array.
impl Encoder for Vec<u8> {
    fn none(&mut self) {
        cbor::null(self);
    }

    fn uint(&mut self, n: u64) {
        cbor::uint(self, n);
    }

    fn int(&mut self, n: i64) {
        cbor::int(self, n);
    }

    fn bytes(&mut self, b: &[u8]) {
        cbor::bytes(self, b);
    }

    fn text(&mut self, s: &str) {
        cbor::text(self, s);
    }

    fn tag(&mut self, tag: Tag) {
        cbor::text(self, tag.name());
    }

    fn open(&mut self, len: usize) {
        cbor::array(self, len);
    }

    fn close(&mut self, _len: usize) {}
}
