//! What is wrong? Gathers what the diagnosis takes; [`crate::outcome`] has the rules.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kvindex::{HolderId, HolderStats};

use super::Service;
use super::outcome::Counts;
use crate::outcome::diagnose::{About, diagnose};
use crate::outcome::finding::{Finding, Who};
use crate::outcome::health::{Condition, Overview, health};
use crate::publisher::PublisherStatus;

/// Everything found.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Outcomes reported.
    pub reports: u64,
    /// Of them, those without a prediction.
    pub unmatched: u64,
    /// Publishers looked at.
    pub publishers: usize,
}

impl Service {
    /// What is wrong with kvd, its publishers and their answers.
    pub fn diagnose(&self, now: Instant) -> Diagnosis {
        let publishers = self.publishers.list();
        let everyone: HashMap<HolderId, Who> = publishers.iter().map(|p| (p.holder, who(p))).collect();
        let counts = &self.outcomes.counts;
        let (reports, unmatched) = (Counts::get(&counts.reports), Counts::get(&counts.unmatched));
        let index = self.index.stats();
        let overview = Overview {
            uptime: now.saturating_duration_since(self.started),
            index_bytes: index.bytes,
            max_bytes: self.index.config().max_bytes,
            dropped_entries: index.dropped,
            unclaimed: self.publishers.totals().unclaimed,
            reports,
            unmatched,
        };
        let conditions: Vec<Condition> = publishers
            .iter()
            .map(|p| condition(p, self.index.holder_stats(p.holder).unwrap_or_default(), now))
            .collect();
        let mut findings = health(&overview, &conditions);
        for p in &publishers {
            let Some(account) = self.publishers.account(p.holder) else { continue };
            findings.extend(diagnose(&About {
                who: &who(p),
                statement: &account.statement(now),
                adapter: p.spec.lora_name.as_deref(),
                by_engine_hash: p.spec.hash_algo.is_some(),
                others: &everyone,
            }));
        }
        findings.sort_by(|a, b| (b.severity, &a.who).cmp(&(a.severity, &b.who)));
        Diagnosis { findings, reports, unmatched, publishers: publishers.len() }
    }
}

fn who(p: &PublisherStatus) -> Who {
    Who {
        tenant: p.spec.tenant_id.clone(),
        model: p.spec.model.clone(),
        instance: p.spec.instance_id.clone(),
        rank: p.spec.dp_rank,
    }
}

fn condition(p: &PublisherStatus, held: HolderStats, now: Instant) -> Condition {
    let waiting = p.freshness.oldest_queued;
    Condition {
        who: who(p),
        state: p.freshness.state,
        complete: p.freshness.complete && !held.partial,
        heard: p.freshness.last_message.is_some() || p.batches > 0,
        staleness: waiting.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
        can_replay: p.spec.replay_endpoint.is_some(),
        registered_block_size: p.spec.block_size,
        observed_block_size: Some(held.block_size).filter(|n| *n > 0),
        gaps: p.gaps,
        losses: p.losses,
        dropped: p.dropped,
        batches: p.batches,
        malformed: p.malformed,
        events_skipped: p.events_skipped,
        misranked: p.misranked,
        refused: held.refused,
        dropped_blocks: held.dropped,
        last_error: p.last_error.clone(),
    }
}
