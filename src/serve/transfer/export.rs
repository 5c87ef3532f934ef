//! Transfers as rows of metrics, see [`crate::metrics`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Spread, Transfers, connector_name, decision_name, reason_name};
use crate::serve::Histogram;
use crate::transfer::ledger::{Enforcement, State};
use crate::transfer::types::Reason;

/// One sample: what comes after the metric's name, labels, value.
pub(crate) struct Row {
    pub suffix: &'static str,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

fn row(labels: Vec<(&'static str, String)>, value: f64) -> Row {
    Row { suffix: "", labels, value }
}

impl Transfers {
    /// Transfers known, by state.
    pub(crate) fn by_state(&self) -> Vec<Row> {
        let count = |s: State| row(vec![("state", s.name().to_owned())], self.book(|b| b.count(s)) as f64);
        State::ALL.into_iter().map(count).collect()
    }

    /// Transfers that ended.
    pub(crate) fn ended(&self) -> Vec<Row> {
        let rows = self.tally(|t| {
            let each = t.ended.iter().map(|((state, connector, cause), n)| {
                let labels = vec![
                    ("state", state.name().to_owned()),
                    ("connector", connector_name(*connector).to_owned()),
                    ("cause", cause.map_or("none", |c| c.name()).to_owned()),
                ];
                row(labels, *n as f64)
            });
            each.collect()
        });
        sorted(rows)
    }

    /// Time in each state.
    pub(crate) fn stages(&self) -> Vec<Row> {
        let stages = ["planned", "prefilling", "ready", "pulling"];
        self.tally(|t| {
            stages
                .iter()
                .zip(&t.stages)
                .flat_map(|(stage, s)| spread(vec![("stage", (*stage).to_owned())], s))
                .collect()
        })
    }

    /// Measured over expected time of moving.
    pub(crate) fn estimate_error(&self) -> Vec<Row> {
        self.tally(|t| spread(vec![], &t.estimate_error))
    }

    /// From a request to its plan.
    pub(crate) fn plan_seconds(&self) -> Vec<Row> {
        let counts = self.tally(|t| t.plan_seconds.counts());
        buckets(vec![], &Histogram::BOUNDS, &counts.cumulative, counts.count, counts.sum_seconds)
    }

    /// Plans by decision and reason.
    pub(crate) fn plans_made(&self) -> Vec<Row> {
        let rows = self.tally(|t| {
            let each = t.plans.iter().map(|((decision, reason), n)| {
                let labels =
                    vec![("decision", decision_name(*decision).to_owned()), ("reason", reason_name(*reason))];
                row(labels, *n as f64)
            });
            each.collect()
        });
        sorted(rows)
    }

    /// Plans that moved nothing because no pod understands another.
    pub(crate) fn incompatible(&self) -> f64 {
        self.tally(|t| {
            t.plans.iter().filter(|((_, r), _)| *r == Reason::Incompatible).map(|(_, n)| *n).sum::<u64>()
                as f64
        })
    }

    /// Bytes moved.
    pub(crate) fn bytes_moved(&self) -> Vec<Row> {
        let rows = self.tally(|t| {
            let each = t.bytes.iter().map(|((from, to, tier), n)| {
                let labels = vec![
                    ("src_zone", from.to_string()),
                    ("dst_zone", to.to_string()),
                    ("tier", (*tier).to_owned()),
                ];
                row(labels, *n as f64)
            });
            each.collect()
        });
        sorted(rows)
    }

    /// Bytes times seconds that blocks were kept for nobody.
    pub(crate) fn stranded(&self) -> Vec<Row> {
        let rows = self.tally(|t| {
            t.stranded.iter().map(|(pod, n)| row(vec![("instance", pod.to_string())], *n)).collect()
        });
        sorted(rows)
    }

    /// Bytes that pods keep for live transfers, by who sees to it.
    pub(crate) fn pinned(&self) -> Vec<Row> {
        let mut pinned: BTreeMap<(String, &str), u64> = BTreeMap::new();
        let live: Vec<_> = self.book(|book| book.records().filter(|r| r.live()).map(Arc::clone).collect());
        for record in live {
            let enforcement = match self.enforcement(&record) {
                Enforcement::Advisory => "advisory",
                Enforcement::EngineAcked => "engine_acked",
                Enforcement::Enforced => "enforced",
            };
            for leg in &record.choice.legs {
                *pinned.entry((leg.from.instance.to_string(), enforcement)).or_default() += leg.pinned_bytes;
            }
        }
        let each = pinned.into_iter().map(|((pod, enforcement), bytes)| {
            row(vec![("instance", pod), ("enforcement", enforcement.to_owned())], bytes as f64)
        });
        each.collect()
    }

    /// Bytes under way, by link.
    pub(crate) fn inflight(&self) -> Vec<Row> {
        let rows = self.book(|book| {
            let each = book.reservations().links().map(|(from, to, flow)| {
                row(vec![("from", from.to_string()), ("to", to.to_string())], flow.bytes as f64)
            });
            each.collect()
        });
        sorted(rows)
    }
}

fn spread(labels: Vec<(&'static str, String)>, spread: &Spread) -> Vec<Row> {
    buckets(labels, &Spread::BOUNDS, &spread.cumulative(), spread.count, spread.sum)
}

fn buckets(
    labels: Vec<(&'static str, String)>,
    bounds: &[f64],
    cumulative: &[u64],
    count: u64,
    sum: f64,
) -> Vec<Row> {
    let with = |le: String| labels.iter().cloned().chain([("le", le)]).collect();
    let bucket = |(bound, n): (&f64, &u64)| Row {
        suffix: "_bucket",
        labels: with(bound.to_string()),
        value: *n as f64,
    };
    let mut rows: Vec<Row> = bounds.iter().zip(cumulative).map(bucket).collect();
    rows.push(Row { suffix: "_bucket", labels: with("+Inf".to_owned()), value: count as f64 });
    rows.push(Row { suffix: "_sum", labels: labels.clone(), value: sum });
    rows.push(Row { suffix: "_count", labels, value: count as f64 });
    rows
}

/// Tables have no order; what is exported has one.
fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.labels.cmp(&b.labels));
    rows
}
