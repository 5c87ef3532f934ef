//! `kvctl links`: how fast are the links between pods, and what goes over them?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv;

use crate::ctl::term::{self, Align, Paint, Table};
use crate::ctl::transfers::{bytes, pod};
use crate::ctl::{Global, Outcome};

/// What `kvctl links` is told.
#[derive(Debug, Args)]
pub struct LinksArgs {
    /// Only links of this instance
    #[arg(long, default_value = "", hide_default_value = true)]
    instance: String,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &LinksArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let answer =
        kvd.transfers().list_links(kv::ListLinksRequest { instance_id: args.instance.clone() }).await;
    let links = answer.map_err(|s| kvd.failed("list links", s))?.into_inner().links;
    if global.json {
        for link in &links {
            writeln!(out, "{}", serde_json::to_string(link)?)?;
        }
    } else {
        write(out, &links, global.paint())?;
    }
    Ok(Outcome::Ok)
}

fn write(out: &mut dyn Write, links: &[kv::TransferLink], paint: Paint) -> std::io::Result<()> {
    let columns = [
        ("from", Align::Left),
        ("to", Align::Left),
        ("per second", Align::Right),
        ("setup", Align::Right),
        ("met", Align::Left),
        ("under way", Align::Right),
        ("bytes under way", Align::Right),
        ("done", Align::Right),
        ("failed", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for link in links {
        let speed =
            if link.bytes_per_second == 0 { "not known".to_owned() } else { bytes(link.bytes_per_second) };
        table.row([
            pod(link.from.as_ref()).into(),
            pod(link.to.as_ref()).into(),
            speed.into(),
            format!("{:.1} ms", link.setup_us as f64 / 1e3).into(),
            if link.warm { "yes" } else { "no" }.into(),
            link.inflight_transfers.into(),
            bytes(link.inflight_bytes).into(),
            link.transfers.into(),
            link.failures.into(),
        ]);
    }
    table.write(out, paint, term::width())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_unknown_speed_says_so() {
        let mut out = Vec::new();
        let link = kv::TransferLink { inflight_transfers: 2, inflight_bytes: 3 << 20, ..Default::default() };
        write(&mut out, &[link], Paint::none()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("not known") && text.contains("3.0 MiB"), "{text}");
    }
}
