//! What deploy/ holds for Kubernetes: are the manifests what the cluster knows, and are they rendered from the chart
//! that is there?
//!
//! Rendered manifests are in the repository: as `kubectl kustomize` and Helm's templates give them (`render.rs`), so that
//! they are checked where neither is to be had, and a change of the chart is seen as a change of manifests.

mod kustomize;
mod render;
mod schema;
mod types;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The documents of a file of YAML.
fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    all.into_iter().filter(|d| !d.is_null()).collect()
}

/// Every rendered file, by name.
fn rendered() -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    for folder in ["helm/kvd/ci", "kustomize/rendered"] {
        for entry in std::fs::read_dir(deploy(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("named").to_string_lossy().into_owned();
            if name.ends_with(".rendered.yaml") {
                all.push((name, documents(&read(&path))));
            }
        }
    }
    assert!(all.len() >= 8, "{} rendered files", all.len());
    all
}

#[test]
fn every_manifest_is_what_kubernetes_knows_to_the_last_field() {
    for (name, documents) in rendered() {
        for document in &documents {
            if let Err(why) = types::check(document) {
                panic!("{name}: {} {}: {why}", document["kind"], document["metadata"]["name"]);
            }
        }
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let (_, documents) = rendered().swap_remove(0);
    let mut set = documents.into_iter().find(|d| d["kind"] == "StatefulSet").expect("there is one");
    set["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = serde_json::json!({});
    assert!(types::check(&set).expect_err("misspelt").contains("readynessProbe"));
    set["spec"]["replicas"] = "two".into();
    assert!(types::check(&set).is_err());
}

/// What Kubernetes does not check: that parts which name one another agree.
#[test]
fn parts_agree_with_one_another() {
    for (name, documents) in rendered() {
        let of = |kind: &str| documents.iter().filter(|d| d["kind"] == kind).collect::<Vec<_>>();
        let one = |kind: &str| match of(kind)[..] {
            [one] => one,
            ref other => panic!("{name}: {} of {kind}", other.len()),
        };
        let set = one("StatefulSet");
        let pod = &set["spec"]["template"];
        let services = of("Service");
        let headless = services.iter().find(|s| s["metadata"]["name"] == set["spec"]["serviceName"]);
        let headless = headless.unwrap_or_else(|| panic!("{name}: the service that replicas are named by"));
        assert_eq!(headless["spec"]["publishNotReadyAddresses"], true, "{name}: peers before they are ready");
        for service in &services {
            let ready_only = service["spec"]["publishNotReadyAddresses"].is_null();
            assert_eq!(ready_only, service["metadata"]["name"] != headless["metadata"]["name"], "{name}");
            for (key, value) in service["spec"]["selector"].as_object().expect("a selector") {
                assert_eq!(&pod["metadata"]["labels"][key], value, "{name}: a service selects the pods");
            }
            for port in service["spec"]["ports"].as_array().expect("ports") {
                let named = port["targetPort"].as_str().expect("by name");
                assert!(container_port(pod, named).is_some(), "{name}: {named}");
            }
        }
        for (probe, service) in
            [("startupProbe", "liveness"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")]
        {
            let grpc = &pod["spec"]["containers"][0][probe]["grpc"];
            assert_eq!(grpc["service"], service, "{name}: {probe}");
            assert_eq!(Some(&grpc["port"]), container_port(pod, "health"), "{name}: {probe}");
        }
        let context = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true, "{name}");
        let config = one("ConfigMap")["data"]["kvd.toml"].as_str().expect("kvd's configuration");
        let peers = format!(
            "{}.{}.svc:",
            headless["metadata"]["name"].as_str().expect("named"),
            headless["metadata"]["namespace"].as_str().unwrap_or("kvd"),
        );
        assert!(config.contains(&peers), "{name}: peers are at {peers}\n{config}");
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let claims = set["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        for mount in pod["spec"]["containers"][0]["volumeMounts"].as_array().expect("mounts") {
            let volume = volumes.iter().any(|v| v["name"] == mount["name"]);
            let claim = claims.iter().any(|c| c["metadata"]["name"] == mount["name"]);
            assert!(volume ^ claim, "{name}: {}", mount["name"]);
        }
        let bound = documents.iter().find(|d| d["kind"].as_str().is_some_and(|k| k.ends_with("Binding")));
        if config.contains("[[discovery.pods]]") {
            let subject = &bound.expect("who may watch pods")["subjects"][0];
            assert_eq!(subject["name"], pod["spec"]["serviceAccountName"], "{name}");
            let watched = watched_kinds(config);
            for role in documents.iter().filter(|d| matches!(d["kind"].as_str(), Some("Role" | "ClusterRole"))) {
                for rule in role["rules"].as_array().expect("rules") {
                    assert_eq!(rule["verbs"], serde_json::json!(["get", "list", "watch"]), "{name}");
                }
                let may: BTreeSet<_> = role["rules"].as_array().expect("rules").iter().map(kind_of).collect();
                assert_eq!(may, watched, "{name}: what may be watched is what is");
            }
        }
    }
}

/// What a rule of a role is about.
fn kind_of(rule: &Value) -> (String, String) {
    let text = |field: &str| rule[field][0].as_str().expect("text").to_owned();
    (text("apiGroups"), text("resources"))
}

/// What kvd watches with this configuration.
fn watched_kinds(config: &str) -> BTreeSet<(String, String)> {
    let config: toml::Table = toml::from_str(config).expect("TOML");
    let mut kinds = BTreeSet::from([("".to_owned(), "pods".to_owned())]);
    for pods in config["discovery"]["pods"].as_array().expect("tables") {
        if pods.get("pool_name").is_some() {
            let group = pods.get("pool_group").and_then(toml::Value::as_str);
            kinds.insert((group.unwrap_or("inference.networking.k8s.io").to_owned(), "inferencepools".to_owned()));
        }
        if pods.get("service_name").is_some() {
            kinds.insert(("discovery.k8s.io".to_owned(), "endpointslices".to_owned()));
        }
    }
    kinds
}

fn container_port<'p>(pod: &'p Value, name: &str) -> Option<&'p Value> {
    let ports = pod["spec"]["containers"][0]["ports"].as_array()?;
    ports.iter().find(|p| p["name"] == name).map(|p| &p["containerPort"])
}

#[test]
fn the_configuration_in_every_manifest_can_be_used() {
    for (name, documents) in rendered() {
        let map = documents.iter().find(|d| d["kind"] == "ConfigMap").expect("there is one");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), map["data"]["kvd.toml"].as_str().expect("text")).expect("write");
        let set = documents.iter().find(|d| d["kind"] == "StatefulSet").expect("there is one");
        let args = set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().expect("arguments");
        let args = args.iter().map(|a| a.as_str().expect("text")).filter(|a| *a != "serve");
        let args = args.map(|a| match a.strip_prefix("--config=") {
            Some(_) => format!("--config={}", file.path().display()),
            None => a.to_owned(),
        });
        let checked =
            std::process::Command::new(env!("CARGO_BIN_EXE_kvd")).arg("check-config").args(args).output();
        let checked = checked.expect("run kvd");
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}
