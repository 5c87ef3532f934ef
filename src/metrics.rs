//! What does kvd export, under which names, in which units?
//!
//! [`METRICS`] is the one list. Libraries count in plain structs; here the counts get their
//! names, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvproto::Tier;

use crate::outcome::Verdict;
use crate::outcome::tally::{Sizes, Tally};
use crate::publisher::{PublisherState, PublisherStatus};
use crate::serve::transfer::export::Row;
use crate::serve::transfer::{Tally as TransferTally, Transfers};
use crate::serve::{Histogram, Service};
use crate::snapshot::Runner;
use crate::warmup::Stage;

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

const fn transfers(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    rows: fn(&Transfers) -> Vec<Row>,
) -> Metric {
    Metric { name, kind, help, source: Source::Transfers(rows) }
}

/// One value of the transfers' tally; 0 where nobody coordinates them.
fn tallied(snapshot: &Snapshot<'_>, value: fn(&TransferTally) -> u64) -> f64 {
    snapshot.service.transfers().map_or(0.0, |t| t.tally(value) as f64)
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

/// Every metric there is. `_by_publisher` ones carry the labels tenant, model, instance, dp_rank.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "kvd_build_info",
        kind: Kind::Gauge,
        help: "Always 1; the label says which version runs.",
        source: Source::Build,
    },
    gauge("kvd_uptime_seconds", "Since the start.", |s| s.service.started.elapsed().as_secs_f64()),
    gauge("kvd_ready", "1 when schedulers should ask here.", |s| f64::from(u8::from(s.service.is_ready()))),
    gauge("kvd_incarnation", "How often kvd was started on its data directory.", |s| {
        s.service.publishers.catalog().incarnation() as f64
    }),
    counter("kvd_catalog_set_aside_total", "Damaged catalogs set aside.", |s| {
        f64::from(u8::from(s.service.publishers.catalog().set_aside().is_some()))
    }),
    counter("kvd_catalog_write_errors_total", "Writes of the catalog that failed.", |s| {
        s.service.publishers.catalog().write_errors() as f64
    }),
    gauge("kvd_warm", "1 when every publisher is followed from a proven place.", |s| {
        f64::from(u8::from(s.service.stage() == Stage::Warm))
    }),
    gauge("kvd_restored_publishers", "Publishers that went on from a snapshot at the start.", |s| {
        s.service.restored.get().map_or(0.0, |r| r.publishers as f64)
    }),
    gauge("kvd_restored_blocks", "Blocks that they held.", |s| {
        s.service.restored.get().map_or(0.0, |r| r.blocks as f64)
    }),
    gauge(
        "kvd_shared_index_owned_publishers",
        "Publishers that this kvd writes to the index on Valkey.",
        |s| s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.owned)),
    ),
    counter("kvd_shared_index_commits_total", "Commits to the index on Valkey.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.commits))
    }),
    counter("kvd_shared_index_failures_total", "Commits and claims there that failed.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.failures))
    }),
    counter("kvd_shared_index_breaks_total", "Publishers cleared there because of a loss.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.breaks))
    }),
    counter("kvd_shared_index_routings_total", "Routings announced or taken back there.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.routings))
    }),
    counter("kvd_shared_index_routings_failed_total", "Routings that the servers did not take.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.routings_failed))
    }),
    gauge("kvd_peers_connected", "Other replicas that answer.", |s| s.service.peers.connected() as f64),
    counter("kvd_peer_news_sent_total", "Routings and registrations told to other replicas.", |s| {
        load(&s.service.peers.counts.sent)
    }),
    counter("kvd_peer_news_dropped_total", "News that a replica was too slow for.", |s| {
        load(&s.service.peers.counts.dropped)
    }),
    counter("kvd_peer_news_heard_total", "News that other replicas told.", |s| {
        load(&s.service.peers.counts.heard)
    }),
    counter("kvd_peer_news_refused_total", "News heard that cannot be used.", |s| {
        load(&s.service.peers.counts.refused)
    }),
    counter("kvd_peer_digests_total", "Publishers compared with another replica.", |s| {
        load(&s.service.peers.counts.compared)
    }),
    counter("kvd_peer_digests_differing_total", "Publishers of which a replica had other blocks.", |s| {
        load(&s.service.peers.counts.differed)
    }),
    counter("kvd_peer_repairs_total", "Publishers learnt anew from another replica.", |s| {
        load(&s.service.peers.counts.repaired)
    }),
    counter("kvd_peer_snapshot_bytes_total", "Bytes of snapshots given to other replicas.", |s| {
        load(&s.service.peers.counts.given)
    }),
    counter("kvd_refused_unknown_total", "Calls refused without a token that is known.", |s| {
        load(&s.service.guard.refused.unknown)
    }),
    counter("kvd_refused_forbidden_total", "Calls refused whose token gives less.", |s| {
        load(&s.service.guard.refused.forbidden)
    }),
    counter(
        "kvd_refused_unreviewed_total",
        "Calls refused whose token the cluster could not be asked about.",
        |s| load(&s.service.guard.refused.unreviewed),
    ),
    counter("kvd_token_reviews_total", "Tokens that the cluster was asked about.", |s| {
        s.service.guard.reviewer.as_ref().map_or(0.0, |r| load(&r.counts.asked))
    }),
    counter("kvd_token_review_failures_total", "Of these, not answered.", |s| {
        s.service.guard.reviewer.as_ref().map_or(0.0, |r| load(&r.counts.failed))
    }),
    counter("kvd_refused_limited_total", "Calls refused over their client's limit.", |s| {
        load(&s.service.guard.refused.limited)
    }),
    gauge("kvd_discovery_synced", "1 when all that there was to discover at the start is followed.", |s| {
        f64::from(u8::from(s.service.discovery.is_synced()))
    }),
    gauge("kvd_discovery_publishers", "Publishers that are discovered.", |s| {
        s.service.discovery.shown().publishers as f64
    }),
    gauge("kvd_discovery_refused", "What is seen and cannot be followed; GET /discovery says why.", |s| {
        s.service.discovery.shown().refused.len() as f64
    }),
    gauge("kvd_discovery_feeds_failing", "Places that cannot be looked at now.", |s| {
        s.service.discovery.shown().feeds.iter().filter(|f| f.error.is_some()).count() as f64
    }),
    counter("kvd_discovery_followed_total", "Publishers followed because they were discovered.", |s| {
        load(&s.service.discovery.counts.followed)
    }),
    counter("kvd_discovery_left_total", "Publishers left because they are not there any more.", |s| {
        load(&s.service.discovery.counts.left)
    }),
    counter("kvd_discovery_failures_total", "Discovered publishers that could not be followed.", |s| {
        load(&s.service.discovery.counts.failed)
    }),
    counter("kvd_discovery_errors_total", "Times that pods or the file could not be looked at.", |s| {
        load(&s.service.discovery.counts.errors)
    }),
    counter("kvd_discovery_lists_total", "Times that all pods, or the file, were read.", |s| {
        load(&s.service.discovery.counts.listed)
    }),
    counter("kvd_snapshots_total", "Snapshots written.", |s| s.snapshots.written as f64),
    counter("kvd_snapshot_failures_total", "Snapshots that could not be written.", |s| {
        s.snapshots.failed as f64
    }),
    gauge("kvd_snapshot_age_seconds", "Since the last snapshot was begun; -1 = none yet.", |s| {
        s.snapshots.age.map_or(-1.0, |age| age.as_secs_f64())
    }),
    gauge("kvd_snapshot_bytes", "Size of the last snapshot.", |s| s.snapshots.bytes as f64),
    gauge("kvd_snapshot_seconds", "How long the last snapshot took.", |s| s.snapshots.took.as_secs_f64()),
    gauge(
        "kvd_snapshot_pause_seconds",
        "How long a publisher's batches waited for the last snapshot, at most.",
        |s| s.snapshots.longest_pause.as_secs_f64(),
    ),
    gauge("kvd_resident_memory_bytes", "Memory of the process that is in RAM.", |_| resident_bytes()),
    Metric {
        name: "kvd_query_seconds",
        kind: Kind::Histogram,
        help: "From a checked question to its answer, transport excluded.",
        source: Source::QuerySeconds,
    },
    counter("kvd_queries_total", "Questions answered, over gRPC and HTTP.", |s| {
        load(&s.service.counters.queries)
    }),
    counter("kvd_query_errors_total", "Questions refused.", |s| load(&s.service.counters.query_errors)),
    counter("kvd_query_unknown_model_total", "Questions about a model that nobody is registered for.", |s| {
        load(&s.service.counters.unknown_model)
    }),
    counter("kvd_query_tokens_total", "Tokens of all prompts asked about.", |s| {
        s.service.traffic.sums().asked_tokens as f64
    }),
    counter(
        "kvd_query_cached_tokens_total",
        "Of those, tokens cached on the candidate that has most of the prompt.",
        |s| s.service.traffic.sums().best_tokens as f64,
    ),
    counter(
        "kvd_query_cached_blocks_total",
        "Blocks from the root on the candidate that has most of the prompt.",
        |s| s.service.traffic.sums().best_blocks as f64,
    ),
    gauge("kvd_query_prefixes", "Beginnings of prompts that are remembered, to show the hottest.", |s| {
        s.service.traffic.nodes() as f64
    }),
    counter("kvd_routings_total", "Routings announced.", |s| load(&s.service.counters.routings)),
    counter("kvd_routings_expired_total", "Announced routings ended by their time to live.", |s| {
        load(&s.service.counters.routings_expired)
    }),
    counter("kvd_hints_total", "Nodes told what a request routed to them will ask for.", |s| {
        load(&s.service.hints.counts.sent)
    }),
    counter("kvd_hints_dropped_total", "Nodes not told, because too much was waiting.", |s| {
        load(&s.service.hints.counts.dropped)
    }),
    counter("kvd_hints_failed_total", "Nodes not told: no connection, refused, or no answer in time.", |s| {
        load(&s.service.hints.counts.failed)
    }),
    counter("kvd_hint_pulls_total", "Blocks that nodes set out to pull from others for hints.", |s| {
        load(&s.service.hints.counts.pulling)
    }),
    counter("kvd_hint_blocks_total", "Blocks that nodes brought up for hints.", |s| {
        load(&s.service.hints.counts.blocks)
    }),
    counter("kvd_outcomes_total", "Outcomes reported.", |s| load(&s.service.outcomes.counts.reports)),
    counter("kvd_outcome_prompt_tokens_total", "Tokens of prompts that engines reported on.", |s| {
        s.service.traffic.sums().reported_tokens as f64
    }),
    counter("kvd_outcome_cached_tokens_total", "Of those, tokens that the engines had cached.", |s| {
        s.service.traffic.sums().reported_cached as f64
    }),
    counter(
        "kvd_outcomes_unmatched_total",
        "Outcomes reported of requests that were not scored here.",
        |s| load(&s.service.outcomes.counts.unmatched),
    ),
    counter("kvd_outcomes_repeated_total", "Outcomes reported more than once.", |s| {
        load(&s.service.outcomes.counts.repeated)
    }),
    counter(
        "kvd_outcomes_dropped_total",
        "Outcomes not compared, because too many were under review.",
        |s| load(&s.service.outcomes.counts.dropped),
    ),
    gauge("kvd_predictions", "Answers kept until their outcome is reported.", |s| {
        s.service.outcomes.predictions.size().0 as f64
    }),
    gauge("kvd_prediction_bytes", "Memory of those, prompts included.", |s| {
        s.service.outcomes.predictions.size().1 as f64
    }),
    gauge("kvd_index_holders", "Engines (instance and rank) in the index.", |s| s.index.holders as f64),
    gauge("kvd_index_blocks", "Distinct prefix blocks.", |s| s.index.blocks as f64),
    gauge("kvd_index_entries", "(Block, holder) pairs.", |s| s.index.entries as f64),
    gauge("kvd_index_bytes", "Memory of blocks, tables and holders.", |s| s.index.bytes as f64),
    gauge("kvd_index_hash_domains", "Groups of engines that call blocks alike.", |s| s.index.domains as f64),
    counter("kvd_index_dropped_total", "(Block, holder) pairs dropped, over the memory limit.", |s| {
        s.index.dropped as f64
    }),
    gauge("kvd_index_speculative_entries", "(Block, holder) pairs that routing announced.", |s| {
        s.index.speculative as f64
    }),
    Metric {
        name: "kvd_tier_blocks",
        kind: Kind::Gauge,
        help: "Distinct blocks per engine, summed over engines, by tier.",
        source: Source::BlocksByTier,
    },
    Metric {
        name: "kvd_publishers",
        kind: Kind::Gauge,
        help: "Publishers registered, by state.",
        source: Source::ByState,
    },
    counter("kvd_messages_total", "Messages received from publishers.", |s| s.totals.messages as f64),
    counter("kvd_messages_dropped_total", "Messages dropped because a queue was full.", |s| {
        s.totals.dropped as f64
    }),
    counter("kvd_messages_malformed_total", "Messages that were no batch.", |s| s.totals.malformed as f64),
    counter("kvd_messages_ignored_total", "Messages without effect: repeated, or another's topic.", |s| {
        s.totals.ignored as f64
    }),
    counter(
        "kvd_messages_unclaimed_total",
        "Messages on a shared socket whose topic names no publisher.",
        |s| s.totals.unclaimed as f64,
    ),
    gauge("kvd_messages_queued", "Messages waiting to be applied.", |s| s.totals.queued as f64),
    counter("kvd_batches_total", "Batches applied.", |s| s.totals.batches as f64),
    counter("kvd_events_total", "Events applied.", |s| s.totals.events as f64),
    counter("kvd_blocks_stored_total", "Copies of blocks that engines stored.", |s| s.totals.stored as f64),
    counter("kvd_blocks_removed_total", "Copies of blocks that engines removed one by one.", |s| {
        s.totals.removed as f64
    }),
    counter("kvd_events_skipped_total", "Events left out: unknown or malformed.", |s| {
        s.totals.events_skipped as f64
    }),
    counter("kvd_gaps_total", "Losses noticed in a publisher's stream.", |s| s.totals.gaps as f64),
    counter("kvd_losses_total", "Losses that could not be repaired.", |s| s.totals.losses as f64),
    counter("kvd_replays_total", "Replays asked for.", |s| s.totals.replays as f64),
    counter("kvd_restarts_total", "Engine restarts noticed.", |s| s.totals.restarts as f64),
    counter("kvd_deaths_total", "Times that an engine was taken for dead.", |s| s.totals.deaths as f64),
    by_publisher("kvd_publisher_blocks", Kind::Gauge, "Distinct blocks held.", |p| p.held.blocks as f64),
    by_publisher(
        "kvd_publisher_suspect_blocks",
        Kind::Gauge,
        "Distinct blocks held before batches were lost for good, which may be gone since.",
        |p| p.held.suspect as f64,
    ),
    by_publisher("kvd_publisher_queued_messages", Kind::Gauge, "Messages waiting to be applied.", |p| {
        p.status.queued as f64
    }),
    by_publisher(
        "kvd_publisher_staleness_seconds",
        Kind::Gauge,
        "How long the oldest message not yet applied has been waiting; 0 = none is.",
        |p| p.since(p.status.freshness.oldest_queued),
    ),
    by_publisher(
        "kvd_publisher_silent_seconds",
        Kind::Gauge,
        "Since the last message; idle engines are silent. 0 before the first.",
        |p| p.since(p.status.freshness.last_message),
    ),
    by_publisher(
        "kvd_publisher_dropped_total",
        Kind::Counter,
        "Messages dropped, the queue was full.",
        |p| p.status.dropped as f64,
    ),
    by_publisher("kvd_publisher_gaps_total", Kind::Counter, "Losses noticed.", |p| p.status.gaps as f64),
    Metric {
        name: "kvd_publisher_outcomes_total",
        kind: Kind::Counter,
        help: "Outcomes compared with what was predicted, by verdict; without a label value that never occurred.",
        source: Source::ByVerdict,
    },
    Metric {
        name: "kvd_publisher_too_low_tokens",
        kind: Kind::Histogram,
        help: "Tokens predicted too few, of outcomes that nothing explains.",
        source: Source::ErrorTokens(|t| &t.too_low),
    },
    Metric {
        name: "kvd_publisher_too_high_tokens",
        kind: Kind::Histogram,
        help: "Tokens predicted too many, of outcomes that nothing explains.",
        source: Source::ErrorTokens(|t| &t.too_high),
    },
    by_publisher(
        "kvd_publisher_distrusted_blocks",
        Kind::Gauge,
        "Blocks that do not count now, because reports contradict them.",
        |p| p.distrusted as f64,
    ),
    by_publisher(
        "kvd_publisher_distrusted_total",
        Kind::Counter,
        "Blocks that began not to count, because reports contradicted them.",
        |p| p.tally.distrusted as f64,
    ),
    by_publisher(
        "kvd_publisher_blocks_refused_total",
        Kind::Counter,
        "Blocks refused, over the limit.",
        |p| p.held.refused as f64,
    ),
    by_publisher(
        "kvd_publisher_blocks_dropped_total",
        Kind::Counter,
        "Blocks dropped, over the index's memory limit.",
        |p| p.held.dropped as f64,
    ),
    transfers("kvd_transfers", Kind::Gauge, "Transfers in the ledger, by state.", Transfers::by_state),
    transfers(
        "kvd_transfers_ended_total",
        Kind::Counter,
        "Transfers that ended, by how and why.",
        Transfers::ended,
    ),
    transfers(
        "kvd_transfer_stage_seconds",
        Kind::Histogram,
        "Time that transfers spent in a state.",
        Transfers::stages,
    ),
    transfers(
        "kvd_transfer_bytes_total",
        Kind::Counter,
        "Bytes of transfers that ended well, as reported or else as planned.",
        Transfers::bytes_moved,
    ),
    transfers(
        "kvd_transfer_estimate_error_ratio",
        Kind::Histogram,
        "Measured over expected time of moving.",
        Transfers::estimate_error,
    ),
    transfers("kvd_plans_total", Kind::Counter, "Plans, by decision and reason.", Transfers::plans_made),
    transfers("kvd_plan_seconds", Kind::Histogram, "From a request to its plan.", Transfers::plan_seconds),
    transfers(
        "kvd_stranded_byte_seconds_total",
        Kind::Counter,
        "Bytes times seconds that engines kept blocks nobody came for, until said to be free or the lease's end.",
        Transfers::stranded,
    ),
    transfers(
        "kvd_pinned_bytes",
        Kind::Gauge,
        "Bytes that pods keep for live transfers, by who sees to it.",
        Transfers::pinned,
    ),
    transfers("kvd_link_inflight_bytes", Kind::Gauge, "Bytes under way, by link.", Transfers::inflight),
    counter("kvd_lease_expired_before_pull_total", "Leases that ran out before anyone pulled.", |s| {
        tallied(s, |t| t.lease_expired)
    }),
    counter("kvd_replans_total", "Plans in place of others.", |s| tallied(s, |t| t.replans)),
    counter(
        "kvd_plans_incompatible_total",
        "Plans that moved nothing, no pods understand each other.",
        |s| s.service.transfers().map_or(0.0, |t| t.incompatible()),
    ),
    counter("kvd_plans_stale_total", "Plans whose source lost what was to be read.", |s| {
        tallied(s, |t| t.stale)
    }),
    gauge("kvd_transfer_holds", "Transfers for which blocks are pinned in tiers of nodes.", |s| {
        s.service.transfers().map_or(0.0, |t| t.held() as f64)
    }),
    counter(
        "kvd_transfer_holds_failed_total",
        "Transfers for which not all was pinned that their plans count on in tiers of nodes.",
        |s| s.service.transfers().map_or(0.0, |t| t.holds_failed() as f64),
    ),
    counter(
        "kvd_transfers_adopted_total",
        "Transfers taken over: from their token, or from a replica that shares the ledger.",
        |s| tallied(s, |t| t.adopted),
    ),
    counter("kvd_transfer_reports_unapplied_total", "Reports that changed nothing: late or repeated.", |s| {
        tallied(s, |t| t.unapplied)
    }),
    counter("kvd_transfer_calls_forwarded_total", "Calls that another replica answered.", |s| {
        tallied(s, |t| t.forwarded)
    }),
    counter("kvd_transfer_news_lost_total", "Events that watchers were too slow for.", |s| {
        tallied(s, |t| t.lost_news)
    }),
];

/// What llm-d's index exports, under its names, for dashboards that have them already.
pub const ALIASES: &[Metric] = &[
    counter("kvcache_index_admissions_total", "As kvd_blocks_stored_total.", |s| s.totals.stored as f64),
    counter("kvcache_index_evictions_total", "As kvd_blocks_removed_total.", |s| s.totals.removed as f64),
    counter("kvcache_index_lookup_requests_total", "As kvd_queries_total.", |s| {
        load(&s.service.counters.queries)
    }),
    counter("kvcache_index_lookup_hits_total", "As kvd_query_cached_blocks_total.", |s| {
        s.service.traffic.sums().best_blocks as f64
    }),
    counter("kvcache_index_max_pod_hit_count_total", "As kvd_query_cached_blocks_total.", |s| {
        s.service.traffic.sums().best_blocks as f64
    }),
    Metric {
        name: "kvcache_index_lookup_latency_seconds",
        kind: Kind::Histogram,
        help: "As kvd_query_seconds.",
        source: Source::QuerySeconds,
    },
];

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
    for metric in METRICS.iter().chain(ALIASES) {
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

    fn since(&self, at: Option<Instant>) -> f64 {
        at.map_or(0.0, |at| self.now.saturating_duration_since(at).as_secs_f64())
    }
}

impl Kind {
    fn name(self) -> &'static str {
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

/// 0 where the system does not say.
fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0.0, |kib: f64| kib * 1024.0)
}

#[cfg(test)]
mod docs;

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
        let names: HashSet<_> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for m in METRICS {
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
            let metric = METRICS.iter().find(|m| m.name == of).unwrap_or_else(|| panic!("no {of}"));
            assert_eq!(metric.kind, alias.kind);
        }
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut out = String::new();
        escape("a\"b\\c\nd", &mut out);
        assert_eq!(out, r#"a\"b\\c\nd"#);
    }
}
