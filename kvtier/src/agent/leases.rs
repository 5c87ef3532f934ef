//! Which leases does a session hold? Each ends when it is released, when its time is up, or with
//! the session.

use std::collections::VecDeque;

use super::frame::Leased;

#[derive(Debug)]
struct Place<L> {
    /// Counts the leases that had this place, so that an old one names nothing.
    turn: u32,
    held: Option<L>,
}

/// Leases of one session, `L` each. Time comes in as milliseconds.
#[derive(Debug)]
pub(super) struct Leases<L> {
    most: usize,
    ttl: u64,
    places: Vec<Place<L>>,
    free: Vec<u32>,
    /// All have the same time to live, so they end in the order they were given.
    ends: VecDeque<(u64, u32, u32)>,
}

impl<L> Leases<L> {
    pub fn new(most: usize, ttl: u64) -> Leases<L> {
        Leases { most, ttl, places: Vec::new(), free: Vec::new(), ends: VecDeque::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Keeps a lease of the block at `offset`. `None` where there are too many.
    pub fn give(&mut self, lease: L, offset: u64, now: u64) -> Option<Leased> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.places.len() < self.most => {
                self.places.push(Place { turn: 0, held: None });
                self.places.len() as u32 - 1
            }
            None => return None,
        };
        let entry = &mut self.places[place as usize];
        entry.turn = entry.turn.wrapping_add(1);
        entry.held = Some(lease);
        self.ends.push_back((now + self.ttl, place, entry.turn));
        Some(Leased { offset, place, turn: entry.turn })
    }

    /// Ends a lease. False where it had ended, or never was.
    pub fn release(&mut self, leased: Leased) -> bool {
        let Some(entry) = self.places.get_mut(leased.place as usize) else { return false };
        if entry.turn != leased.turn || entry.held.take().is_none() {
            return false;
        }
        self.free.push(leased.place);
        self.trim();
        true
    }

    /// Ends those whose time is up, and says how many. They end a quarter of their time later
    /// than the client was told, for its clock need not go as this one.
    pub fn expire(&mut self, now: u64) -> usize {
        let mut ended = 0;
        while let Some(&(end, place, turn)) = self.ends.front() {
            if end + self.ttl / 4 > now {
                break;
            }
            self.ends.pop_front();
            ended += usize::from(self.release(Leased { offset: 0, place, turn }));
        }
        ended
    }

    /// Forgets the ends of what was released early, so that they are no more than twice the leases.
    fn trim(&mut self) {
        if self.ends.len() > 2 * self.len() + 16 {
            let places = &self.places;
            self.ends.retain(|&(_, place, turn)| {
                let entry = &places[place as usize];
                entry.turn == turn && entry.held.is_some()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_lease_ends_once_and_its_place_has_another_turn() {
        let mut leases = Leases::new(1, 100);
        let block = Rc::new(());
        let first = leases.give(block.clone(), 4096, 0).unwrap();
        assert_eq!(leases.give(block.clone(), 0, 0), None);
        assert!(leases.release(first));
        assert!(!leases.release(first));
        let second = leases.give(block.clone(), 8192, 0).unwrap();
        assert_eq!((second.place, second.turn), (first.place, first.turn + 1));
        assert!(!leases.release(first));
        assert!(!leases.release(Leased { offset: 0, place: 7, turn: 1 }));
        assert_eq!((leases.len(), Rc::strong_count(&block)), (1, 2));
    }

    #[test]
    fn time_ends_those_that_were_not_released() {
        let mut leases = Leases::new(8, 100);
        let (a, b) = (leases.give((), 0, 0).unwrap(), leases.give((), 0, 0).unwrap());
        leases.give((), 0, 50).unwrap();
        assert!(leases.release(a));
        assert_eq!(leases.expire(124), 0);
        assert_eq!(leases.expire(125), 1);
        assert!(!leases.release(b));
        assert_eq!((leases.expire(175), leases.len()), (1, 0));
    }

    #[test]
    fn ends_of_released_leases_do_not_pile_up() {
        let mut leases = Leases::new(4, u64::MAX / 4);
        for now in 0..1000 {
            let leased = leases.give((), 0, now).unwrap();
            assert!(leases.release(leased));
        }
        assert!(leases.ends.len() <= 17, "{}", leases.ends.len());
    }
}
