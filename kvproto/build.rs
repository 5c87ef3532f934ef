//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_RPC").is_none() {
        return Ok(());
    }
    let files = [
        "kv/v1/kv.proto",
        "kv/v1/peers.proto",
        "kv/v1/tier.proto",
        "kv/v1/transfer.proto",
        "indexer/v1/indexer.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = descriptors.encode_to_vec();
    std::fs::write(out.join("descriptors.bin"), &encoded)?;
    // JSON as protobuf defines it, with the fields' own names.
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .build(&[".kv.v1"])?;
    tonic_prost_build::configure().bytes(".kv.v1").compile_fds(descriptors)?;
    Ok(())
}
