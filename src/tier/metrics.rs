//! What does a tier process export, under which names, in which units?

use std::fmt::Write;
use std::sync::atomic::Ordering;

use kvtier::node::PoolUsage;

use super::pull::Pulling;
use super::run::Running;

/// A metric with one value per pool and, where it has several, per tier.
struct OfPool {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// Label (tier or way) and value.
    values: fn(&PoolUsage) -> Vec<(&'static str, f64)>,
}

const POOL: &[OfPool] = &[
    gauge("kvd_tier_capacity_blocks", "Blocks that a tier can hold.", |u| {
        vec![("cpu", f64::from(u.ram_blocks)), ("disk", f64::from(u.disk_blocks))]
    }),
    gauge("kvd_tier_blocks", "Blocks in a tier, as decided.", |u| {
        let (cpu, disk) = (f64::from(u.policy.cpu), f64::from(u.policy.disk));
        vec![("cpu", cpu), ("disk", disk), ("shared", u.shared as f64)]
    }),
    gauge("kvd_tier_waiting_moves", "Moves decided and not made yet, by where to.", |u| by_tier(u.waiting)),
    gauge("kvd_tier_remembered_blocks", "Blocks without a copy that are remembered.", |u| {
        one(u.policy.remembered as f64)
    }),
    gauge("kvd_tier_pinned_blocks", "Blocks that may not leave.", |u| one(u.policy.pinned as f64)),
    gauge("kvd_tier_disk_writable", "1 while the disk takes writes.", |u| {
        one(u.disk.map_or(0.0, |disk| f64::from(u8::from(disk.writable))))
    }),
    gauge("kvd_tier_quarantined_slots", "Slots on disk that are not trusted.", |u| {
        one(u.disk.map_or(0.0, |disk| disk.quarantined as f64))
    }),
    gauge("kvd_tier_pending_changes", "Changes on disk that a crash would lose.", |u| {
        one(u.disk.map_or(0.0, |disk| disk.pending as f64))
    }),
    gauge("kvd_tier_restored", "1 when the policy knows all that is on disk.", |u| {
        one(f64::from(u8::from(u.restored)))
    }),
    counter("kvd_tier_asked_blocks_total", "Blocks that requests wanted.", |u| one(u.policy.asked as f64)),
    counter(
        "kvd_tier_found_blocks_total",
        "Blocks of those that were there, contiguous from the root.",
        |u| one(u.policy.found as f64),
    ),
    counter("kvd_tier_loaded_blocks_total", "Blocks given to engines, by where they were.", |u| {
        by_tier(u.moves.loaded.map(|n| n as usize))
    }),
    counter("kvd_tier_moved_blocks_total", "Blocks copied, by where to.", |u| {
        let moves = u.moves;
        vec![("cpu", moves.up as f64), ("disk", moves.down as f64), ("shared", moves.out as f64)]
    }),
    counter("kvd_tier_failed_moves_total", "Copies that could not be made.", |u| one(u.moves.failed as f64)),
    counter("kvd_tier_evicted_blocks_total", "Blocks that left RAM and disk.", |u| {
        one(u.policy.evicted as f64)
    }),
    counter("kvd_tier_refused_blocks_total", "Offered blocks that found no room.", |u| {
        one((u.policy.refused + u.moves.crowded) as f64)
    }),
    counter("kvd_tier_not_admitted_blocks_total", "Blocks that the disk was not given.", |u| {
        one(u.policy.not_admitted as f64)
    }),
    counter("kvd_tier_corrupt_blocks_total", "Blocks read from disk that were not what was written.", |u| {
        one(u.disk.map_or(0.0, |disk| disk.corrupt as f64))
    }),
    counter("kvd_tier_failed_io_total", "Reads, writes and commits of the disk that failed.", |u| {
        one(u.disk.map_or(0.0, |disk| disk.failed as f64))
    }),
    counter("kvd_tier_lent_blocks_total", "Blocks given to other nodes.", |u| one(u.moves.lent as f64)),
    counter("kvd_tier_pulled_blocks_total", "Blocks taken from other nodes.", |u| one(u.moves.pulled as f64)),
    counter("kvd_tier_copied_bytes_total", "Bytes copied in memory on the way to engines.", |u| {
        one(u.moves.copied_bytes as f64)
    }),
];

const fn gauge(
    name: &'static str,
    help: &'static str,
    values: fn(&PoolUsage) -> Vec<(&'static str, f64)>,
) -> OfPool {
    OfPool { name, kind: "gauge", help, values }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    values: fn(&PoolUsage) -> Vec<(&'static str, f64)>,
) -> OfPool {
    OfPool { name, kind: "counter", help, values }
}

fn one(value: f64) -> Vec<(&'static str, f64)> {
    vec![("", value)]
}

fn by_tier(values: [usize; 3]) -> Vec<(&'static str, f64)> {
    ["cpu", "disk", "shared"].into_iter().zip(values.map(|n| n as f64)).collect()
}

/// Everything, in Prometheus' text format.
pub fn render(running: &Running) -> String {
    let Running { node, publisher, agent, .. } = running;
    let mut out = String::new();
    let usage = node.usage();
    for metric in POOL {
        let _ =
            writeln!(out, "# HELP {} {}\n# TYPE {} {}", metric.name, metric.help, metric.name, metric.kind);
        for pool in &usage {
            for (tier, value) in (metric.values)(pool) {
                let tier = if tier.is_empty() { String::new() } else { format!(",tier=\"{tier}\"") };
                let _ =
                    writeln!(out, "{}{{block_bytes=\"{}\"{tier}}} {value}", metric.name, pool.block_bytes);
            }
        }
    }
    let total = |out: &mut String, name: &str, help: &str, kind: &str| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    };
    total(&mut out, "kvd_tier_events_total", "Copies that came or left, as told, by model.", "counter");
    for stream in node.streams() {
        let model = stream.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = writeln!(out, "kvd_tier_events_total{{model=\"{model}\"}} {}", stream.changes);
    }
    for (name, help, value) in [
        ("kvd_tier_batches_sent_total", "Batches of events sent.", &publisher.sent),
        ("kvd_tier_batches_dropped_total", "Batches left to be asked for.", &publisher.dropped),
    ] {
        total(&mut out, name, help, "counter");
        let _ = writeln!(out, "{name} {}", value.load(Ordering::Relaxed));
    }
    let hinted = node.hinted();
    for (name, help, value) in [
        ("kvd_tier_hints_known_total", "Hashes of hints that a block goes by.", hinted.known),
        ("kvd_tier_hints_unknown_total", "Hashes of hints that none goes by, or several do.", hinted.unknown),
        ("kvd_tier_hints_copied_total", "Blocks copied to RAM for hints.", hinted.copied),
        ("kvd_tier_hints_refused_total", "Blocks beyond what hints may take of RAM.", hinted.refused),
    ] {
        total(&mut out, name, help, "counter");
        let _ = writeln!(out, "{name} {value}");
    }
    for (name, value) in agent.as_ref().map(|agent| agent.stats().named()).unwrap_or_default() {
        let name = format!("kvd_tier_engines_{name}");
        total(&mut out, &name, "Of the socket for engines; see docs/tiers.md.", "untyped");
        let _ = writeln!(out, "{name} {value}");
    }
    for (name, help, value) in running.pulling.iter().flat_map(pulls) {
        total(&mut out, name, help, "counter");
        let _ = writeln!(out, "{name} {value}");
    }
    total(&mut out, "kvd_tier_draining", "1 while no offers are taken.", "gauge");
    let _ = writeln!(out, "kvd_tier_draining {}", u8::from(node.is_draining()));
    out
}

/// What was pulled from others, and what others pulled.
fn pulls(pulling: &Pulling) -> Vec<(&'static str, &'static str, u64)> {
    let counts = pulling.puller.counts();
    let mut all = vec![
        ("kvd_tier_pulled_bytes_total", "Bytes of blocks taken from other nodes.", &counts.bytes),
        (
            "kvd_tier_pull_missing_blocks_total",
            "Blocks that a node had and that did not come.",
            &counts.missing,
        ),
        ("kvd_tier_pull_refused_blocks_total", "Blocks beyond what pulls may take of RAM.", &counts.refused),
        (
            "kvd_tier_pulls_dropped_total",
            "Pulls not tried: many wait, or the node just failed.",
            &counts.dropped,
        ),
        ("kvd_tier_pulls_failed_total", "Pulls that ended with a node's failure.", &counts.failed),
        (
            "kvd_tier_pulls_corrupt_total",
            "Pulls that ended with a payload that had changed.",
            &counts.corrupt,
        ),
    ];
    if let Some(source) = &pulling.source {
        let counts = source.counts();
        all.extend([
            ("kvd_tier_pull_peers_total", "Connections of nodes that know the secret.", &counts.admitted),
            ("kvd_tier_pull_peers_refused_total", "Connections of others, or of too many.", &counts.refused),
            ("kvd_tier_lend_missing_blocks_total", "Blocks asked for that were not here.", &counts.missing),
        ]);
    }
    all.into_iter().map(|(name, help, value)| (name, help, value.load(Ordering::Relaxed))).collect()
}
