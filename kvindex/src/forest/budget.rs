//! What goes when the index is over its budget: the ends of the strands that were in use longest ago.
//!
//! Only ends can go without a hole, and a sample of strands finds an old one without keeping them in
//! order. Whoever held what goes is told, so that it is counted as lost and no answer counts it as
//! held.

use std::sync::atomic::Ordering;

use super::*;

/// Strands looked at for one to drop.
const SAMPLE: u32 = 12;

/// Blocks of a holder that were dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub slot: Slot,
    pub strand: u32,
    pub span: Span,
}

impl Pen<'_> {
    /// Picks the end of an old strand. `None` where nothing was found that can go.
    pub fn pick_old(&mut self) -> Option<(u32, Span)> {
        let strands = self.forest.heads.len() as u32;
        let mut best: Option<(u32, u32)> = None;
        for _ in 0..SAMPLE * 8 {
            self.w.random = self.w.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let strand = ((self.w.random >> 33) % u64::from(strands)) as u32;
            let meta = self.w.meta.get(strand as usize).copied().unwrap_or_default();
            if !meta.live || meta.children > 0 {
                continue;
            }
            let head = self.forest.head(strand)?;
            let now = self.forest.clock.load(Ordering::Relaxed);
            let age = now.wrapping_sub(head.touched.load(Ordering::Relaxed));
            if best.is_none_or(|(_, b)| age > b) {
                best = Some((strand, age));
            }
        }
        let (strand, _) = best?;
        let look = self.forest.look(self.guard, strand)?;
        // Half of a long one: its beginning is shared more often and asked for first.
        let keep = if look.len > 64 { look.len / 2 } else { 0 };
        Some((strand, (keep, look.len)))
    }

    /// Everyone who holds anything of `span`, each once for every plane and stretch.
    pub fn holders_of(&self, strand: u32, (from, to): Span) -> Vec<Loss> {
        let mut out = Vec::new();
        if let Some(look) = self.forest.look(self.guard, strand) {
            look.each(|_, slot, (a, b)| {
                let span = (a.max(from), b.min(to));
                if span.0 < span.1 && !out.iter().any(|l: &Loss| l.slot == slot) {
                    out.push(Loss { slot, strand, span: (from, to) });
                }
            });
        }
        out
    }

    /// Takes all copies of `loss` out, in every plane.
    pub fn lose(&mut self, loss: Loss) {
        self.drop_all(loss.slot, loss.strand, loss.span, |_| true);
    }

    /// Lets what nobody holds at a strand's end go at once.
    pub fn drop_end(&mut self, strand: u32) {
        self.settle(strand);
    }

    /// Whether there are ghosts to let go first.
    pub fn has_ghosts(&self) -> bool {
        !self.w.ghosts.is_empty()
    }
}
