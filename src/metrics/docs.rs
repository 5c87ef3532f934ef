//! Do documents, dashboards and alerts name what there is?

use std::fmt::Write;
use std::fs;

use serde_json::Value;

use super::{ALIASES, Kind, Source, all};

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The rows of docs/metrics.md.
fn list() -> String {
    let mut out = String::new();
    for m in all().chain(ALIASES) {
        let labels = match m.source {
            Source::ByPublisher(_) | Source::ErrorTokens(_) => "tenant, model, instance, dp_rank",
            Source::ByVerdict => "tenant, model, instance, dp_rank, verdict",
            Source::ByState => "state",
            Source::BlocksByTier => "tier",
            Source::Build => "version",
            Source::One(_) | Source::QuerySeconds => "",
            Source::Transfers(_) => "see transfers.md",
        };
        writeln!(out, "| `{}` | {} | {labels} | {} |", m.name, m.kind.name(), m.help).unwrap();
    }
    out
}

#[test]
fn the_document_lists_every_metric() {
    let text = read("docs/metrics.md");
    let (head, rest) = text.split_once("<!-- list -->\n").unwrap();
    let (written, tail) = rest.split_once("<!-- end -->").unwrap();
    let wanted = format!("\n| name | kind | labels | what |\n| --- | --- | --- | --- |\n{}\n", list());
    if std::env::var_os("KVD_WRITE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        fs::write(path, format!("{head}<!-- list -->\n{wanted}<!-- end -->{tail}")).unwrap();
        return;
    }
    assert!(written == wanted, "`KVD_WRITE_DOCS=1 cargo test -p kvd --lib metrics` writes the list anew");
}

/// Every word that looks like one of kvd's metrics.
fn named(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| w.starts_with("kvd_") || w.starts_with("kvcache_")).collect()
}

/// Whether there is such a metric, or such a sample of a histogram.
fn exists(name: &str) -> bool {
    all().chain(ALIASES).any(|m| match m.kind {
        Kind::Histogram => {
            ["_bucket", "_sum", "_count", ""].iter().any(|s| name.strip_suffix(s) == Some(m.name))
        }
        Kind::Counter | Kind::Gauge => m.name == name,
    })
}

fn all_exist(path: &str, text: &str, at_least: usize) {
    let names = named(text);
    assert!(names.len() >= at_least, "{path} names {} metrics", names.len());
    for name in names {
        assert!(exists(name), "{path} names {name}, which is not exported");
    }
}

#[test]
fn the_dashboard_shows_only_what_is_exported() {
    let path = "deploy/grafana/kvd.json";
    let dashboard: Value = serde_json::from_str(&read(path)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 10);
    let mut ids = Vec::new();
    for panel in panels {
        ids.push(panel["id"].as_u64().unwrap());
        for target in panel["targets"].as_array().unwrap() {
            all_exist(path, target["expr"].as_str().unwrap(), 1);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
}

/// What a heading is called in an address, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(text: &str) -> Vec<String> {
    text.lines().filter(|l| l.starts_with('#')).map(anchor).collect()
}

#[test]
fn every_alert_is_of_a_metric_and_says_what_to_do() {
    let path = "deploy/prometheus/kvd-alerts.yaml";
    let text = read(path);
    let sections = anchors(&read("docs/troubleshooting.md"));
    let mut alerts = 0;
    for alert in text.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let runbook = alert.lines().find_map(|l| l.trim().strip_prefix("runbook: docs/troubleshooting.md#"));
        let runbook = runbook.unwrap_or_else(|| panic!("{name} has no runbook"));
        assert!(sections.iter().any(|s| s == runbook), "{name}: there is no section {runbook}");
        assert!(alert.contains("severity: ") && alert.contains("summary: "), "{name}");
        // `up` is Prometheus' own.
        all_exist(path, alert, usize::from(name != "KvdDown"));
        alerts += 1;
    }
    assert!(alerts >= 10, "{alerts}");
}

#[test]
fn the_troubleshooting_table_leads_to_its_sections_and_names_what_there_is() {
    let text = read("docs/troubleshooting.md");
    let sections = anchors(&text);
    let links = text.split("](#").skip(1).map(|l| l.split(')').next().unwrap());
    let mut seen = 0;
    for link in links {
        assert!(sections.iter().any(|s| s == link), "there is no section {link}");
        seen += 1;
    }
    assert!(seen >= sections.len() - 1, "every section is in the table");
    // Commands may look for all that begin alike.
    for name in named(&text) {
        let some = all().chain(ALIASES).any(|m| m.name.starts_with(name));
        assert!(some || exists(name), "docs/troubleshooting.md names {name}, which is not exported");
    }
}
