//! A thousand pods that come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{NAMESPACE, kvd, pod};
use crate::apiserver::{Api, PODS as KIND};
use crate::support::Kvd;

const PODS: u32 = 1000;
const CHANGES_PER_SECOND: u32 = 100;
const SECONDS: u32 = 8;

/// Pods are at addresses of the loopback network where nobody listens: kvd opens, dials and closes real
/// sockets for them, and what is shown is that registrations and sockets come and go, not that events do.
fn place(n: u32, life: u32) -> Value {
    let mut pod = pod(&format!("p{n}"), &format!("127.2.{}.{}", n / 250, n % 250 + 1), [5557, 5558, 8000]);
    pod["metadata"]["uid"] = format!("{n}-{life}").into();
    pod
}

/// What kvd follows, by instance, and which of a pod's lives that is cannot be seen from outside.
fn followed(kvd: &Kvd) -> Vec<String> {
    super::publishers(kvd)
}

#[test]
fn a_thousand_pods_at_a_hundred_changes_a_second_are_followed_without_one_missed_or_left_over() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let mut here: BTreeMap<u32, u32> = BTreeMap::new();
    for n in 0..PODS {
        api.put(place(n, 0));
        here.insert(n, 0);
    }
    let mut kvd = kvd(folder.path(), &api, "");
    kvd.wait("everyone to be followed", || followed(&kvd).len() == PODS as usize);
    let open = |kvd: &Kvd| std::fs::read_dir(format!("/proc/{}/fd", kvd.pid())).expect("alive").count();
    kvd.wait("sockets to be there", || open(&kvd) > PODS as usize);
    let before = open(&kvd);

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % u64::from(below)) as u32
    };
    let (start, all) = (Instant::now(), CHANGES_PER_SECOND * SECONDS);
    for i in 0..all {
        // A quarter more addresses than pods, so that some are always away.
        let n = draw(PODS * 5 / 4);
        match (here.get(&n).copied(), draw(3)) {
            (None, _) => {
                here.insert(n, i);
                api.put(place(n, i));
            }
            (Some(_), 0) => {
                here.remove(&n);
                api.delete(NAMESPACE, &format!("p{n}"));
            }
            // Replaced at the same address, without kvd being told of the end of the old one.
            (Some(_), 1) => {
                here.insert(n, i);
                api.put(place(n, i));
            }
            (Some(life), _) => {
                let mut pod = place(n, life);
                pod["metadata"]["labels"]["touched"] = json!(i.to_string());
                api.put(pod);
            }
        }
        match i % 200 {
            60 => api.cut(),
            120 => {
                api.forget(i % 400 < 200);
                api.cut();
            }
            _ => {}
        }
        let due = start + Duration::from_secs_f64(f64::from(i + 1) / f64::from(CHANGES_PER_SECOND));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(u64::from(SECONDS) + 5), "the changes themselves took {took:?}");

    let mut expected: Vec<String> =
        here.keys().map(|n| format!("127.2.{}.{}:8000", n / 250, n % 250 + 1)).collect();
    expected.sort();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let now = followed(&kvd);
        if now == expected {
            break;
        }
        let (missed, left): (Vec<_>, Vec<_>) = (
            expected.iter().filter(|e| !now.contains(e)).collect(),
            now.iter().filter(|n| !expected.contains(n)).collect(),
        );
        assert!(Instant::now() < until, "missed {missed:?}, left over {left:?}, {}", kvd.get("/discovery"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let caught_up = start.elapsed() - took;
    let (lists, refused) = (api.asked(KIND).lists, api.asked(KIND).refused);
    assert!(lists > 1 && refused > 0, "the cluster forgot, and was listed again: {lists} {refused}");
    eprintln!(
        "{all} changes in {took:?}, caught up {caught_up:?} later; {lists} lists, {} followed, {} left, {} passes in vain",
        kvd.metric("kvd_discovery_followed_total"),
        kvd.metric("kvd_discovery_left_total"),
        kvd.metric("kvd_discovery_failures_total"),
    );
    // Nothing of who is gone is kept open.
    let each = before as f64 / f64::from(PODS);
    let most = (expected.len() as f64 * each * 1.1) as usize + 64;
    kvd.wait("sockets of who is gone to be closed", || open(&kvd) <= most);

    // And the same are known again after a crash.
    kvd.crash();
    api.down(true);
    let again = super::kvd(folder.path(), &api, "");
    assert_eq!(followed(&again), expected);
}
