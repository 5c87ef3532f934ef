//! The medians as a picture: how long a question takes and how fast blocks come in, stream by stream.
//!
//! A dot for each index on a logarithmic axis; what a reader should see is where kvd's dots lie among
//! the others.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measure::Record;
use crate::report::Line;

const LEFT: f64 = 150.0;
const WIDTH: f64 = 460.0;
const ROW: f64 = 26.0;
const TOP: f64 = 56.0;

/// What one panel shows.
struct Panel {
    title: &'static str,
    value: fn(&Record) -> f64,
}

const PANELS: [Panel; 3] = [
    Panel { title: "question, p50, µs (left is better)", value: |r| r.ask.micros.p50 },
    Panel { title: "question, p99, µs (left is better)", value: |r| r.ask.micros.p99 },
    Panel {
        title: "ingest, M blocks per s of processor time (right is better)",
        value: |r| r.fill.blocks_per_cpu_s / 1e6,
    },
];

/// The picture as SVG.
pub fn plot(lines: &[Line]) -> String {
    let records: Vec<&Record> = lines.iter().filter_map(Line::speed).collect();
    let mut streams: Vec<&str> = Vec::new();
    let mut peers: Vec<&str> = Vec::new();
    for r in &records {
        if !streams.contains(&r.stream.as_str()) {
            streams.push(&r.stream);
        }
        if !peers.contains(&r.peer.as_str()) {
            peers.push(&r.peer);
        }
    }
    let panel_height = TOP + ROW * streams.len() as f64;
    let legend = 20.0 * peers.len() as f64;
    let (width, height) = (LEFT + WIDTH + 190.0, panel_height * PANELS.len() as f64 + 20.0);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>"##,
        height = height.max(legend + TOP)
    );
    for (i, panel) in PANELS.iter().enumerate() {
        draw(panel, &records, &streams, &peers, panel_height * i as f64, &mut out);
    }
    for (i, peer) in peers.iter().enumerate() {
        let (x, y) = (LEFT + WIDTH + 24.0, TOP + 20.0 * i as f64);
        let _ =
            writeln!(out, r#"{}<text x="{}" y="{}">{peer}</text>"#, dot(x, y, peer, i), x + 12.0, y + 4.0);
    }
    out.push_str("</svg>\n");
    out
}

fn draw(panel: &Panel, records: &[&Record], streams: &[&str], peers: &[&str], top: f64, out: &mut String) {
    let mut medians: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for stream in streams {
        for peer in peers {
            let of = records.iter().filter(|r| r.stream == *stream && r.peer == *peer);
            let mut values: Vec<f64> = of.map(|r| (panel.value)(r)).collect();
            values.sort_by(f64::total_cmp);
            if !values.is_empty() {
                let middle = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
                medians.insert((stream, peer), middle);
            }
        }
    }
    let least = medians.values().copied().fold(f64::INFINITY, f64::min).log10().floor();
    let most = medians.values().copied().fold(0.0, f64::max).log10().ceil();
    let x = |v: f64| LEFT + WIDTH * (v.log10() - least) / (most - least).max(1.0);
    let _ = writeln!(out, r#"<text x="{LEFT}" y="{}" font-weight="bold">{}</text>"#, top + 24.0, panel.title);
    let (from, to) = (top + TOP - 14.0, top + TOP + ROW * streams.len() as f64 - 14.0);
    for power in least as i32..=most as i32 {
        let at = x(10f64.powi(power));
        let _ = writeln!(
            out,
            r##"<line x1="{at}" x2="{at}" y1="{from}" y2="{to}" stroke="#ccc"/><text x="{at}" y="{}" fill="#666" text-anchor="middle">{}</text>"##,
            from - 4.0,
            10f64.powi(power)
        );
    }
    for (row, stream) in streams.iter().enumerate() {
        let y = top + TOP + ROW * row as f64;
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" x2="{}" y1="{y}" y2="{y}" stroke="#eee"/><text x="{}" y="{}" text-anchor="end">{stream}</text>"##,
            LEFT + WIDTH,
            LEFT - 10.0,
            y + 4.0
        );
        for (i, peer) in peers.iter().enumerate() {
            if let Some(v) = medians.get(&(*stream, *peer)) {
                let _ = writeln!(out, "{}", dot(x(*v), y, peer, i));
            }
        }
    }
}

/// kvd's are filled and blue, others' are rings of their own colours.
fn dot(x: f64, y: f64, peer: &str, i: usize) -> String {
    const OTHERS: [&str; 6] = ["#c0392b", "#d68910", "#7d3c98", "#616a6b", "#a04000", "#b7950b"];
    const OURS: [&str; 4] = ["#0b3d91", "#2e86c1", "#17a589", "#85c1e9"];
    if peer.starts_with("kvd") {
        format!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{}"><title>{peer}</title></circle>"#,
            OURS[i % 4]
        )
    } else {
        format!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="4.5" fill="none" stroke-width="2" stroke="{}"><title>{peer}</title></circle>"#,
            OTHERS[i % 6]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Effort, run};
    use crate::peers::{kvd, smg};
    use crate::workload::adversarial;

    #[test]
    fn every_index_has_a_dot_in_every_panel_and_one_in_the_legend() {
        let stream = adversarial::stream(3, 500, 1);
        let effort = Effort { questions: 20, passes: 1, expected_blocks: 0 };
        let lines =
            [run::<kvd::ByLocal>("adv", &stream, effort), run::<smg::Chain<false>>("adv", &stream, effort)]
                .map(|r| Line::Speed(Box::new(r)));
        let svg = plot(&lines);
        assert_eq!(svg.matches("<circle").count(), 2 * (PANELS.len() + 1));
        assert!(svg.contains("kvd-local") && svg.contains("smg-chain") && !svg.contains("NaN"));
    }
}
