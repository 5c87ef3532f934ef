//! How is a batch put together by who knows what happened?

use std::ops::Range;

use super::{Batch, Cleared, Content, EngineHash, ExtraKey, GroupSpec, LocalHash, RawEvent, RawStored, Tier};

/// Puts a batch together: for decoders, and for tests and tools that make events up.
#[derive(Debug, Default)]
pub struct BatchBuilder<'p> {
    batch: Batch<'p>,
}

/// The scalar fields of a store, for [`BatchBuilder::stored`].
#[derive(Clone, Copy, Debug)]
pub struct StoredFields<'p> {
    /// See [`Stored::parent`](super::Stored::parent).
    pub parent: Option<EngineHash>,
    /// See [`Stored::block_size`](super::Stored::block_size).
    pub block_size: u32,
    /// See [`Stored::tier`](super::Stored::tier).
    pub tier: Tier,
    /// See [`Stored::group`](super::Stored::group).
    pub group: u32,
    /// See [`Stored::spec`](super::Stored::spec).
    pub spec: Option<GroupSpec>,
    /// See [`Stored::lora`](super::Stored::lora).
    pub lora: Option<&'p str>,
    /// See [`Stored::cache_salt`](super::Stored::cache_salt).
    pub cache_salt: Option<&'p str>,
    /// See [`Stored::content`](super::Stored::content).
    pub content: Content,
    /// See [`Stored::base_block`](super::Stored::base_block).
    pub base_block: Option<u32>,
}

impl Default for StoredFields<'_> {
    fn default() -> Self {
        StoredFields {
            parent: None,
            block_size: 0,
            tier: Tier::Gpu,
            group: 0,
            spec: None,
            lora: None,
            cache_salt: None,
            content: Content::Complete,
            base_block: None,
        }
    }
}

impl<'p> BatchBuilder<'p> {
    /// An empty batch made at `ts` by `rank`.
    pub fn new(ts: f64, rank: Option<u32>) -> Self {
        BatchBuilder { batch: Batch { ts, rank, ..Batch::default() } }
    }

    /// Adds a store. `extras` holds the extra keys of each block and is empty or as long as `hashes`.
    pub fn stored(
        &mut self,
        fields: StoredFields<'p>,
        hashes: &[EngineHash],
        tokens: &[u32],
        extras: &[Vec<ExtraKey<'p>>],
    ) -> &mut Self {
        assert!(extras.is_empty() || extras.len() == hashes.len(), "extra keys: none, or one list per hash");
        self.push(fields, hashes, tokens, &[], extras)
    }

    /// Adds a store of blocks whose own hashes are known: `locals` has one for each of `hashes`,
    /// computed with the seed of the blocks' namespace ([`crate::hash::canonical`]).
    pub fn hashed(
        &mut self,
        fields: StoredFields<'p>,
        hashes: &[EngineHash],
        locals: &[LocalHash],
    ) -> &mut Self {
        assert!(locals.len() == hashes.len(), "a block's own hash for each");
        self.push(StoredFields { content: Content::Hashed, ..fields }, hashes, &[], locals, &[])
    }

    fn push(
        &mut self,
        fields: StoredFields<'p>,
        hashes: &[EngineHash],
        tokens: &[u32],
        locals: &[LocalHash],
        extras: &[Vec<ExtraKey<'p>>],
    ) -> &mut Self {
        let b = &mut self.batch;
        let ranges_at = b.extra_ranges.len() as u32;
        for keys in extras {
            let at = b.extras.len() as u32;
            b.extras.extend_from_slice(keys);
            b.extra_ranges.push(at..b.extras.len() as u32);
        }
        let hashes = extend(&mut b.hashes, hashes);
        let tokens = extend(&mut b.tokens, tokens);
        let locals = extend(&mut b.locals, locals);
        b.events.push(RawEvent::Stored(RawStored {
            hashes,
            parent: fields.parent,
            tokens,
            locals,
            block_size: fields.block_size,
            tier: fields.tier,
            group: fields.group,
            spec: fields.spec,
            lora: fields.lora,
            cache_salt: fields.cache_salt,
            extras: ranges_at..b.extra_ranges.len() as u32,
            content: fields.content,
            base_block: fields.base_block,
        }));
        self
    }

    /// Adds a removal.
    pub fn removed(&mut self, hashes: &[EngineHash], tier: Tier, group: u32) -> &mut Self {
        let hashes = extend(&mut self.batch.hashes, hashes);
        self.batch.events.push(RawEvent::Removed { hashes, tier, group });
        self
    }

    /// Adds a clear.
    pub fn cleared(&mut self, tier: Option<Tier>) -> &mut Self {
        self.batch.events.push(RawEvent::Cleared(Cleared { tier }));
        self
    }

    /// The batch.
    pub fn build(self) -> Batch<'p> {
        self.batch
    }
}

fn extend<T: Copy>(arena: &mut Vec<T>, items: &[T]) -> Range<u32> {
    let at = arena.len() as u32;
    arena.extend_from_slice(items);
    at..arena.len() as u32
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Removed};
    use super::*;

    #[test]
    fn a_builder_gives_back_what_it_was_given() {
        let mut b = BatchBuilder::new(1.5, Some(3));
        let fields = StoredFields { block_size: 2, lora: Some("a"), ..StoredFields::default() };
        let extras = vec![vec![ExtraKey::Text("salt")], vec![]];
        b.stored(fields, &[EngineHash(1), EngineHash(2)], &[10, 11, 12, 13], &extras);
        b.removed(&[EngineHash(1)], Tier::Cpu, 1).cleared(None);
        let batch = b.build();
        let events: Vec<_> = batch.events().collect();
        let Event::Stored(s) = &events[0] else { panic!("a store comes first") };
        assert!(s.is_dense());
        assert_eq!(s.extras(0), [ExtraKey::Text("salt")]);
        assert!(s.extras(1).is_empty());
        assert_eq!(
            events[1],
            Event::Removed(Removed { hashes: &[EngineHash(1)], tier: Tier::Cpu, group: 1 })
        );
        assert_eq!(events[2], Event::Cleared(Cleared { tier: None }));
    }
}
