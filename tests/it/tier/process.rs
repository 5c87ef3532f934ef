//! The process by itself, as kvctl and its engines see it.

use kvtier::agent::Outcome;

use super::node::{Node, Pod, until};
use crate::apiserver::Api;
use crate::support::file;

#[test]
fn the_process_starts_answers_kvctl_and_ends_when_told() {
    let folder = tempfile::tempdir().expect("a directory");
    let node = Node::start(folder.path(), "");
    assert!(node.socket.exists());
    let (content, said) = node.kvctl(&["tiers"]);
    assert!(content && said.starts_with("n1\n"), "{said}");
    assert_eq!(node.kvctl(&["tier", "scrub"]), (true, String::new()));
    assert!(!node.kvctl(&["tier", "scrub", "--block-bytes", "5"]).0);
    assert_eq!(node.kvctl(&["--json", "tier", "drain"]), (true, "{\"draining\":true}\n".into()));
    assert!(node.kvctl(&["tier", "top", "--times", "1"]).1.starts_with("n1, draining"));
    assert!(node.kvctl(&["tier", "drain", "--undo"]).0);
    let metrics = node.metrics();
    assert!(metrics.contains("kvd_tier_draining 0"), "{metrics}");
    node.stop();
}

#[test]
fn blocks_go_where_kvctl_wants_them_and_scrubbing_finds_them_good() {
    let folder = tempfile::tempdir().expect("a directory");
    let node = Node::start(folder.path(), "");
    let mut pod = Pod::connect(&node);
    pod.store(&[1, 2, 3, 4]);
    let held = |node: &Node| {
        let usage = node.usage();
        ["ram_blocks", "disk_blocks"].map(|tier| usage[tier].as_u64().expect("a number"))
    };
    assert_eq!(held(&node), [4, 0]);
    // The fifth is not here.
    let tier = |what: &[&str]| node.kvctl_on(&[&["tier"], what].concat(), &[1, 2, 3, 4, 5]);
    let said = "4 blocks here, 4 there now, 0 failed, 0 copies given up\n";
    assert_eq!(tier(&["copy", "--to", "disk"]), (true, said.into()));
    assert_eq!(held(&node), [4, 4]);
    let said = "4 blocks here, 4 there now, 0 failed, 4 copies given up\n";
    assert_eq!(tier(&["move", "--from", "cpu", "--to", "disk"]), (true, said.into()));
    assert_eq!(held(&node), [0, 4]);
    let (content, said) = node.kvctl(&["--json", "tier", "scrub"]);
    assert!(content && said.contains("\"checked\":4") && said.contains("\"bad\":0"), "{said}");
    assert_eq!(pod.load(&[1, 2, 3, 4, 5]), [[Outcome::Ok; 4].as_slice(), &[Outcome::Miss]].concat());
    // There is no shared storage, and what is not a hash is none.
    let (content, said) = tier(&["copy", "--to", "shared"]);
    assert!(!content && said.contains("4 failed"), "{said}");
    assert!(!tier(&["move", "--from", "disk", "--to", "disk"]).0);
    assert!(!node.kvctl(&["tier", "copy", "--to", "disk", "--model", "m", "xyz"]).0);
    node.stop();
}

#[test]
fn a_file_system_that_two_nodes_share_has_what_either_put_there() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let [a, b, both] = folders.each_ref().map(tempfile::TempDir::path);
    let shared = format!("[shared]\nurl = \"file://{}\"\nrefresh_every = \"50ms\"", both.display());
    let (a, b) = (Node::start(a, &shared), Node::start(b, &shared));
    let (mut of_a, mut of_b) = (Pod::connect(&a), Pod::connect(&b));
    of_a.store(&[1, 2, 3]);
    assert_eq!(of_b.load(&[1, 2, 3]), [Outcome::Miss; 3]);
    let (content, said) = a.kvctl_on(&["tier", "copy", "--to", "shared"], &[1, 2, 3]);
    assert!(content, "{said}");
    until("the other node has heard", || b.usage()["shared_blocks"] == 3);
    assert_eq!(of_b.load(&[1, 2, 3, 4]), [[Outcome::Ok; 3].as_slice(), &[Outcome::Miss]].concat());
    // What somebody removes is gone for both.
    std::fs::remove_dir_all(both).expect("removed");
    std::fs::create_dir_all(both).expect("made");
    until("both have seen it", || [&a, &b].iter().all(|node| node.usage()["shared_blocks"] == 0));
    assert_eq!(of_b.load(&[1]), [Outcome::Miss]);
    a.stop();
    b.stop();
}

#[test]
fn service_accounts_have_rights_at_a_node_too() {
    let (folder, api) = (tempfile::tempdir().expect("a directory"), Api::start());
    let kubeconfig = api.kubeconfig(folder.path(), "kvd");
    let node = Node::start(
        folder.path(),
        &format!(
            "[security.token_review]\nkubeconfig = {kubeconfig:?}\n\
             read = {{ groups = [\"system:serviceaccounts:monitoring\"] }}\n\
             write = {{ users = [\"system:serviceaccount:kvd:kvd\"] }}\n"
        ),
    );
    let of = |namespace: &str, name: &str| {
        file(folder.path(), &format!("{namespace}-{name}"), &api.issue(namespace, name, "kvd"))
    };
    let (reads, writes, nothing) = (of("monitoring", "m"), of("kvd", "kvd"), of("other", "o"));
    let may = |token: &str, call: &[&str]| node.kvctl(&[&["--token-file", token], call].concat()).0;
    assert!(may(&reads, &["tiers"]) && !may(&reads, &["tier", "drain"]));
    assert!(may(&writes, &["tiers"]) && may(&writes, &["tier", "drain"]));
    assert!(!may(&nothing, &["tiers"]), "known, and given nothing");
    assert_eq!(api.reviews(), 3);
    node.stop();
}

#[test]
fn a_guarded_node_answers_who_shows_a_token_and_its_health_is_open() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| file(folder.path(), name, text);
    let (reads, writes) = (file("reads", "a-token-that-may-read"), file("writes", "a-token-that-may-write"));
    let security = format!("[security]\nread_tokens = {reads:?}\nwrite_tokens = {writes:?}\n");
    let node = Node::start(folder.path(), &security);
    assert!(!node.kvctl(&["tiers"]).0, "without a token");
    assert!(node.kvctl(&["--token-file", &reads, "tiers"]).0);
    assert!(!node.kvctl(&["--token-file", &reads, "tier", "drain"]).0, "it gives the right to read");
    assert!(node.kvctl(&["--token-file", &writes, "tier", "drain"]).0);
    let get = |path: &str, token: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.get(format!("http://{}{path}", node.http));
        let request = request.header("authorization", format!("Bearer {token}"));
        request.call().expect("an answer").status().as_u16()
    };
    assert_eq!(get("/metrics", "a-token-that-nobody-knows"), 401);
    assert_eq!(get("/metrics", "a-token-that-may-read"), 200);
    assert_eq!(get("/healthz", "a-token-that-nobody-knows"), 200);
    node.stop();
}
