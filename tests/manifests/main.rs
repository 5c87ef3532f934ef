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
    assert!(all.len() >= 11, "{} rendered files", all.len());
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
        let config: toml::Table = toml::from_str(config).expect("TOML");
        let used = rights_used(&config);
        let roles = documents.iter().filter(|d| matches!(d["kind"].as_str(), Some("Role" | "ClusterRole")));
        let mut given = BTreeSet::new();
        for role in roles {
            // Every namespace has the same.
            given.extend(role["rules"].as_array().expect("rules").iter().map(right_of));
            let of_role = |d: &&Value| d["roleRef"]["name"] == role["metadata"]["name"];
            let bound = documents.iter().find(of_role).expect("a role is somebody's");
            assert_eq!(bound["roleRef"]["kind"], role["kind"], "{name}");
            assert_eq!(bound["subjects"][0]["name"], pod["spec"]["serviceAccountName"], "{name}");
        }
        assert_eq!(given, used, "{name}: what may be done is what is done");
        assert_eq!(pod["spec"]["automountServiceAccountToken"], !used.is_empty(), "{name}");
        for file in files_of(&config) {
            let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().expect("mounts");
            let is_there = |m: &Value| file.starts_with(m["mountPath"].as_str().expect("a path"));
            assert!(mounts.iter().any(is_there), "{name}: {file} is mounted");
        }
        let policy = documents.iter().find(|d| d["kind"] == "NetworkPolicy");
        let urls = config.get("index").and_then(|i| i.get("valkey")?.get("urls")?.as_array().cloned());
        for url in urls.into_iter().flatten() {
            let (_, port) = url.as_str().expect("text").rsplit_once(':').expect("a port");
            let port: u64 = port.parse().expect("a number");
            let Some(policy) = policy else { continue };
            let egress = policy["spec"]["egress"].as_array().expect("rules");
            let mut ports = egress.iter().flat_map(|rule| rule["ports"].as_array().expect("ports"));
            assert!(ports.any(|p| p["port"] == port), "{name}: {url} can be reached");
        }
    }
}

/// What kvd needs to be allowed with this configuration: verb, group and resource.
fn rights_used(config: &toml::Table) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut watch = |kind: &str| used.insert(format!("get,list,watch {kind}"));
    let pods = config.get("discovery").and_then(|d| d.get("pods")?.as_array().cloned());
    for pods in pods.into_iter().flatten() {
        watch("/pods");
        if pods.get("pool_name").is_some() {
            let group = pods.get("pool_group").and_then(toml::Value::as_str);
            watch(&format!("{}/inferencepools", group.unwrap_or("inference.networking.k8s.io")));
        }
        if pods.get("service_name").is_some() {
            watch("discovery.k8s.io/endpointslices");
        }
    }
    if config.get("security").is_some_and(|s| s.get("token_review").is_some()) {
        used.insert("create authentication.k8s.io/tokenreviews".to_owned());
    }
    used
}

/// What a rule of a role allows.
fn right_of(rule: &Value) -> String {
    let all = |field: &str| {
        let all = rule[field].as_array().expect("a list").iter();
        all.map(|v| v.as_str().expect("text")).collect::<Vec<_>>().join(",")
    };
    format!("{} {}/{}", all("verbs"), all("apiGroups"), all("resources"))
}

/// Files that the configuration names.
fn files_of(config: &toml::Table) -> Vec<String> {
    fn texts(value: &toml::Value) -> Vec<String> {
        match value {
            toml::Value::String(text) => vec![text.clone()],
            toml::Value::Array(all) => all.iter().flat_map(texts).collect(),
            toml::Value::Table(table) => table.values().flat_map(texts).collect(),
            _ => Vec::new(),
        }
    }
    config.values().flat_map(texts).filter(|text| text.starts_with('/')).collect()
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
        let key = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(key.path(), [b'k'; 64]).expect("write");
        let config = map["data"]["kvd.toml"].as_str().expect("text");
        let config = config.replace("/etc/kvd-transfers/key", &key.path().display().to_string());
        std::fs::write(file.path(), config).expect("write");
        let set = documents.iter().find(|d| d["kind"] == "StatefulSet").expect("there is one");
        let args = set["spec"]["template"]["spec"]["containers"][0]["args"].as_array().expect("arguments");
        let args = args.iter().map(|a| a.as_str().expect("text")).filter(|a| *a != "serve");
        let args = args.map(|a| match a.strip_prefix("--config=") {
            Some(_) => format!("--config={}", file.path().display()),
            // As the kubelet does.
            None => a.replace("$(POD_NAME)", "kvd-0"),
        });
        let checked =
            std::process::Command::new(env!("CARGO_BIN_EXE_kvd")).arg("check-config").args(args).output();
        let checked = checked.expect("run kvd");
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}
