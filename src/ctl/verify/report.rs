//! What came out of a check, for people and for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;

use crate::ctl::capture::Exclusion;
use crate::ctl::term::{Align, Cell, Paint, Table};

/// Mismatches of one capture that are written out; `--json` has them all.
const SHOWN: usize = 10;

/// What a check of one capture found.
#[derive(Debug, Default)]
pub struct Report {
    /// The capture's name.
    pub name: String,
    /// Requests answered as the engine did.
    pub exact: usize,
    /// Cached tokens that kvd said, over the requests that were compared.
    pub predicted: u64,
    /// Cached tokens that the engine said, over the same requests.
    pub reported: u64,
    /// Requests left out, by reason.
    pub excluded: BTreeMap<Exclusion, usize>,
    /// Requests answered otherwise.
    pub mismatches: Vec<Mismatch>,
    /// Why the check could not be finished.
    pub error: Option<String>,
}

/// A request answered otherwise than the engine did.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Index of the step in the capture.
    pub step: usize,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// What kvd said, tokens; `None` = it did not speak of the publisher.
    pub predicted: Option<u64>,
    /// What the engine said, tokens.
    pub reported: u64,
}

impl Report {
    /// Requests that were compared.
    pub fn compared(&self) -> usize {
        self.exact + self.mismatches.len()
    }

    /// Whether every request compared was exact and the check was finished.
    pub fn passed(&self) -> bool {
        self.mismatches.is_empty() && self.error.is_none()
    }
}

/// Writes one JSON object per capture and one for the total.
pub fn write_json(out: &mut dyn Write, reports: &[Report], without_truth: usize) -> io::Result<()> {
    for r in reports {
        let mismatches = r.mismatches.iter().map(|m| {
            json!({"step": m.step, "prompt_tokens": m.prompt_tokens,
                   "predicted": m.predicted, "reported": m.reported})
        });
        let excluded: BTreeMap<_, _> = r.excluded.iter().map(|(e, n)| (e.reason(), n)).collect();
        let line = json!({
            "capture": r.name, "exact": r.exact, "total": r.compared(),
            "predicted_tokens": r.predicted, "reported_tokens": r.reported, "excluded": excluded,
            "mismatches": mismatches.collect::<Vec<_>>(), "error": r.error,
        });
        writeln!(out, "{line}")?;
    }
    let (exact, total) = totals(reports);
    let passed = reports.iter().all(Report::passed);
    let line = json!({
        "exact": exact, "total": total, "captures": reports.len(),
        "without_truth": without_truth, "passed": passed,
    });
    writeln!(out, "{line}")
}

/// Writes a table, the mismatches below it, and the total.
pub fn write_table(
    out: &mut dyn Write,
    reports: &[Report],
    without_truth: usize,
    paint: Paint,
    width: usize,
) -> io::Result<()> {
    let columns = [
        ("capture", Align::Left),
        ("exact", Align::Right),
        ("predicted", Align::Right),
        ("reported", Align::Right),
        ("left out, because", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for r in reports {
        let excluded: Vec<_> = r.excluded.iter().map(|(e, n)| format!("{n} {}", e.reason())).collect();
        let paint = if r.passed() { Paint::good } else { Paint::bad };
        let exact = format!("{}/{}", r.exact, r.compared());
        table.row([
            r.name.as_str().into(),
            Cell::painted(exact, paint),
            r.predicted.into(),
            r.reported.into(),
            excluded.join(", ").into(),
        ]);
    }
    table.write(out, paint, width)?;
    for r in reports.iter().filter(|r| !r.passed()) {
        writeln!(out)?;
        for m in r.mismatches.iter().take(SHOWN) {
            let predicted = m.predicted.map_or("no answer".into(), |n| n.to_string());
            let line = format!(
                "{} step {}: prompt of {} tokens, predicted {predicted}, engine reported {}",
                r.name, m.step, m.prompt_tokens, m.reported
            );
            writeln!(out, "{}", paint.bad(&line))?;
        }
        if r.mismatches.len() > SHOWN {
            writeln!(out, "{} {} more, see --json", r.name, r.mismatches.len() - SHOWN)?;
        }
        if let Some(error) = &r.error {
            writeln!(out, "{}", paint.bad(&format!("{} not finished: {error}", r.name)))?;
        }
    }
    let (exact, total) = totals(reports);
    let left_out: usize = reports.iter().flat_map(|r| r.excluded.values()).sum();
    writeln!(
        out,
        "\n{} exact, {left_out} left out; {} captures compared, {without_truth} without reported counts",
        paint.bold(&format!("{exact}/{total}")),
        reports.len()
    )
}

fn totals(reports: &[Report]) -> (usize, usize) {
    (reports.iter().map(|r| r.exact).sum(), reports.iter().map(Report::compared).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> Vec<Report> {
        let good = Report {
            name: "a".into(),
            exact: 3,
            predicted: 96,
            reported: 96,
            excluded: BTreeMap::from([(Exclusion::Concurrent, 2), (Exclusion::ResetDelay, 1)]),
            ..Report::default()
        };
        let mismatch = Mismatch { step: 4, prompt_tokens: 65, predicted: Some(48), reported: 64 };
        let bad = Report {
            name: "b".into(),
            exact: 1,
            predicted: 48,
            reported: 64,
            mismatches: vec![mismatch],
            ..Report::default()
        };
        vec![good, bad]
    }

    #[test]
    fn the_table_says_which_request_differs_and_by_how_much() {
        let mut out = Vec::new();
        write_table(&mut out, &reports(), 5, Paint::none(), 80).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "capture  exact  predicted  reported  left out, because\n\
             a          3/3         96        96  2 concurrent, 1 reset delay\n\
             b          1/2         48        64\n\
             \n\
             b step 4: prompt of 65 tokens, predicted 48, engine reported 64\n\
             \n\
             4/5 exact, 3 left out; 2 captures compared, 5 without reported counts\n"
        );
    }

    #[test]
    fn json_has_an_object_per_capture_and_a_total() {
        let mut out = Vec::new();
        write_json(&mut out, &reports(), 5).unwrap();
        let lines: Vec<serde_json::Value> = out
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["excluded"], json!({"concurrent": 2, "reset delay": 1}));
        assert_eq!(lines[1]["mismatches"][0]["predicted"], 48);
        assert_eq!((&lines[2]["exact"], &lines[2]["passed"]), (&json!(4), &json!(false)));
    }
}
