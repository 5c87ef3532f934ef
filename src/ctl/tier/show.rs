//! What a node holds, as a table and as JSON.

use std::io::Write;

use kvproto::rpc::kv::{GetTierUsageResponse, PoolUsage};
use serde_json::json;

use crate::ctl::term::{Align, Paint, Table};

/// A line per size of block.
pub(super) fn write(out: &mut dyn Write, usage: &GetTierUsageResponse, paint: Paint) -> std::io::Result<()> {
    let draining = if usage.draining { ", draining" } else { "" };
    writeln!(out, "{}{draining}", usage.node)?;
    let mut table = Table::new(&[
        ("block bytes", Align::Right),
        ("RAM", Align::Right),
        ("disk", Align::Right),
        ("shared", Align::Right),
        ("waiting", Align::Right),
        ("found", Align::Right),
        ("evicted", Align::Right),
        ("bad", Align::Right),
        ("disk state", Align::Left),
    ]);
    for pool in &usage.pools {
        let found = (pool.found * 100).checked_div(pool.asked).map_or("-".to_owned(), |n| format!("{n} %"));
        let state = match () {
            () if pool.disk_capacity == 0 => "none",
            () if !pool.restored => "being read",
            () if !pool.disk_writable => "read only",
            () => "ok",
        };
        table.row([
            pool.block_bytes.to_string().into(),
            format!("{}/{}", pool.ram_blocks, pool.ram_capacity).into(),
            format!("{}/{}", pool.disk_blocks, pool.disk_capacity).into(),
            pool.shared_blocks.to_string().into(),
            (pool.waiting_up + pool.waiting_down + pool.waiting_shared).to_string().into(),
            found.into(),
            pool.evicted.to_string().into(),
            pool.corrupt.to_string().into(),
            state.into(),
        ]);
    }
    table.write(out, paint, crate::ctl::term::width())
}

/// One size of block.
pub(super) fn as_json(usage: &GetTierUsageResponse, p: &PoolUsage) -> serde_json::Value {
    json!({
        "node": usage.node, "draining": usage.draining, "block_bytes": p.block_bytes,
        "ram_blocks": p.ram_blocks, "ram_capacity": p.ram_capacity, "disk_blocks": p.disk_blocks,
        "disk_capacity": p.disk_capacity, "shared_blocks": p.shared_blocks, "pinned_blocks": p.pinned_blocks,
        "waiting": p.waiting_up + p.waiting_down + p.waiting_shared, "asked": p.asked, "found": p.found,
        "evicted": p.evicted, "refused": p.refused, "corrupt": p.corrupt, "failed_io": p.failed_io,
        "disk_writable": p.disk_writable, "restored": p.restored,
    })
}
