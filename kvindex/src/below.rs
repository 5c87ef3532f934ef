//! What will an engine have to wait for, because its node has it below RAM?

use crate::forest::pin;
use crate::reach::{Tiers, Wanted};
use crate::types::{Below, HolderId, Query};
use crate::walk::walk_with;
use crate::{Index, in_blocks};

impl Index {
    /// Blocks of a prompt that neither `engines` have on their devices nor their nodes in RAM, but on
    /// disk or in shared storage, or another node in RAM or on disk: by the engines' own hashes, root
    /// first, at most `most` for each engine and place. What is within the node's own reach comes first.
    pub fn below(&self, query: &Query<'_>, engines: &[HolderId], most: usize) -> Vec<Below> {
        self.noted(query, engines, Wanted::Below, most)
    }

    /// Blocks of a prompt that `engines` do not have on their devices, but their nodes in RAM or on disk, as
    /// [`below`](Self::below).
    pub fn within(&self, query: &Query<'_>, engines: &[HolderId], most: usize) -> Vec<Below> {
        self.noted(query, engines, Wanted::Within, most)
    }

    fn noted(&self, query: &Query<'_>, engines: &[HolderId], wanted: Wanted, most: usize) -> Vec<Below> {
        let query = &in_blocks(query);
        let Some(pool) = self.pool(query.tenant, query.model) else { return Vec::new() };
        let seats = pool.seats();
        let Some(tiers) = Tiers::of(&seats).noting(wanted) else { return Vec::new() };
        walk_with(&pool, &seats, query, &pin(), &tiers);
        let mut of_engine: Vec<Below> = Vec::new();
        for Below { engine, tiers, at, mut hashes } in tiers.noted() {
            if !engines.contains(&engine) {
                continue;
            }
            // What is found in several hash domains is told together.
            match of_engine.iter_mut().find(|b| (b.engine, b.tiers, b.at) == (engine, tiers, at)) {
                Some(below) => below.hashes.append(&mut hashes),
                None => of_engine.push(Below { engine, tiers, at, hashes }),
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
        let below = |at, names: &[u64]| Below { engine: b, tiers: n2, at, hashes: hashes(names) };
        // The last lies in shared storage, and nearer on the other node's disk.
        assert_eq!(index.below(&query, &[a, b], 9), [below(n2, &[13]), below(n1, &[14])]);
        assert_eq!(index.below(&query, &[a], 9), []);
        index.detach(n1);
        assert_eq!(index.below(&query, &[a, b], 9), [below(n2, &[13, 14])]);
        assert_eq!(index.below(&query, &[b], 1)[0].hashes, hashes(&[13]));
    }

    #[test]
    fn what_an_engine_would_load_from_its_node_is_told_apart_from_what_it_has() {
        let index = Index::new(IndexConfig::default());
        let query = Query::new("default", "m", Prompt::tokens(&TOKENS));
        let b = attach(&index, "b", "n2", false);
        compute(&index, b, &[11, 12, 13, 14]);
        let n2 = attach(&index, "n2", "n2", true);
        offload(&index, n2, Tier::Cpu, &[11, 12]);
        offload(&index, n2, Tier::Disk, &[13]);
        assert_eq!(index.within(&query, &[b], 9), [], "it has them on its device");
        let mut restart = BatchBuilder::new(0.0, None);
        restart.cleared(None);
        index.apply(b, &restart.build());
        compute(&index, b, &[11]);
        let within = Below { engine: b, tiers: n2, at: n2, hashes: hashes(&[12, 13]) };
        assert_eq!(index.within(&query, &[b], 9), [within]);
        let by_tier = |answer: crate::Answer| {
            let score = answer.scores.iter().find(|score| score.holder == b).map(|score| score.by_tier);
            score.expect("attached")
        };
        assert_eq!(by_tier(index.query(&query))[Tier::Cpu as usize], 2);
        assert_eq!(by_tier(index.query_own(&query))[Tier::Cpu as usize], 0);
        assert!(index.has_tiers("default", "m") && !index.has_tiers("default", "other"));
    }

    #[test]
    fn tiers_count_for_an_engine_while_it_is_certain_whose_the_names_are() {
        let index = Index::new(IndexConfig::default());
        let query = Query::new("default", "m", Prompt::tokens(&TOKENS));
        let (a, n1) = (attach(&index, "a", "n1", false), attach(&index, "n1", "n1", true));
        compute(&index, a, &[11, 12, 13, 14]);
        offload(&index, n1, Tier::Cpu, &[11, 12, 13, 14]);
        let in_ram = || {
            let answer = index.query(&query);
            answer.scores.iter().find(|s| s.holder == a).expect("attached").by_tier[Tier::Cpu as usize]
        };
        assert_eq!(in_ram(), 4);
        // Who has told nothing puts nothing in doubt.
        let b = attach(&index, "b", "n2", false);
        assert_eq!(in_ram(), 4);
        compute(&index, a, &[11]);
        assert_eq!(in_ram(), 4);
        let tell = |tokens: &[u32], names: &[u64]| {
            let mut batch = BatchBuilder::new(0.0, None);
            let fields = StoredFields { block_size: 2, ..Default::default() };
            batch.stored(fields, &hashes(names), tokens, &[]);
            index.apply(b, &batch.build());
        };
        // Its names may be made otherwise, and both are on the same shelf.
        tell(&[90, 91], &[21]);
        assert_eq!(in_ram(), 0);
        // It calls a block as the first one does.
        tell(&TOKENS[..2], &[11]);
        assert_eq!(in_ram(), 4);
        // Or goes.
        index.clear(b);
        tell(&[90, 91], &[21]);
        index.detach(b);
        assert_eq!(in_ram(), 4);
    }

    #[test]
    fn what_other_nodes_have_is_asked_of_as_few_as_can_be() {
        let index = Index::new(IndexConfig::default());
        let query = Query::new("default", "m", Prompt::tokens(&TOKENS));
        let (a, b) = (attach(&index, "a", "n1", false), attach(&index, "b", "n2", false));
        compute(&index, a, &[11, 12, 13, 14]);
        compute(&index, b, &[11]);
        let n1 = attach(&index, "n1", "n1", true);
        offload(&index, n1, Tier::Cpu, &[11, 12]);
        assert_eq!(index.below(&query, &[b], 9), [], "nobody on its node could bring them");
        let (n2, n3) = (attach(&index, "n2", "n2", true), attach(&index, "n3", "n3", true));
        offload(&index, n3, Tier::Disk, &[12, 13, 14]);
        let below = |at, names: &[u64]| Below { engine: b, tiers: n2, at, hashes: hashes(names) };
        assert_eq!(index.below(&query, &[b], 9), [below(n3, &[12, 13, 14])]);
        offload(&index, n2, Tier::Disk, &[13]);
        assert_eq!(index.below(&query, &[b], 9), [below(n2, &[13]), below(n3, &[12, 14])]);
        index.detach(n3);
        assert_eq!(index.below(&query, &[b], 9), [below(n2, &[13]), below(n1, &[12])]);
    }
}
