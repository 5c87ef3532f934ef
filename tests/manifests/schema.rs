//! As much of JSON Schema as `values.schema.json` uses; Helm knows all of it.

use serde_json::{Value, json};

use crate::{deploy, documents, read};

/// Says where `value` is not what `schema` says.
pub fn check(schema: &Value, value: &Value) -> Result<(), String> {
    at("values", schema, value)
}

fn at(path: &str, schema: &Value, value: &Value) -> Result<(), String> {
    let wrong = |why: String| Err(format!("{path}: {why}"));
    for key in schema.as_object().expect("a schema is a map").keys() {
        let known = [
            "$schema",
            "title",
            "type",
            "additionalProperties",
            "properties",
            "required",
            "items",
            "enum",
            "minimum",
            "maximum",
            "minLength",
        ];
        assert!(known.contains(&key.as_str()), "{path}: {key} is not known here");
    }
    if let Some(types) = schema.get("type") {
        let is = |t: &Value| match t.as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            other => panic!("{path}: type {other:?}"),
        };
        let fits = types.as_array().map_or_else(|| is(types), |all| all.iter().any(is));
        if !fits {
            return wrong(format!("{value} is not of type {types}"));
        }
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|all| !all.contains(value)) {
        return wrong(format!("{value} is not among {}", schema["enum"]));
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_i64);
    if let Some(n) = value.as_i64()
        && (number("minimum").is_some_and(|min| n < min) || number("maximum").is_some_and(|max| n > max))
    {
        return wrong(format!("{n} is out of bounds"));
    }
    if let (Some(text), Some(min)) = (value.as_str(), number("minLength"))
        && (text.len() as i64) < min
    {
        return wrong("too short".into());
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        if let Some(items) = schema.get("items") {
            at(&format!("{path}[{i}]"), items, item)?;
        }
    }
    let Some(map) = value.as_object() else { return Ok(()) };
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !map.contains_key(required.as_str().expect("a name")) {
            return wrong(format!("{required} is missing"));
        }
    }
    for (key, inner) in map {
        let path = format!("{path}.{key}");
        match (schema["properties"].get(key), &schema["additionalProperties"]) {
            (Some(property), _) => at(&path, property, inner)?,
            (None, Value::Bool(false)) => return Err(format!("{path} is not known")),
            (None, Value::Object(_)) => at(&path, &schema["additionalProperties"], inner)?,
            (None, _) => {}
        }
    }
    Ok(())
}

fn schema() -> Value {
    serde_json::from_str(&read(&deploy("helm/kvd/values.schema.json"))).expect("JSON")
}

fn values() -> Value {
    documents(&read(&deploy("helm/kvd/values.yaml"))).pop().expect("a document")
}

#[test]
fn the_schema_and_the_values_name_the_same() {
    check(&schema(), &values()).expect("the chart's own values fit");
    let top = schema()["properties"].as_object().expect("a map").keys().cloned().collect::<Vec<_>>();
    let missing: Vec<_> =
        top.iter().filter(|k| *k != "global" && values().get(k.as_str()).is_none()).collect();
    assert!(missing.is_empty(), "values.yaml does not name {missing:?}");
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let refused = |path: &[&str], value: Value| {
        let mut all = values();
        let mut at = &mut all;
        for key in path {
            at = &mut at[*key];
        }
        *at = value;
        check(&schema(), &all).expect_err("it makes no sense")
    };
    assert!(refused(&["replicas"], json!(0)).starts_with("values.replicas: 0"));
    assert!(refused(&["replica"], json!(3)).contains("values.replica is not known"));
    assert!(refused(&["image", "pullPolicy"], json!("Sometimes")).starts_with("values.image.pullPolicy"));
    assert!(refused(&["service", "grpcPort"], json!("50051")).starts_with("values.service.grpcPort"));
    assert!(refused(&["discovery", "pods"], json!([{"label": "x"}])).contains("pods[0].label is not known"));
    assert!(refused(&["discovery", "pods"], json!([{"block_size": 0}])).contains("pods[0].block_size"));
    assert!(refused(&["persistence", "enabled"], json!("yes")).starts_with("values.persistence.enabled"));
}
