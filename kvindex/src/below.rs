//! What will an engine have to wait for, because its node has it below RAM?

use crate::forest::pin;
use crate::reach::Tiers;
use crate::types::{Below, HolderId, Query};
use crate::walk::walk_with;
use crate::{Index, in_blocks};

impl Index {
    /// Blocks of a prompt that the nodes of `engines` have on disk or in shared storage, and neither
    /// the node in RAM nor the engine on its device: by the engines' own hashes, root first, at most
    /// `most` for each engine and node.
    pub fn below(&self, query: &Query<'_>, engines: &[HolderId], most: usize) -> Vec<Below> {
        let query = &in_blocks(query);
        let Some(pool) = self.pool(query.tenant, query.model) else { return Vec::new() };
        let seats = pool.seats();
        let Some(tiers) = Tiers::of(&seats).noting() else { return Vec::new() };
        walk_with(&pool, &seats, query, &pin(), &tiers);
        let mut of_engine: Vec<Below> = Vec::new();
        for Below { engine, tiers, mut hashes } in tiers.noted() {
            if !engines.contains(&engine) {
                continue;
            }
            // What is found in several hash domains is told together.
            match of_engine.iter_mut().find(|b| (b.engine, b.tiers) == (engine, tiers)) {
                Some(below) => below.hashes.append(&mut hashes),
                None => of_engine.push(Below { engine, tiers, hashes }),
            }
        }
        of_engine.iter_mut().for_each(|below| below.hashes.truncate(most));
        of_engine
    }
}

#[cfg(test)]
mod tests {
    use kvproto::event::{BatchBuilder, StoredFields};
    use kvproto::{EngineHash, Tier};

    use super::*;
    use crate::{HolderSpec, IndexConfig, Prompt};

    const TOKENS: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn hashes(numbers: &[u64]) -> Vec<EngineHash> {
        numbers.iter().copied().map(EngineHash).collect()
    }

    fn attach(index: &Index, instance: &str, node: &str, tiers: bool) -> HolderId {
        let spec = HolderSpec::new("default", "m", instance, 0);
        index.attach(HolderSpec { node: Some(node.into()), tiers, ..spec })
    }

    fn compute(index: &Index, engine: HolderId, names: &[u64]) {
        let mut batch = BatchBuilder::new(0.0, None);
        let fields = StoredFields { block_size: 2, ..Default::default() };
        batch.stored(fields, &hashes(names), &TOKENS[..names.len() * 2], &[]);
        index.apply(engine, &batch.build());
    }

    fn offload(index: &Index, tiers: HolderId, tier: Tier, names: &[u64]) {
        let mut batch = BatchBuilder::new(0.0, None);
        let fields = StoredFields { tier, ..Default::default() };
        batch.stored(fields, &hashes(names), &[], &[]);
        index.apply(tiers, &batch.build());
    }

    #[test]
    fn what_a_node_has_below_ram_is_what_its_engine_waits_for() {
        let index = Index::new(IndexConfig::default());
        let query = Query::new("default", "m", Prompt::tokens(&TOKENS));
        let (a, b) = (attach(&index, "a", "n1", false), attach(&index, "b", "n2", false));
        // Without tiers there is nothing to wait for.
        compute(&index, a, &[11, 12, 13, 14]);
        assert_eq!(index.below(&query, &[a, b], 9), []);
        let (n1, n2) = (attach(&index, "n1", "n1", true), attach(&index, "n2", "n2", true));
        offload(&index, n1, Tier::Disk, &[11, 12, 13, 14]);
        assert_eq!(index.below(&query, &[a], 9), [], "it has them on its device");
        compute(&index, b, &[11]);
        offload(&index, n2, Tier::Disk, &[11, 12, 13]);
        offload(&index, n2, Tier::Shared, &[14]);
        offload(&index, n2, Tier::Cpu, &[12]);
        let below = Below { engine: b, tiers: n2, hashes: hashes(&[13, 14]) };
        assert_eq!(index.below(&query, &[a, b], 9), [below]);
        assert_eq!(index.below(&query, &[a], 9), []);
        assert_eq!(index.below(&query, &[b], 1)[0].hashes, hashes(&[13]));
    }
}
