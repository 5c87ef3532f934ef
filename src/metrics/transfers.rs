//! What becomes of transfers?

use super::{Kind, Metric, Snapshot, Source, counter, gauge};
use crate::serve::transfer::export::Row;
use crate::serve::transfer::{Tally, Transfers};

pub(super) const TRANSFERS: &[Metric] = &[
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

const fn transfers(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    rows: fn(&Transfers) -> Vec<Row>,
) -> Metric {
    Metric { name, kind, help, source: Source::Transfers(rows) }
}

/// One value of the transfers' tally; 0 where nobody coordinates them.
fn tallied(snapshot: &Snapshot<'_>, value: fn(&Tally) -> u64) -> f64 {
    snapshot.service.transfers().map_or(0.0, |t| t.tally(value) as f64)
}
