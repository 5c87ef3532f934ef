//! The leaf least likely to be used again while it would stay, of a sample.
//!
//! Worth neither falls nor rises with age alone, so no list can be kept in its order. A sample
//! per victim, and the best of earlier samples, come close to looking at all leaves.

use super::super::Owner;
use super::super::blocks::{NONE, No};
use super::super::random::Random;
use super::{Order, View};

/// Leaves drawn per victim.
const SAMPLE: usize = 8;
/// Leaves that lost a comparison only just, compared again.
const KEPT: usize = 16;

/// A leaf as it was when drawn.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    worth: f32,
    no: No,
    last: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Hazard {
    /// The least worth last.
    drawn: Vec<Drawn>,
    /// The last victim's parent: likely a leaf now, and hardly worth more than its child was.
    above: Option<No>,
}

impl Hazard {
    fn draw(&mut self, view: &View<'_>, no: No) {
        let block = view.blocks.get(no);
        let worth = view.worth.of(block.past, view.now.wrapping_sub(block.last));
        let drawn = Drawn { worth, no, last: block.last };
        if self.drawn.iter().any(|d| d.no == no && d.last == block.last) {
            return;
        }
        // Of equal worth, the older one is drawn out first.
        let before = |d: &Drawn| d.worth.total_cmp(&worth).then(d.last.cmp(&block.last)).is_gt();
        let at = self.drawn.partition_point(before);
        self.drawn.insert(at, drawn);
    }
}

impl Order for Hazard {
    fn victim(&mut self, view: &View<'_>, owner: Option<Owner>, random: &mut Random) -> Option<No> {
        let (blocks, tier) = (view.blocks, view.tier);
        let leaves = blocks.leaves(tier, owner);
        if let Some(above) = self.above.take().filter(|&no| no < blocks.span() && blocks.is_leaf(no, tier)) {
            self.draw(view, above);
        }
        for draw in 0..leaves.min(SAMPLE) {
            // All of a few, some of many.
            let place = if leaves <= SAMPLE { draw } else { random.below(leaves as u32) as usize };
            if let Some(no) = blocks.leaf(tier, owner, place) {
                self.draw(view, no);
            }
        }
        // A number may stand for another block by now, or for one that was used since.
        let usable = |d: &Drawn| {
            let leaf = d.no < blocks.span() && blocks.is_leaf(d.no, tier);
            leaf && blocks.get(d.no).last == d.last && owner.is_none_or(|o| blocks.get(d.no).owner == o)
        };
        let mut victim = None;
        while victim.is_none()
            && let Some(drawn) = self.drawn.pop()
        {
            victim = Some(drawn).filter(usable).map(|d| d.no);
        }
        let over = self.drawn.len().saturating_sub(KEPT);
        self.drawn.drain(..over);
        self.above = Some(blocks.get(victim?).parent).filter(|&parent| parent != NONE);
        victim
    }
}
