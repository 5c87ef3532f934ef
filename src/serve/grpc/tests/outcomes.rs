//! Outcomes are reported, compared, counted and diagnosed.

use std::time::{Duration, Instant};

use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::rpc::kv;
use kvproto::rpc::kv::ingest_service_client::IngestServiceClient;
use kvproto::{EngineHash, Tier};
use tonic::Code;

use super::{A, B, Kvd, ask, tokens};
use crate::serve::Limits;

/// Blocks of 4 of the prompt that is scored: 13 tokens, of which 12 can be cached.
const PROMPT: u32 = 13;

impl Kvd {
    async fn publishers(&self) -> Vec<kv::PublisherStatus> {
        let mut ingest = IngestServiceClient::new(self.channel.clone());
        ingest.list_publishers(kv::ListPublishersRequest {}).await.unwrap().into_inner().publishers
    }

    /// Scores the prompt as request `id`; returns cached tokens and blocks that do not count.
    async fn score_as(&self, id: &str) -> (u64, u32) {
        let request = kv::ScoreRequest { request_id: id.to_owned(), ..ask(tokens(PROMPT)) };
        let answer = self.index().score(request).await.unwrap().into_inner();
        (answer.endpoints[0].cached_tokens, answer.endpoints[0].distrusted_blocks)
    }

    async fn report(&self, id: &str, cached_tokens: u64) -> kv::ReportOutcomeResponse {
        self.index().report_outcome(outcome(id, cached_tokens)).await.unwrap().into_inner()
    }

    /// Scores and reports as many requests, and lets the reports be judged.
    async fn contradict(&self, requests: std::ops::Range<u32>, cached_tokens: u64) {
        for n in requests {
            let id = format!("contradicted-{n}");
            self.score_as(&id).await;
            let verdict = self.report(&id, cached_tokens).await.verdict();
            assert_eq!(verdict, kv::OutcomeVerdict::UnderReview);
        }
        self.service.review(Instant::now() + Duration::from_secs(60));
    }
}

fn outcome(id: &str, cached_tokens: u64) -> kv::ReportOutcomeRequest {
    kv::ReportOutcomeRequest {
        request_id: id.to_owned(),
        model: "m".to_owned(),
        instance_id: A.to_owned(),
        cached_tokens,
        prompt_tokens: Some(PROMPT.into()),
        ..kv::ReportOutcomeRequest::default()
    }
}

#[tokio::test]
async fn an_outcome_is_compared_once_with_what_was_said() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 3, Tier::Gpu);
    assert_eq!(kvd.score_as("r").await, (12, 0));
    let answer = kvd.report("r", 12).await;
    assert_eq!(answer.verdict(), kv::OutcomeVerdict::Exact);
    assert_eq!((answer.predicted_tokens, answer.tokens_now), (12, 12));
    assert_eq!(kvd.report("r", 12).await.verdict(), kv::OutcomeVerdict::Repeated);
    assert_eq!(kvd.report("never scored", 12).await.verdict(), kv::OutcomeVerdict::NoPrediction);
    let elsewhere = kv::ReportOutcomeRequest { instance_id: B.to_owned(), ..outcome("r", 12) };
    let elsewhere = kvd.index().report_outcome(elsewhere).await.unwrap().into_inner();
    assert_eq!(elsewhere.verdict(), kv::OutcomeVerdict::NoPrediction);
    let exact = kv::OutcomeCount { verdict: kv::OutcomeVerdict::Exact.into(), reports: 1 };
    assert_eq!(kvd.publishers().await[0].outcomes, [exact]);
    let exported = crate::metrics::tests::parse(&crate::metrics::render(&kvd.service));
    let who = format!("tenant=\"default\",model=\"m\",instance=\"{A}\",dp_rank=\"0\"");
    assert_eq!(exported[&format!("kvd_publisher_outcomes_total{{{who},verdict=\"exact\"}}")], 1.0);
    assert_eq!(exported[&format!("kvd_publisher_too_low_tokens_count{{{who}}}")], 0.0);
    assert_eq!(exported["kvd_outcomes_total"], 4.0);
    assert_eq!(exported["kvd_outcomes_unmatched_total"], 2.0);
}

#[tokio::test]
async fn a_score_token_names_a_request_too() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let options = kv::ScoreOptions { want_score_token: true, ..kv::ScoreOptions::default() };
    let request = kv::ScoreRequest { options: Some(options), ..ask(tokens(9)) };
    let score_token = kvd.index().score(request).await.unwrap().into_inner().score_token;
    let report = kv::ReportOutcomeRequest { score_token, request_id: String::new(), ..outcome("", 8) };
    let answer = kvd.index().report_outcome(report).await.unwrap().into_inner();
    assert_eq!(answer.verdict(), kv::OutcomeVerdict::Exact);
}

#[tokio::test]
async fn many_outcomes_travel_in_one_stream_and_a_bad_one_does_not_end_it() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 3, Tier::Gpu);
    for id in ["r1", "r2"] {
        kvd.score_as(id).await;
    }
    let no_model = kv::ReportOutcomeRequest { model: String::new(), ..outcome("r1", 12) };
    let reports = vec![outcome("r1", 12), no_model, outcome("r2", 12), outcome("r3", 12)];
    let answer = kvd.index().report_outcomes(tokio_stream::iter(reports)).await.unwrap().into_inner();
    let count = |verdict: kv::OutcomeVerdict, reports| kv::OutcomeCount { verdict: verdict.into(), reports };
    assert_eq!(
        answer.counts,
        [count(kv::OutcomeVerdict::Exact, 2), count(kv::OutcomeVerdict::NoPrediction, 1)]
    );
    assert_eq!((answer.refused, answer.first_error.as_str()), (1, "model: empty"));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_field() {
    let kvd = Kvd::start().await;
    let refused = async |change: fn(&mut kv::ReportOutcomeRequest)| {
        let mut report = outcome("r", 12);
        change(&mut report);
        let status = kvd.index().report_outcome(report).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        status.message().to_owned()
    };
    assert_eq!(refused(|r| r.model.clear()).await, "model: empty");
    assert_eq!(refused(|r| r.instance_id.clear()).await, "instance_id: empty");
    assert_eq!(refused(|r| r.request_id.clear()).await, "request_id: empty, and so is score_token");
    assert_eq!(refused(|r| r.cached_tokens = 14).await, "cached_tokens: 14 is more than the prompt's 13");
}

#[tokio::test]
async fn a_block_that_three_reports_contradict_does_not_count_until_it_is_stored_again() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 3, Tier::Gpu);
    kvd.contradict(0..2, 4).await;
    assert_eq!(kvd.score_as("after two").await, (12, 0));
    kvd.contradict(2..3, 4).await;
    // The second block was not found, so it and the third do not count.
    assert_eq!(kvd.score_as("after three").await, (4, 2));
    let explain =
        kv::ExplainScoreRequest { score: Some(ask(tokens(PROMPT))), instance_id: A.to_owned(), dp_rank: 0 };
    let explained = kvd.admin().explain_score(explain).await.unwrap().into_inner();
    assert_eq!(explained.score.unwrap().cached_tokens, 4);
    assert!(explained.steps.last().unwrap().starts_with("2 blocks do not count"), "{:?}", explained.steps);
    let findings = kvd.admin().diagnose(kv::DiagnoseRequest {}).await.unwrap().into_inner().findings;
    assert!(findings.iter().any(|f| f.problem == "blocks_distrusted" && f.instance_id == A), "{findings:?}");

    let mut batch = BatchBuilder::new(0.0, None);
    let fields = StoredFields { parent: Some(EngineHash(100)), block_size: 4, ..Default::default() };
    batch.stored(fields, &[EngineHash(101)], &[5, 6, 7, 8], &[]);
    kvd.service.publishers.account(a).unwrap().applied(&batch.build(), Instant::now());
    assert_eq!(kvd.score_as("stored again").await, (12, 0));
}

#[tokio::test]
async fn reports_that_find_a_distrusted_block_bring_it_back() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 3, Tier::Gpu);
    kvd.contradict(0..3, 4).await;
    for n in 0..3 {
        let id = format!("found-{n}");
        assert_eq!(kvd.score_as(&id).await, (4, 2));
        // What was held back was not denied: finding it is no surprise.
        assert_eq!(kvd.report(&id, 12).await.verdict(), kv::OutcomeVerdict::Exact);
    }
    assert_eq!(kvd.score_as("after").await, (12, 0));
}

#[tokio::test]
async fn reports_put_off_are_judged_in_time_by_themselves() {
    let limits = Limits { outcome_review: Duration::from_millis(5), ..Limits::default() };
    let kvd = Kvd::start_with(limits).await;
    let a = kvd.register(A, 0);
    kvd.store(a, 3, Tier::Gpu);
    kvd.score_as("r").await;
    assert_eq!(kvd.report("r", 4).await.verdict(), kv::OutcomeVerdict::UnderReview);
    let too_high = kv::OutcomeCount { verdict: kv::OutcomeVerdict::TooHigh.into(), reports: 1 };
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let publisher = &kvd.publishers().await[0];
            if !publisher.outcomes.is_empty() {
                assert_eq!((publisher.outcomes[0], publisher.too_high_tokens), (too_high, 8));
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is judged");
}

#[tokio::test]
async fn a_kvd_that_nobody_is_registered_with_says_so() {
    let kvd = Kvd::start().await;
    let answer = kvd.admin().diagnose(kv::DiagnoseRequest {}).await.unwrap().into_inner();
    let [finding] = &answer.findings[..] else { panic!("{answer:?}") };
    assert_eq!((finding.problem.as_str(), finding.severity()), ("no_publisher", kv::Severity::Error));
    assert_eq!((finding.instance_id.as_str(), finding.confidence), ("", 1.0));
    assert!(!finding.evidence.is_empty() && !finding.remedy.is_empty());
}
