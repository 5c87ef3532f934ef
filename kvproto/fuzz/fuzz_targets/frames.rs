//! Reads anything as frames, each with one length byte before it, and as a topic.

#![no_main]

use kvproto::frames::{Replay, Topic, live, replay};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut frames = Vec::new();
    let mut left = bytes;
    while let [len, rest @ ..] = left {
        let (frame, rest) = rest.split_at(rest.len().min(*len as usize));
        frames.push(frame);
        left = rest;
    }
    if let Ok(message) = live(&frames) {
        assert_eq!(frames.len(), 3);
        assert_eq!(message.publisher_id.is_some(), frames[1].len() == 24);
        if let Ok(Replay::Batch { seq, payload }) = replay(&frames) {
            assert_eq!((seq, payload), (message.seq, message.payload));
        }
    }
    for topic in frames.iter().copied().chain([bytes]) {
        if let Some(topic) = Topic::parse(topic) {
            // What is made plain once stays as it is.
            let plain = format!("kv@{}@{}", topic.pod, topic.model);
            assert_eq!(Topic::parse(plain.as_bytes()), Some(topic));
        }
    }
});
