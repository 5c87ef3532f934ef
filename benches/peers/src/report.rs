//! Records of many processes as one table: the median and, in brackets, the least and the most.

use std::fmt::Write;
use std::io::BufRead;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::measure::{Memory, Record};

/// A line of raw results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "lowercase")]
pub enum Line {
    Speed(Box<Record>),
    Memory(Memory),
}

/// Reads raw results, a JSON object per line.
pub fn read(lines: impl BufRead) -> Result<Vec<Line>> {
    let parse = |(i, line): (usize, std::io::Result<String>)| {
        serde_json::from_str(&line?).with_context(|| format!("line {} of the results", i + 1))
    };
    lines.lines().enumerate().map(parse).collect()
}

/// The tables in Markdown.
pub fn tables(lines: &[Line]) -> String {
    let mut out = String::new();
    let speed: Vec<&Record> = lines.iter().filter_map(Line::speed).collect();
    if !speed.is_empty() {
        speed_table(&speed, &mut out);
    }
    let memory: Vec<&Memory> = lines.iter().filter_map(Line::memory).collect();
    if !memory.is_empty() {
        memory_table(&memory, &mut out);
    }
    out
}

impl Line {
    pub fn speed(&self) -> Option<&Record> {
        match self {
            Line::Speed(r) => Some(r),
            Line::Memory(_) => None,
        }
    }

    fn memory(&self) -> Option<&Memory> {
        match self {
            Line::Speed(_) => None,
            Line::Memory(m) => Some(m),
        }
    }
}

fn speed_table(records: &[&Record], out: &mut String) {
    let titles = [
        "stream",
        "index",
        "asked by",
        "ingest, M blocks/s of CPU",
        "query p50, µs",
        "p99, µs",
        "in order p50, µs",
        "p99, µs",
        "reader p99 alone, µs",
        "beside a writer, µs",
        "wrong answers",
    ];
    let _ = writeln!(out, "| {} |", titles.join(" | "));
    let _ = writeln!(out, "|{}", "---|".repeat(titles.len()));
    for group in groups(records, |r| (&r.stream, &r.peer)) {
        let of = |f: &dyn Fn(&Record) -> Option<f64>| cell(group.iter().filter_map(|r| f(r)).collect());
        let (wrong, checked) = group.iter().fold((0, 0), |(w, c), r| (w + r.wrong().0, c + r.wrong().1));
        let cells = [
            group[0].stream.clone(),
            group[0].peer.clone(),
            group[0].key.clone(),
            of(&|r| Some(r.fill.blocks_per_cpu_s / 1e6)),
            of(&|r| Some(r.ask.micros.p50)),
            of(&|r| Some(r.ask.micros.p99)),
            of(&|r| Some(r.replay.micros.p50)),
            of(&|r| Some(r.replay.micros.p99)),
            of(&|r| r.together.as_ref().map(|t| t.alone.p99)),
            of(&|r| r.together.as_ref().map(|t| t.beside.p99)),
            if wrong == 0 { "0".to_owned() } else { format!("**{wrong}** of {checked}") },
        ];
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

fn memory_table(records: &[&Memory], out: &mut String) {
    let _ = writeln!(out, "\n| index | entries | pods per block | live bytes per entry | resident |");
    let _ = writeln!(out, "|---|---|---|---|---|");
    for group in groups(records, |m| (m.entries, m.share, &m.peer)) {
        let _ = writeln!(
            out,
            "| {} | {:.1}M | {} | {} | {} |",
            group[0].peer,
            group[0].entries as f64 / 1e6,
            group[0].share,
            cell(group.iter().map(|m| m.live).collect()),
            cell(group.iter().map(|m| m.resident).collect()),
        );
    }
}

/// Records of equal keys, in the order in which the keys first came.
fn groups<'a, R, K: PartialEq>(records: &[&'a R], key: impl Fn(&'a R) -> K) -> Vec<Vec<&'a R>> {
    let mut out: Vec<(K, Vec<&'a R>)> = Vec::new();
    for r in records {
        let k = key(r);
        match out.iter_mut().find(|(known, _)| *known == k) {
            Some((_, group)) => group.push(r),
            None => out.push((k, vec![r])),
        }
    }
    out.into_iter().map(|(_, group)| group).collect()
}

fn cell(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let digits = |v: f64| if v >= 100.0 { 0 } else { usize::from(v < 10.0) + 1 };
    match values.as_slice() {
        [] => "–".to_owned(),
        [one] => format!("{one:.*}", digits(*one)),
        [least, .., most] => {
            let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
            let d = digits(median);
            format!("{median:.d$} ({least:.d$}–{most:.d$})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_the_median_and_the_range_in_about_three_digits() {
        assert_eq!(cell(vec![0.31, 0.3, 5.0]), "0.31 (0.30–5.00)");
        assert_eq!(cell(vec![2.0, 1.0]), "1.50 (1.00–2.00)");
        assert_eq!(cell(vec![1234.5]), "1234");
        assert_eq!(cell(vec![]), "–");
    }
}
