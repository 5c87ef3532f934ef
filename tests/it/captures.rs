//! Every recorded request, through real sockets, against what the engine reported.

use std::process::Command;

use serde_json::Value;

use crate::support::{Kvd, fixtures};

#[test]
fn every_recorded_request_is_exact_through_real_sockets() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let out = Command::new(env!("CARGO_BIN_EXE_kvctl"))
        .args(["--http", &kvd.http, "--grpc", &kvd.grpc, "--json", "verify"])
        .arg(fixtures())
        .output()
        .expect("run kvctl");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let rows: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let sum = |key: &str| -> u64 {
        rows.iter().filter(|r| r["capture"].is_string()).filter_map(|r| r[key].as_u64()).sum()
    };
    // What the recordings hold: a capture gone missing must not pass for exactness.
    assert_eq!((sum("exact"), sum("total")), (1046, 1046), "{text}");
    // Verification cleans up after itself.
    assert_eq!(kvd.get("/publishers"), Value::Array(vec![]));
}
