//! Schedulers report what engines had cached; the doctor says what is wrong.

use std::process::Command;
use std::time::Duration;

use scorer_client::{Endpoint, Outcome, OutcomeCall, Prompt, ScoreCall, ScorerClient, Verdict};
use serde_json::Value;

use crate::support::{Engine, Kvd, record, stored_payload};

/// The exit code of `kvctl doctor` and the problems it names.
fn doctor(kvd: &Kvd) -> (Option<i32>, Vec<String>) {
    let run = Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["--grpc", &kvd.grpc, "--json", "doctor"])
        .output()
        .expect("run kvctl");
    let problem = |line: &str| {
        let finding: Value = serde_json::from_str(line).expect("an object a line");
        finding["problem"].as_str().expect("a name").to_owned()
    };
    (run.status.code(), String::from_utf8(run.stdout).expect("text").lines().map(problem).collect())
}

#[test]
fn the_doctor_finds_nothing_while_all_is_well_and_says_what_is_not() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    assert_eq!(doctor(&kvd), (Some(1), vec!["no_publisher".to_owned()]));

    let mut e = Engine::open("10.0.0.1:8000");
    e.register(&kvd, "vLLM", 16);
    let tokens: Vec<u32> = (0..161).collect();
    e.publish(&[record(0, stored_payload(1.0, 100, &tokens[..160], 16))]);
    kvd.wait_for_seq(&e.instance, 0);
    kvd.wait("kvd to know that this is all", || {
        kvd.publisher(&e.instance).is_some_and(|p| p["complete"] == true)
    });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = runtime.block_on(async {
        let client = ScorerClient::builder(format!("http://{}", kvd.grpc)).deadline(Duration::from_secs(20));
        client.connect().await.expect("connect")
    });
    let endpoint = Endpoint { instance: e.instance.clone(), rank: 0 };
    let scored_and_reported = |id: String, asked: &[u32]| {
        runtime.block_on(async {
            let call = ScoreCall::new("m", Prompt::tokens(asked)).request_id(&id);
            client.score(call).await.expect("scores");
            let report = OutcomeCall::new(id, "m", endpoint.clone(), 160).prompt_tokens(161);
            client.report_outcome(report).await.expect("an answer")
        })
    };
    for n in 0..8 {
        let outcome = scored_and_reported(format!("good-{n}"), &tokens);
        let exact = Outcome { verdict: Verdict::Exact, predicted_tokens: 160, tokens_now: 160 };
        assert_eq!(outcome, exact);
    }
    assert_eq!(doctor(&kvd), (Some(0), vec![]));

    // A scheduler that leaves out the token that begins a sequence.
    for n in 0..24 {
        let outcome = scored_and_reported(format!("bad-{n}"), &tokens[1..]);
        assert_eq!(outcome.verdict, Verdict::UnderReview);
    }
    kvd.wait("the reports to be judged", || {
        kvd.publisher(&e.instance).is_some_and(|p| p["outcomes"]["too_low"] == 24)
    });
    assert_eq!(doctor(&kvd), (Some(1), vec!["token_mismatch".to_owned()]));
}
