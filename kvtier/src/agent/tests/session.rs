//! What follows from requests, without sockets.

use super::super::frame::{Answer, Keys, Leased, Outcome, Reason, Request, SlotList};
use super::super::session::{Bounds, Session, Step, Way};
use super::{SLOTS, hello, key, keys};
use crate::node::PoolId;
use crate::policy::Owner;
use crate::store::StoreKey;

const BOUNDS: Bounds = Bounds { jobs: 4, leases: 2, lease_ms: 1000, region_bytes: 1 << 20 };

/// A session that has been welcomed.
pub fn ready() -> Session<()> {
    let mut session = Session::new(BOUNDS);
    let step = session.receive(&Request::Hello(hello(SLOTS)), 0);
    assert!(matches!(step, Ok(Step::Open(_))));
    session.opened(PoolId(3), Owner(1));
    session
}

fn slots(slots: &[u32]) -> Vec<u8> {
    slots.iter().flat_map(|slot| slot.to_le_bytes()).collect()
}

fn load(session: &mut Session<()>, job: u64, to: &[u32]) -> Result<Step, Reason> {
    let (keys, slots) = (keys(0..to.len() as u32), slots(to));
    let request = Request::Load { job, keys: Keys(&keys), slots: SlotList(&slots) };
    session.receive(&request, 0).map_err(|refusal| refusal.reason)
}

fn store(session: &mut Session<()>, job: u64, from: &[u32]) -> Result<Step, Reason> {
    let (keys, slots) = (keys(0..from.len() as u32), slots(from));
    let request = Request::Store { job, after: None, keys: Keys(&keys), slots: SlotList(&slots) };
    session.receive(&request, 0).map_err(|refusal| refusal.reason)
}

fn polled(session: &mut Session<()>) -> Vec<u64> {
    match session.receive(&Request::Poll { seq: 1 }, 0) {
        Ok(Step::Answer(Answer::Done { ended, .. })) => ended.iter().map(|end| end.job).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hello_comes_first_and_once_and_has_the_right_version() {
    let reason =
        |session: &mut Session<()>, request: &Request<'_>| session.receive(request, 0).unwrap_err().reason;
    let mut fresh = Session::new(BOUNDS);
    assert_eq!(reason(&mut fresh, &Request::Poll { seq: 1 }), Reason::Order);
    let mut other = hello(SLOTS);
    other.version = 2;
    assert_eq!(reason(&mut fresh, &Request::Hello(other)), Reason::Version);
    assert!(fresh.receive(&Request::Hello(hello(SLOTS)), 0).is_ok());
    assert_eq!(reason(&mut fresh, &Request::Poll { seq: 1 }), Reason::Order);
    assert_eq!(reason(&mut ready(), &Request::Hello(hello(SLOTS))), Reason::Order);
    assert_eq!(ready().receive(&Request::Goodbye, 0), Ok(Step::Goodbye));
    for (slots, stride) in [(u32::MAX, 4096), (4, 4095)] {
        let hello = super::Hello { slots, stride, ..hello(SLOTS) };
        assert_eq!(reason(&mut Session::new(BOUNDS), &Request::Hello(hello)), Reason::Region);
    }
}

#[test]
fn a_lookup_names_blocks_of_the_model_and_its_groups() {
    let mut session = ready();
    let two = keys([1, 2]);
    let step = session.receive(&Request::Lookup { seq: 9, keys: Keys(&two) }, 0);
    let wanted = [1, 2].map(|n| StoreKey::new(7, 0, &key(n)[..32]).unwrap());
    assert_eq!(step, Ok(Step::Lookup(9, wanted.to_vec())));
    let reason = |bytes: &[u8]| {
        let refusal = ready().receive(&Request::Lookup { seq: 9, keys: Keys(bytes) }, 0).unwrap_err();
        refusal.reason
    };
    assert_eq!(reason(&two[1..]), Reason::Frame);
    let mut group = key(1);
    group[35] = 1;
    assert_eq!(reason(&group), Reason::Name);
    assert_eq!(reason(&keys(0..4097)), Reason::Frame);
}

#[test]
fn a_slot_is_written_by_one_job_and_read_by_none_meanwhile() {
    let mut session = ready();
    assert!(load(&mut session, 1, &[0, 1]).is_ok());
    assert_eq!(load(&mut session, 2, &[1]), Err(Reason::Slot));
    assert_eq!(store(&mut session, 2, &[0]), Err(Reason::Slot));
    assert!(store(&mut session, 2, &[2]).is_ok() && store(&mut session, 3, &[2]).is_ok());
    assert!(session.ended(2, vec![Outcome::Ok], 0));
    assert_eq!(load(&mut session, 4, &[2]), Err(Reason::Slot));
    assert!(!session.ended(3, vec![Outcome::Ok], 0));
    assert!(matches!(load(&mut session, 4, &[2]), Ok(Step::Run(work)) if work.way == Way::Load));
    assert_eq!(load(&mut ready(), 1, &[5, 5]), Err(Reason::Slot));
    assert_eq!(load(&mut ready(), 1, &[SLOTS]), Err(Reason::Slot));
    assert_eq!(store(&mut ready(), 1, &[u32::MAX]), Err(Reason::Slot));
    assert_eq!(load(&mut ready(), 1, &[]), Err(Reason::Frame));
}

#[test]
fn jobs_are_bounded_until_they_are_polled_and_end_once() {
    let mut session = ready();
    for job in 0..4 {
        assert!(load(&mut session, job, &[job as u32]).is_ok());
    }
    assert_eq!(load(&mut session, 4, &[4]), Err(Reason::TooMany));
    assert!(session.ended(2, vec![Outcome::Ok], 5));
    assert!(!session.ended(2, vec![Outcome::Ok], 5));
    assert!(!session.ended(99, vec![Outcome::Ok], 5));
    assert_eq!(load(&mut session, 4, &[4]), Err(Reason::TooMany));
    assert_eq!(polled(&mut session), [2]);
    assert!(polled(&mut session).is_empty());
    assert!(load(&mut session, 4, &[4]).is_ok());
    session.ended(4, vec![Outcome::Ok], 5);
    polled(&mut session);
    assert_eq!(load(&mut session, 3, &[9]), Err(Reason::Name));
    assert_eq!(session.running(), 3);
}

#[test]
fn a_chain_goes_on_behind_the_block_named() {
    let mut session = ready();
    let (after, one, at) = (key(9), key(1), slots(&[1]));
    let request =
        Request::Store { job: 1, after: Some(Keys(&after)), keys: Keys(&one), slots: SlotList(&at) };
    let Ok(Step::Run(work)) = session.receive(&request, 0) else { panic!() };
    assert_eq!(work.way, Way::Store(Some(StoreKey::new(7, 0, &after[..32]).unwrap().id())));
    let two = keys([1, 2]);
    let request = Request::Store { job: 2, after: Some(Keys(&two)), keys: Keys(&one), slots: SlotList(&at) };
    assert_eq!(session.receive(&request, 0).unwrap_err().reason, Reason::Name);
}

#[test]
fn leases_are_bounded_and_a_release_of_none_is_counted() {
    let mut session = ready();
    let first = session.lease((), 4096, 0).unwrap();
    assert!(session.lease((), 8192, 0).is_some() && session.lease((), 0, 0).is_none());
    let packed = [first.pack(), first.pack(), Leased { turn: 9, ..first }.pack()].concat();
    assert_eq!(session.receive(&Request::Release { leases: &packed }, 0), Ok(Step::Nothing));
    assert_eq!((session.leases(), session.take_stale(), session.take_stale()), (1, 2, 0));
    let cut = session.receive(&Request::Release { leases: &packed[1..] }, 0);
    assert_eq!(cut.unwrap_err().reason, Reason::Frame);
    assert_eq!((session.expire(1249), session.expire(1250)), (0, 1));
}
