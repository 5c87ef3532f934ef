//! How is this process doing, and what did it begin with?

use super::{Kind, Metric, Source, counter, gauge};
use crate::warmup::Stage;

pub(super) const PROCESS: &[Metric] = &[
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
    gauge("kvd_resident_memory_bytes", "Memory of the process that is in RAM.", |_| resident_bytes()),
];

/// 0 where the system does not say.
fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0.0, |kib: f64| kib * 1024.0)
}
