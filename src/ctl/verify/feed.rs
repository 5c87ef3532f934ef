//! How does a recorded stream get into kvd, exactly up to a point?

use std::time::Duration;

use kvproto::engine::Engine;
use kvproto::rpc::kv::PublisherSpec;

use super::doubt::OffloadDoubt;
use crate::ctl::engine_sim::EngineSim;
use crate::ctl::follow;
use crate::ctl::kvcap::Record;
use crate::ctl::target::Target;

/// One publisher of a capture: what it has sent, and what is still to come.
pub struct Feed<'c> {
    /// How it is registered.
    pub publisher: PublisherSpec,
    sim: EngineSim,
    engine: Engine,
    /// Messages with their place in the recorded stream.
    messages: Vec<(usize, &'c Record)>,
    sent: usize,
    doubt: OffloadDoubt,
}

impl<'c> Feed<'c> {
    /// A feed that has sent nothing.
    pub fn new(
        publisher: PublisherSpec,
        sim: EngineSim,
        engine: Engine,
        messages: Vec<(usize, &'c Record)>,
    ) -> Feed<'c> {
        Feed { publisher, sim, engine, messages, sent: 0, doubt: OffloadDoubt::default() }
    }

    /// Waits until kvd listens.
    pub async fn subscribed(&mut self, target: &Target, timeout: Duration) -> anyhow::Result<()> {
        follow::subscribed(&mut self.sim, target, &self.publisher, timeout).await
    }

    /// Publishes the messages before place `cut` of the recorded stream.
    pub async fn advance(&mut self, cut: usize, target: &Target, timeout: Duration) -> anyhow::Result<()> {
        while let Some(&(place, record)) = self.messages.get(self.sent)
            && place < cut
        {
            // A new life empties the replay buffer, as in the engine; what kvd has not got of
            // the old one by then it could never get.
            if self.last().is_some_and(|last| record.number() <= last) {
                self.applied(target, timeout).await?;
            }
            self.sim.publish(record)?;
            self.doubt.observe(self.engine, record.number(), &record.payload);
            self.sent += 1;
        }
        Ok(())
    }

    /// Waits until kvd answers from everything that was published.
    pub async fn applied(&self, target: &Target, timeout: Duration) -> anyhow::Result<()> {
        match self.last() {
            Some(last) => follow::applied(target, &self.publisher, last, self.sent as u64, timeout).await,
            None => Ok(()),
        }
    }

    /// Whether the engine may hold offloaded blocks that its events called cleared.
    pub fn offload_is_doubtful(&self) -> bool {
        self.doubt.exists()
    }

    fn last(&self) -> Option<u64> {
        self.sent.checked_sub(1).map(|i| self.messages[i].1.number())
    }
}
