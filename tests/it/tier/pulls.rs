//! Nodes get from each other what they lack: steered by kvd, and by hand; and what comes of it when the
//! way or the other side is not what it should be.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use kvtier::agent::Outcome;
use tempfile::TempDir;

use super::cached;
use super::hints::route;
use super::node::{BLOCK, Node, Pod, until};
use crate::support::{Engine, Kvd, file, record, stored_payload};

/// A node that gives and pulls, and its folder.
fn start(name: &str, secret: &str) -> (Node, TempDir) {
    let folder = tempfile::tempdir().expect("a directory");
    let node = start_in(name, secret, folder.path());
    (node, folder)
}

fn start_in(name: &str, secret: &str, folder: &Path) -> Node {
    let file = file(folder, "secret", &format!("{secret}\n"));
    let pull = format!(
        "[pull]\nlisten = \"127.0.0.1:0\"\nsecret_file = {file:?}\npatience = \"500ms\"\nrest = \"10ms\""
    );
    Node::start_as(name, folder, &pull)
}

const SECRET: &str = "known to all nodes here";

/// Copies blocks to RAM, those that are not here from `source`. What kvctl says.
fn copy(node: &Node, source: &str, numbers: &[u64]) -> (bool, String) {
    node.kvctl_on(&["tier", "copy", "--to", "cpu", "--source", source], numbers)
}

/// What happens on the way from a source, after so many of its bytes.
#[derive(Clone, Copy)]
enum Fault {
    /// A bit changes.
    Flip(usize),
    /// Nothing more comes until the relay is let go; then it is over.
    Hold(usize),
}

/// Stands between a node and its source.
struct Relay {
    address: String,
    held: Arc<(Mutex<[bool; 2]>, Condvar)>,
}

impl Relay {
    fn to(source: &str, fault: Fault) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let held = Arc::new((Mutex::new([false; 2]), Condvar::new()));
        let (source, of_threads) = (source.to_owned(), held.clone());
        // Ends with the process.
        std::thread::spawn(move || {
            for puller in listener.incoming().map_while(Result::ok) {
                let Ok(source) = TcpStream::connect(&source) else { continue };
                let (mut from, mut to) =
                    (puller.try_clone().expect("a handle"), source.try_clone().expect("a handle"));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let held = of_threads.clone();
                std::thread::spawn(move || pass(source, puller, fault, &held));
            }
        });
        Relay { address, held }
    }

    fn wait_until_held(&self) {
        let held = self.held.0.lock().expect("no panic");
        let wait = self.held.1.wait_timeout_while(held, Duration::from_secs(20), |[held, _]| !*held);
        assert!(!wait.expect("no panic").1.timed_out(), "nothing was held");
    }

    fn let_go(&self) {
        self.held.0.lock().expect("no panic")[1] = true;
        self.held.1.notify_all();
    }
}

fn pass(mut source: TcpStream, mut puller: TcpStream, fault: Fault, held: &(Mutex<[bool; 2]>, Condvar)) {
    let (mut passed, mut bytes) = (0, [0; 1000]);
    while let Ok(n @ 1..) = source.read(&mut bytes) {
        let range = passed..passed + n;
        passed += n;
        match fault {
            Fault::Flip(at) if range.contains(&at) => bytes[at - range.start] ^= 4,
            Fault::Hold(at) if range.contains(&at) => {
                let mut state = held.0.lock().expect("no panic");
                state[0] = true;
                held.1.notify_all();
                drop(held.1.wait_while(state, |[_, gone]| !*gone).expect("no panic"));
                break;
            }
            Fault::Flip(_) | Fault::Hold(_) => {}
        }
        if puller.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = puller.shutdown(Shutdown::Both);
    let _ = source.shutdown(Shutdown::Both);
}

/// The middle of the third block of a pull of four, behind the greeting and the names.
const IN_THE_THIRD: usize = 74 + 7 + 4 * 75 + 2 * (16 + BLOCK) + BLOCK / 2;

#[test]
fn two_nodes_pull_from_each_other_what_either_lacks() {
    let ((a, _a), (b, _b)) = (start("n1", SECRET), start("n2", SECRET));
    let (mut of_a, mut of_b) = (Pod::connect(&a), Pod::connect(&b));
    of_a.store(&[1, 2, 3, 4]);
    of_b.store(&[11, 12]);
    let said = "4 blocks pulled\n4 blocks here, 4 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&b, &a.pull, &[1, 2, 3, 4, 5]), (true, said.into()));
    assert_eq!(of_b.load(&[1, 2, 3, 4, 5]), [[Outcome::Ok; 4].as_slice(), &[Outcome::Miss]].concat());
    let said = "2 blocks pulled\n2 blocks here, 2 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&a, &b.pull, &[11, 12]), (true, said.into()));
    assert_eq!(of_a.load(&[11, 12]), [Outcome::Ok; 2]);
    assert_eq!(b.metric("kvd_tier_pulled_bytes_total"), 4.0 * BLOCK as f64);
    // What is here is not pulled again.
    let said = "4 blocks here, 4 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&b, &a.pull, &[1, 2, 3, 4]), (true, said.into()));
    assert_eq!(a.metric("kvd_tier_pull_peers_refused_total"), 0.0);
    a.stop();
    b.stop();
}

#[test]
fn a_node_that_does_not_know_the_secret_gets_nothing() {
    let ((a, _a), (b, _b)) = (start("n1", SECRET), start("n2", "known to this one alone"));
    Pod::connect(&a).store(&[1, 2]);
    let mut of_b = Pod::connect(&b);
    let said = "0 blocks here, 0 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&b, &a.pull, &[1, 2]), (true, said.into()));
    assert_eq!(of_b.load(&[1, 2]), [Outcome::Miss; 2]);
    assert_eq!(b.metric("kvd_tier_pulls_failed_total"), 1.0);
    assert_eq!(a.metric("kvd_tier_pull_peers_total"), 0.0);
    assert_eq!(a.metric("kvd_tier_pull_peers_refused_total"), 1.0);
    // One that pulls from nobody says so.
    let folder = tempfile::tempdir().expect("a directory");
    let c = Node::start_as("n3", folder.path(), "");
    Pod::connect(&c);
    assert!(!copy(&c, &a.pull, &[1]).0);
}

#[test]
fn a_payload_that_changes_on_its_way_is_never_returned() {
    let ((a, _a), (b, _b)) = (start("n1", SECRET), start("n2", SECRET));
    Pod::connect(&a).store(&[1, 2, 3, 4]);
    let mut of_b = Pod::connect(&b);
    let relay = Relay::to(&a.pull, Fault::Flip(IN_THE_THIRD));
    let said = "2 blocks pulled\n2 blocks here, 2 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&b, &relay.address, &[1, 2, 3, 4]), (true, said.into()));
    assert_eq!(of_b.load(&[1, 2, 3, 4]), [Outcome::Ok, Outcome::Ok, Outcome::Miss, Outcome::Miss]);
    assert_eq!(b.metric("kvd_tier_pulls_corrupt_total"), 1.0);
    // The rest comes from who does not change it.
    until("the source can be asked", || copy(&b, &a.pull, &[3, 4]).0);
    assert_eq!(of_b.load(&[1, 2, 3, 4]), [Outcome::Ok; 4]);
}

#[test]
fn a_source_that_is_killed_in_the_middle_leaves_nothing_stuck_or_wrong() {
    let ((mut a, _a), (b, _b), (c, _c)) = (start("n1", SECRET), start("n2", SECRET), start("n3", SECRET));
    Pod::connect(&a).store(&[1, 2, 3, 4]);
    Pod::connect(&c).store(&[1, 2, 3, 4]);
    let mut of_b = Pod::connect(&b);
    let relay = Relay::to(&a.pull, Fault::Hold(IN_THE_THIRD));
    let began = Instant::now();
    let said = std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy(&b, &relay.address, &[1, 2, 3, 4]));
        relay.wait_until_held();
        a.kill();
        relay.let_go();
        copying.join().expect("kvctl is answered")
    });
    let two = "2 blocks pulled\n2 blocks here, 2 there now, 0 failed, 0 copies given up\n";
    assert_eq!(said, (true, two.into()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(of_b.load(&[1, 2, 3, 4]), [Outcome::Ok, Outcome::Ok, Outcome::Miss, Outcome::Miss]);
    // One that stalls and lives costs its patience.
    let relay = Relay::to(&c.pull, Fault::Hold(74 + 7 + 4 * 75 + 16 + BLOCK / 2));
    let said = "2 blocks here, 2 there now, 0 failed, 0 copies given up\n";
    assert_eq!(copy(&b, &relay.address, &[1, 2, 3, 4]), (true, said.into()));
    assert_eq!(copy(&b, &c.pull, &[1, 2, 3, 4]).1.lines().next(), Some("2 blocks pulled"));
    assert_eq!(of_b.load(&[1, 2, 3, 4]), [Outcome::Ok; 4]);
    relay.let_go();
    b.stop();
}

#[test]
fn what_a_routed_request_will_ask_for_comes_from_the_node_that_has_it() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let ((mut a, _a), (b, _b)) = (start("n1", SECRET), start("n2", SECRET));
    let (mut of_a, mut of_b) = (Engine::open("a"), Engine::open("b"));
    for (engine, name) in [(&mut of_a, "n1"), (&mut of_b, "n2")] {
        engine.register_on(&kvd, name);
    }
    for node in [&a, &b] {
        kvd.ok("/register", &node.registration());
    }
    // Ten blocks are computed on the first node, and offloaded there. The other has the first alone.
    let tokens: Vec<u32> = (0..16 * 10 + 5).collect();
    of_a.publish(&[record(0, stored_payload(1.0, 1000, &tokens[..160], 16))]);
    kvd.wait("kvd to know of the first pod", || cached(&kvd, "a", &tokens)[0] == 160);
    of_b.publish(&[record(0, stored_payload(1.0, 1000, &tokens[..16], 16))]);
    kvd.wait("kvd to know of the second pod", || cached(&kvd, "b", &tokens) == [16, 0, 0, 16]);
    // With what it tells next, it is certain that the two call blocks alike.
    let others: Vec<u32> = (1000..1000 + 16 * 5).collect();
    of_a.publish(&[record(1, stored_payload(2.0, 2000, &others, 16))]);
    let numbers: Vec<u64> = (1000..1010).collect();
    let (mut pod_a, mut pod_b) = (Pod::connect(&a), Pod::connect(&b));
    pod_a.store(&numbers);
    kvd.wait("kvd to know of the first node's RAM", || cached(&kvd, "a", &tokens) == [160, 160, 0, 160]);

    route(&kvd, "moved", "b", &tokens);
    until("what it lacks is on the second node", || b.usage()["ram_blocks"] == 9);
    kvd.wait("kvd to hear of it", || kvd.metric("kvd_hint_pulls_total") == 9.0);
    // The engine asks, and it is there: but for the block that its device has.
    assert_eq!(pod_b.load(&numbers), [&[Outcome::Miss], [Outcome::Ok; 9].as_slice()].concat());
    assert!(b.metrics().contains("loaded_blocks_total{block_bytes=\"4096\",tier=\"cpu\"} 9"));
    assert_eq!(a.metric("kvd_tier_lend_missing_blocks_total"), 0.0);
    // It is told of, so it counts for the second node's pods and is not pulled again.
    kvd.wait("it to count", || cached(&kvd, "b", &tokens)[3] == 160);
    route(&kvd, "again", "b", &tokens);
    assert_eq!(kvd.metric("kvd_hints_total"), 1.0);

    // A node has died, and the other goes on.
    pod_a.store(&[2000, 2001, 2002, 2003, 2004]);
    kvd.wait("kvd to know of more", || cached(&kvd, "a", &others)[1] == 80);
    a.kill();
    route(&kvd, "gone", "b", &others);
    until("the second node has given up", || b.metric("kvd_tier_pulls_failed_total") == 1.0);
    pod_b.store(&[5000]);
    assert_eq!(pod_b.load(&[5000, 2000]), [Outcome::Ok, Outcome::Miss]);
}
