//! How much of a plain client's speed is left? `tests/s3/run.sh bench` prints it.
//!
//! Both write and read the same objects on the same server in turn, with no relay between. A round is
//! valid if every block came and was what had been put, which the rig checks.

use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload};

use super::{BYTES, at, client};
use crate::rig::Rig;
use crate::s3::server::Server;

const ROUNDS: usize = 40;
/// Blocks of one object: 1 MiB.
const TOGETHER: u8 = 4;

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() / 2]
}

fn timed<T>(into: &mut Vec<Duration>, what: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = what();
    into.push(began.elapsed());
    done
}

#[test]
#[ignore = "measures; run by tests/s3/run.sh bench"]
fn shared_storage_beside_a_plain_client() {
    let Some(server) = Server::start() else { return };
    let rig = Rig::new(client(&at(server.port())), BYTES);
    let [mut puts, mut plain_puts, mut gets, mut plain_gets] = [const { Vec::new() }; 4];
    let mut bytes = vec![0; usize::from(TOGETHER) * BYTES];
    for round in 0..ROUNDS {
        let node = rig.node();
        let numbers: Vec<u8> = (1..=TOGETHER).map(|n| n + TOGETHER * (round % 20) as u8).collect();
        let payloads: Vec<Vec<u8>> = numbers.iter().map(|n| rig.payload(*n)).collect();
        let blocks: Vec<_> = numbers.iter().copied().zip(payloads.iter().map(Vec::as_slice)).collect();
        let there = timed(&mut puts, || rig.put_payloads(&node, &blocks));
        assert_eq!(there, [true; TOGETHER as usize]);
        let whole: Vec<u8> = payloads.concat();
        let path = Path::from(format!("plain/{round}"));
        timed(&mut plain_puts, || {
            let put = rig.store.put_opts(&path, PutPayload::from(whole.clone()), PutMode::Create.into());
            rig.runtime.block_on(put).unwrap()
        });
        let reads = timed(&mut gets, || rig.get_into(&node, &numbers, &mut bytes));
        assert!(reads.iter().all(|read| *read == kvtier::store::Read::Hit));
        assert_eq!(bytes, whole);
        let plain = timed(&mut plain_gets, || {
            rig.runtime.block_on(async { rig.store.get(&path).await.unwrap().bytes().await.unwrap() })
        });
        assert_eq!(plain, whole);
        // The next round puts it again, and not only finds it there.
        rig.objects().iter().for_each(|object| rig.remove(object));
    }
    println!("objects of {} KiB, {ROUNDS} rounds, medians:", bytes.len() >> 10);
    for (what, ours, plain) in [("put", puts, plain_puts), ("get", gets, plain_gets)] {
        let (ours, plain) = (median(ours), median(plain));
        let part = plain.as_secs_f64() / ours.as_secs_f64() * 100.0;
        println!("{what}: {ours:?}, plain client {plain:?}: {part:.0} % of its speed (goal 70 %)");
    }
}
