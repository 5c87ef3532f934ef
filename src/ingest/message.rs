//! One ZMQ message in one allocation.

use std::sync::Arc;

use smallvec::SmallVec;

use super::budget::{Budget, Share};

/// The frames of a message, one behind the other.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    ends: SmallVec<[usize; 4]>,
    /// What it takes of the common budget, for as long as it waits.
    share: Option<Share>,
}

impl Message {
    /// Adds a frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
    }

    /// The frames in order.
    pub fn frames(&self) -> SmallVec<[&[u8]; 4]> {
        let mut start = 0;
        self.ends
            .iter()
            .map(|&end| {
                let frame = &self.bytes[start..end];
                start = end;
                frame
            })
            .collect()
    }

    /// The first frame; empty where there is none.
    pub fn topic(&self) -> &[u8] {
        &self.bytes[..self.ends.first().copied().unwrap_or(0)]
    }

    /// Length of all frames together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Takes what the message costs from `budget` until it is dropped. False where that much
    /// is not left.
    pub fn charge(&mut self, budget: &Arc<Budget>) -> bool {
        self.share = budget.take(self.cost());
        self.share.is_some()
    }

    /// What the message costs in memory, in bytes.
    pub fn cost(&self) -> usize {
        self.bytes.len() + size_of::<Message>() + 64
    }
}

impl<F: AsRef<[u8]>> FromIterator<F> for Message {
    fn from_iter<I: IntoIterator<Item = F>>(frames: I) -> Self {
        let mut message = Message::default();
        for frame in frames {
            message.push(frame.as_ref());
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_put_in() {
        let frames: [&[u8]; 4] = [b"", b"topic", b"", b"payload"];
        let message: Message = frames.iter().collect();
        assert_eq!(message.frames().as_slice(), frames);
        assert_eq!(message.topic(), b"");
        assert!(Message::default().frames().is_empty());
    }
}
