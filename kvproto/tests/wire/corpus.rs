//! What the fuzz targets start from, replayed without a fuzzer.
//!
//! A file whose name begins with `odd` holds events that do not fit or is broken; all
//! others decode whole.

use std::path::{Path, PathBuf};

use kvproto::engine::{Engine, decode};
use kvproto::event::Skipped;

fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

fn replay(target: &str, engine: Engine) {
    let files = files(target);
    assert!(files.len() >= 10, "{target}: {} files", files.len());
    for (name, payload) in files {
        let fits = decode(engine, &payload).is_ok_and(|b| b.skipped == Skipped::default() && !b.is_empty());
        assert_eq!(fits, !name.starts_with("odd"), "{target}/{name}");
    }
}

#[test]
fn the_vllm_corpus_decodes() {
    replay("decode_vllm", Engine::Vllm);
}

#[test]
fn the_sglang_corpus_decodes() {
    replay("decode_sglang", Engine::Sglang);
}

#[test]
fn the_mooncake_corpus_decodes() {
    replay("decode_mooncake", Engine::Mooncake);
}

#[test]
fn the_corpus_of_frames_is_read() {
    // The same layout as in fuzz_targets/frames.rs: one length byte before each frame.
    let split = |mut bytes: &[u8]| {
        let mut frames = Vec::new();
        while let [len, rest @ ..] = bytes {
            let (frame, rest) = rest.split_at(rest.len().min(*len as usize));
            frames.push(frame.to_vec());
            bytes = rest;
        }
        frames
    };
    for (name, bytes) in files("frames") {
        let frames = split(&bytes);
        let read = match name.split('-').next() {
            Some("live") => kvproto::frames::live(&frames).is_ok(),
            Some("replay") => kvproto::frames::replay(&frames).is_ok(),
            Some("topic") => kvproto::frames::Topic::parse(&frames[0]).is_some(),
            Some("odd") => {
                !(kvproto::frames::live(&frames).is_ok() || kvproto::frames::replay(&frames).is_ok())
            }
            other => panic!("{other:?}"),
        };
        assert!(read, "frames/{name}");
    }
}
