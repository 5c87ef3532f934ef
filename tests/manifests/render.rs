//! Renders the chart by Go's own templates (`render.go`), where Go is to be had.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::{deploy, documents, read, schema};

/// Go, where it is: named by `KVD_GO` it must be, otherwise it may be missing.
fn go() -> Option<PathBuf> {
    if let Some(go) = std::env::var_os("KVD_GO").filter(|go| !go.is_empty()) {
        return Some(go.into());
    }
    let found = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|s| s.success()).then(|| "go".into())
}

/// Values over others, as Helm lays them.
fn over(base: &mut Value, values: Value) {
    match (base, values) {
        (Value::Object(base), Value::Object(values)) => {
            for (key, value) in values {
                over(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, value) => *base = value,
    }
}

fn yaml(path: &Path) -> Value {
    documents(&read(path)).pop().unwrap_or_else(|| json!({}))
}

/// The chart with its values and those of `values`.
fn render(go: &Path, program: &Path, values: &Path) -> String {
    let chart = deploy("helm/kvd");
    let mut all = yaml(&chart.join("values.yaml"));
    over(&mut all, yaml(values));
    let schema: Value = serde_json::from_str(&read(&chart.join("values.schema.json"))).expect("JSON");
    schema::check(&schema, &all).unwrap_or_else(|why| panic!("{}: {why}", values.display()));
    let described = yaml(&chart.join("Chart.yaml"));
    let input = json!({
        "Values": all,
        "Release": {"Name": "kvd", "Namespace": "kvd", "Service": "Helm"},
        "Chart": {"Name": described["name"], "Version": described["version"], "AppVersion": described["appVersion"]},
    });
    let mut child = Command::new(go)
        .args([Path::new("run"), program, &chart])
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start go");
    child.stdin.take().expect("piped").write_all(input.to_string().as_bytes()).expect("write");
    let out = child.wait_with_output().expect("wait");
    assert!(out.status.success(), "{}: the chart cannot be rendered", values.display());
    String::from_utf8(out.stdout).expect("text")
}

/// `KVD_WRITE_MANIFESTS=1 cargo test --test manifests` writes them.
#[test]
fn what_is_rendered_is_what_the_chart_gives() {
    let Some(go) = go() else {
        eprintln!(
            "not rendered again: there is no go; what was rendered before is checked by the other tests"
        );
        return;
    };
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/render.go");
    for name in ["default", "guarded", "everywhere", "selected", "shared"] {
        let folder = deploy("helm/kvd/ci");
        let text = render(&go, &program, &folder.join(format!("{name}-values.yaml")));
        let path = folder.join(format!("{name}.rendered.yaml"));
        if std::env::var_os("KVD_WRITE_MANIFESTS").is_some() {
            std::fs::write(&path, &text).expect("write");
        }
        assert_eq!(read(&path), text, "{} is not what the chart gives", path.display());
    }
}
