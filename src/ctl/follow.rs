//! Has kvd got what was published? Waiting for it, from the publisher's side.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kvproto::rpc::kv::PublisherSpec;

use crate::ctl::engine_sim::EngineSim;
use crate::ctl::target::{Progress, Target};

/// Waits until somebody subscribes to `sim`, so that nothing is lost at the start. `publisher`
/// is how kvd knows it, for the message if nobody does.
pub async fn subscribed(
    sim: &mut EngineSim,
    target: &Target,
    publisher: &PublisherSpec,
    timeout: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while sim.subscribers()? == 0 {
        if Instant::now() > deadline {
            let progress = target.progress(publisher).await?.unwrap_or_default();
            bail!(
                "kvd did not subscribe to {} within {timeout:?}{}: see that it can reach this machine \
                 (--advertise HOST)",
                sim.endpoint(),
                said(&progress)
            );
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until batch `last`, and `batches` of them in all, are applied and visible.
///
/// The number alone would not do: another life of the engine may have ended on the same one.
pub async fn applied(
    target: &Target,
    publisher: &PublisherSpec,
    last: u64,
    batches: u64,
    timeout: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(200);
    loop {
        let progress = target.progress(publisher).await?;
        let progress = progress.with_context(|| {
            format!("{} rank {} is not registered any more", publisher.instance_id, publisher.dp_rank)
        })?;
        if progress.last_seq == Some(last) && progress.batches.is_none_or(|n| n >= batches) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "kvd has not applied batch {last} within {timeout:?}: {} of {batches} batches, last is {}{}",
                progress.batches.unwrap_or_default(),
                progress.last_seq.map_or("none".into(), |n| n.to_string()),
                said(&progress)
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn said(p: &Progress) -> String {
    if p.last_error.is_empty() {
        format!(" (state {})", p.state)
    } else {
        format!(" (state {}, {})", p.state, p.last_error)
    }
}
