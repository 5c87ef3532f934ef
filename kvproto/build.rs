//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_RPC").is_none() {
        return Ok(());
    }
    let files = ["kv/v1/kv.proto", "kv/v1/tier.proto", "indexer/v1/indexer.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".kv.v1").compile_fds(descriptors)?;
    Ok(())
}
