//! How does a metric look in Prometheus' text format?

use std::fmt::Write;
use std::time::Instant;

use kvproto::Tier;

use super::{ALIASES, Kind, Metric, Publisher, Snapshot, Source, all};
use crate::outcome::Verdict;
use crate::outcome::tally::Sizes;
use crate::publisher::PublisherState;
use crate::serve::transfer::export::Row;
use crate::serve::{Histogram, Service};
use crate::snapshot::Runner;

/// Every metric as it is now, in Prometheus' text format.
pub fn render(service: &Service) -> String {
    let now = Instant::now();
    let publishers = service.publishers.list().into_iter().map(|status| {
        let account = service.publishers.account(status.holder);
        let (tally, distrusted) = account.map(|a| a.tally(now)).unwrap_or_default();
        let held = service.index.holder_stats(status.holder).unwrap_or_default();
        Publisher { held, tally, distrusted, status, now: &now }
    });
    let snapshot = Snapshot {
        service,
        totals: service.publishers.totals(),
        index: service.index.stats(),
        publishers: publishers.collect(),
        snapshots: service.snapshots.get().map(Runner::shown).unwrap_or_default(),
    };
    let mut out = String::with_capacity(8 << 10);
    for metric in all().chain(ALIASES) {
        snapshot.write(metric, &mut out).expect("writing to a String does not fail");
    }
    out
}

impl Snapshot<'_> {
    fn write(&self, metric: &Metric, out: &mut String) -> std::fmt::Result {
        let Metric { name, kind, help, source } = metric;
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name())?;
        match source {
            Source::One(value) => writeln!(out, "{name} {}", value(self)),
            Source::QuerySeconds => {
                let c = self.service.counters.query_seconds.counts();
                for (bound, n) in Histogram::BOUNDS.iter().zip(c.cumulative) {
                    writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {n}")?;
                }
                writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", c.count)?;
                writeln!(out, "{name}_sum {}\n{name}_count {}", c.sum_seconds, c.count)
            }
            Source::ByState => {
                for state in PublisherState::ALL {
                    let is = |p: &&Publisher<'_>| p.status.freshness.state == state;
                    let (label, n) = (state.name(), self.publishers.iter().filter(is).count());
                    writeln!(out, "{name}{{state=\"{label}\"}} {n}")?;
                }
                Ok(())
            }
            Source::BlocksByTier => {
                for tier in Tier::ALL {
                    let blocks: u64 = self.publishers.iter().map(|p| p.held.by_tier[tier as usize]).sum();
                    writeln!(out, "{name}{{tier=\"{}\"}} {blocks}", tier.name())?;
                }
                Ok(())
            }
            Source::ByPublisher(value) => self
                .publishers
                .iter()
                .try_for_each(|p| writeln!(out, "{name}{{{}}} {}", p.labels(), value(p))),
            Source::ByVerdict => {
                for p in &self.publishers {
                    let labels = p.labels();
                    for verdict in Verdict::ALL.into_iter().filter(|v| p.tally.of(*v) > 0) {
                        let (n, verdict) = (p.tally.of(verdict), verdict.name());
                        writeln!(out, "{name}{{{labels},verdict=\"{verdict}\"}} {n}")?;
                    }
                }
                Ok(())
            }
            Source::ErrorTokens(sizes) => {
                for p in self.publishers.iter().filter(|p| p.tally.compared() > 0) {
                    let (labels, sizes) = (p.labels(), sizes(&p.tally));
                    let (cumulative, count) = sizes.cumulative();
                    for (bound, n) in Sizes::BOUNDS.iter().zip(cumulative) {
                        writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {n}")?;
                    }
                    writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
                    writeln!(out, "{name}_sum{{{labels}}} {}", sizes.tokens)?;
                    writeln!(out, "{name}_count{{{labels}}} {count}")?;
                }
                Ok(())
            }
            Source::Transfers(rows) => {
                let rows = self.service.transfers().map(|t| rows(t)).unwrap_or_default();
                for Row { suffix, labels, value } in rows {
                    write!(out, "{name}{suffix}")?;
                    for (i, (label, text)) in labels.iter().enumerate() {
                        write!(out, "{}{label}=\"", if i == 0 { '{' } else { ',' })?;
                        escape(text, out);
                        out.push('"');
                    }
                    writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" })?;
                }
                Ok(())
            }
            Source::Build => writeln!(out, "{name}{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        }
    }
}

impl Publisher<'_> {
    /// Who it is, as labels.
    fn labels(&self) -> String {
        let spec = &self.status.spec;
        let mut out = String::from("tenant=\"");
        escape(&spec.tenant_id, &mut out);
        out.push_str("\",model=\"");
        escape(&spec.model, &mut out);
        out.push_str("\",instance=\"");
        escape(&spec.instance_id, &mut out);
        out.push_str(&format!("\",dp_rank=\"{}\"", spec.dp_rank));
        out
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A label's value: names come from outside and may contain anything.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut out = String::new();
        escape("a\"b\\c\nd", &mut out);
        assert_eq!(out, r#"a\"b\\c\nd"#);
    }
}
