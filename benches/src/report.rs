//! What is said about many measurements: percentiles, their spread over passes, right or wrong.

use std::fmt::Display;
use std::time::Duration;

/// Which part of the processors others may take in a valid pass.
pub const QUIET: f64 = 0.05;

/// Answers that were checked.
#[derive(Debug, Default)]
pub struct Verdict {
    /// How many.
    pub checked: u64,
    /// How many were wrong.
    pub wrong: u64,
    /// What was wrong with the first of those.
    pub first: Option<String>,
}

impl Verdict {
    /// Takes down one answer; `fault` says what is wrong with it.
    pub fn note(&mut self, fault: Option<String>) {
        self.checked += 1;
        if let Some(fault) = fault {
            self.wrong += 1;
            self.first.get_or_insert(fault);
        }
    }

    /// Takes over what `other` took down.
    pub fn merge(&mut self, other: Verdict) {
        self.checked += other.checked;
        self.wrong += other.wrong;
        self.first = self.first.take().or(other.first);
    }
}

/// `Some` text where `got` is not `want`.
pub fn differs<T: PartialEq + std::fmt::Debug>(what: impl Display, got: T, want: T) -> Option<String> {
    (got != want).then(|| format!("{what}: {got:?}, expected {want:?}"))
}

/// The durations of one pass.
#[derive(Debug, Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_nanos() as u64);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: Latencies) {
        self.0.extend(other.0);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest duration that at least the part `p` (0 to 1) does not exceed, in milliseconds,
    /// for each of `parts`. NaN where there are none.
    pub fn percentiles<const N: usize>(&mut self, parts: [f64; N]) -> [f64; N] {
        self.0.sort_unstable();
        parts.map(|p| {
            let at = (p * self.0.len() as f64).ceil() as usize;
            self.0.get(at.saturating_sub(1)).map_or(f64::NAN, |n| *n as f64 / 1e6)
        })
    }
}

/// One number of every pass.
#[derive(Clone, Debug, Default)]
pub struct Passes(Vec<f64>);

impl Passes {
    /// Adds a pass.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The median; NaN where there is none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => f64::NAN,
            (n, mid) if n % 2 == 1 => sorted[mid],
            (_, mid) => f64::midpoint(sorted[mid - 1], sorted[mid]),
        }
    }

    /// The largest; NaN where there is none.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().reduce(f64::max).unwrap_or(f64::NAN)
    }

    /// Median and range, with `digits` after the point.
    pub fn cell(&self, digits: usize) -> String {
        let min = self.0.iter().copied().reduce(f64::min).unwrap_or(f64::NAN);
        format!("{:.digits$} ({min:.digits$}–{:.digits$})", self.median(), self.max())
    }
}

/// A table in Markdown, printed as it is.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column titles.
    pub fn new<S: Into<String>>(titles: impl IntoIterator<Item = S>) -> Table {
        Table { rows: vec![titles.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints it with the columns lined up.
    pub fn print(&self) {
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
        let widths: Vec<usize> = (0..self.rows[0].len()).map(|c| width(c).unwrap_or(0)).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(s, &w)| format!("{s:<w$}")).collect();
            println!("| {} |", cells.join(" | "));
            if i == 0 {
                println!("|{}|", widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("|"));
            }
        }
    }
}

/// Prints how much of the machine others took, pass by pass at most.
pub fn print_others(others: &Passes) {
    let verdict = if others.max() <= QUIET { "valid" } else { "NOT VALID: the machine was not ours" };
    println!("\nprocessor time taken by others: {} % ({verdict})", Passes(scaled(others)).cell(1));
}

fn scaled(p: &Passes) -> Vec<f64> {
    p.0.iter().map(|v| v * 100.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_values_measured() {
        let mut l = Latencies::default();
        (1..=100).rev().for_each(|ms| l.add(Duration::from_millis(ms)));
        assert_eq!(l.percentiles([0.5, 0.99, 1.0]), [50.0, 99.0, 100.0]);
        assert!(Latencies::default().percentiles([0.5])[0].is_nan());
    }

    #[test]
    fn a_cell_shows_the_median_and_the_range() {
        let mut p = Passes::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|v| p.add(v));
        assert_eq!(p.cell(1), "2.0 (1.0–3.0)");
    }

    #[test]
    fn the_first_wrong_answer_is_kept() {
        let mut v = Verdict::default();
        v.note(None);
        v.note(differs("a", 1, 2));
        v.note(differs("b", 3, 4));
        assert_eq!((v.checked, v.wrong, v.first.as_deref()), (3, 2, Some("a: 1, expected 2")));
    }
}
