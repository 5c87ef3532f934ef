//! What is wrong that needs no report to be seen?
//!
//! Pure: from the state of publishers and counters to findings.

use std::time::Duration;

use super::finding::{Finding, Problem, Severity, Who, confidence};
use crate::publisher::PublisherState;

/// How long a publisher may be silent after kvd began before that is worth a warning.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a batch may wait to be applied.
const LATE: Duration = Duration::from_secs(1);
/// Reports without a prediction that are worth speaking of.
const UNMATCHED: u64 = 8;

/// kvd as a whole, at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overview {
    /// Since it began to serve.
    pub uptime: Duration,
    /// Bytes that the index takes, and may take.
    pub index_bytes: u64,
    /// See [`index_bytes`](Self::index_bytes).
    pub max_bytes: u64,
    /// (Block, holder) pairs dropped for that.
    pub dropped_entries: u64,
    /// Messages that belong to nobody.
    pub unclaimed: u64,
    /// Reports received, and those of them that found no prediction.
    pub reports: u64,
    /// See [`reports`](Self::reports).
    pub unmatched: u64,
}

/// A publisher at that moment.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Who.
    pub who: Who,
    /// Where it stands.
    pub state: PublisherState,
    /// Whether the engine's whole history is known.
    pub complete: bool,
    /// Whether anything ever came of it.
    pub heard: bool,
    /// How long its oldest batch has been waiting.
    pub staleness: Duration,
    /// Whether it has a replay endpoint.
    pub can_replay: bool,
    /// Block size registered, and seen in events.
    pub registered_block_size: Option<u32>,
    /// See [`registered_block_size`](Self::registered_block_size).
    pub observed_block_size: Option<u32>,
    /// Losses noticed.
    pub gaps: u64,
    /// Losses that could not be repaired.
    pub losses: u64,
    /// Messages dropped because the queue was full.
    pub dropped: u64,
    /// Batches applied.
    pub batches: u64,
    /// Messages that were no batch.
    pub malformed: u64,
    /// Events left out.
    pub events_skipped: u64,
    /// Batches that name another rank.
    pub misranked: u64,
    /// Blocks refused, over the limit of one publisher.
    pub refused: u64,
    /// Blocks dropped, over the index's memory limit.
    pub dropped_blocks: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What can be said of kvd as a whole and of every publisher.
pub fn health(overview: &Overview, publishers: &[Condition]) -> Vec<Finding> {
    let mut findings = of_kvd(overview, publishers);
    findings.extend(publishers.iter().flat_map(|p| of_publisher(overview, p)));
    findings
}

fn of_kvd(o: &Overview, publishers: &[Condition]) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut say = |problem, severity, evidence: String, remedy: &str| {
        let remedy = remedy.to_owned();
        out.push(Finding { problem, severity, who: None, confidence: 1.0, evidence, remedy });
    };
    if publishers.is_empty() {
        let remedy = "register the engines (kvctl register, POST /register, or [[publisher]] in the configuration), or let them dial in ([[listen]])";
        say(Problem::NoPublisher, Severity::Error, "no publisher is registered".into(), remedy);
    }
    if o.dropped_entries > 0 {
        let evidence = format!(
            "{} (block, holder) pairs were dropped to stay within {} MiB, {} MiB are in use",
            o.dropped_entries,
            o.max_bytes >> 20,
            o.index_bytes >> 20
        );
        let remedy = "give the index more memory (index.max_memory): publishers that lost blocks are not complete, and their scores may be too low";
        say(Problem::MemoryLimit, Severity::Warning, evidence, remedy);
    }
    if o.unclaimed > 0 {
        let evidence =
            format!("{} messages on shared sockets have a topic that no publisher has", o.unclaimed);
        let remedy =
            "register a publisher with that topic, or give engines topics of the form kv@<ip:port>@<model>";
        say(Problem::Unclaimed, Severity::Warning, evidence, remedy);
    }
    if o.unmatched >= UNMATCHED && confidence(o.unmatched as usize, o.reports as usize) > 0.05 {
        let evidence =
            format!("{} of {} reports were of requests that are not known here", o.unmatched, o.reports);
        let remedy = "report with the request_id, tenant and model that Score was asked with, to the kvd that answered it, and in time (limits.prediction_ttl, max_predictions, max_prediction_memory)";
        say(Problem::Unmatched, Severity::Warning, evidence, remedy);
    }
    out
}

fn of_publisher(o: &Overview, p: &Condition) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut say = |problem, severity, evidence: String, remedy: &str| {
        let (who, remedy) = (Some(p.who.clone()), remedy.to_owned());
        out.push(Finding { problem, severity, who, confidence: 1.0, evidence, remedy });
    };
    let last_error = p.last_error.as_deref().map(|e| format!("; last: {e}")).unwrap_or_default();
    if !p.heard {
        let severity = if o.uptime < PATIENCE { Severity::Note } else { Severity::Warning };
        let remedy = "an engine that has served nothing yet publishes nothing; otherwise check that KV-cache events are enabled, that the endpoint is reachable from here (network policies too), and its topic";
        say(
            Problem::NeverHeard,
            severity,
            format!("not one message since it was registered{last_error}"),
            remedy,
        );
    }
    if let (Some(registered), Some(seen)) = (p.registered_block_size, p.observed_block_size)
        && registered != seen
    {
        let evidence = format!("registered with blocks of {registered} tokens, its events are of {seen}");
        let remedy = "the events decide what kvd counts; correct the registration, and check that whoever hashes prompts uses the size in the events";
        say(Problem::BlockSizeDiffers, Severity::Warning, evidence, remedy);
    }
    if p.misranked > 0 {
        let evidence = format!(
            "{} of {} batches name another data-parallel rank than the registered {}",
            p.misranked, p.batches, p.who.rank
        );
        let remedy =
            "register each rank under its own dp_rank with its own endpoint (vLLM: base port + rank)";
        say(Problem::RankDiffers, Severity::Error, evidence, remedy);
    }
    if p.malformed + p.events_skipped > 0 {
        let evidence = format!(
            "{} messages were no batch and {} events were left out{last_error}",
            p.malformed, p.events_skipped
        );
        let remedy = "the publisher's type may be wrong, or the engine newer than this kvd; the log says what could not be read";
        say(Problem::Unreadable, Severity::Warning, evidence, remedy);
    }
    let replay = if p.can_replay {
        "the engine's replay did not reach back far enough: let it keep more batches (vLLM: buffer_steps); what it holds is learnt as it stores and clears"
    } else {
        "register it with a replay endpoint, so that what was missed can be fetched; without one it is learnt as the engine stores and clears"
    };
    match p.state {
        PublisherState::Partial => {
            let evidence = format!(
                "what it held before is not known: {} gaps, {} of them not repaired{last_error}",
                p.gaps, p.losses
            );
            let problem = if p.losses > 0 { Problem::Gaps } else { Problem::PartialHistory };
            say(problem, Severity::Warning, evidence, replay);
        }
        PublisherState::Unreachable => {
            let remedy = "its events do not arrive, so what is known of it grows old: check that it runs and that its endpoint is reachable from here; after ingest.dead_after it is taken for dead";
            say(Problem::Unreachable, Severity::Warning, format!("not connected{last_error}"), remedy);
        }
        PublisherState::Dead => {
            let remedy = "unregister it if it is gone for good (kvctl unregister), or register engines with lease_seconds; otherwise see why it does not answer";
            say(
                Problem::Dead,
                Severity::Error,
                "no sign of it for longer than ingest.dead_after".into(),
                remedy,
            );
        }
        PublisherState::Connecting | PublisherState::Replaying | PublisherState::Live => {}
    }
    if p.dropped > 0 {
        let severity = if p.complete { Severity::Note } else { Severity::Warning };
        let evidence = format!("{} messages were dropped because its queue was full", p.dropped);
        let remedy = "kvd does not keep up with this engine: give it more cores (ingest.threads), or more room for bursts (ingest.queue_messages, queue_size)";
        say(Problem::Dropped, severity, evidence, remedy);
    }
    if p.staleness > LATE {
        let evidence = format!("its oldest batch has been waiting for {:.1} s", p.staleness.as_secs_f64());
        let remedy = "kvd does not keep up, or a replay is under way; see ingest.threads";
        say(Problem::Lagging, Severity::Warning, evidence, remedy);
    }
    if p.refused + p.dropped_blocks > 0 {
        let evidence = format!(
            "{} blocks were refused and {} dropped to stay within limits",
            p.refused, p.dropped_blocks
        );
        let remedy =
            "raise index.max_blocks_per_publisher or index.max_memory; until then its scores may be too low";
        say(Problem::MemoryLimit, Severity::Warning, evidence, remedy);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Condition {
        Condition {
            who: Who { tenant: "default".into(), model: "m".into(), instance: "a:1".into(), rank: 0 },
            state: PublisherState::Live,
            complete: true,
            heard: true,
            staleness: Duration::ZERO,
            can_replay: true,
            registered_block_size: Some(16),
            observed_block_size: Some(16),
            gaps: 3,
            losses: 0,
            dropped: 0,
            batches: 100,
            malformed: 0,
            events_skipped: 0,
            misranked: 0,
            refused: 0,
            dropped_blocks: 0,
            last_error: None,
        }
    }

    /// What is found of one publisher.
    fn found(change: impl FnOnce(&mut Condition)) -> Vec<(Problem, Severity)> {
        let mut condition = fine();
        change(&mut condition);
        let overview = Overview { uptime: PATIENCE, ..Overview::default() };
        health(&overview, &[condition]).into_iter().map(|f| (f.problem, f.severity)).collect()
    }

    #[test]
    fn a_publisher_whose_losses_were_repaired_is_healthy() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn each_trouble_has_its_finding() {
        use {Problem as P, Severity as S};
        assert_eq!(found(|p| p.heard = false), [(P::NeverHeard, S::Warning)]);
        assert_eq!(found(|p| p.registered_block_size = Some(64)), [(P::BlockSizeDiffers, S::Warning)]);
        assert_eq!(found(|p| p.observed_block_size = None), [], "nothing stored yet");
        assert_eq!(found(|p| p.misranked = 1), [(P::RankDiffers, S::Error)]);
        assert_eq!(found(|p| p.malformed = 1), [(P::Unreadable, S::Warning)]);
        assert_eq!(found(|p| p.events_skipped = 1), [(P::Unreadable, S::Warning)]);
        assert_eq!(found(|p| p.state = PublisherState::Partial), [(P::PartialHistory, S::Warning)]);
        assert_eq!(found(|p| (p.state, p.losses) = (PublisherState::Partial, 1)), [(P::Gaps, S::Warning)]);
        assert_eq!(found(|p| p.dropped = 1), [(P::Dropped, S::Note)]);
        assert_eq!(found(|p| (p.dropped, p.complete) = (1, false)), [(P::Dropped, S::Warning)]);
        assert_eq!(found(|p| p.staleness = 2 * LATE), [(P::Lagging, S::Warning)]);
        assert_eq!(found(|p| p.refused = 1), [(P::MemoryLimit, S::Warning)]);
        assert_eq!(found(|p| p.dropped_blocks = 1), [(P::MemoryLimit, S::Warning)]);
    }

    #[test]
    fn kvd_as_a_whole_has_findings_of_its_own() {
        let of = |o: Overview| -> Vec<Problem> { health(&o, &[fine()]).iter().map(|f| f.problem).collect() };
        assert_eq!(of(Overview::default()), []);
        assert_eq!(of(Overview { dropped_entries: 1, ..Overview::default() }), [Problem::MemoryLimit]);
        assert_eq!(of(Overview { unclaimed: 1, ..Overview::default() }), [Problem::Unclaimed]);
        assert_eq!(of(Overview { reports: 1000, unmatched: 9, ..Overview::default() }), []);
        assert_eq!(of(Overview { reports: 20, unmatched: 9, ..Overview::default() }), [Problem::Unmatched]);
        assert_eq!(health(&Overview::default(), &[])[0].problem, Problem::NoPublisher);
    }

    #[test]
    fn an_engine_that_was_just_registered_may_have_nothing_to_say() {
        let mut condition = fine();
        condition.heard = false;
        let found = health(&Overview::default(), &[condition]);
        assert_eq!(found[0].severity, Severity::Note);
    }
}
