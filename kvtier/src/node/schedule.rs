//! Which move is made next?
//!
//! Pure: moves go in in the order in which they were decided, and come out when they may begin.
//!
//! ```text
//!   add ──▶ per block: one under way, the others wait ──▶ lanes ──▶ begin ──▶ (I/O) ──▶ done
//! ```
//!
//! Moves of one block follow each other: a copy is dropped only when the copy before it is made,
//! so a block that is on its way can be read where it was. Moves of different blocks do not wait
//! for each other; room for a copy that comes up is the tier's own business, which has a few slots
//! more than the planner knows of.

use std::collections::{HashMap, VecDeque};

use crate::policy::{BlockId, Move, Tier};

/// Moves that compete for the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Copies to RAM: a request waits for them.
    Up,
    /// Copies to disk.
    Down,
    /// Copies to shared storage.
    Out,
    /// Copies given up. No I/O.
    Drop,
}

impl Lane {
    /// Those that need I/O, the most urgent first.
    pub const IO: [Lane; 3] = [Lane::Up, Lane::Down, Lane::Out];

    /// The block that a move is about, and where it competes.
    fn of(step: Move) -> Option<(BlockId, Lane)> {
        match step {
            Move::Copy { id, to: Tier::Cpu, .. } => Some((id, Lane::Up)),
            Move::Copy { id, to: Tier::Disk, .. } => Some((id, Lane::Down)),
            Move::Copy { id, to: Tier::Shared, .. } => Some((id, Lane::Out)),
            Move::Drop { id, .. } => Some((id, Lane::Drop)),
            Move::Take { .. } => None,
        }
    }
}

/// Moves that wait for those before them.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Blocks with a move that is ready or under way, and what follows it.
    busy: HashMap<BlockId, VecDeque<Move>>,
    ready: [VecDeque<Move>; 4],
    under_way: [usize; 4],
}

impl Schedule {
    /// Takes a move up. One that takes a block from an engine is made by who has its bytes; see
    /// [`hold`](Self::hold).
    pub fn add(&mut self, step: Move) {
        let Some((id, lane)) = Lane::of(step) else { return };
        match self.busy.get_mut(&id) {
            Some(after) => after.push_back(step),
            None => {
                self.busy.insert(id, VecDeque::new());
                self.ready[lane as usize].push_back(step);
            }
        }
    }

    /// Lets moves of a block wait until [`release`](Self::release). False where some are ready or
    /// under way.
    pub fn hold(&mut self, id: BlockId) -> bool {
        let idle = !self.busy.contains_key(&id);
        if idle {
            self.busy.insert(id, VecDeque::new());
        }
        idle
    }

    /// Ends a hold. Whether nothing follows.
    pub fn release(&mut self, id: BlockId) -> bool {
        let Some(after) = self.busy.get_mut(&id) else { return true };
        let next = after.pop_front();
        match next.and_then(|step| Some((step, Lane::of(step)?.1))) {
            Some((step, lane)) => self.ready[lane as usize].push_back(step),
            None => drop(self.busy.remove(&id)),
        }
        next.is_none()
    }

    /// Up to `most` moves that may begin, of a lane in which no more than `at_once` may be under
    /// way. Each is to be ended with [`done`](Self::done).
    pub fn begin(&mut self, lane: Lane, most: usize, at_once: usize) -> Vec<Move> {
        let at = lane as usize;
        let room = at_once.saturating_sub(self.under_way[at]);
        let count = most.min(room).min(self.ready[at].len());
        self.under_way[at] += count;
        self.ready[at].drain(..count).collect()
    }

    /// A move is made, or cannot be. What follows it may begin; whether that is nothing.
    pub fn done(&mut self, step: Move) -> bool {
        let Some((id, lane)) = Lane::of(step) else { return true };
        self.under_way[lane as usize] -= 1;
        self.release(id)
    }

    /// Whether anything is under way for a block.
    pub fn is_busy(&self, id: BlockId) -> bool {
        self.busy.contains_key(&id)
    }

    /// Moves of a lane that are ready or under way.
    pub fn len(&self, lane: Lane) -> usize {
        self.ready[lane as usize].len() + self.under_way[lane as usize]
    }

    /// Whether nothing is ready or under way.
    pub fn is_idle(&self) -> bool {
        self.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BlockId = BlockId(1);
    const B: BlockId = BlockId(2);

    fn copy(id: BlockId, from: Tier, to: Tier) -> Move {
        Move::Copy { id, from, to }
    }

    #[test]
    fn a_copy_is_dropped_when_the_one_before_it_is_made() {
        let mut schedule = Schedule::default();
        let (down, gone) = (copy(A, Tier::Cpu, Tier::Disk), Move::Drop { id: A, from: Tier::Cpu });
        schedule.add(down);
        schedule.add(gone);
        assert_eq!(schedule.begin(Lane::Drop, 9, 9), []);
        assert_eq!(schedule.begin(Lane::Down, 9, 9), [down]);
        assert_eq!(schedule.begin(Lane::Drop, 9, 9), []);
        schedule.done(down);
        assert_eq!(schedule.begin(Lane::Drop, 9, 9), [gone]);
        schedule.done(gone);
        assert!(schedule.is_idle());
    }

    #[test]
    fn other_blocks_do_not_wait_and_a_lane_has_its_bound() {
        let mut schedule = Schedule::default();
        let moves = [A, B, BlockId(3)].map(|id| copy(id, Tier::Disk, Tier::Cpu));
        moves.into_iter().for_each(|step| schedule.add(step));
        assert_eq!(schedule.begin(Lane::Up, 9, 2), moves[..2]);
        assert_eq!(schedule.begin(Lane::Up, 9, 2), []);
        schedule.done(moves[1]);
        assert_eq!(schedule.begin(Lane::Up, 9, 2), moves[2..]);
        assert!(schedule.is_busy(A) && !schedule.is_busy(B));
    }

    #[test]
    fn what_follows_a_block_that_is_being_taken_waits_for_it() {
        let mut schedule = Schedule::default();
        let down = copy(A, Tier::Cpu, Tier::Disk);
        assert!(schedule.hold(A) && !schedule.hold(A));
        schedule.add(down);
        assert_eq!(schedule.begin(Lane::Down, 9, 9), []);
        assert!(!schedule.release(A));
        assert_eq!(schedule.begin(Lane::Down, 9, 9), [down]);
        assert_eq!(schedule.len(Lane::Down), 1);
        assert!(schedule.done(down) && !schedule.is_busy(A));
    }
}
