//! Rules of pods by example, and reconciling against whatever may have happened.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::board::{Board, Seen, Standing, Word};
use super::pods::PodRules;
use super::reconcile::{Changes, decide};
use super::{file, watch};
use crate::ingest::testing::dialled;
use crate::publisher::{Followed, Origin, PublisherSpec, Source};

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "ns", "name": "p", "uid": "u", "annotations": {"kvd/model": "m"}},
        "spec": {"nodeName": "n", "containers": [{"name": "engine"}]},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "engine", "containerID": "c", "ready": true, "restartCount": 0,
                "image": "i", "imageID": "i"}],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

fn seen(change: impl FnOnce(&mut Value)) -> Seen {
    PodRules::default().see(&pod(change))
}

fn specs(change: impl FnOnce(&mut Value)) -> Vec<PublisherSpec> {
    seen(change).publishers.expect("nothing is wrong with it")
}

#[test]
fn a_pod_that_says_only_its_model_is_followed_at_the_usual_ports() {
    let all = specs(|_| {});
    let expected = PublisherSpec {
        block_size: Some(16),
        node: Some("n".into()),
        ..dialled("10.0.0.1:8000", "tcp://10.0.0.1:5557")
    };
    assert_eq!(all, [expected]);
    assert_eq!(seen(|_| {}).identity, "u/c");
    assert_eq!(watch::name(&pod(|_| {})), "ns/p");
}

#[test]
fn a_port_is_known_by_its_name_in_whatever_container() {
    let all = specs(|p| {
        p["spec"]["initContainers"] = json!([{"name": "proxy", "restartPolicy": "Always",
            "ports": [{"name": "kv-replay", "containerPort": 6000}]}]);
        p["spec"]["containers"][0]["ports"] = json!([{"name": "kv-events", "containerPort": 7000}]);
    });
    assert_eq!(all[0].endpoint.as_deref(), Some("tcp://10.0.0.1:7000"));
    assert_eq!(all[0].replay_endpoint.as_deref(), Some("tcp://10.0.0.1:6000"));
}

#[test]
fn ranks_count_up_from_the_first_ones_ports() {
    let all = specs(|p| {
        p["metadata"]["annotations"]["kvd/ranks"] = "2".into();
        p["metadata"]["annotations"]["kvd/replay-port"] = "5600".into();
    });
    let at =
        |s: &PublisherSpec| (s.instance_id.clone(), s.dp_rank, s.endpoint.clone(), s.replay_endpoint.clone());
    let (e, r) = ("tcp://10.0.0.1:5558".to_owned(), "tcp://10.0.0.1:5601".to_owned());
    assert_eq!(at(&all[1]), ("10.0.0.1:8000".into(), 1, Some(e), Some(r)), "one instance with two ranks");
    let all = specs(|p| p["metadata"]["annotations"]["kvd/serving-ports"] = "8000, 8001".into());
    assert_eq!(at(&all[1]).0, "10.0.0.1:8001", "an instance for each rank, as a pool's target ports are");
}

#[test]
fn ipv6_addresses_are_written_so_that_their_ports_can_be_found() {
    let all = specs(|p| p["status"]["podIP"] = "fd00::1".into());
    assert_eq!(
        (&*all[0].instance_id, all[0].endpoint.as_deref()),
        ("[fd00::1]:8000", Some("tcp://[fd00::1]:5557"))
    );
}

#[test]
fn annotations_win_over_labels_and_both_over_the_rules() {
    let all = specs(|p| {
        p["metadata"]["labels"] = json!({"kvd/block-size": "32", "kvd/tenant": "t"});
        p["metadata"]["annotations"]["kvd/block-size"] = "64".into();
    });
    assert_eq!((all[0].block_size, &*all[0].tenant_id), (Some(64), "t"));
}

#[test]
fn a_pod_that_is_over_has_nobody_and_one_that_is_not_ready_waits() {
    assert!(specs(|p| p["status"]["phase"] = "Failed".into()).is_empty(), "its address may be another's");
    assert!(specs(|p| p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()).is_empty());
    assert!(specs(|p| p["status"] = json!({})).is_empty(), "without an address");
    assert_eq!(seen(|p| p["status"]["conditions"] = json!([])).standing, Standing::Paused);
}

#[test]
fn what_is_wrong_with_a_pod_is_said_by_the_annotation_that_would_be_right() {
    let why = |key: &str, value: &str| {
        seen(|p| p["metadata"]["annotations"][key] = value.into()).publishers.expect_err("it is wrong")
    };
    assert!(why("kvd/model", "").contains("annotation kvd/model"));
    assert!(why("kvd/block-size", "16k").starts_with("kvd/block-size: \"16k\""));
    assert!(why("kvd/block-size", "0").contains("outside 1..65536"));
    assert!(why("kvd/ranks", "4000000000").contains("outside 1..256"));
    assert!(why("kvd/serving-ports", "80000").starts_with("kvd/serving-ports"));
    assert!(why("kvd/events-port", "-1").starts_with("kvd/events-port"));
    assert!(why("kvd/hash-algo", "md5").contains("hash-algo"));
    let over = seen(|p| {
        p["metadata"]["annotations"]["kvd/events-port"] = "65535".into();
        p["metadata"]["annotations"]["kvd/ranks"] = "2".into();
    });
    assert_eq!(over.publishers.expect_err("no such port"), "events port of rank 1: no port 65536");
}

fn thing(name: &str, identity: u32, standing: Standing) -> Seen {
    let spec = dialled(name, &format!("tcp://{name}:5557"));
    Seen { object: name.into(), identity: identity.to_string(), standing, publishers: Ok(vec![spec]) }
}

/// Who is followed, as a registry would keep it. Holders tell one following from the next.
#[derive(Default)]
struct Registry {
    followed: BTreeMap<String, (Followed, u32)>,
    holders: u32,
}

impl Registry {
    fn now(&self) -> Vec<Followed> {
        self.followed.values().map(|(f, _)| f.clone()).collect()
    }

    fn do_all(&mut self, changes: Changes) {
        for key in changes.leave {
            self.followed.remove(&key.instance_id);
        }
        for f in changes.follow {
            let name = f.spec.instance_id.clone();
            let same = self.followed.get(&name).filter(|(old, _)| old.spec == f.spec).map(|(_, h)| *h);
            self.holders += 1;
            self.followed.insert(name, (f, same.unwrap_or(self.holders)));
        }
    }

    fn holder(&self, name: &str) -> Option<u32> {
        self.followed.get(name).map(|(_, h)| *h)
    }
}

fn board() -> Board {
    let mut board = Board::default();
    board.add_feed(Source::Kubernetes, "pods".into());
    board
}

#[test]
fn nobody_leaves_before_everything_was_seen() {
    let (mut board, mut registry) = (board(), Registry::default());
    board.hear(0, Word::All(vec![thing("a", 1, Standing::Serving)]));
    registry.do_all(decide(&board.wanted(), &registry.now()));
    // After a restart.
    let mut board = self::board();
    board.hear(0, Word::Is(thing("b", 1, Standing::Serving)));
    assert!(decide(&board.wanted(), &registry.now()).leave.is_empty());
    board.hear(0, Word::All(vec![]));
    assert_eq!(decide(&board.wanted(), &registry.now()).leave.len(), 1);
    // Who is not looked for any more leaves at once.
    assert_eq!(decide(&Board::default().wanted(), &registry.now()).leave.len(), 1);
}

#[test]
fn what_people_registered_is_left_alone() {
    let mut board = board();
    board.hear(0, Word::All(vec![thing("a", 1, Standing::Serving)]));
    let by = |origin| [Followed { spec: dialled("a", "tcp://other:1"), origin }];
    assert!(decide(&board.wanted(), &by(Origin::Client)).is_empty());
    assert!(decide(&board.wanted(), &by(Origin::Config)).is_empty());
    assert_eq!(decide(&board.wanted(), &by(Origin::Topic)).follow.len(), 1);
    board.hear(0, Word::All(vec![]));
    assert!(decide(&board.wanted(), &by(Origin::Client)).is_empty());
}

#[test]
fn another_engine_at_the_same_address_is_followed_anew() {
    let (mut board, mut registry) = (board(), Registry::default());
    board.hear(0, Word::All(vec![]));
    let mut step = |seen| {
        board.hear(0, Word::Is(seen));
        registry.do_all(decide(&board.wanted(), &registry.now()));
        registry.holder("a")
    };
    assert_eq!(step(thing("a", 1, Standing::Paused)), None, "it is not ready");
    assert_eq!(step(thing("a", 1, Standing::Serving)), Some(1));
    assert_eq!(step(thing("a", 1, Standing::Paused)), Some(1), "its cache may be as it was");
    assert_eq!(step(thing("a", 2, Standing::Paused)), None, "its cache is gone");
    assert_eq!(step(thing("a", 2, Standing::Serving)), Some(2));
    assert_eq!(step(thing("a", 3, Standing::Serving)), Some(3));
}

#[test]
fn of_two_pods_at_one_address_the_one_that_serves_is_there() {
    let at = |object: &str, standing| Seen { object: object.into(), ..thing("a", 1, standing) };
    let mut board = board();
    board.hear(0, Word::All(vec![at("new", Standing::Serving), at("old", Standing::Paused)]));
    let wanted = board.wanted();
    assert_eq!(wanted.wishes.values().next().map(|w| &*w.sighting.object), Some("new"));
    board.add_feed(Source::File, "f".into());
    board.hear(1, Word::All(vec![at("file", Standing::Serving)]));
    assert_eq!(board.wanted().wishes.values().next().map(|w| w.sighting.source), Some(Source::File));
}

/// A thousand pods and ten thousand changes, of which many reach the board late, twice, or only by the
/// next list: in the end just those are followed who are there, each under a holder of its own life.
#[test]
fn after_whatever_happened_just_those_are_followed_who_are_there() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut board, mut registry) = (board(), Registry::default());
    let mut there: BTreeMap<String, u32> = BTreeMap::new();
    let mut lives: BTreeMap<u32, u32> = BTreeMap::new();
    let all = |there: &BTreeMap<String, u32>| {
        Word::All(there.iter().map(|(n, id)| thing(n, *id, Standing::Serving)).collect())
    };
    board.hear(0, all(&there));
    let mut deaf = false;
    for life in 1..=10_000 {
        let name = format!("p{}", draw(1000));
        let word = if draw(3) == 0 {
            there.remove(&name);
            Word::Gone(name)
        } else {
            there.insert(name.clone(), life);
            Word::Is(thing(&name, life, Standing::Serving))
        };
        match draw(50) {
            // The connection is lost for a while, and then everything is listed.
            0 => deaf = true,
            1 if deaf => {
                deaf = false;
                board.hear(0, all(&there));
            }
            2 if !deaf => board.hear(0, word.clone()),
            _ => {}
        }
        if !deaf {
            board.hear(0, word);
        }
        if draw(4) == 0 {
            registry.do_all(decide(&board.wanted(), &registry.now()));
            for (f, holder) in registry.followed.values() {
                let Origin::Discovered(s) = &f.origin else { panic!("{:?}", f.origin) };
                let life = s.identity.parse().expect("a number");
                assert_eq!(*lives.entry(*holder).or_insert(life), life, "one holder is of one life");
            }
        }
    }
    board.hear(0, all(&there));
    registry.do_all(decide(&board.wanted(), &registry.now()));
    let followed: BTreeMap<String, u32> = registry
        .followed
        .iter()
        .map(|(name, (f, _))| {
            let Origin::Discovered(s) = &f.origin else { panic!("{:?}", f.origin) };
            (name.clone(), s.identity.parse().expect("a number"))
        })
        .collect();
    assert_eq!(followed, there);
    assert!(decide(&board.wanted(), &registry.now()).is_empty(), "and then nothing is left to do");
}

#[test]
fn a_file_that_is_wrong_anywhere_says_nothing() {
    let read = |text: &str| file::read(Path::new("f"), text.as_bytes());
    let good = "[[publisher]]\nendpoint = \"tcp://a:1\"\ntype = \"vLLM\"\nmodelname = \"m\"\ninstance_id = \"a:1\"\nblock_size = 16\ndp_rank = 0\n";
    assert_eq!(read(good).expect("sound").publishers.expect("sound").len(), 1);
    assert_eq!(read("").expect("empty").publishers, Ok(vec![]));
    let two = good.to_owned() + "[[publisher]]\n";
    assert!(read(&two).expect_err("half").starts_with("publisher number 2"));
    assert!(
        read(&(good.to_owned() + "port = 1\n")).expect_err("a slip of the pen").contains("publisher.0.port")
    );
    assert!(file::read(Path::new("f"), b"\xff").is_err());
}
