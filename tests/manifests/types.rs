//! Is a manifest what Kubernetes' types say? Read as its type and written again, it must be the same: a field that the type
//! does not have is lost on the way.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Says what is wrong.
pub fn check(document: &Value) -> Result<(), String> {
    let text = |field: &str| document[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("apps/v1", "StatefulSet") => of::<StatefulSet>(document),
        ("v1", "Service") => of::<Service>(document),
        ("v1", "ServiceAccount") => of::<ServiceAccount>(document),
        ("v1", "ConfigMap") => of::<ConfigMap>(document),
        ("v1", "Namespace") => of::<Namespace>(document),
        ("policy/v1", "PodDisruptionBudget") => of::<PodDisruptionBudget>(document),
        ("networking.k8s.io/v1", "NetworkPolicy") => of::<NetworkPolicy>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => of::<Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => of::<RoleBinding>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => of::<ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => of::<ClusterRoleBinding>(document),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => monitor(document),
        other => Err(format!("no such type: {other:?}")),
    }
}

fn of<T: Serialize + DeserializeOwned>(document: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(document.clone()).map_err(|e| e.to_string())?;
    let again = serde_json::to_value(typed).map_err(|e| e.to_string())?;
    match difference("", document, &again) {
        Some(where_) => Err(format!("{where_} is not what the type says")),
        None => Ok(()),
    }
}

/// The first path that both do not say alike.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys());
            keys.into_iter().find_map(|key| {
                let path = format!("{path}.{key}");
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => difference(&path, a, b),
                    _ => Some(path),
                }
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        (a, b) if a == b => None,
        _ => Some(path.to_owned()),
    }
}

/// The operator's type is not among Kubernetes' own: the fields that the chart uses, as its API describes them.
fn monitor(document: &Value) -> Result<(), String> {
    let known = |value: &Value, path: &str, keys: &[&str]| -> Result<(), String> {
        let map = value.as_object().ok_or_else(|| format!("{path} is no map"))?;
        match map.keys().find(|k| !keys.contains(&k.as_str())) {
            Some(key) => Err(format!("{path}.{key} is not known")),
            None => Ok(()),
        }
    };
    known(document, "", &["apiVersion", "kind", "metadata", "spec"])?;
    let spec = &document["spec"];
    known(spec, ".spec", &["selector", "namespaceSelector", "endpoints"])?;
    if let Some(selector) = spec.get("namespaceSelector") {
        known(selector, ".spec.namespaceSelector", &["any", "matchNames"])?;
    }
    for endpoint in spec["endpoints"].as_array().ok_or(".spec.endpoints is no list")? {
        let keys = [
            "port",
            "path",
            "interval",
            "scrapeTimeout",
            "scheme",
            "tlsConfig",
            "authorization",
            "relabelings",
        ];
        known(endpoint, ".spec.endpoints[]", &keys)?;
        for relabeling in endpoint["relabelings"].as_array().into_iter().flatten() {
            known(
                relabeling,
                ".relabelings[]",
                &["sourceLabels", "regex", "action", "targetLabel", "replacement"],
            )?;
        }
        if let Some(tls) = endpoint.get("tlsConfig") {
            known(tls, ".tlsConfig", &["ca", "cert", "keySecret", "serverName", "insecureSkipVerify"])?;
        }
        if let Some(authorization) = endpoint.get("authorization") {
            known(authorization, ".authorization", &["type", "credentials"])?;
            known(&authorization["credentials"], ".authorization.credentials", &["name", "key", "optional"])?;
        }
    }
    Ok(())
}
