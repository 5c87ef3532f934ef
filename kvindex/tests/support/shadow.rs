//! Another index that follows a conversation beside the one it is about.

use kvindex::{Answer, HolderId, HolderSpec, Query};
use kvproto::{Batch, SeqHash};

/// Is told what the index is told, under the same ids.
pub trait Shadow {
    fn attach(&mut self, id: HolderId, spec: &HolderSpec);
    fn detach(&mut self, id: HolderId);
    fn apply(&mut self, id: HolderId, batch: &Batch<'_>);
    fn clear(&mut self, id: HolderId);
    /// A request was routed to where it will store blocks.
    fn announce(&mut self, request: &str, blocks: &[(HolderId, Vec<SeqHash>)], until: u64);
    fn forget(&mut self, request: &str);
    /// What was announced until `now` is over.
    fn expire(&mut self, now: u64);
    /// Whether it answers the same; else what differs.
    fn compare(&self, query: &Query<'_>, answer: &Answer) -> Result<(), String>;
}

/// No other index.
#[allow(dead_code, reason = "of those who have one")]
pub struct Alone;

impl Shadow for Alone {
    fn attach(&mut self, _: HolderId, _: &HolderSpec) {}
    fn detach(&mut self, _: HolderId) {}
    fn apply(&mut self, _: HolderId, _: &Batch<'_>) {}
    fn clear(&mut self, _: HolderId) {}
    fn announce(&mut self, _: &str, _: &[(HolderId, Vec<SeqHash>)], _: u64) {}
    fn forget(&mut self, _: &str) {}
    fn expire(&mut self, _: u64) {}
    fn compare(&self, _: &Query<'_>, _: &Answer) -> Result<(), String> {
        Ok(())
    }
}
