//! How do reports come in, and how are findings written?

use std::sync::Arc;
use std::time::Instant;

use kvproto::rpc::kv;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::convert::or_default_tenant;
use super::score::apart;
use crate::outcome::Verdict;
use crate::outcome::finding::{Finding, Severity};
use crate::outcome::predictions::RequestName;
use crate::outcome::tally::Tally;
use crate::serve::outcome::{Received, Report};
use crate::serve::routing::Endpoint;
use crate::serve::{AskError, Service};

/// Takes one report.
pub(super) fn report(
    service: &Service,
    request: kv::ReportOutcomeRequest,
) -> Result<kv::ReportOutcomeResponse, AskError> {
    let tenant = or_default_tenant(request.tenant_id);
    let name = match &*request.score_token {
        "" => RequestName::Id(&request.request_id),
        token => RequestName::Token(token),
    };
    let received = service.report_outcome(&Report {
        tenant: &tenant,
        model: &request.model,
        name,
        endpoint: Endpoint { instance: request.instance_id, rank: request.dp_rank },
        cached_tokens: request.cached_tokens,
        prompt_tokens: request.prompt_tokens,
    })?;
    let (verdict, predicted_tokens, tokens_now) = match received {
        Received::Compared { verdict, predicted, now } => (write_verdict(verdict), predicted, now),
        Received::UnderReview { predicted, now } => (kv::OutcomeVerdict::UnderReview, predicted, now),
        Received::NoPrediction => (kv::OutcomeVerdict::NoPrediction, 0, 0),
        Received::Repeated => (kv::OutcomeVerdict::Repeated, 0, 0),
    };
    Ok(kv::ReportOutcomeResponse { verdict: verdict.into(), predicted_tokens, tokens_now })
}

/// Takes reports until the stream ends. One that makes no sense does not end it.
pub(super) async fn reports(
    service: &Arc<Service>,
    mut requests: impl Stream<Item = Result<kv::ReportOutcomeRequest, Status>> + Unpin,
) -> Result<kv::ReportOutcomesResponse, Status> {
    let mut answer = kv::ReportOutcomesResponse::default();
    while let Some(request) = requests.next().await {
        let (request, service) = (request?, Arc::clone(service));
        match apart(move || report(&service, request)).await {
            Ok(one) => match answer.counts.iter_mut().find(|c| c.verdict == one.verdict) {
                Some(count) => count.reports += 1,
                None => answer.counts.push(kv::OutcomeCount { verdict: one.verdict, reports: 1 }),
            },
            Err(status) => {
                answer.refused += 1;
                if answer.first_error.is_empty() {
                    answer.first_error = status.message().to_owned();
                }
            }
        }
    }
    answer.counts.sort_by_key(|c| c.verdict);
    Ok(answer)
}

/// What came of a publisher's predictions; verdicts that never occurred are left out.
pub(super) fn counts(tally: &Tally) -> Vec<kv::OutcomeCount> {
    let count = |v: Verdict| kv::OutcomeCount { verdict: write_verdict(v).into(), reports: tally.of(v) };
    Verdict::ALL.into_iter().map(count).filter(|c| c.reports > 0).collect()
}

/// Everything that is wrong.
pub(super) fn diagnosis(service: &Service) -> kv::DiagnoseResponse {
    let diagnosis = service.diagnose(Instant::now());
    kv::DiagnoseResponse {
        findings: diagnosis.findings.into_iter().map(write_finding).collect(),
        reports: diagnosis.reports,
        unmatched_reports: diagnosis.unmatched,
        publishers: diagnosis.publishers as u64,
    }
}

fn write_verdict(verdict: Verdict) -> kv::OutcomeVerdict {
    match verdict {
        Verdict::Exact => kv::OutcomeVerdict::Exact,
        Verdict::CameMeanwhile => kv::OutcomeVerdict::CameMeanwhile,
        Verdict::LeftMeanwhile => kv::OutcomeVerdict::LeftMeanwhile,
        Verdict::TooLow => kv::OutcomeVerdict::TooLow,
        Verdict::TooHigh => kv::OutcomeVerdict::TooHigh,
        Verdict::Unclear => kv::OutcomeVerdict::Unclear,
    }
}

fn write_finding(finding: Finding) -> kv::Finding {
    let severity = match finding.severity {
        Severity::Note => kv::Severity::Note,
        Severity::Warning => kv::Severity::Warning,
        Severity::Error => kv::Severity::Error,
    };
    let written = kv::Finding {
        problem: finding.problem.name().to_owned(),
        severity: severity.into(),
        confidence: finding.confidence,
        evidence: finding.evidence,
        remedy: finding.remedy,
        ..kv::Finding::default()
    };
    match finding.who {
        None => written,
        Some(who) => kv::Finding {
            tenant_id: who.tenant,
            model: who.model,
            instance_id: who.instance,
            dp_rank: who.rank,
            ..written
        },
    }
}
