//! What does a snapshot consist of, record by record?
//!
//! `docs/formats.md` has the bytes. Strands are numbered forest by forest in the order they come; whatever
//! speaks of a strand, a block or a forest that did not come before is refused by the reader, so that who
//! applies records need not look again. `write` puts records into bytes, `read` says what is believed
//! of bytes that come.

mod bytes;
mod read;
mod write;

use kvproto::GroupKind;
use smallvec::SmallVec;

use super::Cursor;
use super::frame::word;
use crate::forest::{Kind, Place, Stretch};
use crate::holder::{Learnt, OddBlock};
pub(super) use read::Decoder;
pub(super) use write::{Blocks, Encoder};

/// Bytes of a name in a snapshot.
pub(super) const MAX_TEXT: usize = 1 << 14;
/// Stretches in one record.
pub(super) const MAX_STRETCHES: usize = 1 << 12;
/// Names in one record of ghosts.
pub(super) const MAX_GHOSTS: usize = 1 << 14;

const POOL: u8 = 1;
const FOREST: u8 = 2;
const IN: u8 = 3;
const HOLDER: u8 = 4;
const MORE: u8 = 5;
const HELD: u8 = 6;
const ODD: u8 = 7;
const GHOSTS: u8 = 8;
const HOLDER_END: u8 = 9;
const VOID: u8 = 10;
const END: u8 = 11;
/// A strand; the other bits say what is told of it.
const STRAND: u8 = 0x80;
const HAS_PARENT: u8 = 0x01;
const NEW_KIN: u8 = 0x02;
const NEW_CREATOR: u8 = 0x04;
const UNNAMED: u8 = 0x08;
const ALL_HELD: u8 = 0x10;
const KEYS: u8 = 0x20;
const DEPTH: u8 = 0x40;

/// Kinds of groups, by their number in the format less one.
const KINDS: [GroupKind; 5] =
    [GroupKind::Full, GroupKind::SlidingWindow, GroupKind::Mamba, GroupKind::ChunkedLocal, GroupKind::Other];

/// How much a snapshot has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Holders whose part is complete.
    pub holders: u64,
    /// Strands.
    pub strands: u64,
    /// Distinct blocks.
    pub blocks: u64,
    /// Stretches of blocks that a holder has.
    pub stretches: u64,
    /// Blocks that holders keep beside the forest.
    pub odd: u64,
}

/// Numbers as they lie in the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane<'a>(&'a [u8]);

impl Lane<'_> {
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.chunks_exact(8).map(word)
    }
    pub fn copy_to(&self, to: &mut Vec<u64>) {
        to.clear();
        to.extend(self.iter());
    }
    pub fn len(&self) -> usize {
        self.0.len() / 8
    }
}

/// What the blocks of a strand are. Own hashes are empty in a forest of canonical blocks, request keys
/// where it has none or knows none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lanes<'a> {
    pub locals: Lane<'a>,
    pub names: Lane<'a>,
    pub keys: Lane<'a>,
    /// Blocks whose name is another's by now, counted from the first of these.
    pub unnamed: SmallVec<[u32; 2]>,
}

/// What the blocks of a strand have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kin {
    pub seed: u64,
    pub block_size: u32,
    pub creator: u32,
}

/// Whose part of the snapshot begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head<'a> {
    pub label: &'a [u8],
    pub cursor: Cursor,
    /// The forest of its domain, and that of blocks that stand for themselves where it has some.
    pub chained: u32,
    pub canonical: Option<u32>,
    pub creator: u32,
    /// Tells whether blocks are named as in the deployment, model and adapter of then.
    pub seed: u64,
}

/// What is said of a holder when all its blocks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub learnt: Learnt,
    pub partial: bool,
    /// Blocks it has, to be compared.
    pub blocks: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record<'a> {
    Pool { tenant: &'a str, model: &'a str },
    Forest { pool: u32, kind: Kind, domain: u32 },
    In { forest: u32 },
    Holder(Head<'a>),
    Strand { at: Option<Place>, kin: Kin, depth: Option<u32>, lanes: Lanes<'a>, held: bool },
    More { strand: u32, lanes: Lanes<'a> },
    Held { strand: u32, stretches: Vec<Stretch> },
    Odd(OddBlock),
    Ghosts(Lane<'a>),
    HolderEnd(Box<Tail>),
    Void,
    End(Totals),
}
