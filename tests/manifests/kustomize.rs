//! Kustomize's base is the chart as it is, and its overlays are rendered by `kubectl kustomize`, where that is to be had.

use std::process::{Command, Stdio};

use crate::{deploy, read};

const OVERLAYS: [&str; 6] = ["single", "everywhere", "pool", "production", "reviewed", "valkey"];

#[test]
fn the_base_is_what_the_chart_gives() {
    assert_eq!(
        read(&deploy("kustomize/base/kvd.yaml")),
        read(&deploy("helm/kvd/ci/default.rendered.yaml")),
        "copy it: cp deploy/helm/kvd/ci/default.rendered.yaml deploy/kustomize/base/kvd.yaml"
    );
}

/// `KVD_WRITE_MANIFESTS=1 cargo test --test manifests` writes them.
#[test]
fn what_is_rendered_is_what_kustomize_gives() {
    let kubectl = std::env::var("KVD_KUBECTL").unwrap_or_else(|_| "kubectl".into());
    let mut probe = Command::new(&kubectl);
    probe.args(["kustomize", "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
    let found = probe.status().is_ok_and(|s| s.success());
    for name in OVERLAYS {
        let path = deploy(&format!("kustomize/rendered/{name}.rendered.yaml"));
        if !found {
            assert!(path.exists(), "{} is missing", path.display());
            continue;
        }
        let out = Command::new(&kubectl)
            .arg("kustomize")
            .arg(deploy(&format!("kustomize/overlays/{name}")))
            .output();
        let out = out.expect("run kubectl");
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("text");
        if std::env::var_os("KVD_WRITE_MANIFESTS").is_some() {
            std::fs::write(&path, &text).expect("write");
        }
        assert_eq!(read(&path), text, "{} is not what kustomize gives", path.display());
    }
    if !found {
        eprintln!(
            "not rendered again: there is no kubectl; what was rendered before is checked by the other tests"
        );
    }
}
