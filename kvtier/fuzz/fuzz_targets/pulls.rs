//! Reads anything as a frame between nodes. What can be read is written again to the same meaning, in no
//! more bytes than it had.

#![no_main]

use kvtier::pull::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(frame) = Frame::decode(bytes) else { return };
    let again = frame.encode();
    assert_eq!(again.len(), 4 + bytes.len());
    assert_eq!(Frame::decode(&again[4..]), Some(frame));
});
