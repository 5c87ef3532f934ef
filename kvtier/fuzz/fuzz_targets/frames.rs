//! Reads anything as a row of frames, each behind two bytes of length, and lets one session follow
//! them. What can be read is written again to the same meaning; jobs that begin are ended.

#![no_main]

use kvtier::agent::{Bounds, Outcome, Session, Step, decode_answer, decode_request, encode_request};
use kvtier::node::PoolId;
use kvtier::policy::Owner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut session: Session<()> = Session::new(Bounds { jobs: 8, leases: 8, ..Bounds::default() });
    let mut left = bytes;
    while let [low, high, rest @ ..] = left {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (frame, rest) = rest.split_at(rest.len().min(length));
        left = rest;
        let _ = decode_answer(frame);
        let Ok(request) = decode_request(frame) else { continue };
        assert_eq!(decode_request(&encode_request(&request)).as_ref(), Ok(&request));
        match session.receive(&request, 0) {
            Err(_) | Ok(Step::Goodbye) => return,
            Ok(Step::Open(_)) => session.opened(PoolId(0), Owner(0)),
            Ok(Step::Run(work)) => {
                assert_eq!(work.keys.len(), work.slots.len());
                if work.job % 2 == 0 {
                    session.ended(work.job, vec![Outcome::Ok; work.keys.len()], 0);
                }
            }
            Ok(_) => {}
        }
        assert!(session.running() <= 8);
    }
});
