//! What is a strand, for whoever writes it down?
//!
//! Where it hangs and what its blocks are never changes while its number has one generation, but that it
//! grows or its end is cut off. Who holds it is told by [`Pen::stretches`].

use super::*;

/// A strand, apart from who holds it.
pub(crate) struct Facts<'g> {
    /// The strand it hangs on, and after how many of its blocks.
    pub at: Place,
    pub generation: u32,
    /// Seed of the canonical chain; in a canonical forest the name of the block before the first.
    pub seed: u64,
    pub block_size: u32,
    /// Blocks before its first.
    pub depth: u32,
    pub locals: &'g [u64],
    pub names: &'g [u64],
    /// llm-d's request keys; empty where the forest has none.
    pub keys: &'g [u64],
}

impl Pen<'_> {
    /// Which blocks of a strand, counted from the `from`th, lost their name to another block.
    pub fn unnamed(&self, strand: u32, from: u32, names: &[u64]) -> Vec<u32> {
        if !self.w.renamed {
            return Vec::new();
        }
        let lost = |i: &u32| {
            self.forest.find_name(self.guard, names[*i as usize]) != Some(Place { strand, offset: *i })
        };
        (from..names.len() as u32).filter(lost).map(|i| i - from).collect()
    }

    /// Strands with blocks that nobody holds, in the order in which they are to go.
    pub fn ghosts(&self) -> Vec<u32> {
        let waits = |(s, g, _): &&(u32, u32, u32)| *g == self.generation(*s);
        self.w.ghosts.iter().filter(waits).map(|(s, _, _)| *s).collect()
    }
}

impl Forest {
    /// What is known of a strand. `None` where it is no more.
    pub fn facts<'g>(&'g self, guard: &'g Guard, strand: u32) -> Option<Facts<'g>> {
        let head = self.head(strand)?;
        let look = head.look(guard)?;
        Some(Facts {
            at: head.parent(),
            generation: self.generation(strand),
            seed: head.seed.load(Ordering::Relaxed),
            block_size: head.block_size.load(Ordering::Relaxed),
            depth: head.depth(),
            locals: look.locals(),
            names: self.names(look),
            keys: if self.is_keyed() { look.keys() } else { &[] },
        })
    }

    /// Whether blocks have request keys here.
    fn is_keyed(&self) -> bool {
        self.keyed && self.kind == Kind::Chained
    }
}
