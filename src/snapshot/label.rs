//! What a snapshot says of each publisher beside its blocks.

use serde::{Deserialize, Serialize};

use crate::ingest::Position;
use crate::publisher::{Origin, PublisherSpec};

/// A publisher and where its stream stood. JSON, so that a field may be added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Its registration.
    pub spec: PublisherSpec,
    /// Who it is by.
    #[serde(default)]
    pub origin: Origin,
    /// Up to where its batches are in the snapshot.
    pub position: Position,
}

impl Label {
    /// As it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text, numbers and options can be written as JSON")
    }

    /// `None` for what is no label.
    pub fn read(bytes: &[u8]) -> Option<Label> {
        serde_json::from_slice(bytes).ok()
    }
}
