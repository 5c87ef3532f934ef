//! S3-FIFO: a small queue for newcomers, a main queue for what was used again or has returned.
//!
//! A block that is no leaf when its turn comes goes to the end of its queue: its children leave
//! first.

use std::collections::VecDeque;

use super::super::blocks::{Block, No, flag};
use super::super::random::Random;
use super::super::{Owner, Tier};
use super::{Order, View};

/// The part of the tier that newcomers get: one in this many.
const SMALL: usize = 10;
/// Accesses are counted up to this.
const MOST: u8 = 3;

const ABSENT: u8 = 0;
const IN_SMALL: u8 = 1 << 4;
const IN_MAIN: u8 = 2 << 4;
const COUNT: u8 = 0xf;

/// See the module.
#[derive(Debug)]
pub(super) struct S3Fifo {
    small: VecDeque<No>,
    main: VecDeque<No>,
    small_blocks: usize,
    /// By number: the queue it is in, and accesses since it came there.
    state: Vec<u8>,
}

impl S3Fifo {
    pub fn new(capacity: u32) -> S3Fifo {
        S3Fifo {
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_blocks: (capacity as usize / SMALL).max(1),
            state: Vec::new(),
        }
    }
}

impl Order for S3Fifo {
    fn entered(&mut self, no: No, block: &Block) {
        let at = no as usize;
        if self.state.len() <= at {
            self.state.resize(at + 1, ABSENT);
        }
        if self.state[at] != ABSENT {
            return;
        }
        if block.has(flag::RETURNED) {
            self.state[at] = IN_MAIN;
            self.main.push_back(no);
        } else {
            self.state[at] = IN_SMALL;
            self.small.push_back(no);
        }
    }

    fn touched(&mut self, no: No) {
        if let Some(state) = self.state.get_mut(no as usize)
            && *state != ABSENT
            && *state & COUNT < MOST
        {
            *state += 1;
        }
    }

    fn left(&mut self, no: No) {
        if let Some(state) = self.state.get_mut(no as usize)
            && *state != ABSENT
        {
            // Only a copy that was lost gets here: a victim has left its queue already.
            *state = ABSENT;
            self.small.retain(|&n| n != no);
            self.main.retain(|&n| n != no);
        }
    }

    fn victim(&mut self, view: &View<'_>, owner: Option<Owner>, _random: &mut Random) -> Option<No> {
        debug_assert!(matches!(view.tier, Tier::Cpu | Tier::Disk));
        if view.blocks.leaves(view.tier, owner) == 0 {
            return None;
        }
        let may = |no: No| {
            view.blocks.is_leaf(no, view.tier) && owner.is_none_or(|o| view.blocks.get(no).owner == o)
        };
        // Each entry comes up at most once for every access it has left, and once to go.
        let turns = (self.small.len() + self.main.len()) * (usize::from(MOST) + 2);
        for turn in 0..turns {
            let from_small = !self.small.is_empty()
                && (self.small.len() >= self.small_blocks || self.main.is_empty() || turn > turns / 2);
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let Some(no) = queue.pop_front() else { continue };
            let state = &mut self.state[no as usize];
            if from_small && *state & COUNT > 0 {
                *state = IN_MAIN;
                self.main.push_back(no);
            } else if *state & COUNT > 0 {
                *state -= 1;
                self.main.push_back(no);
            } else if may(no) {
                *state = ABSENT;
                return Some(no);
            } else {
                let queue = if from_small { &mut self.small } else { &mut self.main };
                queue.push_back(no);
            }
        }
        None
    }

    fn memory(&self) -> usize {
        (self.small.capacity() + self.main.capacity()) * size_of::<No>() + self.state.capacity()
    }
}
