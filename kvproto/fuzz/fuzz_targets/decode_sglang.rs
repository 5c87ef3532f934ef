//! Decodes anything as a payload of this engine.

#![no_main]

mod check;

use kvproto::engine::Engine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| check::check(Engine::Sglang, payload));
