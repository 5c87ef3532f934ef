//! Another index that follows a conversation beside the one it is about.

use kvindex::{Answer, HolderId, HolderSpec, Query};
use kvproto::Batch;

/// Is told what the index is told, under the same ids.
pub trait Shadow {
    fn attach(&mut self, id: HolderId, spec: &HolderSpec);
    fn detach(&mut self, id: HolderId);
    fn apply(&mut self, id: HolderId, batch: &Batch<'_>);
    fn clear(&mut self, id: HolderId);
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
    fn compare(&self, _: &Query<'_>, _: &Answer) -> Result<(), String> {
        Ok(())
    }
}
