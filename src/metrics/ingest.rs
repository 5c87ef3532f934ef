//! What came from all publishers together, and what was lost of it?

use super::{Kind, Metric, Source, counter, gauge};

pub(super) const INGEST: &[Metric] = &[
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
];
