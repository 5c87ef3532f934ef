//! What a block is called: kvd's canonical hash and the ones others use.
//!
//! [`canonical`] is the key of the index. [`vllm`] reproduces the engine's own chain,
//! [`llmd`] the request keys of llm-d's Go indexer, so that a client which already has
//! those can ask by them. `docs/formats.md` describes all of them for other languages.

pub mod canonical;
mod cbor;
pub mod llmd;
pub mod vllm;
