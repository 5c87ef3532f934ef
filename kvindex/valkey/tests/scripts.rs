//! Runs every conversation of `kvindex/tests/scripts/` with a shared index beside the embedded one: each score
//! must be the same, but in those conversations whose subject is not kept here.

#[path = "../../tests/scripts/args.rs"]
mod args;
#[path = "support/beside.rs"]
mod beside;
#[path = "../../tests/scripts/pod.rs"]
mod pod;
#[allow(dead_code, reason = "the embedded index's tests use the rest")]
#[path = "../../tests/support/replant.rs"]
mod replant;
#[path = "../../tests/scripts/replay.rs"]
mod replay;
#[path = "support/servers.rs"]
mod servers;
#[path = "../../tests/support/shadow.rs"]
mod shadow;
#[allow(dead_code, reason = "the embedded index's tests use the rest")]
#[path = "../../tests/scripts/world.rs"]
mod world;

use std::cell::RefCell;
use std::rc::Rc;

use beside::Beside;
use kvindex::{Answer, HolderId, HolderSpec, Query};
use kvindex_valkey::Shared;
use kvproto::{Batch, SeqHash};
use replay::{difference, replay_with, scripts};
use servers::Servers;
use shadow::Shadow;
use world::World;

/// Conversations in which the answers differ, and why.
const NOT_KEPT: &[(&str, &str)] = &[
    (
        "budget.txt",
        "the script's limit is the embedded index's alone; tests/failover.rs has one of the shared index",
    ),
    ("tiers_of_a_node.txt", "the tiers of a node are not kept"),
    ("tiers_of_other_names.txt", "the tiers of a node are not kept"),
    ("tiers_before_kin.txt", "the tiers of a node are not kept"),
];

/// Keeps hold of the other index after the world has ended.
struct Lent(Rc<RefCell<Beside>>);

impl Shadow for Lent {
    fn attach(&mut self, id: HolderId, spec: &HolderSpec) {
        self.0.borrow_mut().attach(id, spec);
    }
    fn detach(&mut self, id: HolderId) {
        self.0.borrow_mut().detach(id);
    }
    fn apply(&mut self, id: HolderId, batch: &Batch<'_>) {
        self.0.borrow_mut().apply(id, batch);
    }
    fn clear(&mut self, id: HolderId) {
        self.0.borrow_mut().clear(id);
    }
    fn announce(&mut self, request: &str, blocks: &[(HolderId, Vec<SeqHash>)], until: u64) {
        self.0.borrow_mut().announce(request, blocks, until);
    }
    fn forget(&mut self, request: &str) {
        self.0.borrow_mut().forget(request);
    }
    fn expire(&mut self, now: u64) {
        self.0.borrow_mut().expire(now);
    }
    fn compare(&self, query: &Query<'_>, answer: &Answer) -> Result<(), String> {
        self.0.borrow().compare(query, answer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_conversation_goes_as_written() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let (mut wrong, mut same, mut refused) = (Vec::new(), 0, 0);
    for (n, file) in scripts().into_iter().enumerate() {
        let name = file.file_name().expect("a name").display().to_string();
        let text = std::fs::read_to_string(&file).expect("a script");
        // Each in a namespace of its own: in one all publishers have the same names.
        let config = servers.config(&format!("script {n}"));
        let shared = Shared::connect(config).await.expect("servers that answer");
        let beside = Rc::new(RefCell::new(Beside::new(shared)));
        let got = replay_with(&name, &text, World::new(Box::new(Lent(Rc::clone(&beside)))), |_| {});
        let why = NOT_KEPT.iter().find(|(other, _)| *other == name);
        match (got, why) {
            (Ok((got, _)), None) => wrong.extend(difference(&name, &text, &got)),
            (Err(e), None) => wrong.push(e),
            (Ok(_), Some((_, why))) => wrong.push(format!("{name} is answered, though: {why}")),
            (Err(_), Some(_)) => continue,
        }
        same += beside.borrow().same.get();
        refused += beside.borrow().refused.get();
    }
    assert!(wrong.is_empty(), "{} scripts:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same >= 200 && refused == 0, "{same} answers were the same, {refused} refused");
}
