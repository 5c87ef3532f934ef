//! Tokens of Kubernetes' service accounts, which the API server knows.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::apiserver::Api;
use crate::support::Kvd;

const FILE: &str = "a-token-of-a-file-that-may-write";

/// A kvd whose reads are open; `llm-d`'s `epp` may route, and all of `kvd`'s accounts may write.
fn kvd(folder: &Path, api: &Api, ttl: &str) -> Kvd {
    let (kubeconfig, tokens) = (api.kubeconfig(folder, "kvd"), folder.join("write"));
    std::fs::write(&tokens, FILE).expect("write");
    let config = folder.join("kvd.toml");
    let text = format!(
        "[discovery]\nkubeconfig = {kubeconfig:?}\n[security]\nwrite_tokens = {tokens:?}\n\
         [security.token_review]\naudiences = [\"kvd\"]\ncache_ttl = {ttl:?}\n\
         route = {{ users = [\"system:serviceaccount:llm-d:epp\"] }}\n\
         write = {{ groups = [\"system:serviceaccounts:kvd\"] }}\n"
    );
    std::fs::write(&config, text).expect("write");
    Kvd::start_with(&folder.join("data"), &["--config", config.to_str().expect("text")])
}

/// Status and body of a call that needs a right.
fn call(kvd: &Kvd, path: &str, token: &str) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = agent.post(format!("http://{}{path}", kvd.http));
    let request = request.header("authorization", format!("Bearer {token}"));
    let mut answer = request.header("content-type", "application/json").send("{}").expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// What a call that needs the right to route, and one that needs the right to write, are answered with; 400 is said
/// to who has the right, because nothing is asked for.
fn rights(kvd: &Kvd, token: &str) -> (u16, u16) {
    (call(kvd, "/report_outcome", token).0, call(kvd, "/register", token).0)
}

#[test]
fn service_accounts_have_the_rights_that_are_given_to_them_and_to_their_groups() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let kvd = kvd(folder.path(), &api, "10s");
    assert_eq!(rights(&kvd, FILE), (400, 400), "a file's token is as it was");
    assert_eq!(api.reviews(), 0, "and nobody is asked about it");
    assert_eq!(rights(&kvd, &api.issue("llm-d", "epp", "kvd")), (400, 403));
    assert_eq!(rights(&kvd, &api.issue("kvd", "kvd", "kvd")), (400, 400), "by its group");
    assert_eq!(rights(&kvd, &api.issue("llm-d", "default", "kvd")), (403, 403), "known, and given nothing");
    assert_eq!(api.reviews(), 3, "one for each token, not for each call");

    let elsewhere = api.issue("kvd", "kvd", "https://kubernetes.default.svc");
    assert_eq!(rights(&kvd, &elsewhere), (401, 401), "it is meant for somebody else");
    let old = api.issue("kvd", "kvd", "kvd");
    api.expire(&old);
    let (status, refusal) = call(&kvd, "/register", &old);
    assert_eq!((status, &refusal["error"]), (401, &json!("authorization: the token is not known here")));
    assert_eq!(rights(&kvd, "eyJh.an-invented-token.c2ln"), (401, 401));
    assert_eq!(api.reviews(), 6);
    assert_eq!(rights(&kvd, "what-is-no-such-token-at-all"), (401, 401));
    assert_eq!(api.reviews(), 6, "is not asked about");
    assert_eq!(kvd.metric("kvd_token_reviews_total"), 6.0);
}

#[test]
fn a_token_that_is_taken_back_is_refused_when_what_was_said_of_it_is_over() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let kvd = kvd(folder.path(), &api, "2s");
    let token = api.issue("llm-d", "epp", "kvd");
    assert_eq!(rights(&kvd, &token).0, 400);
    api.revoke(&token);
    assert_eq!(rights(&kvd, &token).0, 400, "it is known for a while");
    kvd.wait("it to be refused", || rights(&kvd, &token).0 == 401);
}

#[test]
fn while_the_cluster_is_away_tokens_of_files_work_and_others_are_told_why_they_do_not() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let kvd = kvd(folder.path(), &api, "2s");
    let known = api.issue("llm-d", "epp", "kvd");
    assert_eq!(rights(&kvd, &known).0, 400);
    api.down(true);
    let token = api.issue("kvd", "kvd", "kvd");
    let (status, refusal) = call(&kvd, "/register", &token);
    assert_eq!(status, 503, "{refusal}");
    let why = refusal["error"].as_str().expect("text");
    assert!(
        why.starts_with("authorization: the token is in no file, and the cluster cannot be asked"),
        "{why}"
    );
    assert!(why.contains("ServiceUnavailable"), "{why}");
    assert_eq!(rights(&kvd, FILE), (400, 400));
    assert_eq!(rights(&kvd, &known).0, 400, "what was said of it holds");
    let tokens = folder.path().join("own");
    std::fs::write(&tokens, &token).expect("write");
    let kvctl = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(["--grpc", &kvd.grpc, "--token-file"]).arg(&tokens);
        let out = command.args(["unregister", "--instance", "a:1"]).output().expect("run kvctl");
        String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
    };
    assert!(kvctl().contains("Unavailable"), "{}", kvctl());
    kvd.wait("what was said to be over", || rights(&kvd, &known).0 == 503);
    assert!(kvd.metric("kvd_refused_unreviewed_total") > 2.0);
    assert!(kvd.metric("kvd_token_review_failures_total") > 0.0);
    api.down(false);
    kvd.wait("the cluster to be asked again", || rights(&kvd, &token) == (400, 400));
    assert!(!kvctl().contains("authorization"), "{}", kvctl());
}

#[test]
fn a_cluster_that_does_not_answer_keeps_nobody_else_waiting() {
    let (folder, api) = (TempDir::new().expect("a directory"), Api::start());
    let kvd = kvd(folder.path(), &api, "10s");
    let known = api.issue("llm-d", "epp", "kvd");
    assert_eq!(rights(&kvd, &known).0, 400);
    api.stall(true);
    let unknown = api.issue("kvd", "kvd", "kvd");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| call(&kvd, "/register", &unknown))).collect();
        kvd.wait("the cluster to be asked", || api.reviews() == 2);
        assert_eq!(rights(&kvd, FILE), (400, 400));
        assert_eq!(rights(&kvd, &known).0, 400);
        assert!(!waiting.iter().any(|call| call.is_finished()), "these were answered before them");
        for call in waiting {
            let (status, refusal) = call.join().expect("no panic");
            assert!(status == 503 && refusal["error"].as_str().expect("text").contains("no answer within"));
        }
        assert_eq!(api.reviews(), 2, "those who show one token wait for one review");
    });
    api.stall(false);
}
