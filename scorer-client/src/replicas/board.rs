//! What is known of every replica, and whom a question goes to.
//!
//! Pure: addresses, answers, failures and health come in with the time; out come decisions. What is
//! done about them is `set.rs`'s and `follow.rs`'s business.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerRule};
use super::hedge::{Hedge, HedgeAfter};
use super::pick::{self, Seen};

/// How much of a new latency goes into the smoothed one.
const FRESH: f64 = 0.1;
/// What is known of a latency counts half after this long: who was slow is tried again.
const HALVES: Duration = Duration::from_secs(1);

/// All replicas.
#[derive(Debug)]
pub(crate) struct Board {
    rule: BreakerRule,
    hedge: Hedge,
    seats: Vec<Seat>,
    turn: usize,
}

#[derive(Debug)]
struct Seat {
    address: SocketAddr,
    breaker: Breaker,
    serves: bool,
    in_flight: u32,
    /// What answers took, smoothed, and when the last one came.
    takes: Option<(Duration, Instant)>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answers: u64,
    failures: u64,
    opened: u64,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order; the next one when one fails.
    pub order: Vec<SocketAddr>,
    /// The next one also when this much time has passed.
    pub hedge_after: Option<Duration>,
}

/// Which replicas came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub came: Vec<SocketAddr>,
    pub went: Vec<SocketAddr>,
}

/// What is known of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it says that it serves, or has not said anything yet.
    pub serves: bool,
    /// Whether nobody asks it now, because it did not answer.
    pub open: bool,
    /// What an answer takes, smoothed; zero before the first.
    pub takes: Duration,
    /// Questions it was asked and has not answered yet.
    pub in_flight: u32,
    /// Questions that it answered, and that it did not.
    pub answers: u64,
    /// See `answers`.
    pub failures: u64,
    /// How often it was found not to answer, and left alone.
    pub opened: u64,
}

impl Board {
    /// Nobody yet.
    pub(crate) fn new(rule: BreakerRule, hedge: HedgeAfter, deadline: Duration) -> Board {
        Board { rule, hedge: Hedge::new(hedge, deadline), seats: Vec::new(), turn: 0 }
    }

    /// These are the replicas now. What is known of those that stay, stays.
    pub(crate) fn replace(&mut self, addresses: &[SocketAddr]) -> Change {
        let mut change = Change::default();
        self.seats.retain(|s| {
            let stays = addresses.contains(&s.address);
            if !stays {
                change.went.push(s.address);
            }
            stays
        });
        for address in addresses {
            if !self.seats.iter().any(|s| s.address == *address) {
                self.seats.push(Seat {
                    address: *address,
                    breaker: Breaker::new(self.rule),
                    serves: true,
                    in_flight: 0,
                    takes: None,
                    counts: Counts::default(),
                });
                change.came.push(*address);
            }
        }
        change
    }

    /// Whom the next question goes to.
    pub(crate) fn plan(&mut self, now: Instant) -> Plan {
        let hedge_after = self.hedge.asked();
        Plan { order: self.order(now), hedge_after }
    }

    /// Whom something that is in no hurry goes to.
    pub(crate) fn order(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.turn = self.turn.wrapping_add(1);
        let seen: Vec<Seen> = self.seats.iter().map(|s| s.seen(now)).collect();
        pick::order(&seen, self.turn).into_iter().map(|i| self.seats[i].address).collect()
    }

    /// Whether a second replica may be asked a question that is still open.
    pub(crate) fn may_hedge(&mut self) -> bool {
        self.hedge.spend()
    }

    /// A question goes to a replica.
    pub(crate) fn asked(&mut self, address: SocketAddr) {
        if let Some(seat) = self.seat(address) {
            seat.in_flight += 1;
        }
    }

    /// It was answered after so long.
    pub(crate) fn answered(&mut self, address: SocketAddr, took: Duration, now: Instant) {
        self.hedge.answered(took);
        if let Some(seat) = self.seat(address) {
            seat.in_flight = seat.in_flight.saturating_sub(1);
            seat.took(took, now);
            seat.counts.answers += 1;
            seat.breaker.answered();
        }
    }

    /// It was not. That says nothing of its speed: the breaker sees to it.
    pub(crate) fn failed(&mut self, address: SocketAddr, now: Instant) {
        if let Some(seat) = self.seat(address) {
            seat.in_flight = seat.in_flight.saturating_sub(1);
            seat.counts.failures += 1;
            seat.counts.opened += u64::from(seat.breaker.failed(now));
        }
    }

    /// Whether a replica is to be asked for its health before its turn.
    pub(crate) fn wants_probe(&self, address: SocketAddr, now: Instant) -> bool {
        self.seats.iter().any(|s| s.address == address && s.breaker.wants_probe(now))
    }

    /// A replica said whether it serves; `None` where it said nothing in time.
    pub(crate) fn health(&mut self, address: SocketAddr, serves: Option<bool>, now: Instant) {
        let Some(seat) = self.seat(address) else { return };
        match serves {
            Some(serves) => {
                seat.serves = serves;
                if seat.breaker.wants_probe(now) && seat.breaker.probed() {
                    // What it took before it fell silent says nothing of now.
                    seat.takes = None;
                }
            }
            None => seat.counts.opened += u64::from(seat.breaker.failed(now)),
        }
    }

    pub(crate) fn status(&self) -> Vec<ReplicaStatus> {
        let status = |s: &Seat| ReplicaStatus {
            address: s.address,
            serves: s.serves,
            open: s.breaker.is_open(),
            takes: s.takes.map_or(Duration::ZERO, |(takes, _)| takes),
            in_flight: s.in_flight,
            answers: s.counts.answers,
            failures: s.counts.failures,
            opened: s.counts.opened,
        };
        self.seats.iter().map(status).collect()
    }

    fn seat(&mut self, address: SocketAddr) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|s| s.address == address)
    }
}

impl Seat {
    /// Something took so long.
    fn took(&mut self, took: Duration, now: Instant) {
        let smoothed = self.takes.map_or(took, |(old, _)| old.mul_f64(1.0 - FRESH) + took.mul_f64(FRESH));
        self.takes = Some((smoothed, now));
    }

    fn seen(&self, now: Instant) -> Seen {
        let takes = self.takes.map(|(takes, at)| {
            takes.mul_f64(0.5f64.powf(now.saturating_duration_since(at).as_secs_f64() / HALVES.as_secs_f64()))
        });
        let (open, serves) = (self.breaker.is_open(), self.serves);
        Seen { open, serves, in_flight: self.in_flight, takes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn now() -> Instant {
        Instant::now()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn board(ports: &[u16]) -> Board {
        let mut board = Board::new(BreakerRule::default(), HedgeAfter::Learnt, 5 * MS);
        board.replace(&ports.iter().map(|p| at(*p)).collect::<Vec<_>>());
        board
    }

    #[test]
    fn who_stays_is_remembered_who_goes_is_not() {
        let mut b = board(&[1, 2]);
        for _ in 0..3 {
            b.asked(at(1));
            b.failed(at(1), now());
            b.asked(at(2));
            b.failed(at(2), now());
        }
        let change = b.replace(&[at(2), at(3)]);
        assert_eq!(change, Change { came: vec![at(3)], went: vec![at(1)] });
        assert_eq!(b.plan(now()).order, [at(3)]);
        b.replace(&[at(1), at(2)]);
        assert_eq!(b.plan(now()).order, [at(1)]);
    }

    #[test]
    fn questions_that_are_open_count_against_a_replica_until_they_end() {
        let mut b = board(&[1, 2]);
        for _ in 0..3 {
            b.asked(at(1));
        }
        for _ in 0..4 {
            assert_eq!(b.plan(now()).order, [at(2), at(1)]);
        }
        (0..3).for_each(|_| b.answered(at(1), MS / 2, now()));
        b.answered(at(2), MS / 2, now());
        let firsts: Vec<SocketAddr> = (0..2).map(|_| b.plan(now()).order[0]).collect();
        assert_ne!(firsts[0], firsts[1]);
    }

    #[test]
    fn who_was_slow_is_asked_again_after_a_while() {
        let then = now();
        let mut b = board(&[1, 2]);
        b.answered(at(1), 4 * MS, then);
        b.answered(at(2), MS, then);
        assert_eq!((b.plan(then).order[0], b.plan(then).order[0]), (at(2), at(2)));
        let later = then + Duration::from_millis(1100);
        b.answered(at(2), MS, later);
        let firsts = [b.plan(later).order[0], b.plan(later).order[0]];
        assert!(firsts.contains(&at(1)), "{firsts:?}");
    }

    #[test]
    fn a_silent_replica_is_left_alone_until_it_answers_a_probe_on_time() {
        let then = now();
        let mut b = board(&[1, 2]);
        (0..3).for_each(|_| b.health(at(1), None, then));
        assert_eq!(b.plan(now()).order, [at(2)]);
        assert!(!b.wants_probe(at(1), then + 99 * MS));
        // Too early to say anything of whether it is back.
        b.health(at(1), Some(true), then + 99 * MS);
        assert_eq!(b.plan(now()).order, [at(2)]);
        assert!(b.wants_probe(at(1), then + 100 * MS));
        b.health(at(1), Some(true), then + 100 * MS);
        assert_eq!(b.plan(now()).order.len(), 2);
    }

    #[test]
    fn a_replica_that_does_not_serve_is_asked_only_where_no_other_is() {
        let mut b = board(&[1, 2]);
        b.health(at(1), Some(false), now());
        assert_eq!(b.plan(now()).order, [at(2), at(1)]);
        assert_eq!(b.plan(now()).order, [at(2), at(1)]);
        b.replace(&[at(1)]);
        assert_eq!(b.plan(now()).order, [at(1)]);
    }

    #[test]
    fn what_is_said_of_a_replica_that_went_is_not_heard() {
        let mut b = board(&[1]);
        b.answered(at(9), MS, now());
        b.failed(at(9), now());
        b.health(at(9), None, now());
        assert_eq!(b.status().len(), 1);
        assert!(!b.wants_probe(at(9), now()));
    }
}
