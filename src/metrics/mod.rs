//! What does kvd export, under which names, in which units?
//!
//! [`all`] is the one list, in parts by what they are about. Libraries count in plain structs; here the
//! counts get their names, and by `text` Prometheus' format.

mod discovery;
#[cfg(test)]
mod docs;
mod guard;
mod index;
mod ingest;
mod llmd;
mod outcomes;
mod process;
mod publishers;
mod questions;
mod replicas;
mod snapshots;
mod text;
mod transfers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::outcome::tally::{Sizes, Tally};
use crate::publisher::PublisherStatus;
use crate::serve::Service;
use crate::serve::transfer::Transfers;
use crate::serve::transfer::export::Row;
pub use llmd::ALIASES;
pub use text::render;

/// The `Content-Type` of what [`render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What may be done with a metric's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; look at its rate.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations or sizes in buckets.
    Histogram,
}

/// A metric that kvd exports.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with the unit.
    pub name: &'static str,
    /// What may be done with it.
    pub kind: Kind,
    /// What it counts.
    pub help: &'static str,
    source: Source,
}

/// Where a metric's values come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// One value.
    One(fn(&Snapshot<'_>) -> f64),
    /// The query histogram.
    QuerySeconds,
    /// One value per publisher state.
    ByState,
    /// One value per tier, over all publishers.
    BlocksByTier,
    /// One value per publisher.
    ByPublisher(fn(&Publisher<'_>) -> f64),
    /// Samples of transfers.
    Transfers(fn(&Transfers) -> Vec<Row>),
    /// One value per verdict and publisher that outcomes were reported of.
    ByVerdict,
    /// How large errors were, for each publisher that outcomes were reported of.
    ErrorTokens(fn(&Tally) -> &Sizes),
    /// What this is and of which version.
    Build,
}

/// Everything that is exported, as it is at one moment.
struct Snapshot<'s> {
    service: &'s Service,
    totals: crate::ingest::Totals,
    index: kvindex::IndexStats,
    publishers: Vec<Publisher<'s>>,
    snapshots: crate::snapshot::Shown,
}

/// One publisher at that moment.
struct Publisher<'s> {
    status: PublisherStatus,
    held: kvindex::HolderStats,
    tally: Tally,
    distrusted: usize,
    now: &'s Instant,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Snapshot<'_>) -> f64) -> Metric {
    Metric { name, kind: Kind::Counter, help, source: Source::One(value) }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Snapshot<'_>) -> f64) -> Metric {
    Metric { name, kind: Kind::Gauge, help, source: Source::One(value) }
}

const fn by_publisher(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&Publisher<'_>) -> f64,
) -> Metric {
    Metric { name, kind, help, source: Source::ByPublisher(value) }
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

/// Every metric there is, by what it is about.
const METRICS: [&[Metric]; 11] = [
    process::PROCESS,
    replicas::REPLICAS,
    guard::GUARD,
    discovery::DISCOVERY,
    snapshots::SNAPSHOTS,
    questions::QUESTIONS,
    outcomes::OUTCOMES,
    index::INDEX,
    ingest::INGEST,
    publishers::PUBLISHERS,
    transfers::TRANSFERS,
];

/// Every metric there is.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.into_iter().flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    /// Every sample by its name and labels. Fails where a line is not as the format wants it.
    pub(crate) fn parse(text: &str) -> HashMap<String, f64> {
        let mut samples = HashMap::new();
        let mut described = "";
        let mut kind = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                described = rest.split_once(' ').expect("a help text").0;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, is) = rest.split_once(' ').expect("a type");
                assert_eq!(name, described, "HELP and TYPE come together");
                kind = is;
            } else {
                let (name_and_labels, value) = line.rsplit_once(' ').expect("a value");
                let name = name_and_labels.split('{').next().unwrap();
                let base = match kind {
                    "histogram" => {
                        ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap()
                    }
                    _ => name,
                };
                assert_eq!(base, described, "samples follow their description");
                assert_eq!(name_and_labels.contains('{'), name_and_labels.ends_with('}'), "{line}");
                let value = value.parse().expect("a number");
                assert!(samples.insert(name_and_labels.to_owned(), value).is_none(), "{line} is there twice");
            }
        }
        samples
    }

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let names: HashSet<_> = all().map(|m| m.name).collect();
        assert_eq!(names.len(), all().count());
        for m in all() {
            assert!(m.name.starts_with("kvd_") && !m.help.is_empty(), "{}", m.name);
            assert_eq!(m.kind == Kind::Counter, m.name.ends_with("_total"), "{}", m.name);
            let unit = ["_seconds", "_tokens", "_ratio"].iter().any(|u| m.name.ends_with(u));
            assert!(m.kind != Kind::Histogram || unit, "{}", m.name);
        }
    }

    #[test]
    fn aliases_have_llm_ds_names_and_say_what_they_are() {
        for alias in ALIASES {
            assert!(alias.name.starts_with("kvcache_index_"), "{}", alias.name);
            let of = alias.help.strip_prefix("As ").and_then(|h| h.strip_suffix('.')).unwrap();
            let metric = all().find(|m| m.name == of).unwrap_or_else(|| panic!("no {of}"));
            assert_eq!(metric.kind, alias.kind);
        }
    }
}
