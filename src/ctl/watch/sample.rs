//! How fast is each publisher, from one look to the next?

use std::collections::HashMap;
use std::time::Duration;

use kvproto::rpc::kv::{PublisherStatus, StatsResponse, Tier};

/// What one look at kvd showed.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Every publisher, in kvd's order.
    pub publishers: Vec<PublisherStatus>,
    /// kvd as a whole.
    pub stats: StatsResponse,
}

/// One line of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Instance.
    pub instance: String,
    /// Data-parallel rank.
    pub rank: u32,
    /// Model.
    pub model: String,
    /// State, in a word.
    pub state: &'static str,
    /// Whether the engine's whole history is known.
    pub complete: bool,
    /// Last batch applied.
    pub last_seq: Option<u64>,
    /// Distinct blocks held on the device, in host memory, and further away.
    pub blocks: [u64; 3],
    /// Events applied per second.
    pub events_per_s: f64,
    /// Blocks gained (lost, where negative) per second.
    pub blocks_per_s: f64,
    /// How long the oldest batch not yet applied has been waiting, milliseconds.
    pub lag_ms: u64,
    /// Messages waiting.
    pub queued: u64,
    /// How long nothing has come, milliseconds.
    pub silent_ms: u64,
    /// What went wrong last.
    pub last_error: String,
}

/// kvd as a whole, between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Publishers, and those followed whole.
    pub publishers: (u64, u64),
    /// (Block, holder) pairs.
    pub entries: u64,
    /// Events applied per second.
    pub events_per_s: f64,
    /// Questions answered per second.
    pub queries_per_s: f64,
    /// Messages dropped since the start.
    pub dropped: u64,
}

type Name = (String, String, String, u32);

/// Rows and totals of `now`; rates since `before`, `elapsed` ago, are 0 without one.
pub fn compare(before: Option<&Sample>, now: &Sample, elapsed: Duration) -> (Vec<Row>, Totals) {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let known: HashMap<Name, &PublisherStatus> =
        before.into_iter().flat_map(|b| &b.publishers).map(|p| (name(p), p)).collect();
    let rows = now.publishers.iter().map(|p| row(p, known.get(&name(p)).copied(), seconds)).collect();
    let (s, old) = (&now.stats, before.map_or(&now.stats, |b| &b.stats));
    // A kvd started again counts from 0: no rate is better than a wrong one.
    let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
    let totals = Totals {
        publishers: (s.publishers, s.live_publishers),
        entries: s.entries,
        events_per_s: rate(s.events, old.events),
        queries_per_s: rate(s.queries, old.queries),
        dropped: s.messages_dropped,
    };
    (rows, totals)
}

fn row(p: &PublisherStatus, old: Option<&PublisherStatus>, seconds: f64) -> Row {
    let spec = p.spec.clone().unwrap_or_default();
    let f = p.freshness.unwrap_or_default();
    let old = old.unwrap_or(p);
    let mut blocks = [0; 3];
    for count in &p.by_tier {
        let column = match count.tier() {
            Tier::Gpu => 0,
            Tier::Cpu => 1,
            Tier::Disk | Tier::Shared | Tier::Unknown | Tier::Unspecified => 2,
        };
        blocks[column] += u64::from(count.blocks);
    }
    Row {
        instance: spec.instance_id,
        rank: spec.dp_rank,
        model: spec.model,
        state: crate::ctl::client::state_name(f.state()),
        complete: f.complete,
        last_seq: f.last_seq,
        blocks,
        events_per_s: p.events.saturating_sub(old.events) as f64 / seconds,
        blocks_per_s: (p.blocks as f64 - old.blocks as f64) / seconds,
        lag_ms: f.staleness_ms,
        queued: p.queued,
        silent_ms: f.silent_ms,
        last_error: p.last_error.clone(),
    }
}

fn name(p: &PublisherStatus) -> Name {
    let spec = p.spec.clone().unwrap_or_default();
    (spec.tenant_id, spec.model, spec.instance_id, spec.dp_rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::rpc::kv::{PublisherSpec, TierCount};

    fn look(events: u64, blocks: u64) -> Sample {
        let publisher = PublisherStatus {
            spec: Some(PublisherSpec { instance_id: "a".into(), ..PublisherSpec::default() }),
            events,
            blocks,
            by_tier: vec![
                TierCount { tier: Tier::Gpu.into(), blocks: 5 },
                TierCount { tier: Tier::Disk.into(), blocks: 2 },
                TierCount { tier: Tier::Shared.into(), blocks: 1 },
            ],
            ..PublisherStatus::default()
        };
        Sample { publishers: vec![publisher], stats: StatsResponse { events, ..StatsResponse::default() } }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let (rows, totals) = compare(Some(&look(10, 100)), &look(30, 90), Duration::from_secs(2));
        assert_eq!((rows[0].events_per_s, rows[0].blocks_per_s), (10.0, -5.0));
        assert_eq!(rows[0].blocks, [5, 0, 3]);
        assert_eq!(totals.events_per_s, 10.0);
    }

    #[test]
    fn the_first_look_and_a_new_publisher_have_no_rates() {
        let (rows, totals) = compare(None, &look(10, 100), Duration::from_secs(1));
        assert_eq!((rows[0].events_per_s, rows[0].blocks_per_s, totals.events_per_s), (0.0, 0.0, 0.0));
        let (rows, _) = compare(Some(&Sample::default()), &look(10, 100), Duration::from_secs(1));
        assert_eq!(rows[0].events_per_s, 0.0);
    }

    #[test]
    fn counters_that_went_back_give_no_rate() {
        let (rows, totals) = compare(Some(&look(50, 0)), &look(10, 0), Duration::from_secs(1));
        assert_eq!((rows[0].events_per_s, totals.events_per_s), (0.0, 0.0));
    }
}
