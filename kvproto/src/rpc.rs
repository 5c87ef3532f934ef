//! kvd's gRPC messages, clients and servers, generated from `proto/`.

/// `kv.v1`: kvd's own services.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod kv {
    tonic::include_proto!("kv.v1");
    include!(concat!(env!("OUT_DIR"), "/kv.v1.serde.rs"));
}

/// `indexer.v1`: llm-d's index service, so that its clients work unchanged.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod indexer {
    tonic::include_proto!("indexer.v1");
}

/// The encoded `FileDescriptorSet` of both packages, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
